"""S4, S7–S10: pre-train on clusters, refine on subclusters, fine-tune on labels and pseudo-labels."""


rule pretrain_backbone:
    input:
        manifest=MANIFEST,
        clusters="results/round{round}/clusters.parquet",
        kept_clusters="results/round{round}/kept_clusters.parquet",
        weights=pretraining_start,
        pretrained=pretrained_weights,
        boxes=boxes_of,
    output:
        weights="results/round{round}/{model}/pretrain/model.safetensors",
        history="results/round{round}/{model}/pretrain/history.parquet",
    log:
        "results/logs/round{round}/{model}/pretrain_backbone.log",
    benchmark:
        "results/benchmarks/round{round}/{model}/pretrain_backbone.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **training_resources(),
    params:
        **training_params("pretrain"),
        code=fingerprint("pretrain_backbone"),
    script:
        "../scripts/pretrain_backbone.py"


rule refine_backbone:
    input:
        manifest=MANIFEST,
        subclusters="results/round{round}/subclusters.parquet",
        weights="results/round{round}/{model}/pretrain/model.safetensors",
        boxes=boxes_of,
    output:
        weights="results/round{round}/{model}/refine/model.safetensors",
        history="results/round{round}/{model}/refine/history.parquet",
    log:
        "results/logs/round{round}/{model}/refine_backbone.log",
    benchmark:
        "results/benchmarks/round{round}/{model}/refine_backbone.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **training_resources(),
    params:
        **training_params("refine"),
        code=fingerprint("refine_backbone"),
    script:
        "../scripts/refine_backbone.py"


rule finetune_classifier:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        weights=refined_model,
        pretrained=lambda wildcards: [] if refined_model(wildcards) else pretrained_weights(wildcards),
        pseudo_labels=pseudo_labels_of,
        boxes=boxes_of,
    output:
        weights="results/{run}/{model}/{recipe}/model.safetensors",
        history="results/{run}/{model}/{recipe}/history.parquet",
    log:
        "results/logs/{run}/{model}/{recipe}/finetune_classifier.log",
    benchmark:
        "results/benchmarks/{run}/{model}/{recipe}/finetune_classifier.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **training_resources(),
    params:
        **training_params(),
        code=fingerprint("finetune_classifier"),
    script:
        "../scripts/finetune_classifier.py"
