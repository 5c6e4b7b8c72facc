"""Key regions: a detector learned from the boxes in the data, and a box for every photo."""


rule train_detector:
    input:
        manifest=MANIFEST,
        pretrained=weights_file(config["detection"]),
    output:
        detector="results/detection/detector.safetensors",
        history="results/detection/history.parquet",
    log:
        "results/logs/detection/train_detector.log",
    benchmark:
        "results/benchmarks/detection/train_detector.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **training_resources(),
    params:
        splits=config["detection"]["train_on"],
        architecture=picked("detection", "backbone", "image_size", "width", "depth"),
        weights=config["detection"]["weights"],
        phase=picked("detection", "steps", "batch_size", "learning_rate", "head_multiplier"),
        seed=derived_seed("detector"),
        precision=config["compute"]["precision"],
        code=fingerprint("train_detector"),
    script:
        "../scripts/train_detector.py"


rule detect_photos:
    input:
        shard="results/data/shards/{shard}.parquet",
        detector=detector_file(),
        pretrained=weights_file(config["detection"]) if config["detection"]["method"] == "activation" else [],
    output:
        "results/detection/boxes/{shard}.parquet",
    log:
        "results/logs/detection/detect_photos/{shard}.log",
    benchmark:
        "results/benchmarks/detection/detect_photos/{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **job_resources(gpu=min(1, GPUS), whole=False),
    params:
        settings=finder_params(),
        precision=config["compute"]["precision"],
        code=fingerprint("detect_photos"),
    script:
        "../scripts/detect_photos.py"
