"""Which photos a results folder was made of: a configuration of others must not overwrite hours of work unasked.

Only light imports: this runs each time Snakemake parses the workflow.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fieldmark.config import ConfigError

RECORD = Path("results/data/source.json")
MANIFEST = Path("results/data/manifest.parquet")


def source_of(config: Mapping[str, Any]) -> dict[str, str | None]:
    """The keys that say which photos these are: the folder, and of torchvision's, which share one, the set."""
    return {key: config["data"][key] for key in ("format", "root", "dataset")}


def check_source(config: Mapping[str, Any], folder: Path = Path()) -> None:
    """Refuse to plan one data set into the results of another.

    Args:
        config: as resolved.
        folder: where ``results/`` lies.

    Raises:
        ConfigError: if the results there are of other photos; it tells whose they are, and how to go on.
    """
    record = folder / RECORD
    if not (folder / MANIFEST).is_file():
        return
    before, now = _recorded(record), source_of(config)
    if before is not None and before != now:
        raise ConfigError(
            f"results/ were made of {_shown(before)}, but this configuration is of {_shown(now)}. Give the "
            "--configfile of that run, or a folder of its own to this one (--directory). If the photos were moved, or "
            f"these results are to be replaced, delete {record} first"
        )


def record_source(config: Mapping[str, Any], folder: Path = Path()) -> None:
    """Write down which photos the results in ``folder`` are made of, unless it is written there; atomically.

    Raises:
        OSError: if it cannot be written; nothing is left behind.
    """
    record, now = folder / RECORD, source_of(config)
    if _recorded(record) == now:
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    unfinished = record.with_name(f".{record.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(now) + "\n", encoding="utf-8")
        unfinished.replace(record)
    finally:
        unfinished.unlink(missing_ok=True)


def _recorded(record: Path) -> dict[str, str | None] | None:
    """What the record says; None if there is none, or it is damaged: it protects results, and must not bar them."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.keys() == {"format", "root", "dataset"} else None


def _shown(source: Mapping[str, str | None]) -> str:
    return f"{source['dataset'] or source['root']} (data.format: {source['format']})"
