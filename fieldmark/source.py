"""Which photos a results folder was made of: a configuration of others must not overwrite hours of work unasked.

Only light imports: this runs each time Snakemake parses the workflow.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fieldmark.config import ConfigError

RECORD = Path("results/data/source.json")
MANIFEST = Path("results/data/manifest.parquet")


def source_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The keys that say which photos these are."""
    return {key: str(config["data"][key]) for key in ("format", "root")}


def check_source(config: Mapping[str, Any], folder: Path = Path()) -> None:
    """Refuse to plan one data set into the results of another.

    Args:
        config: as resolved.
        folder: where ``results/`` lies.

    Raises:
        ConfigError: if the results there are of other photos; it tells whose they are, and how to go on.
    """
    record = folder / RECORD
    if not record.is_file() or not (folder / MANIFEST).is_file():
        return
    before, now = json.loads(record.read_text(encoding="utf-8")), source_of(config)
    if before != now:
        raise ConfigError(
            f"results/ were made of {before['root']} (data.format: {before['format']}), but this configuration is of "
            f"{now['root']} ({now['format']}). Give the --configfile of that run, or a folder of its own to this one "
            f"(--directory). If these results are to be replaced, delete {record} first"
        )


def record_source(config: Mapping[str, Any], folder: Path = Path()) -> None:
    """Write down which photos the results in ``folder`` are made of."""
    record = folder / RECORD
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(source_of(config)) + "\n", encoding="utf-8")
