"""The yardstick without any training of the backbone: logistic regression on pretrained features."""

from fieldmark.stage import start

if "snakemake" in globals():
    start(snakemake)

import logging
import warnings

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from fieldmark.artifacts import ArtifactError, read_table, write_table
from fieldmark.evaluation import Labels, stratified_folds
from fieldmark.predictions import Floats, to_table

log = logging.getLogger("fieldmark")

PENALTIES = (0.0001, 0.001, 0.01, 0.1, 1.0)  # scikit-learn's C, from strong to weak regularisation
FOLDS = 3
STEPS = 300


def make_probe(penalty: float) -> Pipeline:
    """L2-normalised, standardised features into multinomial logistic regression of inverse strength ``penalty``."""
    return make_pipeline(Normalizer(), StandardScaler(), LogisticRegression(C=penalty, max_iter=STEPS))


def _fit(penalty: float, features: Floats, labels: Labels) -> Pipeline:
    with warnings.catch_warnings():
        # Stopping at the limit regularises, and cross-validation judges each probe as it is; the last one's
        # steps are logged.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_probe(penalty).fit(features, labels)


def choose_penalty(features: Floats, labels: Labels, seed: int) -> float:
    """The penalty with the best cross-validated accuracy on labeled photos; of equal ones the stronger.

    Args:
        features: (n, D) of labeled photos.
        labels: (n,) class ids.
        seed: of the folds.
    """
    fold = stratified_folds(labels, FOLDS, seed)
    hits = dict.fromkeys(PENALTIES, 0)
    for held_out in range(FOLDS):
        train, test = fold != held_out, fold == held_out
        if len(np.unique(labels[train])) < 2 or not test.any():
            continue
        for penalty in PENALTIES:
            predicted = _fit(penalty, features[train], labels[train]).predict(features[test])
            hits[penalty] += int((predicted == labels[test]).sum())
    best = max(PENALTIES, key=lambda penalty: hits[penalty])
    log.info("cross-validated hits of %d by C: %s; chosen: %g", len(labels), hits, best)
    return best


def _features(sources: list[str], image_ids: pl.Series) -> tuple[list[str], Floats]:
    """Photos and their features (n, D), read shard by shard so that others' features are never held together."""
    wanted = image_ids.to_list()
    shards = [read_table("features", source).filter(pl.col("image_id").is_in(wanted)) for source in sources]
    found = pl.concat(shards).sort("image_id")
    if found.height != len(wanted):
        missing = sorted(set(wanted) - set(found["image_id"]))
        raise ArtifactError(
            f"{sources[0]} and its sibling shards: {len(missing)} photos have no features, or some have them twice"
            + (f"; the first without is {missing[0]!r}" if missing else "")
        )
    return found["image_id"].to_list(), found["embedding"].to_numpy().astype(np.float32)


def probe_features(features: list[str], manifest: str, classes: str, target: str, top_k: int, seed: int) -> None:
    """Fit a linear probe on labeled photos' features and predict validation and test photos.

    Args:
        features: all shards of one backbone's features.
        manifest: splits, and classes of labeled photos.
        classes: the table of classes.
        target: predictions of all validation and test photos.
        top_k: classes listed per photo.
        seed: of the cross-validation.

    Raises:
        ArtifactError: if a photo has no features, or fewer than two classes are labeled.
    """
    photos = read_table("manifest", manifest)
    labeled = photos.filter(pl.col("split") == "labeled")
    if labeled["class_id"].n_unique() < 2 or labeled["class_id"].null_count():
        raise ArtifactError(f"{manifest}: a probe needs labeled photos of at least two classes, each with its class")
    _, known = _features(features, labeled["image_id"])
    labels = labeled["class_id"].to_numpy()
    probe = _fit(choose_penalty(known, labels, seed), known, labels)
    steps = int(probe[-1].n_iter_.max())
    log.info("fitted in %d steps%s", steps, "" if steps < STEPS else ", the limit, so not to convergence")
    image_ids, asked = _features(features, photos.filter(pl.col("split").is_in(["val", "test"]))["image_id"])
    probabilities: npt.NDArray[np.float32] = np.zeros((len(asked), read_table("classes", classes).height), np.float32)
    if len(asked):
        probabilities[:, probe.classes_] = probe.predict_proba(asked)
    write_table(to_table(image_ids, probabilities, top_k), "predictions", target)


if "snakemake" in globals():
    probe_features(
        features=list(snakemake.input.features),
        manifest=snakemake.input.manifest,
        classes=snakemake.input.classes,
        target=snakemake.output[0],
        top_k=snakemake.params.top_k,
        seed=snakemake.params.seed,
    )
