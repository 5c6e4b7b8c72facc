"""Photos in: the demo set, the manifest, its shards."""

if config["data"]["format"] == "demo":

    rule generate_demo:
        output:
            photos=directory("results/demo/photos"),
            annotations=[f"results/demo/{split}.json" for split in ("labeled", "unlabeled", "val", "test")],
            truth="results/demo/truth.csv",
        log:
            "results/logs/generate_demo.log",
        benchmark:
            "results/benchmarks/generate_demo.tsv"
        conda:
            "../../envs/core.yaml"
        threads: THREADS
        resources:
            **job_resources(),
        params:
            settings=section("demo", seed=config["seed"]),
            code=fingerprint("generate_demo"),
        script:
            "../scripts/generate_demo.py"


rule ingest_photos:
    input:
        # Real data are watched through their annotation files; photos are listed by the manifest alone.
        annotation_files(),
    output:
        **({"truth": TRUTH} if OPENSET else {}),
        manifest=MANIFEST,
        classes=CLASSES,
        rejected="results/data/rejected.parquet",
        # An open-set split of labeled photos sets their true classes aside, for the evaluation.
    log:
        "results/logs/ingest_photos.log",
    benchmark:
        "results/benchmarks/ingest_photos.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **job_resources(),
    params:
        # Of the draws, where there are any.
        **({"seed": config["seed"]} if OPENSET or config["data"]["val_per_class"] else {}),
        data=section("data", "truth"),
        code=fingerprint("ingest_photos"),
    script:
        "../scripts/ingest_photos.py"


rule shard_manifest:
    input:
        manifest=MANIFEST,
    output:
        [f"results/data/shards/{shard}.parquet" for shard in SHARDS],
    log:
        "results/logs/shard_manifest.log",
    benchmark:
        "results/benchmarks/shard_manifest.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        # With fewer shards the files of all that remain are there, each with too few photos.
        shards=len(SHARDS),
        code=fingerprint("shard_manifest"),
    script:
        "../scripts/shard_manifest.py"
