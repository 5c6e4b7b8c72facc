"""The comparison of docs/evidence.md: the workflow, every reference and every ablation, for several seeds.

make evidence SET=grocery CONFIGFILES="configs/grocery.yaml mine.yaml" SEEDS="1 2 3" RECIPES="layerwise two_stage"

Each seed has a folder of its own, so an interrupted comparison goes on where it was, and what it found is copied to
docs/evidence/SET, from which the page is written. data.root and data.truth may be relative to the project's folder; other
paths in the configuration files must be absolute.
"""

import json
import sys
from pathlib import Path

PROJECT = Path(workflow.basedir).parent.parent
sys.path.insert(0, str(PROJECT))

from benchmarks.accuracy.ablations import applicable, judged_recipe
from benchmarks.accuracy.methods import PHOTOS_ALONE, REFERENCES
from benchmarks.configuration import read_config
from fieldmark.fingerprint import fingerprint


def listed(name, default):
    """The words of a config value; all of the defaults if it is not given, and no word if it is ``none``."""
    value = config.get(name)
    return [word for word in (list(default) if value is None else str(value).split()) if word != "none"]


CONFIGFILES = [str(Path(name).resolve()) for name in listed("configfiles", [])]
settings = read_config(CONFIGFILES)
if settings["track"] != "semi_supervised" or not (settings["data"]["truth"] or settings["data"]["openset"]):
    sys.exit("the comparison needs track: semi_supervised, and data.truth or data.openset, to score with")

SEEDS = listed("seeds", [1, 2, 3])
MODEL = next(iter(settings["models"]))
RECIPES = listed("recipes", settings["models"][MODEL]["recipes"][:1])
ABLATIONS = listed("ablations", applicable(settings))
# A taxonomy loss needs a taxonomy, and some methods cannot look at crops.
LEFT_OUT = [] if settings["data"]["coarse_taxa"] else ["taxonomy"]
LEFT_OUT += [] if settings["models"][MODEL]["streams"] == "photo" else PHOTOS_ALONE
METHODS = listed("references", [name for name in REFERENCES if name not in LEFT_OUT])
# Threads of each job; as many jobs go side by side as the cores allow.
THREADS = int(config.get("threads", 1))
SET = str(config.get("set", "demo"))
TABLES = Path(config.get("tables", PROJECT / "docs/evidence"))
# The runs have working folders of their own. The demo draws its photos there.
OWN = {} if settings["data"]["format"] == "demo" else settings["data"]
PLACES = {key: str(PROJECT / OWN[key]) for key in ("root", "truth") if OWN.get(key)}
FILES = " ".join(f"--configfile {name}" for name in CONFIGFILES)
PYTHON = f"PYTHONPATH={PROJECT} {sys.executable}"


wildcard_constraints:
    seed=r"\d+",


# Without outputs of its own: a page that is there already is of other sets and seeds, too.
rule write_page:
    default_target: True
    input:
        expand("seed{seed}/tables/{table}.parquet", seed=SEEDS, table=["accuracy", "unlabeled"]),
    params:
        seeds=SEEDS,
    shell:
        "for seed in {params.seeds}; do mkdir -p {TABLES}/{SET}/seed$seed; "
        "cp seed$seed/tables/*.parquet {TABLES}/{SET}/seed$seed; done; "
        "{PYTHON} -m benchmarks.accuracy.page {TABLES}"


rule write_seed:
    output:
        "seed{seed}/seed.yaml",
    params:
        text=lambda wildcards: json.dumps({"seed": int(wildcards.seed), "data": PLACES}),
    shell:
        "printf '%s\\n' {params.text:q} > {output}"


rule run_workflow:
    input:
        seed="seed{seed}/seed.yaml",
    output:
        "seed{seed}/results/evaluation/scores.parquet",
    log:
        "seed{seed}/workflow.log",
    # All else waits for it, so that it may have what the other seeds leave.
    threads: max(THREADS, (workflow.cores or 1) // len(SEEDS))
    params:
        snakefile=PROJECT / "Snakefile",
        profile=PROJECT / "profiles/default",
        files=CONFIGFILES,
        # The workflow itself makes only what changed.
        settings=repr(settings),
        code=[fingerprint(path.stem) for path in sorted(PROJECT.glob("workflow/scripts/*.py"))],
    shell:
        "{PYTHON} -m snakemake -s {params.snakefile} --workflow-profile {params.profile} --cores {threads} "
        "--directory seed{wildcards.seed} --configfile {params.files} {input.seed} "
        "-- results/evaluation/scores.parquet > {log} 2>&1"


rule train_reference:
    input:
        seed="seed{seed}/seed.yaml",
        run="seed{seed}/results/evaluation/scores.parquet",
    output:
        "seed{seed}/results/references/{reference}/{model}/{recipe}/predictions.parquet",
    log:
        "seed{seed}/{reference}_{model}_{recipe}.log",
    threads: THREADS
    params:
        code=fingerprint(PROJECT / "benchmarks/accuracy/references.py"),
    shell:
        "cd seed{wildcards.seed} && {PYTHON} -m benchmarks.accuracy.references {FILES} "
        "--configfile seed.yaml --reference {wildcards.reference} --model {wildcards.model} "
        "--recipe {wildcards.recipe} --threads {threads} > ../{log} 2>&1"


rule run_ablation:
    input:
        seed="seed{seed}/seed.yaml",
        run="seed{seed}/results/evaluation/scores.parquet",
    output:
        directory("seed{seed}/ablations/{ablation}/{model}/{recipe}"),
    log:
        "seed{seed}/{ablation}_{model}_{recipe}.log",
    threads: THREADS
    params:
        code=fingerprint(PROJECT / "benchmarks/accuracy/ablations.py"),
    shell:
        "{PYTHON} -m benchmarks.accuracy.ablations {FILES} --configfile {input.seed} --ablation {wildcards.ablation} "
        "--folder seed{wildcards.seed} --output {output} --cores {threads} > {log} 2>&1"


def ablation_folders(wildcards):
    """What the ablations of a seed leave."""
    return [f"seed{wildcards.seed}/ablations/{name}/{MODEL}/{judged_recipe(name, settings)}" for name in ABLATIONS]


rule collect_seed:
    input:
        ablation_folders,
        "seed{seed}/results/evaluation/scores.parquet",
        expand(
            "seed{{seed}}/results/references/{reference}/{model}/{recipe}/predictions.parquet",
            reference=METHODS,
            model=MODEL,
            recipe=RECIPES,
        ),
    output:
        expand("seed{{seed}}/tables/{table}.parquet", table=["accuracy", "unlabeled"]),
    threads: THREADS
    params:
        code=fingerprint(PROJECT / "benchmarks/accuracy/collect.py"),
    shell:
        "cd seed{wildcards.seed} && {PYTHON} -m benchmarks.accuracy.collect {FILES} "
        "--configfile seed.yaml --output tables --threads {threads}"
