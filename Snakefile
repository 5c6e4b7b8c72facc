"""fieldmark: a few labeled photos and many unlabeled ones into a fine-grained image classifier."""

import hashlib
import math
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import min_version

min_version("9.27")

from fieldmark.config import ConfigError, in_order, model_settings, resolve, stage_settings, threads_and_gpus
from fieldmark.fingerprint import fingerprint
from fieldmark.source import RECORD, annotations_of, check_files, check_source, record_source


# Beside this file, so that a run may have its results in any folder: snakemake -s …/Snakefile --directory there
configfile: Path(workflow.basedir) / "config.yaml"


try:
    resolve(config)
    check_source(config)
    check_files(config)
except ConfigError as problem:
    sys.exit(str(problem))


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/detect.smk"
include: "workflow/rules/predict.smk"


rule all:
    default_target: True
    input:
        "results/submission.csv",
        "results/report.html",
        *(["results/unlabeled.csv"] if ROUNDS else []),
        "results/model/ensemble.safetensors",
    localrule: True


onstart:
    # Found out job by job, this would show as a traceback of Snakemake's.
    if not os.access("results" if Path("results").is_dir() else ".", os.W_OK):
        raise WorkflowError(
            "results/ cannot be written: its file system is read-only, or its permissions forbid it. Mount it for "
            "writing, or run in a copy of the project that you may write to. Nothing has been changed"
        )
    if workflow.non_local_exec and config["resources"]["gpus"] == "auto":
        raise WorkflowError(
            "resources.gpus: expected a number, because jobs run on other machines: auto looks at the one that Snakemake "
            "was started on. Write how many a node has, or 0 to train on CPUs"
        )
    # None where nothing limits them, as on a cluster.
    offered = getattr(workflow.global_resources.get("gpu"), "value", None)
    if offered is not None and GPUS > offered:
        logger.warning(
            f"resources.gpus: of the {GPUS} GPUs for each training job, Snakemake has {offered} to hand out. If this "
            f"machine has more, add --resources gpu={GPUS}"
        )
    try:
        record_source(config)
    except OSError as problem:
        logger.warning(f"{RECORD}: {problem.strerror}; a run on other photos will not be refused here")
