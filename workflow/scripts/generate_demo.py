"""Draw the built-in demo set: photos, iNat-style JSON and the truth table for scoring."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from pathlib import Path

from fieldmark.demo import generate_demo

if "snakemake" in globals():
    generate_demo(
        root=Path(snakemake.output.photos).parent,
        seed=snakemake.params.seed,
        families=snakemake.params.families,
        genera_per_family=snakemake.params.genera_per_family,
        species_per_genus=snakemake.params.species_per_genus,
        in_class_share=snakemake.params.in_class_share,
        labeled_per_class=tuple(snakemake.params.labeled_per_class),
        unlabeled=snakemake.params.unlabeled,
        foreign_share=snakemake.params.foreign_share,
        val_per_class=snakemake.params.val_per_class,
        test_per_class=snakemake.params.test_per_class,
        side=snakemake.params.side,
        workers=snakemake.threads,
    )
