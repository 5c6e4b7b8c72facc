"""The least that a configuration must say, and what is said about changes to it."""

from typing import Any

import pytest

from fieldmark.config import ConfigError, resolve


def new_phase() -> dict[str, Any]:
    """The least that a phase must say; a new one for each test, since :func:`resolve` writes defaults into it."""
    return {"steps": 5, "learning_rate": 0.001}


def minimal() -> dict[str, Any]:
    """The least that a configuration must say."""
    return {
        "data": {"format": "folder", "root": "photos"},
        "models": {"m": {"backbone": "resnet18", "image_size": 64, "recipes": ["plain"]}},
        "pretrain": {"phases": [new_phase()]},
        "guide": {"phases": [new_phase()]},
        "refine": {"phases": [new_phase()]},
        "recipes": {"plain": {"phases": [new_phase()]}},
    }


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set the entry at a path such as ``pretrain.phases.0.steps``."""
    *parents, last = path.split(".")
    for name in parents:
        config = config[int(name)] if isinstance(config, list) else config.setdefault(name, {})
    config[last] = value


def problems(**entries: Any) -> str:
    """What :func:`resolve` says about the minimal configuration with some entries replaced."""
    config = minimal()
    for path, value in entries.items():
        put(config, path.replace("__", "."), value)
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    return str(caught.value)
