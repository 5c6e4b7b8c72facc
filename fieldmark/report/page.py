"""The page: collect every section, fill in the template, write it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fieldmark.artifacts import write_atomically
from fieldmark.report.classes_section import classes_section
from fieldmark.report.data_section import data_section
from fieldmark.report.inputs import Material, ReportInputs
from fieldmark.report.lookalikes_section import lookalikes_section
from fieldmark.report.making_section import making_section
from fieldmark.report.results_section import accuracy_section, ensemble_section, headline
from fieldmark.report.rounds_section import round_sections
from fieldmark.report.training_section import training_section

TEMPLATE = Path(__file__).with_name("template.html")


def write_page(inputs: ReportInputs, target: Path, title: str, config: Mapping[str, Any], seed: int) -> None:
    """Write the report, one HTML file that needs no other and asks no network.

    Args:
        inputs: the artifacts.
        target: where the page appears when it is complete.
        title: heading of the page.
        config: the resolved configuration; ``ensemble.method`` tells which weights were submitted.
        seed: that every draw derives from.

    Raises:
        ArtifactError: if an artifact is missing or damaged.
        PhotoError: if a photo to show can no longer be read.
    """
    material = Material(inputs, config)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE.name).render(
        title=title,
        headline=headline(material),
        data=data_section(material),
        rounds=round_sections(material),
        training=training_section(list(inputs.histories)),
        accuracy=accuracy_section(material),
        ensemble=ensemble_section(material),
        classes=classes_section(material),
        lookalikes=lookalikes_section(material),
        making=making_section(config, seed, inputs.benchmarks),
    )
    write_atomically(target, lambda path: path.write_text(page, encoding="utf-8"))
