"""The configuration: the demo's is sound, defaults are filled in, and every key that is shown or passed on exists."""

import copy
import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fieldmark.config import SCHEMA_FILE, STAGES, ConfigError, model_settings, resolve, stage_settings, threads_and_gpus
from tests.minimal_config import minimal, new_phase, problems, put

ROOT = Path(__file__).resolve().parent.parent
DEMO: dict[str, Any] = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
PHASE_SCHEMA = SCHEMA["$defs"]["stage"]["properties"]["phases"]["items"]["properties"]
MODEL_SCHEMA = SCHEMA["properties"]["models"]["additionalProperties"]["properties"]


def test_the_demos_configuration_resolves() -> None:
    config = resolve(copy.deepcopy(DEMO))
    for model in config["models"]:
        assert model_settings(config, model)["image_size"] == config["models"][model]["image_size"]
        for stage in (*STAGES, *config["models"][model]["recipes"]):
            assert stage_settings(config, model, stage)["phases"]


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_overriding_files_resolve_over_the_demos_configuration(file: Path) -> None:
    def merge(base: dict[str, Any], other: dict[str, Any]) -> None:
        for key, value in other.items():
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                merge(base[key], value)
            else:
                base[key] = value

    config = copy.deepcopy(DEMO)
    merge(config, yaml.safe_load(file.read_text(encoding="utf-8")))
    resolve(config)


def test_defaults_are_filled_in() -> None:
    config = resolve(minimal())
    assert config["seed"] == 1 and config["data"]["leaks"] == "drop" and config["data"]["openset"] is None
    assert config["models"]["m"]["weights"] == "hub" and config["models"]["m"]["overrides"] == {}
    assert config["cluster"]["pca_dim"] == 64  # of a section that is not there at all
    for stage in (*STAGES, "plain"):
        (phase,) = stage_settings(config, "m", stage)["phases"]
        assert phase["name"] == stage and phase["steps"] == 5 and phase["batch_size"] == 32 and phase["shares"] == {}


def test_a_key_that_is_left_out_means_what_config_yaml_shows() -> None:
    filled = resolve(minimal())
    # These tell of the demo's photos.
    own = {"data": ("format", "root", "coarse_taxa", "truth"), "demo": (), "models": None, "recipes": None}
    for section, shown in DEMO.items():
        if section in ("title", *STAGES) or (section in own and own[section] is None):
            continue
        if not isinstance(shown, dict):
            assert filled[section] == shown, section
            continue
        for key, value in shown.items():
            if key not in own.get(section, ()) and (section, key) != ("submission", "layout"):
                assert filled[section][key] == value, f"{section}.{key}"


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(minimal())
    assert resolve(copy.deepcopy(once)) == once


def test_defaults_are_not_shared() -> None:
    config, other = resolve(minimal()), resolve(minimal())
    config["pretrain"]["phases"][0]["shares"]["labeled"] = 1.0
    config["predict"]["scales"].append(9)
    config["models"]["m"]["overrides"]["guide"] = {}
    assert config["guide"]["phases"][0]["shares"] == {}
    assert other == resolve(minimal())


def test_values_that_are_given_are_kept() -> None:
    config = minimal() | {"seed": 0, "filter": {"min_size": 9}}
    config["recipes"]["plain"]["phases"][0]["frozen_norms"] = False
    resolve(config)
    assert config["seed"] == 0 and config["filter"]["min_size"] == 9
    assert config["recipes"]["plain"]["phases"][0]["frozen_norms"] is False


@pytest.mark.parametrize(("kind", "layout"), [("folder", "simple"), ("table", "simple"), ("semi_inat", "semi_inat")])
def test_the_submission_is_laid_out_as_the_data_are(kind: str, layout: str) -> None:
    config = minimal()
    put(config, "data.format", kind)
    put(config, "data.annotations", "photos.csv" if kind == "table" else None)
    assert resolve(copy.deepcopy(config))["submission"]["layout"] == layout
    put(config, "submission.layout", "inat")
    assert resolve(config)["submission"]["layout"] == "inat"


def test_one_factor_lengthens_every_stage() -> None:
    config = minimal()
    put(config, "models.m.overrides", {"guide": {"steps": 3}})
    put(config, "steps_factor", 2.5)
    resolve(config)
    steps = {stage: stage_settings(config, "m", stage)["phases"][0]["steps"] for stage in (*STAGES, "plain")}
    assert steps == {"pretrain": 12, "guide": 8, "refine": 12, "plain": 12}  # of 5 and 3, rounded to even halves


def test_a_stages_own_factor_lengthens_it_beside_the_general_one() -> None:
    config = minimal()
    put(config, "steps_factor", 2)
    put(config, "recipes.plain.steps_factor", 3)
    resolve(config)
    assert [stage_settings(config, "m", stage)["phases"][0]["steps"] for stage in ("guide", "plain")] == [10, 30]


def test_a_tilde_stands_for_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = minimal()
    put(config, "data.root", "~/orchids")
    assert resolve(config)["data"]["root"] == "/home/ann/orchids"
    with pytest.raises(ConfigError, match=r"data\.root: expected a place that exists, found '~nosuchuser/x'"):
        resolve(minimal() | {"data": {"format": "folder", "root": "~nosuchuser/x"}})


def test_null_removes_a_model_or_recipe() -> None:
    config = minimal()
    config["models"] |= {"demo": None}
    config["recipes"] |= {"other": None}
    resolve(config)
    assert list(config["models"]) == ["m"] and list(config["recipes"]) == ["plain"]
    assert "models: {} should be non-empty" in problems(models={"m": None})
    assert "'plain' is not defined under recipes:" in problems(recipes={"plain": None, "x": {"phases": [new_phase()]}})


def test_overrides_replace_single_keys_of_one_stage_of_one_model() -> None:
    config = minimal()
    config["models"]["n"] = {**config["models"]["m"], "overrides": {"plain": {"steps": 99, "shares": {"labeled": 1}}}}
    config["recipes"]["plain"]["phases"].append({"name": "tail", "steps": 7, "learning_rate": 0.1})
    resolve(config)
    assert [(p["name"], p["steps"]) for p in stage_settings(config, "n", "plain")["phases"]] == [
        ("plain", 99),
        ("tail", 99),
    ]
    assert [phase["learning_rate"] for phase in stage_settings(config, "n", "plain")["phases"]] == [0.001, 0.1]
    assert [phase["steps"] for phase in stage_settings(config, "m", "plain")["phases"]] == [5, 7]
    assert stage_settings(config, "n", "guide") == stage_settings(config, "m", "guide")


def properties(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every fixed key of a part of the schema that an object must or may hold, with its schema."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    for name, part in schema.get("properties", {}).items():
        yield f"{path}.{name}".lstrip("."), part
        yield from properties(part, f"{path}.{name}")
    for inside in ("items", "additionalProperties"):
        if isinstance(schema.get(inside), dict):
            yield from properties(schema[inside], f"{path}.*")


def holds(value: Any, path: str) -> bool:
    """Whether some object at the place that ``path`` names has its last key."""
    name, _, rest = path.partition(".")
    if name == "*":
        inner = value.values() if isinstance(value, dict) else value
        return any(holds(one, rest) for one in inner)
    return isinstance(value, dict) and name in value and (not rest or holds(value[name], rest))


def test_config_yaml_shows_every_key_that_has_no_default() -> None:
    # Overrides repeat the keys of a phase, and the stages those of a recipe.
    repeated = re.compile(r"models\.\*\.overrides\.|(pretrain|guide|refine)\.")
    keys = [path for path, part in properties(SCHEMA) if "default" not in part and not repeated.match(path)]
    assert {"data.root", "models.*.backbone", "recipes.*.phases.*.steps"} <= set(keys)
    assert [path for path in keys if not holds(DEMO, path)] == []


def test_config_yaml_shows_every_section_and_every_key_of_the_plain_ones() -> None:
    shown = (
        "detection",
        "cluster",
        "filter",
        "select",
        "recluster",
        "augmentation",
        "predict",
        "ensemble",
        "evaluate",
        "demo",
    )
    assert set(DEMO) == set(SCHEMA["properties"])
    for name in (*shown, "submission", "compute", "resources"):
        assert set(DEMO[name]) == set(SCHEMA["properties"][name]["properties"]), name
    assert set(DEMO["models"][next(iter(DEMO["models"]))]) == set(MODEL_SCHEMA)


def test_every_section_of_config_yaml_is_explained() -> None:
    blocks = (ROOT / "config.yaml").read_text(encoding="utf-8").split("\n\n")
    sections = [block for block in blocks if re.search(r"^[a-z_]+:", block, re.MULTILINE)]
    unexplained = [block for block in sections if "#" not in block]
    # Guide and refine have the keys of the stage above them.
    assert [block.split(":")[0] for block in unexplained if not re.match(r"guide|refine", block)] == []


def test_a_models_overrides_are_the_keys_of_a_phase_with_the_same_limits() -> None:
    overrides = MODEL_SCHEMA["overrides"]["additionalProperties"]["properties"]
    assert set(overrides) == set(PHASE_SCHEMA) - {"name"}
    for name, part in overrides.items():
        assert part == {key: value for key, value in PHASE_SCHEMA[name].items() if key != "default"}, name


def fields(kind: Callable[..., Any]) -> dict[str, Any]:
    """Field → default of a dataclass."""
    assert dataclasses.is_dataclass(kind)
    return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}


def test_the_schema_and_the_classes_that_receive_its_values_agree() -> None:
    from fieldmark.arcface import HeadSettings
    from fieldmark.fitting import ModelSettings, StageSettings
    from fieldmark.inference import ViewPlan
    from fieldmark.metadata import MetadataSettings
    from fieldmark.phases import Phase
    from fieldmark.views import Augmentation

    phase = {name: part for name, part in PHASE_SCHEMA.items() if name not in ("balanced", "shares")}
    assert set(fields(Phase)) == set(phase)
    own = [name for name in phase if "default" in phase[name] and name != "batch_size"]
    assert {name: fields(Phase)[name] for name in own} == {name: phase[name]["default"] for name in own}
    augmentation = SCHEMA["properties"]["augmentation"]["properties"]
    assert fields(Augmentation) == {name: part["default"] for name, part in augmentation.items()}
    assert set(fields(ViewPlan)) == set(SCHEMA["properties"]["predict"]["properties"]) - {"top_k"}
    config = resolve(minimal())
    assert set(model_settings(config, "m")) == set(fields(ModelSettings))
    for key, kind in (("head", HeadSettings), ("metadata", MetadataSettings)):
        assert fields(kind) == {name: part["default"] for name, part in MODEL_SCHEMA[key]["properties"].items()}
        assert set(DEMO["models"]["lite0"][key]) == set(fields(kind))
    for key in ("streams", "crop_margin"):
        assert fields(ModelSettings)[key] == MODEL_SCHEMA[key]["default"]
    assert set(stage_settings(config, "m", "plain")) == set(fields(StageSettings))


def test_the_configurations_in_the_readme_can_be_used() -> None:
    from snakemake.utils import update_config

    blocks = re.findall(r"(?:^    .*\n)+", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    examples = [block for block in blocks if re.match(r"    \w+:( |\n)", block)]
    tracks = []
    for example in examples:
        config = copy.deepcopy(DEMO)
        update_config(config, yaml.safe_load(example))
        tracks.append(resolve(config)["track"])
    assert tracks == ["semi_supervised", "self_training", "supervised"]


def test_what_a_job_may_use_follows_from_the_machine_unless_it_is_said(tmp_path: Path) -> None:
    auto = {"threads": "auto", "gpus": "auto"}
    assert [threads_and_gpus(auto, cores, tmp_path)[0] for cores in (1, 2, 5, 64, None)] == [1, 1, 2, 8, 8]
    assert threads_and_gpus(auto, 2, tmp_path)[1] == 0
    (tmp_path / "nvidiactl").touch()
    assert threads_and_gpus(auto, 2, tmp_path)[1] == 0
    (tmp_path / "nvidia3").touch()
    assert threads_and_gpus(auto, 2, tmp_path)[1] == 1
    assert threads_and_gpus({"threads": 5, "gpus": 4}, 2, tmp_path) == (5, 4)
