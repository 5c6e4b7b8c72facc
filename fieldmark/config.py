"""Check the configuration before anything runs, fill in defaults, and cut it into the slices that rules receive.

Only light imports: this runs each time Snakemake parses the workflow.
"""

import copy
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
from jsonschema.protocols import Validator

from fieldmark.contradictions import STAGES, contradictions

SCHEMA_FILE = Path(__file__).resolve().parent.parent / "workflow" / "schemas" / "config.schema.json"
# A number to everyone but YAML 1.1.
_EXPONENT = re.compile(r"([-+]?\d+)e([-+]?)(\d+)", re.IGNORECASE)


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


def _odd_keys(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Keys that are no text, with where they stand: YAML takes a bare 3, or yes, for something else."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if isinstance(name, str):
                yield from _odd_keys(part, (*path, name))
            else:
                yield _key(path), name
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _odd_keys(part, (*path, number))


def _explain(error: jsonschema.ValidationError) -> str:
    if error.validator == "anyOf":
        # The alternative that is meant is the one whose type fits; what is wrong inside it says more than its name.
        parts = error.context or ()
        inner = [part for part in parts if part.validator not in ("type", "const") or len(part.relative_path) > 0]
        if inner:
            return "\n  ".join(map(_explain, inner))
        wanted = " or ".join(str(part.validator_value) for part in parts)
        return f"{_key(error.absolute_path)}: expected {wanted}, found {error.instance!r}"
    key = _key(error.absolute_path)
    if error.validator == "required":
        # There is one such error for each missing key, which only its message names.
        missing = error.message.partition(" is a required")[0]
        # Who wants to change one key of a phase finds all others gone.
        why = "; a list in your file replaces the whole list of config.yaml" if "phases" in error.absolute_path else ""
        return f"{key}: expected the key {missing}, which is missing{why}"
    hint = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    hint = f" ({hint})" if hint else ""
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        lines = []
        for name in sorted(error.instance.keys() - set(known)):
            close = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
            where = name if key == "(top level)" else f"{key}.{name}"
            lines.append(f"{where}: unknown key; {guess}")
        return "\n  ".join(lines)
    if error.validator == "type":
        kinds = error.validator_value
        wanted = kinds if isinstance(kinds, str) else " or ".join(kinds)
        exponent = _EXPONENT.fullmatch(error.instance) if isinstance(error.instance, str) else None
        if exponent and "number" in wanted:
            hint = f" (YAML takes it for text: write {exponent[1]}.0e{exponent[2] or '+'}{exponent[3]})"
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
    problems = [f"{key}: expected names as keys, found {name!r}" for key, name in _odd_keys(config)]
    if problems:
        raise ConfigError("the configuration cannot be used:\n  " + "\n  ".join(problems))
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    validator = _filling_defaults(jsonschema.Draft202012Validator)(schema)
    errors = sorted(validator.iter_errors(config), key=lambda error: list(map(str, error.absolute_path)))
    problems = [_explain(error) for error in errors] or list(contradictions(config))
    if problems:
        raise ConfigError("the configuration cannot be used:\n  " + "\n  ".join(problems))
    # As a shell would have it.
    for key in ("root", "truth"):
        if config["data"][key]:
            try:
                config["data"][key] = str(Path(config["data"][key]).expanduser())
            except RuntimeError as error:
                raise ConfigError(f"data.{key}: expected a place that exists, found {config['data'][key]!r}") from error
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

    A model's ``overrides`` replace single keys in every phase of the stage; the stage's own ``steps_factor`` and the
    general one then multiply the steps.
    """
    settings = config[stage] if stage in STAGES else config["recipes"][stage]
    overrides = config["models"][model]["overrides"].get(stage, {})
    phases = [{"name": stage, **phase, **overrides} for phase in settings["phases"]]
    factor = config["steps_factor"] * settings["steps_factor"]
    longer = [{**phase, "steps": max(1, round(phase["steps"] * factor))} for phase in phases]
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
