"""Results of a workflow that never ran: tables and tiny photos for the report's test, plausible in every column."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from fieldmark.artifacts import SCHEMAS, write_table
from fieldmark.evaluation import (
    Score,
    accuracy_scores,
    at,
    cluster_scores,
    confusion_table,
    filter_scores,
    paired_scores,
    proportion,
    scores_table,
    selection_scores,
)
from fieldmark.predictions import lists_to_table
from fieldmark.report.inputs import ReportInputs
from fieldmark.report.rounds_section import with_fate


@dataclass(frozen=True)
class Photo:
    """A photo of a drawn set; ``label`` −1 is foreign, and the label of unlabeled and test photos is hidden."""

    image_id: str
    path: Path
    split: str
    label: int


@dataclass(frozen=True)
class Fake:
    """A whole set of results, as the workflow would leave them, with plausible errors."""

    photos: list[Photo]
    names: list[str]
    rounds: int = 1
    models: tuple[str, ...] = ("lite0",)
    truth: bool = True
    rejected: bool = True
    dropped: bool = True
    accuracy: float = 0.8

    def of(self, *splits: str) -> list[Photo]:
        return sorted((p for p in self.photos if p.split in splits), key=lambda photo: photo.image_id)

    @property
    def members(self) -> list[str]:
        runs = [f"round{number}" for number in range(self.rounds)] or ["baseline"]
        return [f"{run}/{m}/{x}" for run in runs for m in self.models for x in ("layerwise", "two_stage")]

    @property
    def baselines(self) -> list[str]:
        if not self.rounds:
            return self.members
        return [f"baseline/{m}/{x}" for m in self.models for x in ("layerwise", "probe")]

    def write(self, results: Path) -> ReportInputs:
        draws = np.random.Generator(np.random.PCG64(7))
        self._write_data(results)
        scores: list[Score] = []
        for number in range(self.rounds):
            scores += self._write_round(results / f"round{number}", number, draws)
        right = self._write_predictions(results / "ensemble" / "predictions.parquet", draws)
        scores += self._model_scores(right, draws)
        self._write_ensemble(results / "ensemble", draws)
        write_table(scores_table(scores), "scores", results / "evaluation" / "scores.parquet")
        histories = self._write_histories(results, draws)
        folders = [results / f"round{number}" for number in range(self.rounds)]
        return ReportInputs(
            manifest=results / "data/manifest.parquet",
            classes=results / "data/classes.parquet",
            rejected=results / "data/rejected.parquet" if self.rejected else None,
            clusters=[folder / "clusters.parquet" for folder in folders],
            kept_clusters=[folder / "kept_clusters.parquet" for folder in folders],
            pseudo_labels=[folder / "pseudo_labels.parquet" for folder in folders],
            histories=histories,
            scores=results / "evaluation/scores.parquet",
            confusion=results / "evaluation/confusion.parquet",
            weights=results / "ensemble/weights.parquet",
            search=results / "ensemble/history.parquet",
            ensemble_scores=results / "ensemble/scores.parquet",
            predictions=results / "ensemble/predictions.parquet",
            benchmarks=None,
        )

    def _write_data(self, results: Path) -> None:
        known = {"labeled", "val"}
        rows = [
            dict.fromkeys(SCHEMAS["manifest"].names)
            | {
                "image_id": photo.image_id,
                "path": str(photo.path),
                "split": photo.split,
                "class_id": photo.label if photo.split in known else None,
                "family": "Noctuidae" if photo.split in {*known, "unlabeled"} else None,
                "width": 96,
                "height": 96,
                "sha256": "0" * 64,
                "phash": 1,
            }
            for photo in self.photos
        ]
        counts = np.bincount([p.label for p in self.of("labeled")], minlength=len(self.names))
        classes = [
            dict.fromkeys(SCHEMAS["classes"].names) | {"class_id": i, "name": name, "labeled_count": int(counts[i])}
            for i, name in enumerate(self.names)
        ]
        overrides = {name: pl.Float64 for name in ("latitude", "longitude", "location_uncertainty")}
        overrides |= {f"box_{part}": pl.Float32 for part in "xywh"} | {"phash": pl.UInt64, "class_id": pl.Int32}
        strings = {name: pl.String for name in ("kingdom", "phylum", "class", "order", "family", "genus", "date")}
        frame = pl.DataFrame(rows, schema_overrides=overrides | strings, infer_schema_length=None)
        write_table(frame, "manifest", results / "data/manifest.parquet")
        del strings["date"]
        write_table(pl.DataFrame(classes, schema_overrides=strings), "classes", results / "data/classes.parquet")
        reasons = [("x/<i>.jpg", "truncated"), ("y.jpg", "zero bytes"), ("z.jpg", "truncated")]
        rejected = pl.DataFrame(reasons, schema=["path", "reason"], orient="row")
        rejected = rejected.with_columns(split=pl.lit("test"), candidate_id="path")
        write_table(rejected, "rejected", results / "data/rejected.parquet")

    def _write_round(self, folder: Path, number: int, draws: np.random.Generator) -> list[Score]:
        photos = self.of("labeled", "unlabeled")
        labels = np.array([photo.label for photo in photos])
        noise = draws.random(len(photos))
        # Each class has two clusters and so have foreign photos; a fifth of the photos strays.
        home = np.where(labels < 0, len(self.names), labels) * 2 + (noise > 0.6)
        cluster = np.where(noise < 0.2 - 0.05 * number, draws.integers(2 * len(self.names) + 2, size=len(photos)), home)
        cluster = np.unique(cluster, return_inverse=True)[1]
        frame = pl.DataFrame({"image_id": [p.image_id for p in photos], "cluster": cluster, "distance": noise})
        write_table(frame.with_columns(runner_up_distance="distance"), "clusters", folder / "clusters.parquet")
        judged = self._judge(cluster, labels, draws)
        write_table(judged, "kept_clusters", folder / "kept_clusters.parquet")
        unlabeled = np.array([photo.split == "unlabeled" for photo in photos])
        true, own = labels[unlabeled], cluster[unlabeled]
        fated = with_fate(judged)
        kept, foreign = (fated.filter(pl.col("fate") == f)["cluster"].to_numpy() for f in ("kept", "foreign"))
        pseudo = self._select([p for p in photos if p.split == "unlabeled"], draws)
        write_table(pseudo, "pseudo_labels", folder / "pseudo_labels.parquet")
        if not self.truth:
            return []
        scores = cluster_scores(at("cluster", "unlabeled", number), own, true)
        scores += filter_scores(at("filter", "unlabeled", number), own, true, kept, foreign)
        return scores + selection_scores(at("select", "unlabeled", number), pseudo, true)

    def _judge(self, cluster: np.ndarray, labels: np.ndarray, draws: np.random.Generator) -> pl.DataFrame:
        rows = []
        for one in np.unique(cluster):
            inside = labels[cluster == one]
            foreign = bool((inside < 0).mean() > 0.6)
            agreement = float(np.clip(draws.normal(0.7, 0.15), 0.02, 1))
            reason = f"neighbours elsewhere: agreement {agreement:.3f}" if agreement < 0.55 else ""
            reason = "too few photos: <2" if len(inside) < 3 else reason
            reason = reason if self.dropped else ""
            rows.append(
                {
                    "cluster": one,
                    "size": len(inside),
                    "spread": float(draws.random()),
                    "neighbour_agreement": agreement,
                    "coarse_purity": 1.0,
                    "labeled_share": 0.1,
                    "nearest_class": int(max(inside.max(), 0)),
                    "nearest_class_similarity": float(draws.normal(0.35 if foreign else 0.65, 0.1)),
                    "kept": reason == "",
                    "foreign": foreign,
                    "reason": reason,
                }
            )
        return pl.DataFrame(rows)

    def _select(self, photos: list[Photo], draws: np.random.Generator) -> pl.DataFrame:
        labels = np.array([photo.label for photo in photos])
        guess = np.where((labels < 0) | (draws.random(len(photos)) < 0.1), draws.integers(len(self.names)), labels)
        score = np.clip(draws.normal(np.where(labels < 0, 0.35, 0.65), 0.14), 0, 1)
        return pl.DataFrame(
            {
                "image_id": [photo.image_id for photo in photos],
                "class_id": guess,
                "confidence": draws.random(len(photos)),
                "neighbour_agreement": draws.random(len(photos)),
                "in_class_score": score,
                "selected": score > 0.55,
                "weight": np.where(score > 0.55, 0.5, 0.0),
            }
        )

    def _write_predictions(self, target: Path, draws: np.random.Generator) -> dict[str, np.ndarray]:
        """Write the ensemble's and its confusion, and tell which photos it gets right by split."""
        photos = self.of("val", "test")
        labels = np.array([photo.label for photo in photos])
        wrong = draws.random(len(photos)) > self.accuracy
        near = labels ^ 1  # look-alikes come in pairs
        near = np.where(near < len(self.names), near, labels - 1)
        guess = np.where(wrong, np.where(draws.random(len(photos)) < 0.7, near, (labels + 5) % len(self.names)), labels)
        lists = np.stack([guess, (guess + 1) % len(self.names)], axis=1).astype(np.int32)
        shares = np.tile(np.array([0.7, 0.2], dtype=np.float32), (len(photos), 1))
        write_table(lists_to_table([p.image_id for p in photos], lists, shares), "predictions", target)
        told = np.array([photo.split == ("test" if self.truth else "val") for photo in photos])
        table = confusion_table(labels[told], guess[told])
        write_table(table, "confusion", target.parent.parent / "evaluation/confusion.parquet")
        splits = np.array([photo.split for photo in photos])
        return {split: (guess == labels)[splits == split] for split in ("val", "test")}

    def _model_scores(self, right: dict[str, np.ndarray], draws: np.random.Generator) -> list[Score]:
        scores: list[Score] = []
        tail = np.arange(max(1, len(self.names) // 3))
        places = ("val", "test") if self.truth else ("val",)
        wins: dict[tuple[str, str], np.ndarray] = {}
        voters = self.members if self.rounds else []
        for place, (level, name) in ((p, m) for p in places for m in enumerate([*self.baselines, *voters])):
            labels = np.array([photo.label for photo in self.of(place)])
            chance = 0.45 if name.endswith("probe") else 0.65 + 0.02 * level
            wins[name, place] = draws.random(len(labels)) < chance
            number = int(name[5]) if name.startswith("round") else None
            scores += self._accuracy(at("model", place, number, name), wins[name, place], labels, tail)
        for place in places:
            labels = np.array([photo.label for photo in self.of(place)])
            for member in ("ensemble", "uniform", "greedy", "evolutionary"):
                scores += self._accuracy(at("ensemble", place, None, member), right[place], labels, tail)
            for first in ("ensemble", *voters[-1:]):
                hits = right[place] if first == "ensemble" else wins[first, place]
                for second in self.baselines:
                    where = at("comparison", place, None, f"{first} - {second}")
                    scores += paired_scores(where, hits, wins[second, place], 1, 50)
        return scores

    def _accuracy(self, where: Score, hits: np.ndarray, labels: np.ndarray, tail: np.ndarray) -> list[Score]:
        first = np.where(hits, labels, (labels + 1) % len(self.names))
        return accuracy_scores(where, first[:, None], labels, tail, 1, 20)

    def _write_ensemble(self, folder: Path, draws: np.random.Generator) -> None:
        rows, scores = [], []
        for method in ("uniform", "greedy", "evolutionary"):
            weights = draws.dirichlet(np.full(len(self.members), 0.6))
            if method == "uniform":
                weights = np.full(len(self.members), 1 / len(self.members))
            rows += [{"method": method, "member": m, "weight": w} for m, w in zip(self.members, weights, strict=True)]
            for split, hits in (("val_fit", 34), ("val_report", 31)):
                scores.append(proportion(at("ensemble", split, member=method), "top1", hits, 40))
        write_table(pl.DataFrame(rows), "ensemble_weights", folder / "weights.parquet")
        write_table(scores_table(scores), "scores", folder / "scores.parquet")
        best = 0.8 + 0.07 * (1 - np.exp(-np.arange(12) / 3))
        search = pl.DataFrame({"generation": range(12), "best": best, "mean": best - 0.03 + draws.normal(0, 0.004, 12)})
        write_table(search, "ensemble_history", folder / "history.parquet")

    def _write_histories(self, results: Path, draws: np.random.Generator) -> list[Path]:
        jobs = [f"round{r}/{m}/{s}" for r in range(self.rounds) for m in self.models for s in ("pretrain", "guide")]
        extra = ["baseline/lite0/layerwise"] if self.rounds else []
        targets = [results / job / "history.parquet" for job in [*jobs, *self.members, *extra]]
        for target in targets:
            rows = []
            for phase in range(2 if "two_stage" in str(target) else 1):
                losses = 0.4 + 2.6 * np.exp(-np.arange(100) / 25) * (1 - 0.6 * phase) + draws.gamma(2, 0.12, 100)
                rows += [
                    {"phase": f"phase {phase}", "step": 4 * i + 3, "loss": float(loss), "val_top1": None}
                    for i, loss in enumerate(losses)
                ]
                rows[-1]["val_top1"] = 0.81
            frame = pl.DataFrame(rows, schema_overrides={"val_top1": pl.Float32}).with_columns(
                epoch=pl.col("step") / 10, learning_rate=pl.lit(0.001), gradient_norm=pl.lit(1.0)
            )
            write_table(frame, "history", target)
        return targets


def drawn_photos(folder: Path, classes: int) -> list[Photo]:
    """Tiny photos: coloured noise, a few of every class and some foreign ones in every split that has them."""
    draws = np.random.Generator(np.random.PCG64(3))
    wanted = [("labeled", 3), ("unlabeled", 5), ("val", 4), ("test", 4)]
    photos = []
    for split, count in wanted:
        for label in [*range(classes), *([-1] if split == "unlabeled" else [])]:
            for index in range(count):
                path = folder / split / f"{label}_{index}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.clip(draws.normal(60 * (label + 1) % 255, 20, (12, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path, quality=70)
                photos.append(Photo(f"{split}/{label}_{index}", path, split, label))
    return photos
