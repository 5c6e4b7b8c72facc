"""The classifier: a timm backbone, an embedding layer (neck), what is known beside, a head; its weights on disk."""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, cast

import safetensors
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from fieldmark.arcface import LINEAR, CosineHead, HeadSettings
from fieldmark.artifacts import ArtifactError
from fieldmark.depthwise import small_maps_are_slow, speed_up_small_maps
from fieldmark.fusion import MetadataFusion
from fieldmark.metadata import NO_METADATA, MetadataSettings
from fieldmark.pretrained import WeightsError, pretrained_backbone
from fieldmark.prototypes import PrototypeBlend
from fieldmark.weights_file import load_weights, save_weights

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
# Names the architecture in the metadata of a model file.
DESCRIPTION = "architecture"

Streams = Literal["photo", "photo_and_crop"]
_NESTED = {"head": HeadSettings, "metadata": MetadataSettings}


class _Described:
    """Dataclasses that come from plain mappings, of the config or of a model file."""

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Self:
        """Build from a mapping whose nested parts are mappings as well."""
        return cls(**{key: _NESTED[key](**value) if key in _NESTED else value for key, value in description.items()})


@dataclass(frozen=True)
class ModelSettings(_Described):
    """One entry of ``models:`` in the config; see there."""

    backbone: str
    weights: str
    image_size: int
    embedding: int = 0
    dropout: float = 0.0
    drop_path: float = 0.0
    head: HeadSettings = LINEAR
    metadata: MetadataSettings = NO_METADATA
    streams: Streams = "photo"
    crop_margin: float = 0.1


@dataclass(frozen=True)
class Architecture(_Described):
    """All that is needed to build a classifier again; stored beside its weights.

    Attributes:
        backbone: name of a timm model.
        embedding: width of the neck's output; 0 stands for the backbone's own width.
        classes: labeled classes, the first outputs of the head.
        foreign: further outputs, one per cluster of photos that belong to no labeled class.
        prototypes: whether class prototypes share in the decision.
        image_size: side of the square photos it was made for, pixels.
        head: linear, or cosines with margins while training.
        metadata: how places and dates are taken in, if at all.
        streams: the photo alone, or beside it a crop of its key region.
        crop_margin: what is left around a key region, as a share of its longer side.
    """

    backbone: str
    embedding: int
    classes: int
    foreign: int
    prototypes: bool
    image_size: int
    head: HeadSettings = LINEAR
    metadata: MetadataSettings = NO_METADATA
    streams: Streams = "photo"
    crop_margin: float = 0.1

    @property
    def takes_context(self) -> bool:
        """Whether such a model looks at more than the photo."""
        return self.metadata.encoding != "none" or self.streams != "photo"

    def describe(self) -> dict[str, Any]:
        """As plain values; what is at its default is left out, so that newer keys change no older model's file."""
        values = asdict(self)
        told = [one for one in fields(self) if one.default is MISSING or getattr(self, one.name) != one.default]
        return {one.name: values[one.name] for one in told}


class Classifier(nn.Module):
    """Backbone → neck (the trainable embedding layer) → metadata, if the model takes them → head.

    The neck starts as the identity when it keeps the backbone's width, so that an untrained neck leaves the
    pretrained geometry as it is; narrower necks start orthogonal. With two streams, photo and crop pass the same
    backbone, so that only the neck has more parameters; where it keeps the width, it starts as the mean of the two.
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
            close = difflib.get_close_matches(architecture.backbone, timm.list_models(), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise WeightsError(f"models.*.backbone: timm {timm.__version__} has no {architecture.backbone!r}{hint}")
        # Any: a module with timm's own attributes.
        self.backbone = cast(Any, timm.create_model(architecture.backbone, num_classes=0, **options))
        fit_input_size(self.backbone, architecture.image_size)
        if small_maps_are_slow():
            speed_up_small_maps(self.backbone)
        # Some backbones (MobileNetV3, HGNet) keep a layer of their own between the pooled features and the classes.
        width = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        streams = 2 if architecture.streams == "photo_and_crop" else 1
        self.neck = nn.Linear(streams * width, architecture.embedding or width)
        if self.neck.out_features == width:
            with torch.no_grad():
                self.neck.weight.copy_(torch.cat([torch.eye(width) / streams] * streams, dim=1))
        else:
            nn.init.orthogonal_(self.neck.weight)
        nn.init.zeros_(self.neck.bias)
        self.dropout = nn.Dropout(dropout)
        self.metadata = None
        self.width = self.neck.out_features
        if architecture.metadata.encoding != "none":
            self.metadata = MetadataFusion(self.neck.out_features, architecture.metadata)
            self.width = self.metadata.width
        self.outputs = architecture.classes + architecture.foreign
        self.head: nn.Linear | CosineHead
        if architecture.head.loss == "arcface":
            self.head = CosineHead(self.width, self.outputs, architecture.head)
        else:
            self.head = nn.Linear(self.width, self.outputs)
            nn.init.normal_(self.head.weight, std=0.01)
            nn.init.zeros_(self.head.bias)
        self.blend = PrototypeBlend(self.width, self.outputs) if architecture.prototypes else None

    def embed(self, images: Tensor, metadata: Tensor | None = None, crops: Tensor | None = None) -> Tensor:
        """What the head sees, (B, D); arguments as of :meth:`forward`."""
        if self.architecture.streams == "photo_and_crop":
            if crops is None:
                raise ValueError("a model of two streams needs the crops; where no key region is known, the full photo")
            # One pass: the streams share the backbone, and batch statistics, where they are learned, see both.
            photo, crop = self.backbone(torch.cat([images, crops])).chunk(2)
            embedding = self.neck(torch.cat([photo, crop], dim=1))
        else:
            embedding = self.neck(self.backbone(images))
        return embedding if self.metadata is None else self.metadata(embedding, metadata)

    def classify(self, embedding: Tensor, target: Tensor | None = None) -> Tensor:
        """(B, D) embeddings to (B, classes + foreign) logits in float32; with margins at ``target``, if given."""
        dropped = self.dropout(embedding)
        logits = self.head(dropped, target) if isinstance(self.head, CosineHead) else self.head(dropped)
        return logits.float() if self.blend is None else self.blend(embedding, logits.float())

    def forward(
        self,
        images: Tensor,
        metadata: Tensor | None = None,
        crops: Tensor | None = None,
        target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D) and logits (B, C) of photos.

        Args:
            images: (B, 3, S, S) normalised.
            metadata: (B, E) encoded; None where all are missing, or the model takes none.
            crops: (B, 3, S, S) normalised views of the key regions, for models of two streams.
            target: (B,) or (B, T) classes while training, for heads with margins; others do not look at it.
        """
        embedding = self.embed(images, metadata, crops)
        return embedding, self.classify(embedding, target)

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
    """Fill the backbone with pretrained weights, in place; it keeps its options (drop path).

    Args:
        model: the classifier whose backbone is filled.
        weights: ``none`` (random), or what :func:`fieldmark.pretrained.pretrained_backbone` takes.

    Raises:
        WeightsError: if they cannot be found or do not fit the backbone.
    """
    if weights == "none":
        return
    donor = pretrained_backbone(model.architecture.backbone, weights)
    fit_input_size(donor, model.architecture.image_size)
    model.backbone.load_state_dict(donor.state_dict())


def save_classifier(model: Classifier, target: str | Path) -> None:
    """Write weights and architecture to one ``.safetensors`` file, atomically."""
    save_weights(target, DESCRIPTION, model.architecture.describe(), model.state_dict())


def load_classifier(source: str | Path, dropout: float = 0.0, drop_path: float = 0.0) -> Classifier:
    """Build the classifier that :func:`save_classifier` wrote.

    Raises:
        ArtifactError: if the file is missing, damaged or not one of ours.
    """
    remedy = "delete it and run the workflow again, and its stage will make it anew"
    description, state = load_weights(source, DESCRIPTION, remedy)
    try:
        model = Classifier(Architecture.of(description), dropout, drop_path)
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ArtifactError(f"{source}: its weights and its architecture disagree ({error}); {remedy}") from error
    return model


def build_classifier(
    architecture: Architecture,
    source: str,
    *,
    seed: int,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    backbone_alone: bool = False,
) -> Classifier:
    """A classifier for ``architecture`` that starts from ``source``.

    Args:
        architecture: what to build; its head is always new.
        source: a fieldmark model file, whose backbone, neck and metadata network are taken over, or anything that
            :func:`load_pretrained` takes.
        seed: for the weights that start at random.
        dropout: share of embedding entries dropped before the head while training.
        drop_path: stochastic depth of the backbone while training.
        backbone_alone: of a fieldmark model file take the backbone and nothing else, whatever else it has.
    """
    torch.manual_seed(seed)
    model = Classifier(architecture, dropout, drop_path)
    if not is_classifier_file(source):
        load_pretrained(model, source)
        return model
    state = load_classifier(source).state_dict()
    own = model.state_dict()
    # Heads answer other questions (clusters, subclusters, classes), even where the numbers of outputs agree.
    parts = ["backbone."]
    if not backbone_alone:
        parts += ["neck."] if model.metadata is None else ["neck.", "metadata."]
    taken = {key: value for key, value in state.items() if key.startswith(tuple(parts))}
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
            return DESCRIPTION in (opened.metadata() or {})
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{source}: damaged model file ({error})") from error
