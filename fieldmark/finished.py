"""The finished classifier: the ensemble's networks, their votes and the names of the classes, in one file.

The file is a safetensors file (no code in it can run), needs neither configuration nor results folder, and is what a
user takes along to name new photos.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fieldmark.artifacts import ArtifactError
from fieldmark.context import Context
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import DESCRIPTION as ARCHITECTURE
from fieldmark.models import Architecture, Classifier
from fieldmark.weights_file import load_weights, save_weights

# Names the file's description in its metadata.
_DESCRIPTION = "fieldmark_ensemble"


@dataclass(frozen=True)
class Finished:
    """A classifier ready for use; by itself on photos alone, without their places, dates and key regions.

    Attributes:
        members: networks with their share of the vote; the shares sum to 1.
        views: test-time views over which each network's probabilities are averaged.
        class_names: of the C classes, in the order of the networks' outputs.
    """

    members: Sequence[tuple[Classifier, float]]
    views: ViewPlan
    class_names: Sequence[str]

    def probabilities(
        self, paths: Sequence[str], hardware: Hardware, context_of: Callable[[Architecture], Context] | None = None
    ) -> np.ndarray:
        """(N, C) float32 probabilities of N photos.

        Args:
            paths: the photos.
            hardware: device and precision; one device is used.
            context_of: gives what is known of the photos beside them, as far as a network takes it.

        Raises:
            fieldmark.images.PhotoError: if one of them cannot be decoded.
        """
        mean = np.zeros((len(paths), len(self.class_names)), dtype=np.float32)
        for model, share in self.members:
            context = context_of(model.architecture) if context_of else photos_alone(len(paths), model.architecture)
            mean += np.float32(share) * infer(model, paths, self.views, hardware, context=context)[1]
        return mean


def photos_alone(count: int, architecture: Architecture) -> Context:
    """No place, no date, and for models of two streams the full photo as its own key region."""
    crops = architecture.streams == "photo_and_crop"
    return Context(boxes=np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (count if crops else 0, 1)))


def save_finished(
    members: Mapping[Path, float], views: ViewPlan, class_names: Sequence[str], target: str | Path
) -> None:
    """Write model files, with their shares of the vote, as one finished classifier; atomically.

    Args:
        members: model files as :func:`fieldmark.models.save_classifier` writes them, and their shares.
        views: test-time views.
        class_names: names of the classes in the order of the outputs.
        target: the file to write.

    Raises:
        ArtifactError: if a model file is damaged, or has another number of classes.
    """
    tensors, described = {}, []
    for number, (path, share) in enumerate(members.items()):
        architecture, state = load_weights(path, ARCHITECTURE, "delete it and run again")
        tensors.update({f"{number}.{key}": tensor for key, tensor in state.items()})
        if architecture["classes"] != len(class_names):
            raise ArtifactError(
                f"{path}: has {architecture['classes']} classes, expected the {len(class_names)} of the class "
                "table; delete it and run again"
            )
        described.append({"share": share, "architecture": architecture})
    content = {"members": described, "views": asdict(views), "class_names": list(class_names)}
    save_weights(target, _DESCRIPTION, content, tensors)


def load_finished(source: str | Path) -> Finished:
    """Read what :func:`save_finished` wrote.

    Raises:
        ArtifactError: if the file is missing, damaged or something else.
    """
    remedy = "expected the finished classifier that the workflow leaves in results/model/"
    content, state = load_weights(source, _DESCRIPTION, remedy)
    try:
        members = []
        for number, member in enumerate(content["members"]):
            model = Classifier(Architecture.of(member["architecture"]))
            prefix = f"{number}."
            model.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
            members.append((model.eval(), float(member["share"])))
        return Finished(members, ViewPlan(**content["views"]), content["class_names"])
    except (RuntimeError, TypeError, KeyError) as error:
        raise ArtifactError(f"{source}: its weights and its description disagree ({error}); make it anew") from error
