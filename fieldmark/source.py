"""Where a run's photos and files come from: they must be there, and be those that the results folder was made of.

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


def annotations_of(data: Mapping[str, Any]) -> dict[str, str]:
    """The files of a data set that say what its photos show, by the keys that name them; none for folders."""
    if data["format"] in ("demo", "folder", "torchvision"):
        return {}
    given = data["annotations"] or ("annotation_v2.json" if data["format"] == "semi_inat" else {})
    named = {"data.annotations": given} if isinstance(given, str) else {}
    if not isinstance(given, str):
        named |= {f"data.annotations.{split}": name for split, name in given.items()}
        named |= {f"data.locations.{split}": name for split, name in (data["locations"] or {}).items()}
    return {key: str(Path(data["root"]) / name) for key, name in named.items()}


def check_files(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that names files which are not there.

    Where a job's results are there, Snakemake does not run it again for a missing input, and would go on with them.

    Args:
        config: as resolved.

    Raises:
        ConfigError: lists the files with their keys.
    """
    data, detection = config["data"], config["detection"]
    named = annotations_of(data)
    # The demo draws its own.
    if data["truth"] and data["format"] != "demo":
        named["data.truth"] = data["truth"]
    weights = {f"models.{name}.weights": model["weights"] for name, model in config["models"].items()}
    if detection["method"] == "detector" and detection["detector"]:
        named["detection.detector"] = detection["detector"]
    elif detection["method"] != "none":
        weights["detection.weights"] = detection["weights"]
    named |= {key: name for key, name in weights.items() if name not in ("package", "hub", "none")}
    absent = {key: Path(name).resolve() for key, name in named.items() if not Path(name).is_file()}
    missing = [f"{key}: no such file: {path}" for key, path in absent.items()]
    if missing:
        raise ConfigError("the configuration names files that are not there:\n  " + "\n  ".join(missing))


def _recorded(record: Path) -> dict[str, str | None] | None:
    """What the record says; None if there is none, or it is damaged: it protects results, and must not bar them."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.keys() == {"format", "root", "dataset"} else None


def _shown(source: Mapping[str, str | None]) -> str:
    return f"{source['dataset'] or source['root']} (data.format: {source['format']})"
