"""Accuracy on the validation photos while a classifier is trained."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fieldmark.context import ContextTables
from fieldmark.hardware import Hardware
from fieldmark.inference import ViewPlan, infer
from fieldmark.models import Classifier


@dataclass(frozen=True)
class Validation:
    """Called with a classifier: the share of the validation photos that it names rightly.

    Attributes:
        image_ids: of N photos.
        paths: their files.
        truth: (N,) their classes.
        hardware: device and precision; one device is used.
        tables: where their places, dates and key regions are looked up, for models that take them.
    """

    image_ids: Sequence[str]
    paths: Sequence[str]
    truth: np.ndarray
    hardware: Hardware
    tables: ContextTables

    def __call__(self, classifier: Classifier) -> float:
        """Top-1 accuracy, one view per photo."""
        context = self.tables.of(self.image_ids, classifier.architecture)
        _, probabilities = infer(classifier, self.paths, ViewPlan(), self.hardware, context=context)
        return float((probabilities.argmax(axis=1) == self.truth).mean())
