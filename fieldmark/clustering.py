"""Clusters of photos: projected embeddings and seeded spherical k-means inside groups of photos.

The features are treated as in DeepCluster (Caron et al., ECCV 2018): PCA-whitened, then scaled to unit length, so
that the inner product of two rows is their cosine. Several models' features are concatenated with equal weight.
Results depend on the features and the seed, not on the order in which photos or files are given; with another number of
threads matrix products round differently, and so may the last bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import polars as pl

from fieldmark.artifacts import read_table

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

NO_CLASS = -1
# The covariance is well known long before this many photos; more would only cost memory.
_PCA_ROWS = 100_000
_ROWS_AT_ONCE = 32_768
# Embeddings are stored as float16: directions with less than this share of the largest variance are rounding noise.
_SMALLEST_VARIANCE = 1e-6
# Whitened by n - 1 components, any n photos are equally far from each other: components must be far fewer than photos.
_PHOTOS_PER_WHITENED_COMPONENT = 10
# Directions in fewer dimensions can hardly tell classes apart, however few the photos.
_FEWEST_COMPONENTS = 8
# Further points hardly move a centroid (faiss's own default), but bound the time of a huge group.
_POINTS_PER_CENTROID = 256
# First centroids are drawn from this many photos per cluster: each draw scans all candidates.
_CANDIDATES_PER_CENTROID = 16
# Squared distances on the unit sphere below this are equal photos up to float32 rounding.
_EQUAL = 1e-5
_LARGEST_DISTANCE = 2.0


class ClusteringError(ValueError):
    """Photos cannot be clustered: embeddings are missing, damaged or all the same."""


@dataclass(frozen=True)
class Clusters:
    """Where each of n photos belongs; distances are 1 - cosine, between 0 and 2."""

    cluster: Integers  # (n,) compact ids from 0, in the order of each cluster's first photo
    distance: Floats  # (n,) to the centroid of the photo's own cluster
    runner_up_distance: Floats  # (n,) to the next centroid of the photo's group; 2 where the group has one cluster


def paths_by_model(paths: Iterable[str | Path], stage: str) -> dict[str, list[Path]]:
    """Group shard files ``…/{round}/{model}/{stage}/{shard}.parquet`` by ``{round}/{model}``, in sorted order.

    Args:
        paths: shard files of one or several models.
        stage: the folders between model and shard, such as ``features`` or ``guide/scores``.

    Raises:
        ClusteringError: if a path is not of that form.
    """
    folders = Path(stage).parts
    grouped: dict[str, list[Path]] = {}
    for path in sorted({Path(path) for path in paths}):
        if path.parts[-len(folders) - 1 : -1] != folders or len(path.parts) < len(folders) + 3:
            raise ClusteringError(f"{path}: expected a path of the form .../ROUND/MODEL/{stage}/SHARD.parquet")
        grouped.setdefault("/".join(path.parts[-len(folders) - 3 : -len(folders) - 1]), []).append(path)
    return dict(sorted(grouped.items()))


def photos_of(manifest: pl.DataFrame) -> pl.DataFrame:
    """Return the labeled and unlabeled photos of a manifest by image_id; class_id is null for every unlabeled one."""
    labeled = pl.col("split") == "labeled"
    photos = manifest.filter(pl.col("split").is_in(["labeled", "unlabeled"])).sort("image_id")
    return photos.with_columns(pl.when(labeled).then(pl.col("class_id")).alias("class_id"))


def learned_photos(manifest: str) -> pl.DataFrame:
    """Read the photos that a round learns from, see :func:`photos_of`.

    Raises:
        ClusteringError: if none is unlabeled; names the file.
    """
    photos = photos_of(read_table("manifest", manifest))
    if "unlabeled" not in photos["split"]:
        raise ClusteringError(
            f"{manifest}: the unlabeled split has no photos, so the rounds have nothing to learn from; add some, or "
            "set track: supervised, which goes on from the models that are trained by now"
        )
    return photos


def class_ids_of(photos: pl.DataFrame) -> Integers:
    """Return the class id of each photo, :data:`NO_CLASS` where it is null."""
    return photos["class_id"].fill_null(NO_CLASS).to_numpy().astype(np.int64)


def rows_of(frame: pl.DataFrame, image_ids: pl.Series, where: str) -> pl.DataFrame:
    """Return the rows of ``frame`` for ``image_ids``, in their order.

    Raises:
        ClusteringError: if a photo has no row.
    """
    found = image_ids.to_frame("image_id").join(
        frame.with_row_index("row").select("image_id", "row"), on="image_id", how="left", maintain_order="left"
    )
    missing = found.filter(pl.col("row").is_null())["image_id"]
    if len(missing):
        raise ClusteringError(
            f"{where}: {len(missing)} of {len(image_ids)} photos of the manifest have no row, the first is "
            f"{missing[0]!r}; expected the shards of every labeled and unlabeled photo"
        )
    return frame[found["row"].to_numpy()]


def embeddings_of(frame: pl.DataFrame, where: str) -> npt.NDArray[np.float16]:
    """Return the embedding column as an (n, d) matrix.

    Raises:
        ClusteringError: if a value is not finite.
    """
    matrix: npt.NDArray[np.float16] = frame["embedding"].to_numpy()
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        first = frame["image_id"][int(np.argmin(finite))]
        raise ClusteringError(
            f"{where}: {int((~finite).sum())} embeddings hold NaN or infinity, the first is that of {first!r}; "
            "the model that made them has diverged or overflows float16"
        )
    return matrix


def read_embeddings(
    kind: str, paths: Mapping[str, Sequence[Path]], image_ids: pl.Series
) -> list[npt.NDArray[np.float16]]:
    """Read each model's embeddings of ``image_ids`` (in their order), each (n, d).

    Args:
        kind: ``features`` or ``guide_scores``, the kind of the shards.
        paths: shards by model.
        image_ids: the n photos wanted.
    """
    matrices = []
    for model, shards in paths.items():
        where = f"{kind} of {model}"
        matrices.append(embeddings_of(rows_of(read_table(kind, shards), image_ids, where), where))
    return matrices


def unit_rows(matrix: npt.NDArray[np.floating]) -> Floats:
    """Scale each row of an (n, d) matrix to length 1; rows of zeros stay zeros."""
    single = matrix.astype(np.float32)
    return single / np.maximum(np.linalg.norm(single, axis=1, keepdims=True), 1e-12)


def combine(matrices: Sequence[Floats]) -> Floats:
    """Concatenate unit rows so that an inner product is the mean of the models' cosines: m times (n, d) to (n, m d)."""
    joined: Floats = np.concatenate(matrices, axis=1)
    return joined / np.float32(np.sqrt(len(matrices)))


def project(features: npt.NDArray[np.floating], dim: int, whiten: bool) -> Floats:
    """Centre the features, keep their principal components and scale each row to length 1.

    Args:
        features: (n, d) embeddings.
        dim: how many components to keep, at most; limited to d, n - 1 and the rank of the data.
        whiten: scale all components to variance 1, as DeepCluster does before its k-means; dim is then limited to
            n / 10 too, but not below 8. Without it the cosines are those of the centred embeddings, except for what
            lies in the components left out.

    Returns:
        (n, at most dim) unit rows.

    Raises:
        ClusteringError: if there are not two different rows.
    """
    count = len(features)
    fitted = features
    if count > _PCA_ROWS:
        fitted = features[np.linspace(0, count - 1, _PCA_ROWS).astype(np.int64)]
    if count < 2 or not (fitted != fitted[0]).any():
        raise ClusteringError(
            f"the embeddings of all {count} photos are the same: expected at least two different ones; "
            "check the photos and the model that embeds them"
        )
    mean = fitted.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = fitted.astype(np.float32) - mean
    variance, directions = np.linalg.eigh((centred.T @ centred).astype(np.float64) / (len(fitted) - 1))
    variance, directions = variance[::-1], directions[:, ::-1]
    kept = min(dim, count - 1, int((variance > _SMALLEST_VARIANCE * variance[0]).sum()))
    if whiten:
        kept = min(kept, max(_FEWEST_COMPONENTS, count // _PHOTOS_PER_WHITENED_COMPONENT))
    scale = np.sqrt(variance[:kept]) if whiten else np.ones(kept)
    basis = (directions[:, :kept] / scale).astype(np.float32)  # (d, kept)
    projected = np.empty((count, kept), dtype=np.float32)
    for start in range(0, count, _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        projected[part] = unit_rows((features[part].astype(np.float32) - mean) @ basis)
    return projected


def allot_clusters(sizes: Sequence[int], clusters: int, min_photos: int) -> list[int]:
    """Split ``clusters`` over groups of photos in proportion to their sizes (Sainte-Laguë's method).

    Each group gets at least one and at most size / ``min_photos`` clusters, so the sum may differ from ``clusters``.
    """
    size = np.asarray(sizes, dtype=np.float64)
    ceiling = np.maximum(size // min_photos, 1)
    share = np.ones(len(size))
    for _ in range(clusters - len(size)):
        priority = np.where(share < ceiling, size / (share + 0.5), 0.0)
        if not priority.any():
            break
        share[np.argmax(priority)] += 1
    return [int(part) for part in share]


def subclusters_per_class(sizes: Integers, photos_per_subcluster: float, max_subclusters: int) -> list[int]:
    """Return size / ``photos_per_subcluster`` rounded half up for each class, between 1 and ``max_subclusters``."""
    wanted = np.floor(sizes / photos_per_subcluster + 0.5)
    return [int(count) for count in np.clip(wanted, 1, max_subclusters)]


def class_means(points: Floats, class_ids: Integers) -> tuple[Floats, Integers]:
    """Return the unit mean of each class's photos, (c, d), and the classes, (c,); the largest class first."""
    classes, counts = np.unique(class_ids[class_ids != NO_CLASS], return_counts=True)
    classes = classes[np.argsort(-counts, kind="stable")]
    means = [points[class_ids == class_id].mean(axis=0) for class_id in classes]
    return unit_rows(np.stack(means) if means else np.empty((0, points.shape[1]), np.float32)), classes


def draw_centroids(candidates: Floats, seeds: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Extend ``seeds`` to ``count`` centroids with candidates far from all chosen so far (k-means++).

    Arthur & Vassilvitskii, SODA 2007: a candidate is drawn with probability proportional to its squared distance.

    Args:
        candidates: (n, d) unit rows to draw from.
        seeds: (s, d) unit rows that are kept, the first ``count`` of them; may be empty.
        count: how many centroids are wanted; fewer come back when no different candidate is left.
        rng: the source of the draws.

    Returns:
        (at most count, d) unit rows, the seeds first.
    """
    chosen = list(seeds[:count])
    if len(chosen) >= count or not len(candidates):
        return np.stack(chosen)
    limit = _CANDIDATES_PER_CENTROID * count
    if len(candidates) > limit:
        candidates = candidates[np.sort(rng.choice(len(candidates), limit, replace=False))]
    if not chosen:
        chosen.append(candidates[rng.integers(len(candidates))])
    starts = np.stack(chosen).T
    blocks = (candidates[start : start + _ROWS_AT_ONCE] for start in range(0, len(candidates), _ROWS_AT_ONCE))
    nearest = np.concatenate([(block @ starts).max(axis=1) for block in blocks])
    while len(chosen) < count:
        weight = np.maximum(2.0 - 2.0 * nearest.astype(np.float64), 0.0)
        weight[weight < _EQUAL] = 0.0
        cumulative = np.cumsum(weight)
        if cumulative[-1] <= 0:
            break
        drawn = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        chosen.append(candidates[drawn])
        nearest = np.maximum(nearest, candidates @ candidates[drawn])
    return np.stack(chosen)


def spherical_kmeans(points: Floats, initial: Floats, iterations: int, seed: int) -> tuple[Floats, Clusters]:
    """Cluster unit rows by cosine with faiss, from the given centroids; clusters that end up empty are dropped.

    Args:
        points: (n, d) unit rows.
        initial: (k, d) unit rows, k at most n.
        iterations: rounds of assignment and update.
        seed: draws the subsample of a group with more than 256 points a centroid.

    Returns:
        The (at most k, d) centroids and each point's place. Clusters keep the order of ``initial``.
    """
    kmeans = faiss.Kmeans(
        points.shape[1],
        len(initial),
        niter=iterations,
        spherical=True,
        seed=seed,
        # Small clusters are wanted here, and the filter judges them: faiss need not warn of them.
        min_points_per_centroid=1,
        max_points_per_centroid=_POINTS_PER_CENTROID,
    )
    kmeans.train(np.ascontiguousarray(points), init_centroids=np.ascontiguousarray(initial))
    centroids = unit_rows(np.asarray(kmeans.centroids))
    while True:
        index = faiss.IndexFlatIP(points.shape[1])
        index.add(centroids)
        cosine, order = index.search(np.ascontiguousarray(points), min(2, len(centroids)))
        used = np.unique(order[:, 0])
        if len(used) == len(centroids):
            break
        centroids = centroids[used]
    distance = np.clip(1 - cosine, 0, _LARGEST_DISTANCE).astype(np.float32)
    runner_up = distance[:, 1] if len(centroids) > 1 else np.full(len(points), _LARGEST_DISTANCE, np.float32)
    return centroids, Clusters(order[:, 0].astype(np.int64), distance[:, 0], runner_up)


def cluster_groups(
    points: Floats, groups: Integers, counts: Sequence[int], class_ids: Integers, iterations: int, seed: int
) -> Clusters:
    """Cluster the photos of each group apart, the class means of its labeled photos as first centroids.

    Args:
        points: (n, d) unit rows.
        groups: (n,) group of each photo, 0 to len(counts) - 1.
        counts: clusters wanted per group. Where a group has more classes than that, its largest classes seed.
        class_ids: (n,) class of each labeled photo, :data:`NO_CLASS` for the others; further centroids are drawn
            from these others.
        iterations: rounds of k-means.
        seed: of all draws; each group has its own stream, so groups do not disturb one another.

    Returns:
        Clusters numbered over all groups by their first photo.
    """
    cluster = np.empty(len(points), dtype=np.int64)
    distance = np.empty(len(points), dtype=np.float32)
    runner_up = np.empty(len(points), dtype=np.float32)
    taken = 0
    for group, count in enumerate(counts):
        members = np.flatnonzero(groups == group)
        inside, classes = points[members], class_ids[members]
        rng = np.random.default_rng([seed, group])
        initial = draw_centroids(inside[classes == NO_CLASS], class_means(inside, classes)[0], count, rng)
        centroids, found = spherical_kmeans(inside, initial, iterations, int(rng.integers(2**31)))
        cluster[members] = found.cluster + taken
        distance[members], runner_up[members] = found.distance, found.runner_up_distance
        taken += len(centroids)
    return Clusters(number_by_first(cluster), distance, runner_up)


def number_by_first(labels: Integers) -> Integers:
    """Renumber labels from 0 in the order of their first occurrence."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
