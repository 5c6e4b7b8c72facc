"""Paths and params that several rule files share."""


wildcard_constraints:
    round=r"\d+",
    run=r"baseline|round\d+",
    shard=r"\d+",
    model="|".join(map(re.escape, config["models"])),
    recipe="|".join(map(re.escape, config["recipes"])),


ROUNDS = range(config["rounds"])
SHARDS = range(config["shards"])
MODELS = list(config["models"])
MANIFEST = "results/data/manifest.parquet"
CLASSES = "results/data/classes.parquet"
OPENSET = config["data"]["openset"] is not None
TRUTH = "results/data/truth.csv" if OPENSET else config["data"]["truth"]


def section(name, *leave_out):
    """The keys of one section of the config; in fixed order, so that the order in the file reruns nothing."""
    return in_order({key: value for key, value in config[name].items() if key not in leave_out})


def named(*sections, **single):
    """Params of a rule, and one more that tells which value is whose.

    Snakemake compares the params of two runs as sets of values without names: it would overlook, say, two keys that
    swap their values.
    """
    params = {key: value for part in (*sections, single) for key, value in part.items()}
    return {**params, "names": repr(params)}


def members():
    """Every (run, model, recipe) that predicts: the rounds' models; the baseline is compared with, not voted with."""
    return [
        f"results/round{r}/{model}/{recipe}"
        for r in ROUNDS
        for model in MODELS
        for recipe in config["models"][model]["recipes"]
    ]


def baselines():
    """Supervised fine-tuning of the same models by the same recipes, and a linear probe of their features."""
    return [
        f"results/baseline/{model}/{recipe}"
        for model in MODELS
        for recipe in [*config["models"][model]["recipes"], "probe"]
    ]


def prediction_files(folders):
    """The prediction shards below the folders of several members."""
    return [
        f"{folder}/predictions/{shard}.parquet"
        for folder in folders
        for shard in ([0] if Path(folder).name == "probe" else SHARDS)
    ]


def previous_model(wildcards):
    """What a round starts from: nothing of ours in round 0, later the previous round's model of the first recipe."""
    number = int(wildcards.round)
    if number == 0:
        return []
    recipe = config["models"][wildcards.model]["recipes"][0]
    return f"results/round{number - 1}/{wildcards.model}/{recipe}/model.safetensors"


def refined_model(wildcards):
    """What fine-tuning starts from: the refined model of the round, or pretrained weights for the baseline."""
    return [] if wildcards.run == "baseline" else f"results/{wildcards.run}/{wildcards.model}/refine/model.safetensors"


def pseudo_labels_of(wildcards):
    """The pseudo-labels of the round; none for the baseline."""
    return [] if wildcards.run == "baseline" else f"results/{wildcards.run}/pseudo_labels.parquet"


def model_params(wildcards):
    """What the network is."""
    return model_settings(config, wildcards.model)


def feature_params(wildcards):
    """What of a model its pretrained features depend on: not what only matters while training."""
    settings = model_settings(config, wildcards.model)
    return {key: settings[key] for key in ("backbone", "weights", "image_size")}


def job_resources(**own):
    """Memory and time of a heavy job; both grow with each attempt."""
    return {
        "mem_mb": lambda wildcards, attempt: config["resources"]["mem_mb"] * attempt,
        "runtime": lambda wildcards, attempt: config["resources"]["runtime"] * attempt,
        **own,
    }


def training_resources():
    """The same for a training job, and how often it saves its state: no param, since the result is the same."""
    return job_resources(gpu=config["resources"]["gpus"], checkpoint_seconds=config["resources"]["checkpoint_seconds"])


def derived_seed(*names):
    """A seed of its own for each job, from the one in the config and the job's name."""
    digest = hashlib.sha256(" ".join([str(config["seed"]), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 2**31


def training_params(stage=None):
    """Params of a training rule: of the stage named, or of the recipe that the wildcards name."""

    def seed(wildcards):
        return derived_seed(*(f"{name}={value}" for name, value in wildcards.items()), stage or "finetune")

    return {
        "model": model_params,
        "stage": lambda wildcards: stage_settings(config, wildcards.model, stage or wildcards.recipe),
        "augmentation": section("augmentation"),
        "precision": config["compute"]["precision"],
        "seed": seed,
    }


def annotation_files():
    """The files that say what the photos show; the photos themselves are listed by the manifest alone."""
    data = config["data"]
    if data["format"] == "demo":
        names = [f"{split}.json" for split in ("labeled", "unlabeled", "val", "test")]
    else:
        given = data["annotations"] or ("annotation_v2.json" if data["format"] == "semi_inat" else {})
        names = [given] if isinstance(given, str) else [*given.values(), *(data["locations"] or {}).values()]
    return sorted(str(Path(data["root"]) / name) for name in names)


def test_annotations():
    """The COCO file of the test photos, for the submission layout that needs their numbers."""
    data = config["data"]
    if config["submission"]["layout"] != "inat" or data["format"] != "coco":
        return []
    return str(Path(data["root"]) / data["annotations"]["test"])


def history_files():
    """The history of every training job of every round, and of the baselines."""
    stages = ("pretrain", "guide", "refine")
    folders = [f"results/round{r}/{model}/{stage}" for r in ROUNDS for model in MODELS for stage in stages]
    folders += members() + [folder for folder in baselines() if Path(folder).name != "probe"]
    return [f"{folder}/history.parquet" for folder in folders]
