"""What comparisons need of a configuration: its files laid over one another, and where the truth of a run is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from snakemake.utils import update_config

from fieldmark.config import resolve

PROJECT = Path(__file__).resolve().parent.parent


def read_config(files: Sequence[str | Path]) -> dict[str, Any]:
    """``config.yaml`` with files laid over it in their order, as Snakemake does, checked and with its defaults.

    Raises:
        fieldmark.config.ConfigError: if it cannot be used.
    """
    config: dict[str, Any] = {}
    for file in [PROJECT / "config.yaml", *files]:
        update_config(config, yaml.safe_load(Path(file).read_text(encoding="utf-8")))
    return resolve(config)


def truth_file(config: Mapping[str, Any], results: Path) -> str:
    """The table of true classes that a run is scored with; open-set splits make it themselves.

    Raises:
        ValueError: if nothing is known.
    """
    if config["data"]["openset"]:
        return str(results / "data" / "truth.csv")
    if not config["data"]["truth"]:
        raise ValueError("data.truth: expected a table of true classes, to score with; found null")
    return str(config["data"]["truth"])
