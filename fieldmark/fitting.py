"""What the four training stages share: build the model, train it as the config says, leave weights and history."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldmark.arcface import CosineHead
from fieldmark.artifacts import write_table
from fieldmark.context import ContextTables
from fieldmark.hardware import Hardware
from fieldmark.models import Architecture, Classifier, ModelSettings, build_classifier, save_classifier
from fieldmark.phases import Phase
from fieldmark.photosets import PhotoSet, mixed_sampler, times_seen
from fieldmark.processes import is_first_process, run_on_all_devices
from fieldmark.stage import log
from fieldmark.training import train
from fieldmark.views import Augmentation


@dataclass(frozen=True)
class StageSettings:
    """How one stage trains: its phases, each with the shares of its batches.

    Attributes:
        phases: settings of :class:`fieldmark.phases.Phase`, and ``balanced`` and ``shares`` of its sampler.
        prototype_strength: labels at which class prototypes have half the say; 0: no prototypes.
    """

    phases: Sequence[Mapping[str, Any]]
    prototype_strength: float = 0.0


@dataclass(frozen=True)
class Plan:
    """All settings of a training job.

    Attributes:
        model: backbone and image size.
        stage: phases.
        augmentation: strength of the random views.
        hardware: devices, precision, memory.
        seed: of all draws.
        code: fingerprint of the stage's code; a checkpoint of other code is not resumed.
    """

    model: ModelSettings
    stage: StageSettings
    augmentation: Augmentation
    hardware: Hardware
    seed: int
    code: str

    @classmethod
    def of_job(cls, job: Any) -> "Plan":
        """The plan that the params, threads and resources of a Snakemake job hold."""
        params = job.params
        return cls(
            model=ModelSettings.of(params.model),
            stage=StageSettings(**params.stage),
            augmentation=Augmentation(**params.augmentation),
            hardware=Hardware.of_job(job),
            seed=params.seed,
            code=params.code,
        )


@dataclass(frozen=True)
class Task:
    """What a stage trains on.

    Attributes:
        photos: the training set.
        parts: indices of its photos by kind, for the shares of a batch.
        classes: labeled classes or clusters, the head's first outputs.
        foreign: further outputs, for clusters of foreign photos.
        counts: photos with a trusted target per output, for the prototypes.
    """

    photos: PhotoSet
    parts: Mapping[str, np.ndarray]
    classes: int
    foreign: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


def teaching_parts(task: Task, phase: Phase) -> dict[str, np.ndarray]:
    """The parts whose photos add to the loss of a phase: without its marginal loss only those with targets."""
    return {
        name: rows
        for name, rows in task.parts.items()
        if phase.marginal_weight > 0 or not len(rows) or task.photos.target[rows].max() >= 0
    }


def fit(
    task: Task,
    source: str,
    plan: Plan,
    weights: Path,
    history: Path,
    validate: Callable[[Classifier], float] | None = None,
    tables: ContextTables | None = None,
) -> None:
    """Train on ``task`` from ``source`` and write the model and its history, in as many processes as there are devices.

    Args:
        task: photos and outputs.
        source: model file or pretrained weights to start from, see :func:`fieldmark.models.build_classifier`.
        plan: how to train.
        weights: where the model goes.
        history: where the history table goes.
        validate: see :func:`fieldmark.training.train`; one that can be pickled.
        tables: where places, dates and key regions of the photos are looked up; needed if the model takes them.
    """
    work = partial(_fit, task, source, plan, weights, history, validate, tables)
    if plan.hardware.processes == 1:
        work()
    else:
        run_on_all_devices(work, plan.hardware, weights.parent.parent / f".{weights.parent.name}.processes")


def _fit(
    task: Task,
    source: str,
    plan: Plan,
    weights: Path,
    history: Path,
    validate: Callable[[Classifier], float] | None,
    tables: ContextTables | None,
) -> None:
    model, stage, seed = plan.model, plan.stage, plan.seed
    architecture = Architecture(
        backbone=model.backbone,
        embedding=model.embedding,
        classes=task.classes,
        foreign=task.foreign,
        prototypes=stage.prototype_strength > 0,
        image_size=model.image_size,
        head=model.head,
        metadata=model.metadata,
        streams=model.streams,
        crop_margin=model.crop_margin,
    )
    classifier = build_classifier(architecture, source, seed=seed, dropout=model.dropout, drop_path=model.drop_path)
    if classifier.blend is not None:
        classifier.blend.set_counts(torch.from_numpy(task.counts), stage.prototype_strength)
    if isinstance(classifier.head, CosineHead):
        classifier.head.set_counts(torch.from_numpy(task.counts))
    if architecture.takes_context:
        if tables is None:
            raise ValueError("the model takes metadata or crops, so it needs the tables that hold them")
        task = replace(task, photos=replace(task.photos, context=tables.of(task.photos.image_ids, architecture)))
    sizes = {name: len(rows) for name, rows in task.parts.items()}
    log.info("training %s on %s, %d outputs, from %s", model.backbone, sizes, task.classes + task.foreign, source)
    phases = []
    for number, settings in enumerate(stage.phases):
        own = dict(settings)
        balanced, shares = own.pop("balanced"), own.pop("shares")
        phase = Phase(**own)
        parts = teaching_parts(task, phase)
        sampler = mixed_sampler(
            task.photos,
            parts,
            shares,
            balanced=balanced,
            batch_size=phase.batch_size,
            seed=seed * 1000 + number,
        )
        seen = times_seen(parts, shares, phase.steps * phase.batch_size)
        told = ", ".join(f"{name} {times:.1f} times" for name, times in seen.items())
        log.info("%s: %d steps of %d photos see each photo of %s", phase.name, phase.steps, phase.batch_size, told)
        if min(seen.values()) < 1:
            log.warning("%s: too few steps to see every photo; raise its steps, or steps_factor", phase.name)
        phases.append((phase, sampler))
    contents = "" if tables is None else tables.contents(task.photos.image_ids)
    checkpoint = weights.parent.parent / f".{weights.parent.name}.checkpoint.pt"
    table = train(
        classifier,
        phases,
        task.photos,
        plan.augmentation,
        plan.hardware,
        seed=seed,
        checkpoint=checkpoint,
        # A retry may get more memory or threads, which change nothing; how batches are mixed does.
        identity=repr([plan.code, plan.model, plan.stage, contents]),
        validate=validate,
    )
    if is_first_process():
        write_table(table, "history", history)
        save_classifier(classifier, weights)
        checkpoint.unlink(missing_ok=True)
