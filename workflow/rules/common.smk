"""Paths and params that several rule files share."""


wildcard_constraints:
    round=r"\d+",
    run=r"baseline|round\d+",
    shard=r"\d+",
    model="|".join(map(re.escape, config["models"])),
    recipe="|".join(map(re.escape, config["recipes"])),


SUPERVISED = config["track"] == "supervised"
# The supervised track clusters and selects nothing, so it has no rounds.
ROUNDS = range(0 if SUPERVISED else config["rounds"])
# In self-training the last model itself is the guide, and no round makes clusters.
CLUSTERED = config["track"] == "semi_supervised"
CLUSTER_ROUNDS = ROUNDS if CLUSTERED else range(0)
SHARDS = range(config["shards"])
MODELS = list(config["models"])
MANIFEST = "results/data/manifest.parquet"
CLASSES = "results/data/classes.parquet"
OPENSET = config["data"]["openset"] is not None
TRUTH = "results/data/truth.csv" if OPENSET else config["data"]["truth"]


THREADS, GPUS = threads_and_gpus(config["resources"], workflow.resource_settings.cores)


def section(name, *leave_out, **beside):
    """The keys of one section of the config, and others that go with them, as a single param of a rule.

    Snakemake compares the params of two runs as sets of values without names: of single ones it would overlook two that
    swap their values. The order is fixed, so that the order in the file reruns nothing.
    """
    return in_order({**{key: value for key, value in config[name].items() if key not in leave_out}, **beside})


def picked(name, *keys):
    """Some keys of one section of the config, in the same way."""
    return in_order({key: config[name][key] for key in keys})


def members():
    """Every (run, model, recipe) that votes: the rounds' models, and the supervised ones if these are to vote, too."""
    runs = ["baseline"] if SUPERVISED or config["ensemble"]["supervised"] else []
    runs += [f"round{r}" for r in ROUNDS]
    return [
        f"results/{run}/{model}/{recipe}"
        for run in runs
        for model in MODELS
        for recipe in config["models"][model]["recipes"]
    ]


def baselines():
    """What members are compared with: supervised fine-tuning of the same models, and linear probes of their features.

    The supervised track embeds no photos, so it has no linear probe, and what is fine-tuned votes itself. Where a model
    takes places and dates, what these tell alone is told as well.
    """
    alone = ["results/baseline/metadata/probe"] if metadata_probe() else []
    if SUPERVISED:
        return alone
    return [
        f"results/baseline/{model}/{recipe}"
        for model in MODELS
        for recipe in [*config["models"][model]["recipes"], "probe"]
    ] + alone


def judged():
    """Whatever predicts, each once: supervised models may be baselines and members."""
    return list(dict.fromkeys([*baselines(), *members()]))


def metadata_probe():
    """How the probe of places and dates encodes them: as the first model that takes them; empty if none does."""
    settings = [model["metadata"] for model in config["models"].values() if model["metadata"]["encoding"] != "none"]
    return {key: settings[0][key] for key in ("encoding", "max_uncertainty")} if settings else {}


def prediction_files(folders):
    """The prediction shards below the folders of several members."""
    return [
        f"{folder}/predictions/{shard}.parquet"
        for folder in folders
        for shard in ([0] if Path(folder).name == "probe" else SHARDS)
    ]


def box_files():
    """The shards of the key regions; none if no method was chosen to find them."""
    return [f"results/detection/boxes/{shard}.parquet" for shard in SHARDS if config["detection"]["method"] != "none"]


def previous_model(number, model):
    """What a round starts from: the model of the first recipe, of the previous round or in round 0 the supervised one."""
    if number == 0 and config["start"] == "pretrained":
        return []
    run = f"round{number - 1}" if number else "baseline"
    return f"results/{run}/{model}/{config['models'][model]['recipes'][0]}/model.safetensors"


def pretraining_start(wildcards):
    """What pre-training on clusters starts from."""
    return previous_model(int(wildcards.round), wildcards.model)


def weights_file(settings):
    """The file of a network's pretrained weights, where they come from one; then it is watched as any input."""
    return [] if settings["weights"] in ("package", "hub", "none") else settings["weights"]


def pretrained_weights(wildcards):
    """The file that a job of a model starts from, if it starts from pretrained weights and these are a file."""
    run = wildcards.get("run", f"round{wildcards.get('round')}")
    first = run == "baseline" or not CLUSTERED or (run == "round0" and config["start"] == "pretrained")
    return weights_file(config["models"][wildcards.model]) if first else []


def refined_model(wildcards):
    """What fine-tuning starts from: the refined model of the round; where there is none, from pretrained weights."""
    if wildcards.run == "baseline" or not CLUSTERED:
        return []
    return f"results/{wildcards.run}/{wildcards.model}/refine/model.safetensors"


def guide_model(wildcards):
    """Who judges the unlabeled photos of a round: its guide, or in self-training the last model."""
    if not CLUSTERED:
        return previous_model(int(wildcards.round), wildcards.model)
    return f"results/round{wildcards.round}/{wildcards.model}/guide/model.safetensors"


def pseudo_labels_of(wildcards):
    """The pseudo-labels of the round; none for the baseline."""
    return [] if wildcards.run == "baseline" else f"results/{wildcards.run}/pseudo_labels.parquet"


def guide_scores(wildcards):
    """Scores of the guides that judge a round's photos: its own, and those of the rounds before if they are asked, too."""
    last = int(wildcards.round)
    rounds = range(last + 1) if config["select"]["earlier_guides"] else [last]
    return expand("results/round{r}/{model}/guide/scores/{shard}.parquet", r=rounds, model=MODELS, shard=SHARDS)


def model_params(wildcards):
    """What the network is."""
    return model_settings(config, wildcards.model)


def feature_params(wildcards):
    """What of a model its pretrained features depend on: not what only matters while training."""
    settings = model_settings(config, wildcards.model)
    return {key: settings[key] for key in ("backbone", "weights", "image_size")}


def boxes_of(wildcards):
    """Key regions of a shard, where a job works on one, else of all photos; none unless the model looks at crops."""
    if config["models"][wildcards.model]["streams"] == "photo":
        return []
    shards = [wildcards.shard] if "shard" in wildcards.keys() else SHARDS
    return [f"results/detection/boxes/{shard}.parquet" for shard in shards]


def embedding_model(wildcards):
    """What photos are embedded with: what the round starts from; for the linear probe pretrained weights."""
    if wildcards.run == "baseline":
        return []
    return previous_model(int(wildcards.run.removeprefix("round")), wildcards.model)


def embedded_splits(wildcards):
    """The photos that are embedded: those that a round clusters, or those that the linear probe learns from and names."""
    return ["labeled", "val", "test"] if wildcards.run == "baseline" else ["labeled", "unlabeled"]


def boxes_of_features(wildcards):
    """The key regions for embedding; pretrained weights see the photo alone."""
    return boxes_of(wildcards) if embedding_model(wildcards) else []


def job_resources(gpu=0, whole=True, light=False):
    """Memory, time and GPUs of a job; memory and time grow with each attempt. Jobs that are ``light`` compute little.

    They also grow with the photos, if the job reads ``whole`` tables and not a shard. How many there will be is not
    known before they are read, but a shard is meant to hold about ten thousand.
    """
    limits, shards = config["resources"], len(SHARDS) if whole else 0
    memory = min(limits["mem_mb"], 4000 if light else math.inf) + shards * limits["mem_mb_per_shard"]
    minutes = min(limits["runtime"], 60 if light else math.inf) + shards * limits["runtime_per_shard"]
    return {
        "mem_mb": lambda wildcards, attempt: memory * attempt,
        "runtime": lambda wildcards, attempt: minutes * attempt,
        **({"gpu": gpu} if gpu else {}),
    }


def training_resources():
    """Resources of a job that trains: all GPUs, of one node or of several.

    How often it saves its state is among them and no param, since the result is the same.
    """
    gpus, nodes = GPUS, config["resources"]["nodes"]
    often = {"checkpoint_seconds": config["resources"]["checkpoint_seconds"]}
    if nodes == 1:
        return {**job_resources(gpu=gpus), **often}
    # With ``mpi``, the executor starts the job's script once, on the first node, and leaves the others to it. ``gpu``
    # would count those of all nodes together and let SLURM divide them as it likes.
    several = {"nodes": nodes, "tasks": nodes, "mpi": "srun"}
    return {**job_resources(), **often, **several, **({"gres": f"gpu:{gpus}"} if gpus else {})}


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
        return sorted(f"{data['root']}/{split}.json" for split in ("labeled", "unlabeled", "val", "test"))
    return sorted(annotations_of(data).values())


def test_annotations():
    """The COCO file of the test photos, for the submission layout that needs their numbers."""
    data = config["data"]
    if config["submission"]["layout"] != "inat" or data["format"] != "coco":
        return []
    return str(Path(data["root"]) / data["annotations"]["test"])


def history_files():
    """The history of every training job of every round, and of supervised fine-tuning."""
    stages = ("pretrain", "guide", "refine")
    folders = [f"results/round{r}/{model}/{stage}" for r in CLUSTER_ROUNDS for model in MODELS for stage in stages]
    folders += [folder for folder in judged() if Path(folder).name != "probe"]
    return [f"{folder}/history.parquet" for folder in folders]


def finder_params():
    """How regions are found; a detector's file says itself what it is, a backbone alone has to be named."""
    keys = ["method", "min_score"]
    if config["detection"]["method"] == "activation":
        keys += ["backbone", "weights", "image_size"]
    return picked("detection", *keys)


def detector_file():
    """The detector that looks at the photos: one from elsewhere, the one trained here, or none."""
    settings = config["detection"]
    if settings["method"] != "detector":
        return []
    return settings["detector"] or "results/detection/detector.safetensors"
