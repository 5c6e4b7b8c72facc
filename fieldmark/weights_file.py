"""Files of weights that say what network they are of: ``.safetensors``, with a description as JSON in the metadata.

The description is one entry: safetensors writes several in an order that changes from run to run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fieldmark.artifacts import ArtifactError, write_atomically


def save_weights(target: str | Path, kind: str, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and what they are to one file, atomically.

    Args:
        target: the file.
        kind: names the description; a reader asks for it.
        description: what JSON can hold.
        tensors: on any device.
    """
    metadata = {kind: json.dumps(description, sort_keys=True)}
    state = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    write_atomically(Path(target), lambda path: safetensors.torch.save_file(state, path, metadata))


def load_weights(source: str | Path, kind: str, remedy: str) -> tuple[Any, dict[str, Tensor]]:
    """Read what :func:`save_weights` wrote: the description, and the tensors, on the CPU.

    Raises:
        ArtifactError: if the file is missing, damaged or not of this kind; it ends with the ``remedy``.
    """
    try:
        with safetensors.safe_open(str(source), framework="pt") as opened:
            metadata = opened.metadata() or {}
            if kind not in metadata:
                raise ArtifactError(f"{source}: no {kind} in its metadata, so not what was expected here; {remedy}")
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
        return json.loads(metadata[kind]), tensors
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{source}: missing or damaged model file ({error}); {remedy}") from error
