"""fieldmark: a few labeled photos and many unlabeled ones into a fine-grained image classifier."""

import hashlib
import os
import re
import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")

from fieldmark.config import ConfigError, in_order, model_settings, resolve, stage_settings
from fieldmark.fingerprint import fingerprint


# Beside this file, so that a run may have its results in any folder: snakemake -s …/Snakefile --directory there
configfile: Path(workflow.basedir) / "config.yaml"


try:
    resolve(config)
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
        "results/model/ensemble.safetensors",
    localrule: True
