"""The workflow as a whole, through its command line: a tiny run, and what reruns after which change."""

import csv
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import SCHEMAS, read_table
from tests.changes import CHANGES, configure, permute_truth
from tests.project import ALL, ROOT, Job, Project, only


def test_a_run_leaves_submission_report_and_evaluation(finished: Project) -> None:
    results = finished.folder / "results"
    photos = read_table("manifest", results / "data/manifest.parquet")
    test = {Path(path).name for path, split in photos.select("path", "split").iter_rows() if split == "test"}
    with (results / "submission.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(test) == 16 and {row["Id"] for row in rows} == test
    names = set(read_table("classes", results / "data/classes.parquet")["name"])
    assert all(set(row["Category"].split()) <= names for row in rows)
    assert "Tiny moths" in (results / "report.html").read_text(encoding="utf-8")
    scores = read_table("scores", results / "evaluation/scores.parquet")
    assert {"cluster", "filter", "select", "detection", "model", "ensemble", "comparison"} <= set(scores["stage"])
    assert {"val", "test", "unlabeled"} <= set(scores["split"])


def test_the_finished_model_names_photos_like_the_ensemble(finished: Project) -> None:
    from fieldmark.context import ContextTables
    from fieldmark.finished import load_finished
    from fieldmark.hardware import Hardware

    results = finished.folder / "results"
    photos = read_table("manifest", results / "data/manifest.parquet").filter(split="test")
    expected = read_table("predictions", results / "ensemble/predictions.parquet").filter(
        pl.col("image_id").is_in(photos["image_id"].to_list())
    )
    model = load_finished(results / "model/ensemble.safetensors")
    paths = [str(finished.folder / path) for path in photos["path"]]
    tables = ContextTables(photos, sorted((results / "detection/boxes").glob("*.parquet")))
    ids = photos["image_id"].to_list()
    probabilities = model.probabilities(paths, Hardware(), lambda architecture: tables.of(ids, architecture))
    found = np.sort(probabilities, axis=1)[:, ::-1]
    np.testing.assert_allclose(found, expected["probabilities"].to_numpy(), atol=1e-4)


def kind_of(name: str) -> str:
    """The declared kind of the table at a path below results/."""
    parts = Path(name).parts
    if "shards" in parts:
        return "shard"
    if parts == ("detection", "history.parquet"):
        return "detection_history"
    if parts[0] == "ensemble" and parts[1] in ("weights.parquet", "history.parquet"):
        return f"ensemble_{Path(name).stem}"
    for folder in ("features", "scores", "predictions", "boxes"):
        if folder in parts[:-1]:
            return {"scores": "guide_scores"}.get(folder, folder)
    return Path(name).stem


def test_every_table_is_of_its_declared_kind(finished: Project) -> None:
    results = finished.folder / "results"
    names = [path.relative_to(results).as_posix() for path in results.rglob("*.parquet")]
    kinds = {name: kind_of(name) for name in names}
    for name, kind in kinds.items():
        read_table(kind, results / name)
    assert set(kinds.values()) == set(SCHEMAS)


def test_both_recipes_the_prototypes_and_pseudo_labels_were_at_work(finished: Project) -> None:
    import safetensors

    results = finished.folder / "results"
    for recipe, prototypes in (("layerwise", False), ("two_stage", True)):
        with safetensors.safe_open(str(results / f"round1/tiny/{recipe}/model.safetensors"), "pt") as opened:
            assert json.loads(opened.metadata()["architecture"])["prototypes"] == prototypes
    phases = read_table("history", results / "round1/tiny/two_stage/history.parquet")["phase"]
    assert phases.unique(maintain_order=True).to_list() == ["end_to_end", "balanced_head"]
    for number in range(2):
        assert read_table("pseudo_labels", results / f"round{number}/pseudo_labels.parquet")["selected"].any()
        kept = read_table("kept_clusters", results / f"round{number}/kept_clusters.parquet")
        assert kept["kept"].any() and kept["foreign"].any()


def test_every_job_leaves_a_log_and_its_time(finished: Project) -> None:
    for folder, suffix in (("logs", "log"), ("benchmarks", "tsv")):
        assert len(list((finished.folder / "results" / folder).rglob(f"*.{suffix}"))) == len(ALL)


def test_nothing_is_left_over(finished: Project) -> None:
    names = [path.name for path in (finished.folder / "results").rglob("*") if path.name.startswith(".")]
    assert set(names) <= {".snakemake_timestamp"}  # Snakemake's own, in a folder that is declared as output


def test_a_second_invocation_has_nothing_to_do(finished: Project) -> None:
    assert "Nothing to be done" in finished.make()


def test_no_stage_reads_the_truth_and_what_is_made_again_is_the_same(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    before, scores = project.artifacts(), (project.folder / "results/evaluation/scores.parquet").read_bytes()
    permute_truth(project)
    assert project.planned() == only("evaluate_stages", "render_report")
    for part in ("baseline/tiny/two_stage", "ensemble", "submission.csv"):
        path = project.folder / "results" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    project.make()
    assert project.artifacts() == before
    assert (project.folder / "results/evaluation/scores.parquet").read_bytes() != scores


def test_self_training_takes_the_last_model_for_its_guide_and_starts_anew(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    configure(track="self_training")(project)
    results = project.folder / "results"
    for round_ in ("round0", "round1"):
        for stage in ("pretrain", "guide/model.safetensors", "refine", "features"):
            path = results / round_ / "tiny" / stage
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for table in ("clusters", "kept_clusters", "subclusters"):
            (results / round_ / f"{table}.parquet").unlink()
    before = project.artifacts()
    project.make()
    assert project.planned() == set()
    after = project.artifacts()
    assert after.keys() == before.keys()
    assert {name.split("/")[0] for name in before if before[name] != after[name]} >= {"round0", "round1", "ensemble"}
    assert all(after[name] == before[name] for name in before if name.startswith(("baseline", "data", "detection")))
    scores = [read_table("guide_scores", results / f"round{r}/tiny/guide/scores/0.parquet") for r in (0, 1)]
    # A guide of clusters has foreign classes; the models that judge here know the labeled ones alone.
    assert not any(table["foreign_probability"].sum() for table in scores)
    assert not scores[0]["embedding"].equals(scores[1]["embedding"])
    judged = read_table("pseudo_labels", results / "round1/pseudo_labels.parquet")
    with (results / "unlabeled.csv").open(encoding="utf-8", newline="") as file:
        listed = [row["selected"] for row in csv.DictReader(file)]
    assert len(listed) == judged.height and listed.count("yes") == judged["selected"].sum()
    page = (results / "report.html").read_text(encoding="utf-8")
    assert 'id="rounds"' in page and "Kept clusters" not in page


@pytest.fixture(scope="session")
def plans(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[Job]]:
    """The jobs that a dry-run announces after each change of :data:`CHANGES`, alone."""
    folder = tmp_path_factory.mktemp("changed")

    def plan(number: int) -> set[Job]:
        project = finished.copy(folder / str(number))
        CHANGES[number][1](project)
        jobs = project.planned()
        shutil.rmtree(project.folder)
        return jobs

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([name for name, _, _ in CHANGES], pool.map(plan, range(len(CHANGES))), strict=True))


@pytest.mark.parametrize(("name", "expected"), [pytest.param(name, jobs, id=name) for name, _, jobs in CHANGES])
def test_a_change_reruns_what_depends_on_it(name: str, expected: set[Job], plans: dict[str, set[Job]]) -> None:
    assert plans[name] == expected


def test_the_documented_table_has_the_same_rows() -> None:
    text = (ROOT / "docs/reruns.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| (.+?) \|", text.partition("| change |")[2], flags=re.MULTILINE)
    assert documented == [name for name, _, _ in CHANGES]
