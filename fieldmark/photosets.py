"""From tables to training sets: which photos a stage trains on, with which targets and in which shares."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from fieldmark.context import Context
from fieldmark.sampling import BalancedSampler, EpochSampler, MixedSampler, Sampler


@dataclass(frozen=True)
class PhotoSet:
    """The photos to train on, in parallel arrays.

    Attributes:
        image_ids: names, for messages.
        paths: files.
        target: class, cluster or subcluster of each; −1 for photos that only have a coarse taxon.
        weight: of each photo's loss.
        taxon: coarse taxon of each, −1 for none.
        taxon_of_class: coarse taxon of each output of the head; empty if the marginal loss is not used.
        context: metadata and key regions, where the model takes them.
    """

    image_ids: Sequence[str]
    paths: Sequence[str]
    target: np.ndarray
    weight: np.ndarray
    taxon: np.ndarray
    taxon_of_class: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    context: Context = field(default_factory=Context)

    def digest(self) -> str:
        """Hash of everything that training on these photos depends on, files' contents aside."""
        whole = hashlib.sha256("\n".join([*self.image_ids, *self.paths]).encode())
        context = (self.context.metadata, self.context.boxes)
        for array in (self.target, self.weight, self.taxon, self.taxon_of_class, *context):
            whole.update(np.ascontiguousarray(array).tobytes())
        return whole.hexdigest()


def photo_set(rows: pl.DataFrame, taxon_of_class: np.ndarray | None = None) -> PhotoSet:
    """A training set from rows with image_id, path, target and, optionally, weight and taxon."""
    count = len(rows)
    weight = rows["weight"].to_numpy() if "weight" in rows.columns else np.ones(count)
    taxon = rows["taxon"].to_numpy() if "taxon" in rows.columns else np.full(count, -1)
    return PhotoSet(
        image_ids=rows["image_id"].to_list(),
        paths=rows["path"].to_list(),
        target=rows["target"].to_numpy().astype(np.int64),
        weight=weight.astype(np.float32),
        taxon=taxon.astype(np.int64),
        taxon_of_class=np.zeros(0, dtype=np.int64) if taxon_of_class is None else taxon_of_class.astype(np.int64),
    )


def times_seen(parts: Mapping[str, np.ndarray], shares: Mapping[str, float], draws: int) -> dict[str, float]:
    """How often :func:`mixed_sampler` draws each photo of a part, on average over so many draws in all."""
    share = {name: shares.get(name, 0.0) if shares else 1.0 for name, rows in parts.items() if len(rows)}
    total = sum(share.values())
    return {name: draws * own / total / len(parts[name]) for name, own in share.items() if own > 0}


def mixed_sampler(
    photos: PhotoSet,
    parts: Mapping[str, np.ndarray],
    shares: Mapping[str, float],
    *,
    balanced: bool,
    batch_size: int,
    seed: int,
) -> Sampler:
    """Batches with the given share of each part; parts without photos or with share zero are left out.

    Args:
        photos: the training set.
        parts: indices of its photos by kind: labeled, pseudo, foreign, unlabeled, clusters.
        shares: share of a batch by kind, not necessarily summing to one; kinds that are not named are left out.
            Empty: all kinds alike.
        balanced: whether targets, rather than photos, take turns within a part; photos without target never do.
        batch_size: photos per batch.
        seed: of the order.

    Raises:
        ValueError: if no part is left, or the batch is too small for those that are.
    """
    chosen: list[tuple[Sampler, float]] = []
    for number, (name, rows) in enumerate(parts.items()):
        share = shares.get(name, 0.0) if shares else 1.0
        if share <= 0 or len(rows) == 0:
            continue
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        target = photos.target[rows]
        if balanced and (target >= 0).all():
            chosen.append((BalancedSampler(rows, target, own_seed), share))
        else:
            chosen.append((EpochSampler(rows, own_seed), share))
    if not chosen:
        sizes = ", ".join(f"{name}: {len(rows)}" for name, rows in parts.items())
        raise ValueError(f"no photos to train on ({sizes}; shares {dict(shares)}); give a part that has photos a share")
    return MixedSampler(chosen, batch_size)
