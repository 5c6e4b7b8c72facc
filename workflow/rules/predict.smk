"""S12, S13 and what the user came for: predictions, ensemble, evaluation, submission, finished model and report."""


rule predict_photos:
    input:
        shard="results/data/shards/{shard}.parquet",
        weights="results/{run}/{model}/{recipe}/model.safetensors",
        boxes=boxes_of,
    output:
        "results/{run}/{model}/{recipe}/predictions/{shard}.parquet",
    log:
        "results/logs/{run}/{model}/{recipe}/predict_photos/{shard}.log",
    benchmark:
        "results/benchmarks/{run}/{model}/{recipe}/predict_photos/{shard}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: THREADS
    resources:
        **job_resources(gpu=min(1, GPUS), whole=False),
    params:
        views=section("predict", "top_k"),
        top_k=config["predict"]["top_k"],
        precision=config["compute"]["precision"],
        code=fingerprint("predict_photos"),
    script:
        "../scripts/predict_photos.py"


rule probe_features:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        features=expand("results/baseline/{{model}}/features/{shard}.parquet", shard=SHARDS),
    output:
        "results/baseline/{model}/probe/predictions/0.parquet",
    log:
        "results/logs/baseline/{model}/probe_features.log",
    benchmark:
        "results/benchmarks/baseline/{model}/probe_features.tsv"
    conda:
        "../../envs/core.yaml"
    threads: THREADS
    resources:
        **job_resources(),
    params:
        seed=config["seed"],
        top_k=config["predict"]["top_k"],
        code=fingerprint("probe_features"),
    script:
        "../scripts/probe_features.py"


rule probe_metadata:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
    output:
        "results/baseline/metadata/probe/predictions/0.parquet",
    log:
        "results/logs/baseline/metadata/probe_metadata.log",
    benchmark:
        "results/benchmarks/baseline/metadata/probe_metadata.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        settings={**metadata_probe(), "top_k": config["predict"]["top_k"], "seed": config["seed"]},
        code=fingerprint("probe_metadata"),
    script:
        "../scripts/probe_metadata.py"


rule fit_ensemble:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        predictions=prediction_files(members()),
    output:
        weights="results/ensemble/weights.parquet",
        history="results/ensemble/history.parquet",
        predictions="results/ensemble/predictions.parquet",
        scores="results/ensemble/scores.parquet",
    log:
        "results/logs/fit_ensemble.log",
    benchmark:
        "results/benchmarks/fit_ensemble.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        method=config["ensemble"]["method"],
        search=section("ensemble", "method", "supervised", seed=config["seed"]),
        code=fingerprint("fit_ensemble"),
    script:
        "../scripts/fit_ensemble.py"


rule write_submission:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        rejected="results/data/rejected.parquet",
        predictions="results/ensemble/predictions.parquet",
        # The iNat layout lists image ids, which only the organisers' file of test photos tells.
        annotations=test_annotations(),
    output:
        "results/submission.csv",
    log:
        "results/logs/write_submission.log",
    benchmark:
        "results/benchmarks/write_submission.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        settings=section("submission"),
        code=fingerprint("write_submission"),
    script:
        "../scripts/write_submission.py"


rule list_unlabeled:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        pseudo_labels=f"results/round{max(ROUNDS, default=0)}/pseudo_labels.parquet",
    output:
        "results/unlabeled.csv",
    log:
        "results/logs/list_unlabeled.log",
    benchmark:
        "results/benchmarks/list_unlabeled.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        code=fingerprint("list_unlabeled"),
    script:
        "../scripts/list_unlabeled.py"


rule export_model:
    input:
        classes=CLASSES,
        models=[f"{folder}/model.safetensors" for folder in members()],
        weights="results/ensemble/weights.parquet",
        scores="results/ensemble/scores.parquet",
    output:
        "results/model/ensemble.safetensors",
    log:
        "results/logs/export_model.log",
    benchmark:
        "results/benchmarks/export_model.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        views=section("predict", "top_k"),
        method=config["ensemble"]["method"],
        code=fingerprint("export_model"),
    script:
        "../scripts/export_model.py"


rule evaluate_stages:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        rejected="results/data/rejected.parquet",
        clusters=expand("results/round{round}/clusters.parquet", round=CLUSTER_ROUNDS),
        kept_clusters=expand("results/round{round}/kept_clusters.parquet", round=CLUSTER_ROUNDS),
        pseudo_labels=expand("results/round{round}/pseudo_labels.parquet", round=ROUNDS),
        boxes=box_files(),
        predictions=prediction_files(judged()),
        ensemble_predictions="results/ensemble/predictions.parquet",
        ensemble_weights="results/ensemble/weights.parquet",
        # The truth of unlabeled and test photos goes here and nowhere else.
        truth=TRUTH or [],
    output:
        scores="results/evaluation/scores.parquet",
        confusion="results/evaluation/confusion.parquet",
        classes="results/evaluation/classes.csv",
        mistakes="results/evaluation/mistakes.csv",
    log:
        "results/logs/evaluate_stages.log",
    benchmark:
        "results/benchmarks/evaluate_stages.tsv"
    conda:
        "../../envs/core.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        settings=section("evaluate", seed=config["seed"]),
        code=fingerprint("evaluate_stages"),
    script:
        "../scripts/evaluate_stages.py"


rule render_report:
    input:
        manifest=MANIFEST,
        classes=CLASSES,
        rejected="results/data/rejected.parquet",
        clusters=expand("results/round{round}/clusters.parquet", round=CLUSTER_ROUNDS),
        kept_clusters=expand("results/round{round}/kept_clusters.parquet", round=CLUSTER_ROUNDS),
        pseudo_labels=expand("results/round{round}/pseudo_labels.parquet", round=ROUNDS),
        histories=history_files(),
        scores="results/evaluation/scores.parquet",
        confusion="results/evaluation/confusion.parquet",
        weights="results/ensemble/weights.parquet",
        search="results/ensemble/history.parquet",
        ensemble_scores="results/ensemble/scores.parquet",
        predictions="results/ensemble/predictions.parquet",
        template=os.path.relpath(Path(workflow.basedir) / "fieldmark/report/template.html"),
    output:
        "results/report.html",
    log:
        "results/logs/render_report.log",
    benchmark:
        "results/benchmarks/render_report.tsv"
    conda:
        "../../envs/report.yaml"
    threads: 1
    resources:
        **job_resources(light=True),
    params:
        title=config["title"],
        config=config,
        seed=config["seed"],
        benchmarks="results/benchmarks",
        code=fingerprint("render_report"),
    script:
        "../scripts/render_report.py"
