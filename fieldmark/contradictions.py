"""What no schema of the configuration can say: keys that exclude or require one another.

Only light imports: this runs each time Snakemake parses the workflow.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fieldmark.weights_policy import known_lists, refusals

# The stages before fine-tuning, and the kinds of photos that each learns from.
KINDS = {"pretrain": ("clusters",), "guide": ("labeled", "foreign"), "refine": ("clusters",)}
STAGES = tuple(KINDS)


def contradictions(config: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a configuration that its schema allows; each with the key's path and what was expected.

    Args:
        config: as resolved.
    """
    yield from _of_the_demo(config)
    yield from _of_the_data(config)
    yield from _of_the_models(config)
    yield from _of_the_stages(config)
    yield from _of_the_batches(config)
    if config["track"] == "self_training" and config["start"] != "supervised":
        yield (
            "start: expected supervised, because track is self_training, where the supervised model judges the "
            f"unlabeled photos of round 0; found {config['start']}"
        )
    select = config["select"]
    if (select["min_in_class_score"] is None) == (select["selected_share"] is None):
        yield "select: expected exactly one of min_in_class_score and selected_share, the other one null"


def _of_the_demo(config: Mapping[str, Any]) -> Iterator[str]:
    demo = config["demo"]
    low, high = demo["labeled_per_class"]
    if low > high:
        yield f"demo.labeled_per_class: expected [fewest, most], found [{low}, {high}]"
    if config["data"]["format"] != "demo":
        return
    if not demo["unlabeled"] and config["track"] != "supervised":
        yield f"demo.unlabeled: expected at least 1, because track is {config['track']}; found 0"
    if demo["in_class_share"] == 1 and demo["foreign_share"]:
        yield (
            f"demo.foreign_share: expected 0, because demo.in_class_share is 1, so that no species is foreign; found "
            f"{demo['foreign_share']}"
        )


def _of_the_data(config: Mapping[str, Any]) -> Iterator[str]:
    data = config["data"]
    kind, given = data["format"], data["annotations"]
    if kind == "table" and not isinstance(given, str):
        yield f"data.annotations: expected a table below data.root, because data.format is table; found {given!r}"
    if kind == "coco" and not data["openset"]:
        needed = {"labeled"} if data["val_per_class"] else {"labeled", "val"}
        if not isinstance(given, dict) or needed - given.keys():
            names = " and ".join(sorted(needed))
            yield f"data.annotations: expected a JSON file for {names}, because data.format is coco; found {given!r}"
    if kind == "torchvision" and not (data["dataset"] and data["openset"]):
        yield "data.dataset, data.openset: expected both, because data.format is torchvision"
    if data["openset"] and data["val_per_class"]:
        yield f"data.val_per_class: expected 0, because data.openset has its own; found {data['val_per_class']}"
    if data["openset"] and data["truth"]:
        yield f"data.truth: expected null, because data.openset makes the truth itself; found {data['truth']!r}"
    if kind != "demo" and data["root"] == "results/demo":
        yield f"data.root: expected the folder of your photos, because data.format is {kind}"
    if kind != "demo" and data["truth"] == "results/demo/truth.csv":
        yield f"data.truth: expected null or a CSV file of your own, because data.format is {kind}"
    if config["submission"]["layout"] == "inat" and kind == "coco":
        if not (isinstance(given, dict) and "test" in given):
            yield "data.annotations.test: expected the JSON of the test photos, for submission.layout inat"


def _of_the_models(config: Mapping[str, Any]) -> Iterator[str]:
    detection = config["detection"]
    networks = {f"models.{name}": model for name, model in config["models"].items()}
    for name, network in [*networks.items(), ("detection", detection)]:
        if network["weights"] == "package" and network["backbone"] != "tf_efficientnet_lite0":
            yield (
                f"{name}.weights: package holds the weights of tf_efficientnet_lite0, not of {network['backbone']}; "
                "expected hub, none or a file"
            )
    for name, model in networks.items():
        if model["streams"] == "photo_and_crop" and detection["method"] == "none":
            yield (
                f"{name}.streams: photo_and_crop needs key regions: set detection.method to detector or activation "
                "(without, every crop would be the full photo, at twice the time)"
            )
        for recipe in model["recipes"]:
            if recipe not in config["recipes"]:
                known = ", ".join(config["recipes"])
                yield f"{name}.recipes: {recipe!r} is not defined under recipes: (found {known})"
        for section in model["overrides"]:
            if section not in (*STAGES, *config["recipes"]):
                yield f"{name}.overrides.{section}: expected one of {', '.join((*STAGES, *config['recipes']))}"
    if detection["method"] != "none":
        other = detection["detector"] if detection["method"] == "detector" else None
        networks["detection"] = {**detection, "weights": other or detection["weights"]}
    yield from refusals(networks, config["weights_policy"], {**known_lists(), **config["weights_policies"]})


def _of_the_stages(config: Mapping[str, Any]) -> Iterator[str]:
    mixed = [key for key in ("mixup", "cutmix") if config["augmentation"][key]]
    for name, stage in [*((name, config[name]) for name in STAGES), *config["recipes"].items()]:
        if mixed and stage["prototype_strength"]:
            yield (
                f"augmentation.{mixed[0]}: expected 0, because {name} has prototypes (prototype_strength), which are "
                "means of photos of one class"
            )
        place = name if name in STAGES else f"recipes.{name}"
        overrides = {model: settings["overrides"].get(name, {}) for model, settings in config["models"].items()}
        overrides = {model: keys for model, keys in overrides.items() if {"shares", "marginal_weight"} & keys.keys()}
        for number, phase in enumerate(stage["phases"]):
            # As it stands, unless every model changes it.
            if len(overrides) < len(config["models"]):
                yield from _of_the_shares(name, phase, f"{place}.phases[{number}]")
            for model, keys in overrides.items():
                yield from _of_the_shares(name, {**phase, **keys}, f"models.{model}.overrides.{name}")


def _of_the_batches(config: Mapping[str, Any]) -> Iterator[str]:
    """Batches, of stages that will run, of which some device would get no photo."""
    gpus, nodes = config["resources"]["gpus"], config["resources"]["nodes"]
    devices = (1 if gpus == "auto" else max(1, gpus)) * nodes
    detection = config["detection"]
    trained = detection["method"] == "detector" and not detection["detector"]
    sizes = {"detection": detection["batch_size"]} if trained else {}
    for model, settings in config["models"].items():
        for name in (*(STAGES if config["track"] == "semi_supervised" else ()), *settings["recipes"]):
            own = settings["overrides"].get(name, {})
            if "batch_size" in own:
                sizes[f"models.{model}.overrides.{name}"] = own["batch_size"]
                continue
            place, stage = (name, config[name]) if name in STAGES else (f"recipes.{name}", config["recipes"].get(name))
            # One that is not defined is told elsewhere.
            phases = stage["phases"] if stage else ()
            sizes |= {f"{place}.phases[{number}]": phase["batch_size"] for number, phase in enumerate(phases)}
    for place, size in sizes.items():
        if size < devices:
            yield (
                f"{place}.batch_size: expected at least {devices}, a photo for each device (resources.gpus × "
                f"resources.nodes); found {size}"
            )


def _of_the_shares(stage: str, phase: Mapping[str, Any], where: str) -> Iterator[str]:
    """Shares of kinds of photos that a stage does not have, or that would teach it nothing."""
    shares = phase["shares"]
    known = KINDS.get(stage, ("labeled", "pseudo", "unlabeled"))
    for kind in shares:
        if kind not in known:
            expected = f"expected shares of {', '.join(known)}, the photos of this stage"
            yield f"{where}.shares.{kind}: {expected}; found {kind!r}"
    if shares and not any(shares.values()):
        yield f"{where}.shares: expected one above 0, found none"
    if shares.get("unlabeled") and not phase["marginal_weight"]:
        yield (
            f"{where}.shares.unlabeled: expected 0, because {where}.marginal_weight is 0, without which these photos "
            f"teach nothing; found {shares['unlabeled']}"
        )
