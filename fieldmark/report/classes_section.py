"""Section "Classes": which are named well and which not, worst first."""

from dataclasses import dataclass

from fieldmark.artifacts import read_table
from fieldmark.class_accuracy import class_table
from fieldmark.report.inputs import Material, by_round

# All of some hundred classes fit the page; of thousands, evaluation/classes.csv has the rest.
_CLASSES_OPEN = 10
_CLASSES_SHOWN = 200


@dataclass(frozen=True)
class ClassesSection:
    """The table of classes.

    Attributes:
        worst: rows of the table, see :func:`fieldmark.class_accuracy.class_table`, shown at once.
        others: the following ones, shown on demand.
        left_out: how many more there are.
        pseudo: whether there are pseudo-labels to tell of.
    """

    worst: list[dict]
    others: list[dict]
    left_out: int
    pseudo: bool


def classes_section(material: Material) -> ClassesSection:
    """Collect the section."""
    last = list(by_round(material.inputs.pseudo_labels).values())[-1:]
    pseudo = read_table("pseudo_labels", last[0]) if last else None
    confusion = read_table("confusion", material.inputs.confusion)
    rows = class_table(confusion, material.classes, pseudo, material.names).to_dicts()
    return ClassesSection(
        worst=rows[:_CLASSES_OPEN],
        others=rows[_CLASSES_OPEN:_CLASSES_SHOWN],
        left_out=max(0, len(rows) - _CLASSES_SHOWN),
        pseudo=pseudo is not None,
    )
