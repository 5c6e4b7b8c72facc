"""S1–S3: embed every photo, cluster the embeddings, keep the clusters worth learning from."""


rule extract_features:
    input:
        shard="results/data/shards/{shard}.parquet",
        weights=embedding_model,
        pretrained=pretrained_weights,
        boxes=boxes_of_features,
    output:
        "results/{run}/{model}/features/{shard}.parquet",
    log:
        "results/logs/{run}/{model}/extract_features/{shard}.log",
    benchmark:
        "results/benchmarks/{run}/{model}/extract_features/{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **job_resources(gpu=min(1, GPUS), whole=False),
    params:
        model=feature_params,
        splits=embedded_splits,
        precision=config["compute"]["precision"],
        code=fingerprint("extract_features"),
    script:
        "../scripts/extract_features.py"


rule cluster_photos:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        features=expand("results/round{{round}}/{model}/features/{shard}.parquet", model=MODELS, shard=SHARDS),
    output:
        "results/round{round}/clusters.parquet",
    log:
        "results/logs/round{round}/cluster_photos.log",
    benchmark:
        "results/benchmarks/round{round}/cluster_photos.tsv"
    conda:
        "../../envs/core.yaml"
    threads: THREADS
    resources:
        **job_resources(),
    params:
        settings=section("cluster", coarse_taxa=config["data"]["coarse_taxa"], seed=config["seed"]),
        code=fingerprint("cluster_photos"),
    script:
        "../scripts/cluster_photos.py"


rule filter_clusters:
    input:
        manifest=MANIFEST,
        features=expand("results/round{{round}}/{model}/features/{shard}.parquet", model=MODELS, shard=SHARDS),
        clusters="results/round{round}/clusters.parquet",
    output:
        "results/round{round}/kept_clusters.parquet",
    log:
        "results/logs/round{round}/filter_clusters.log",
    benchmark:
        "results/benchmarks/round{round}/filter_clusters.tsv"
    conda:
        "../../envs/core.yaml"
    threads: THREADS
    resources:
        **job_resources(),
    params:
        rules=section("filter", "neighbours"),
        settings={
            "neighbours": config["filter"]["neighbours"],
            "pca_dim": config["cluster"]["pca_dim"],
            "coarse_taxa": config["data"]["coarse_taxa"],
        },
        code=fingerprint("filter_clusters"),
    script:
        "../scripts/filter_clusters.py"
