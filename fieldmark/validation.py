"""Accuracy on the validation photos while a classifier is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import Classifier


@dataclass(frozen=True)
class Validation:
    """Called with a classifier: the share of the validation photos that it names rightly.

    Attributes:
        paths: N photos.
        truth: (N,) their classes.
        hardware: device and precision; one device is used.
    """

    paths: Sequence[str]
    truth: np.ndarray
    hardware: Hardware

    def __call__(self, classifier: Classifier) -> float:
        """Top-1 accuracy, one view per photo."""
        _, probabilities = infer(classifier, self.paths, ViewPlan(), self.hardware)
        return float((probabilities.argmax(axis=1) == self.truth).mean())
