"""S5, S6: a guide judges the unlabeled photos, the trusted ones get pseudo-labels, each class is clustered again."""


rule train_guide:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        clusters="results/round{round}/clusters.parquet",
        kept_clusters="results/round{round}/kept_clusters.parquet",
        weights="results/round{round}/{model}/pretrain/model.safetensors",
        boxes=boxes_of,
    output:
        weights="results/round{round}/{model}/guide/model.safetensors",
        history="results/round{round}/{model}/guide/history.parquet",
    log:
        "results/logs/round{round}/{model}/train_guide.log",
    benchmark:
        "results/benchmarks/round{round}/{model}/train_guide.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **training_resources(),
    params:
        **training_params("guide"),
        code=fingerprint("train_guide"),
    script:
        "../scripts/train_guide.py"


rule score_photos:
    input:
        shard="results/data/shards/{shard}.parquet",
        weights=guide_model,
        boxes=boxes_of,
    output:
        "results/round{round}/{model}/guide/scores/{shard}.parquet",
    log:
        "results/logs/round{round}/{model}/score_photos/{shard}.log",
    benchmark:
        "results/benchmarks/round{round}/{model}/score_photos/{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **job_resources(gpu=min(1, GPUS), whole=False),
    params:
        top_k=config["predict"]["top_k"],
        precision=config["compute"]["precision"],
        code=fingerprint("score_photos"),
    script:
        "../scripts/score_photos.py"


rule select_pseudo_labels:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        scores=guide_scores,
    output:
        "results/round{round}/pseudo_labels.parquet",
    log:
        "results/logs/round{round}/select_pseudo_labels.log",
    benchmark:
        "results/benchmarks/round{round}/select_pseudo_labels.tsv"
    conda:
        "../../envs/core.yaml"
    threads: THREADS
    resources:
        **job_resources(),
    params:
        evidence={
            **picked("select", "neighbours", "propagation", "propagation_neighbours"),
            "coarse_taxa": config["data"]["coarse_taxa"],
        },
        rules=section("select", "earlier_guides", "neighbours", "propagation", "propagation_neighbours"),
        code=fingerprint("select_pseudo_labels"),
    script:
        "../scripts/select_pseudo_labels.py"


rule recluster_selection:
    input:
        manifest=MANIFEST,
        scores=expand("results/round{{round}}/{model}/guide/scores/{shard}.parquet", model=MODELS, shard=SHARDS),
        pseudo_labels="results/round{round}/pseudo_labels.parquet",
    output:
        "results/round{round}/subclusters.parquet",
    log:
        "results/logs/round{round}/recluster_selection.log",
    benchmark:
        "results/benchmarks/round{round}/recluster_selection.tsv"
    conda:
        "../../envs/core.yaml"
    threads: THREADS
    resources:
        **job_resources(),
    params:
        settings=section("recluster", seed=config["seed"]),
        code=fingerprint("recluster_selection"),
    script:
        "../scripts/recluster_selection.py"
