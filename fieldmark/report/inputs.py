"""What the report is made from: the artifacts' paths, and the tables and helpers that its sections share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from fieldmark.artifacts import ArtifactError, read_table
from fieldmark.class_names import class_labels
from fieldmark.methods import chosen_method
from fieldmark.predictions import round_of
from fieldmark.report.album import Album


@dataclass(frozen=True)
class ReportInputs:
    """Paths of the artifacts; without ``rejected`` no photo was rejected, without ``benchmarks`` no times are told."""

    manifest: Path
    classes: Path
    rejected: Path | None
    clusters: Sequence[Path]
    kept_clusters: Sequence[Path]
    pseudo_labels: Sequence[Path]
    histories: Sequence[Path]
    scores: Path
    confusion: Path
    weights: Path
    search: Path
    ensemble_scores: Path
    predictions: Path
    benchmarks: Path | None


def by_round(paths: Sequence[Path]) -> dict[int, Path]:
    """Tables of rounds, results/round{r}/NAME.parquet, by their number.

    Raises:
        ArtifactError: if a path is not of that form.
    """
    found = {}
    for path in paths:
        number = round_of(Path(path).parent.name)
        if number is None:
            raise ArtifactError(f"{path}: expected a table of a round, results/round0/NAME.parquet")
        found[number] = Path(path)
    return dict(sorted(found.items()))


class Material:
    """The tables that several sections look at, and what is derived from them.

    Attributes:
        manifest: the photos.
        classes: ordered by class id.
        names: what each class is called on the page.
        album: thumbnails.
        scores: of all stages, the halves of the validation photos included.
        config: the resolved configuration.
    """

    def __init__(self, inputs: ReportInputs, config: Mapping[str, Any]) -> None:
        self.inputs = inputs
        self.config = config
        self.manifest = read_table("manifest", inputs.manifest)
        self.classes = read_table("classes", inputs.classes).sort("class_id")
        self.names = class_labels(self.classes)
        self.album = Album(self.manifest, self.names)
        scores = [read_table("scores", path) for path in (inputs.scores, inputs.ensemble_scores)]
        self.scores = pl.concat(scores)

    @cached_property
    def rejected(self) -> pl.DataFrame:
        """The photos that could not be used."""
        if self.inputs.rejected is None:
            return pl.DataFrame(schema={"path": pl.String, "reason": pl.String})
        return read_table("rejected", self.inputs.rejected)

    @cached_property
    def predictions(self) -> pl.DataFrame:
        """The submitted ensemble's."""
        return read_table("predictions", self.inputs.predictions)

    @cached_property
    def split(self) -> str:
        """The split that accuracies are told of: test where its truth is known, else val."""
        measured = self.scores.filter((pl.col("stage") == "ensemble") & (pl.col("split") == "test"))
        return "val" if measured.is_empty() else "test"

    @cached_property
    def method(self) -> str:
        """How the weights of the submitted ensemble were found."""
        return chosen_method(str(self.config["ensemble"]["method"]), read_table("scores", self.inputs.ensemble_scores))

    @cached_property
    def supervised(self) -> bool:
        """Whether the members of the ensemble are the models that were fine-tuned on labels alone."""
        return self.config.get("track") == "supervised"

    @cached_property
    def rounds(self) -> list[int]:
        """Their numbers."""
        return list(by_round(self.inputs.pseudo_labels))

    def pick(self, stage: str, split: str, member: str | None = None, round_: int | None = None) -> dict[str, dict]:
        """The scores at one place, by metric: value, low, high and count."""
        rows = self.scores.filter(
            (pl.col("stage") == stage)
            & (pl.col("split") == split)
            & pl.col("member").eq_missing(pl.lit(member))
            & pl.col("round").eq_missing(pl.lit(round_))
        )
        return {row["metric"]: row for row in rows.iter_rows(named=True)}

    def members(self, stage: str, split: str) -> list[str]:
        """Who has scores in a stage, in the order of the table."""
        rows = self.scores.filter((pl.col("stage") == stage) & (pl.col("split") == split))
        return rows["member"].drop_nulls().unique(maintain_order=True).to_list()
