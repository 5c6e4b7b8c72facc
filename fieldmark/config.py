"""Check the configuration before anything runs, fill in defaults, and cut it into the slices that rules receive.

Only light imports: this runs each time Snakemake parses the workflow.
"""

import copy
import difflib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.protocols import Validator

from fieldmark.weights_policy import known_lists, refusals

SCHEMA_FILE = Path(__file__).resolve().parent.parent / "workflow" / "schemas" / "config.schema.json"
STAGES = ("pretrain", "guide", "refine")


class ConfigError(ValueError):
    """The configuration cannot be used; every problem is listed with its key."""


def _filling_defaults(validator_class: type[Validator]) -> type[Validator]:
    """A validator that also writes the schema's defaults into the objects it checks."""
    check_properties = validator_class.VALIDATORS["properties"]

    def properties(validator: Validator, schemas: dict, instance: Any, schema: dict) -> Iterator[Any]:
        if isinstance(instance, dict):
            for key, part in schemas.items():
                if "default" in part:
                    # A copy: two objects must never share a mutable default.
                    instance.setdefault(key, copy.deepcopy(part["default"]))
        yield from check_properties(validator, schemas, instance, schema)

    # YAML's 1e3 is a float that JSON schema takes for a whole number, and its .nan passes every limit.
    types = validator_class.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
            "number": lambda _, value: (
                isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            ),
        }
    )
    return jsonschema.validators.extend(validator_class, {"properties": properties}, type_checker=types)


def _key(path: Any) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "(top level)"


def _explain(error: jsonschema.ValidationError) -> str:
    if error.validator == "anyOf":
        # The alternative that is meant is the one whose type fits; what is wrong inside it says more than its name.
        inner = [part for part in error.context or () if part.validator != "type" or len(part.relative_path) > 0]
        if inner:
            return "\n  ".join(map(_explain, inner))
    key = _key(error.absolute_path)
    hint = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    hint = f" ({hint})" if hint else ""
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        lines = []
        for name in sorted(set(error.instance) - set(known)):
            close = difflib.get_close_matches(str(name), known, n=1)
            guess = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            where = name if key == "(top level)" else f"{key}.{name}"
            lines.append(f"{where}: unknown key; {guess}")
        return "\n  ".join(lines)
    if error.validator == "type":
        kinds = error.validator_value
        wanted = kinds if isinstance(kinds, str) else " or ".join(kinds)
        return f"{key}: expected {wanted}, found {error.instance!r}{hint}"
    if error.validator == "enum":
        return f"{key}: expected one of {', '.join(map(str, error.validator_value))}; found {error.instance!r}{hint}"
    if error.validator in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        words = {
            "minimum": "at least",
            "exclusiveMinimum": "more than",
            "maximum": "at most",
            "exclusiveMaximum": "less than",
        }
        return f"{key}: expected {words[str(error.validator)]} {error.validator_value}, found {error.instance!r}{hint}"
    return f"{key}: {error.message}{hint}"


def _contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    """What no schema can say: keys that exclude or require one another."""
    data = config["data"]
    low, high = config["demo"]["labeled_per_class"]
    if low > high:
        yield f"demo.labeled_per_class: expected [fewest, most], found [{low}, {high}]"
    if data["format"] == "demo" and config["track"] == "semi_supervised" and not config["demo"]["unlabeled"]:
        yield "demo.unlabeled: expected at least 1, because track is semi_supervised; found 0"
    if data["format"] == "torchvision" and not (data["dataset"] and data["openset"]):
        yield "data.dataset, data.openset: expected both, because data.format is torchvision"
    if data["openset"] and data["truth"]:
        yield f"data.truth: expected null, because data.openset makes the truth itself; found {data['truth']!r}"
    select = config["select"]
    if (select["min_in_class_score"] is None) == (select["selected_share"] is None):
        yield "select: expected exactly one of min_in_class_score and selected_share, the other one null"
    if data["format"] != "demo" and data["root"] == "results/demo":
        yield f"data.root: expected the folder of your photos, because data.format is {data['format']}"
    if data["format"] != "demo" and data["truth"] == "results/demo/truth.csv":
        yield f"data.truth: expected null or a CSV file of your own, because data.format is {data['format']}"
    if config["submission"]["layout"] == "inat":
        if config["predict"]["top_k"] < 5:
            yield f"predict.top_k: expected at least 5 for submission.layout inat, found {config['predict']['top_k']}"
        if data["format"] == "coco" and not (isinstance(data["annotations"], dict) and "test" in data["annotations"]):
            yield "data.annotations.test: expected the JSON of the test photos, for submission.layout inat"
    detection = config["detection"]
    if detection["weights"] == "package" and detection["backbone"] != "tf_efficientnet_lite0":
        yield (
            "detection.weights: package holds the weights of tf_efficientnet_lite0, not of "
            f"{detection['backbone']}; expected hub, none or a file"
        )
    networks = {f"models.{name}": model for name, model in config["models"].items()}
    if detection["method"] != "none":
        other = detection["detector"] if detection["method"] == "detector" else None
        networks["detection"] = {**detection, "weights": other or detection["weights"]}
    lists = {**known_lists(), **config["weights_policies"]}
    yield from refusals(networks, config["weights_policy"], lists)
    mixed = [key for key in ("mixup", "cutmix") if config["augmentation"][key]]
    for name, stage in [*((name, config[name]) for name in STAGES), *config["recipes"].items()]:
        if mixed and stage["prototype_strength"]:
            yield (
                f"augmentation.{mixed[0]}: expected 0, because {name} has prototypes (prototype_strength), which are "
                "means of photos of one class"
            )
    yield from _unknown_shares(config)
    for name, model in config["models"].items():
        for recipe in model["recipes"]:
            if recipe not in config["recipes"]:
                known = ", ".join(config["recipes"])
                yield f"models.{name}.recipes: {recipe!r} is not defined under recipes: (found {known})"
        if model["weights"] == "package" and model["backbone"] != "tf_efficientnet_lite0":
            yield (
                f"models.{name}.weights: package holds the weights of tf_efficientnet_lite0, not of "
                f"{model['backbone']}; expected hub, none or a file"
            )
        for section in model["overrides"]:
            if section not in (*STAGES, *config["recipes"]):
                yield f"models.{name}.overrides.{section}: expected one of {', '.join((*STAGES, *config['recipes']))}"


def _unknown_shares(config: Mapping[str, Any]) -> Iterator[str]:
    """Shares of kinds of photos that a stage does not have; its batches would leave them out."""
    kinds = {"pretrain": ("clusters",), "guide": ("labeled", "foreign"), "refine": ("clusters",)}
    stages = {**{name: config[name] for name in kinds}, **{f"recipes.{k}": v for k, v in config["recipes"].items()}}
    for name, stage in stages.items():
        known = kinds.get(name, ("labeled", "pseudo", "unlabeled"))
        for number, phase in enumerate(stage["phases"]):
            for kind in phase["shares"]:
                if kind not in known:
                    where = f"{name}.phases[{number}].shares.{kind}"
                    yield f"{where}: expected shares of {', '.join(known)}, the photos of this stage; found {kind!r}"


def resolve(config: dict[str, Any]) -> dict[str, Any]:
    """Check a configuration and fill in its defaults, in place.

    Args:
        config: as loaded from YAML.

    Returns:
        The same dict.

    Raises:
        ConfigError: lists every unknown key, wrong type, value out of range and contradiction, with the key's path.
    """
    for section in ("models", "recipes"):
        # An overriding file removes an entry of config.yaml by setting it to null.
        if isinstance(config.get(section), dict):
            config[section] = {name: entry for name, entry in config[section].items() if entry is not None}
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    validator = _filling_defaults(jsonschema.Draft202012Validator)(schema)
    errors = sorted(validator.iter_errors(config), key=lambda error: list(map(str, error.absolute_path)))
    problems = [_explain(error) for error in errors] or list(_contradictions(config))
    if problems:
        raise ConfigError("the configuration cannot be used:\n  " + "\n  ".join(problems))
    if config["submission"]["layout"] == "auto":
        competition = config["data"]["format"] in ("semi_inat", "demo")
        config["submission"]["layout"] = "semi_inat" if competition else "simple"
    return config


def in_order(value: Any) -> Any:
    """The same with the keys of every mapping in it sorted: Snakemake takes another order for another param."""
    if isinstance(value, Mapping):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(part) for part in value] if isinstance(value, list) else value


def model_settings(config: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The keys of a model that decide what the network is: the fields of ``models.ModelSettings``."""
    plain = ("backbone", "weights", "image_size", "embedding", "dropout", "drop_path")
    keys = (*plain, "head", "metadata", "streams", "crop_margin")
    return {key: in_order(config["models"][model][key]) for key in keys}


def stage_settings(config: Mapping[str, Any], model: str, stage: str) -> dict[str, Any]:
    """How ``model`` trains in ``stage`` (pretrain, guide, refine or a recipe): the fields of ``StageSettings``.

    A model's ``overrides`` replace single keys in every phase of the stage; ``steps_factor`` then multiplies the steps.
    """
    settings = config[stage] if stage in STAGES else config["recipes"][stage]
    overrides = config["models"][model]["overrides"].get(stage, {})
    phases = [{"name": stage, **phase, **overrides} for phase in settings["phases"]]
    longer = [{**phase, "steps": max(1, round(phase["steps"] * config["steps_factor"]))} for phase in phases]
    return {"prototype_strength": settings["prototype_strength"], "phases": in_order(longer)}


def threads_and_gpus(resources: Mapping[str, Any], cores: int | None, devices: Path = Path("/dev")) -> tuple[int, int]:
    """Threads of a job, and GPUs of one that trains.

    Args:
        resources: the config's; ``auto`` stands for half of the cores, at most 8, and for one GPU if there is any.
        cores: that Snakemake was given; None where a cluster has them.
        devices: folder in which the system shows its GPUs.
    """
    threads, gpus = resources["threads"], resources["gpus"]
    if threads == "auto":
        threads = min(8, max(1, (cores or 16) // 2))
    if gpus == "auto":
        gpus = int(any(devices.glob("nvidia[0-9]*")))
    return threads, gpus
