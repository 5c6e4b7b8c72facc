"""The rules, and the configurations beside the demo's: what Snakemake plans with them, and what it says of mistakes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fieldmark.artifacts import read_table
from tests.miniatures import make_semi_inat
from tests.project import (
    ALL,
    BASELINE,
    END,
    FEATURES,
    ROOT,
    TINY,
    Job,
    Project,
    announced,
    fresh_project,
    only,
    self_training_jobs,
    supervised_jobs,
)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project without results."""
    return fresh_project(tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="session")
def semi_inat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of Semi-iNat 2021."""
    root = tmp_path_factory.mktemp("semi_inat")
    make_semi_inat(root)
    return root


def test_the_full_size_configuration_plans_three_rounds_of_four_models(fresh: Project, semi_inat: Path) -> None:
    jobs = fresh.planned("--config", f"data={{root: {semi_inat}}}", config="configs/semi_inat_2021.yaml")
    members = {(job.run, job.model, job.recipe) for job in jobs if job.rule == "finetune_classifier"}
    assert len({model for _, model, _ in members}) == 4
    assert {run for run, _, _ in members} == {"baseline", "round0", "round1", "round2"}
    assert len([job for job in jobs if job.rule == "extract_features"]) == (1 + 3) * 4 * 32


def test_the_full_size_configuration_ingests_a_miniature(fresh: Project, semi_inat: Path, tmp_path: Path) -> None:
    project = fresh.copy(tmp_path / "project")
    configuration = ("--configfile", "configs/semi_inat_2021.yaml", "--config", f"data={{root: {semi_inat}}}")
    project.succeed("results/data/shards/0.parquet", "--cores", "2", *configuration)
    data = project.folder / "results/data"
    photos = read_table("manifest", data / "manifest.parquet")
    sizes = dict(photos["split"].value_counts().iter_rows())
    assert sizes == {"labeled": 20, "val": 8, "unlabeled": 24, "test": 8}
    for split, known in (("labeled", True), ("unlabeled", True), ("val", False), ("test", False)):
        for taxon in ("kingdom", "phylum", "family"):
            told = photos.filter(split=split)[taxon].is_not_null()
            assert told.all() if known and taxon != "family" else not told.any()
    shards = read_table("shard", sorted((data / "shards").glob("*.parquet")))
    assert shards["image_id"].to_list() == photos["image_id"].to_list()
    assert len(list((data / "shards").glob("*.parquet"))) == 32


def test_the_full_size_models_have_weights_of_imagenet_1k_alone() -> None:
    import timm

    settings = yaml.safe_load((ROOT / "configs/semi_inat_2021.yaml").read_text(encoding="utf-8"))
    models = [model for model in settings["models"].values() if model is not None]
    assert all(model.get("weights", "hub") == "hub" for model in models)
    assert {model["backbone"] for model in models} <= set(timm.list_pretrained())
    tags = [model["backbone"].partition(".")[2] for model in models]
    assert all(re.fullmatch(r"(\w+_)?in1k", tag) and not re.search(r"in2\dk|in12k|jft|ig1b|_ft_", tag) for tag in tags)


def test_the_supervised_track_trains_on_labels_alone_and_has_no_rounds(fresh: Project) -> None:
    assert fresh.planned("--config", "track=supervised") == supervised_jobs()


def test_the_unlabeled_photos_alone_take_only_the_models_that_select(fresh: Project) -> None:
    jobs = fresh.planned("--", "results/unlabeled.csv")
    made = {(job.run, job.recipe) for job in jobs if job.rule == "finetune_classifier"}
    # What rounds start from; the last round's own model selects nothing.
    assert made == {("baseline", "layerwise"), ("round0", "layerwise")}
    rules = {job.rule for job in jobs}
    assert "list_unlabeled" in rules and not rules & {"predict_photos", "probe_features", *END}
    assert Job("recluster_selection", "round1") not in jobs


def test_self_training_has_rounds_without_clusters(fresh: Project) -> None:
    baselines = FEATURES | only("probe_features")
    assert fresh.planned("--config", "track=self_training") == supervised_jobs() | baselines | self_training_jobs()


def test_the_grocery_configuration_plans_with_its_own_root(fresh: Project, tmp_path: Path) -> None:
    make_semi_inat(tmp_path, "annotation.json", truth=True)
    given = f"data={{root: {tmp_path}, truth: {tmp_path}/hidden/truth.csv}}"
    jobs = fresh.planned("--config", given, config="configs/grocery.yaml")
    assert Job("ingest_photos") in jobs and Job("render_report") in jobs and Job("generate_demo") not in jobs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"predict": {"scalse": [1.0]}}, "predict.scalse: unknown key; did you mean 'scales'?"),
        ({"models": {"tiny": {"image_size": "32px"}}}, "models.tiny.image_size: expected integer"),
        ({"select": {"min_in_class_score": 0.5}}, "select: expected exactly one of min_in_class_score and selected_s"),
        (
            {"data": {"format": "folder", "root": ".", "truth": "no.csv"}},
            "\n  data.truth: no such file: ",
        ),
    ],
)
def test_a_mistake_in_the_configuration_ends_the_run_with_its_key(
    fresh: Project, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(changes), encoding="utf-8")
    call = fresh.snakemake("--dry-run", "--cores", "1", "--configfile", TINY, str(tmp_path / "wrong.yaml"))
    assert call.returncode != 0 and said in call.stdout
    assert "Traceback" not in call.stdout


def test_a_run_may_have_its_results_in_another_folder(fresh: Project, tmp_path: Path) -> None:
    elsewhere = ("--directory", str(tmp_path / "here"), "--configfile", str(fresh.folder / TINY))
    (tmp_path / "here").mkdir()
    assert fresh.planned(*elsewhere, config="config.yaml") == fresh.planned()


def test_missing_annotations_are_named_before_anything_runs(fresh: Project, tmp_path: Path) -> None:
    configuration = ("--configfile", "configs/semi_inat_2021.yaml", "--config", f"data={{root: {tmp_path}}}")
    call = fresh.snakemake("--dry-run", "--cores", "1", *configuration)
    assert call.returncode != 0 and f"data.annotations: no such file: {tmp_path}/annotation_v2.json" in call.stdout


def test_a_weights_file_is_an_input_of_what_starts_from_it(fresh: Project, tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"models": {"tiny": {"weights": str(weights)}}}), encoding="utf-8")
    call = ("--dry-run", "--cores", "1", "--configfile", TINY, str(config))
    missing = fresh.snakemake(*call)
    assert missing.returncode != 0 and f"models.tiny.weights: no such file: {weights}" in missing.stdout
    weights.touch()
    blocks = re.split(r"^(?:local)?rule ", fresh.succeed(*call), flags=re.MULTILINE)[1:]
    readers = [block for block in blocks if re.search(rf"^    input: .*{re.escape(str(weights))}", block, re.MULTILINE)]
    found = {job for block in readers for job in announced("\nrule " + block)}
    finetuned = {job for job in BASELINE if job.rule == "finetune_classifier"}
    assert found == finetuned | FEATURES


def rules() -> dict[str, str]:
    """Name → text of every rule that runs a script."""
    texts = {}
    for file in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"^ *rule ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            texts[block.partition(":")[0]] = block
    return texts


def test_there_is_a_rule_for_every_script() -> None:
    assert set(rules()) == {path.stem for path in (ROOT / "workflow/scripts").glob("*.py")}
    assert set(rules()) == {job.rule for job in ALL}


@pytest.mark.parametrize("rule", sorted(rules()))
def test_a_rule_has_log_benchmark_environment_and_fingerprint(rule: str) -> None:
    text = rules()[rule]
    for directive in ("input", "output", "log", "benchmark", "conda", "params", "script"):
        assert (directive == "input" and rule == "generate_demo") or re.search(rf"^ +{directive}:$", text, re.MULTILINE)
    assert f'"../scripts/{rule}.py"' in text
    assert f'code=fingerprint("{rule}")' in text
    (environment,) = re.findall(r'"../../(envs/\w+\.yaml)"', text)
    assert (ROOT / environment).is_file()
    for directive in ("log", "benchmark"):
        (path,) = re.findall(rf'{directive}:\n +"(.*)"', text)
        assert path.startswith(f"results/{directive}s/") and rule in path
    assert "run:" not in text and "shell:" not in text


def test_no_job_is_given_a_file_twice(fresh: Project) -> None:
    text = fresh.succeed("--dry-run", "--cores", "2", "--configfile", TINY)
    inputs = [line.split(", ") for line in re.findall(r"^    input: (.*)$", text, flags=re.MULTILINE)]
    assert len(inputs) > len(ALL) / 2 and all(len(files) == len(set(files)) for files in inputs)


@pytest.mark.parametrize(("earlier", "rounds"), [("true", [0, 1]), ("false", [1])])
def test_guides_of_earlier_rounds_judge_if_asked(
    fresh: Project, tmp_path: Path, earlier: str, rounds: list[int]
) -> None:
    asked = tmp_path / "asked.yaml"
    asked.write_text(f"select: {{earlier_guides: {earlier}}}\n", encoding="utf-8")
    text = fresh.succeed("--dry-run", "--cores", "2", "--configfile", TINY, str(asked))
    blocks = re.findall(r"rule select_pseudo_labels:\n    input: (.*)\n    output: results/round1/", text)
    assert [int(number) for number in re.findall(r"round(\d)/tiny/guide/scores/0", blocks[0])] == rounds


def test_each_stage_trains_on_from_the_model_before_it(fresh: Project) -> None:
    text = fresh.succeed("--dry-run", "--cores", "2", "--configfile", TINY)
    model = r"results/(\S*)/model\.safetensors"
    found = re.findall(rf"rule \w+:\n    input: (.*)\n    output: {model}", text)
    before = {made: re.findall(model, inputs) for inputs, made in found}
    chain = ["baseline/tiny/layerwise"]
    for number in (0, 1):
        chain += [f"round{number}/tiny/{stage}" for stage in ("pretrain", "refine", "layerwise")]
    assert [before[made] for made in chain] == [[], *([one] for one in chain[:-1])]
    # The guide judges photos, and its model goes no further.
    assert [before[f"round{number}/tiny/guide"] for number in (0, 1)] == [[chain[1]], [chain[4]]]


def test_the_supervised_demo_plans_detection_and_both_recipes_without_rounds(fresh: Project) -> None:
    jobs = fresh.planned(config="configs/demo_supervised.yaml")
    assert {job.recipe for job in jobs if job.rule == "finetune_classifier"} == {"layerwise", "two_stage"}
    assert {"train_detector", "detect_photos", "probe_metadata"} <= {job.rule for job in jobs}
    assert not [job for job in jobs if job.run.startswith("round")]
