"""Draw the built-in demo set: photos, iNat-style JSON and the truth table for scoring."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

from pathlib import Path

from fieldmark.demo import generate_demo

if "snakemake" in globals():
    generate_demo(
        root=Path(snakemake.output.photos).parent,
        **snakemake.params.settings,
        workers=snakemake.threads,
    )
