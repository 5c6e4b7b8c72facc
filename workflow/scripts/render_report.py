"""Render the report: one self-contained page about the data, every stage, and the result."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fieldmark.report.inputs import ReportInputs
from fieldmark.report.page import write_page

log = logging.getLogger("fieldmark")


def render_report(inputs: ReportInputs, target: Path, title: str, config: Mapping[str, Any], seed: int) -> None:
    """Write the report; arguments as in :func:`fieldmark.report.page.write_page`."""
    write_page(inputs, target, title, config, seed)
    log.info("%s: %.1f MB", target.name, target.stat().st_size / 1e6)


def _paths(files: Any) -> list[Path]:
    """Snakemake gives a single file of a named input as a string, several as a list."""
    return [Path(file) for file in ([files] if isinstance(files, str) else files)]


if "snakemake" in globals():
    render_report(
        inputs=ReportInputs(
            manifest=Path(snakemake.input.manifest),
            classes=Path(snakemake.input.classes),
            rejected=Path(snakemake.input.rejected),
            clusters=_paths(snakemake.input.clusters),
            kept_clusters=_paths(snakemake.input.kept_clusters),
            pseudo_labels=_paths(snakemake.input.pseudo_labels),
            histories=_paths(snakemake.input.histories),
            scores=Path(snakemake.input.scores),
            confusion=Path(snakemake.input.confusion),
            weights=Path(snakemake.input.weights),
            search=Path(snakemake.input.search),
            ensemble_scores=Path(snakemake.input.ensemble_scores),
            predictions=Path(snakemake.input.predictions),
            benchmarks=Path(snakemake.params.benchmarks) if snakemake.params.get("benchmarks") else None,
        ),
        target=Path(snakemake.output[0]),
        title=snakemake.params.title,
        config=snakemake.params.config,
        seed=snakemake.params.seed,
    )
