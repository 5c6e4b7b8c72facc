"""The comparison of docs/evidence.md: the workflow and every reference model, for several seeds, then the tables.

make evidence CONFIGFILES="configs/grocery.yaml mine.yaml" SEEDS="1 2 3"

Each seed has a folder of its own, so an interrupted comparison goes on where it was. Paths in the configuration files
must be absolute.
"""

import sys
from pathlib import Path

import yaml
from snakemake.utils import update_config

PROJECT = Path(workflow.basedir).parent
sys.path.insert(0, str(PROJECT))

from fieldmark.config import resolve

CONFIGFILES = [str(Path(name).resolve()) for name in str(config.get("configfiles", "")).split()]
SEEDS = str(config.get("seeds", "1 2 3")).split()
REFERENCES = str(config.get("references", "oracle long naive fixmatch freematch")).split()
RECIPES = str(config.get("recipes", "layerwise two_stage")).split()
# Threads of each run; as many runs go side by side as the cores allow.
THREADS = int(config.get("threads", 1))

settings = {}
for name in [PROJECT / "config.yaml", *CONFIGFILES]:
    update_config(settings, yaml.safe_load(Path(name).read_text(encoding="utf-8")))
MODEL = next(iter(resolve(settings)["models"]))


wildcard_constraints:
    seed=r"\d+",


rule compare_seeds:
    default_target: True
    input:
        runs=expand("seed{seed}/results/evaluation/scores.parquet", seed=SEEDS),
        references=expand(
            "seed{seed}/results/references/{reference}/{model}/{recipe}/predictions.parquet",
            seed=SEEDS,
            reference=REFERENCES,
            model=MODEL,
            recipe=RECIPES,
        ),
    output:
        "evidence.md",
    params:
        python=sys.executable,
        project=PROJECT,
        files=" ".join(f"--configfile {name}" for name in CONFIGFILES),
        folders=expand("seed{seed}/results", seed=SEEDS),
    shell:
        "PYTHONPATH={params.project} {params.python} -m benchmarks.seeds {params.files} {params.folders} > {output}"


rule write_seed:
    output:
        "seed{seed}/seed.yaml",
    shell:
        "echo 'seed: {wildcards.seed}' > {output}"


rule run_workflow:
    input:
        seed="seed{seed}/seed.yaml",
    output:
        "seed{seed}/results/evaluation/scores.parquet",
    log:
        "seed{seed}/workflow.log",
    threads: THREADS
    params:
        python=sys.executable,
        snakefile=PROJECT / "Snakefile",
        profile=PROJECT / "profiles/default",
        files=CONFIGFILES,
    shell:
        "{params.python} -m snakemake -s {params.snakefile} --workflow-profile {params.profile} --cores {threads} "
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
        python=sys.executable,
        project=PROJECT,
        files=" ".join(f"--configfile {name}" for name in CONFIGFILES),
    shell:
        "cd seed{wildcards.seed} && PYTHONPATH={params.project} {params.python} -m benchmarks.references {params.files} "
        "--configfile seed.yaml --reference {wildcards.reference} --model {wildcards.model} "
        "--recipe {wildcards.recipe} --threads {threads} > ../{log} 2>&1"
