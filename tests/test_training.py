"""The training loop (fieldmark/loop.py) of classifiers: it learns, resumes to the same bytes, and freezes as told."""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from timm.models import group_parameters

from fieldmark import training
from fieldmark.hardware import Hardware
from fieldmark.images import PhotoStore
from fieldmark.losses import marginal_loss, weighted_cross_entropy
from fieldmark.models import NORMS, Classifier
from fieldmark.phases import Phase, TrainingError, learning_rate_at
from fieldmark.photosets import PhotoSet
from fieldmark.sampling import EpochSampler, MixedSampler
from fieldmark.training import batch_loss, train
from fieldmark.views import Augmentation

MakeModel = Callable[..., Classifier]
ALWAYS = Hardware(checkpoint_seconds=0.0)
FIRST = Phase("first", 6, 4, 1e-3, head_multiplier=10, layer_decay=0.8, warmup=0.2)
SECOND = Phase("second", 5, 4, 1e-3, frozen_backbone=True)


class Crash(Exception):
    """Raised in the middle of training by these tests."""


class Steps:
    """Counts the batches that training asks for, and can break one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        self.broken_at: int | None = None
        steps = self

        class Store(PhotoStore):
            def get(self, indices: object) -> list[np.ndarray]:
                if steps.taken == steps.broken_at:
                    raise Crash
                steps.taken += 1
                return super().get(indices)  # type: ignore[arg-type]

        monkeypatch.setattr(training, "PhotoStore", Store)

    def restart(self, broken_at: int | None = None) -> None:
        self.taken, self.broken_at = 0, broken_at


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def run(
    model: Classifier,
    photos: PhotoSet,
    checkpoint: Path,
    phases: Sequence[Phase] = (FIRST, SECOND),
    hardware: Hardware = ALWAYS,
    seed: int = 1,
    identity: str = "code",
    validate: Callable[[Classifier], float] | None = None,
) -> pl.DataFrame:
    """Train with samplers of the photos that have a target."""
    members = np.arange(len(photos.paths))
    pairs = [(phase, MixedSampler([(EpochSampler(members, seed), 1.0)], phase.batch_size)) for phase in phases]
    return train(
        model,
        pairs,
        photos,
        Augmentation(),
        hardware,
        seed=seed,
        checkpoint=checkpoint,
        identity=identity,
        validate=validate,
    )


def content(model: torch.nn.Module) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in model.state_dict().items()}


def test_the_loss_falls_on_separable_photos(make_model: MakeModel, toy: PhotoSet, tmp_path: Path) -> None:
    model = make_model()
    phase = Phase("p", 30, 6, 1e-3, head_multiplier=5, label_smoothing=0.0)
    history = run(model, toy, tmp_path / "c.pt", [phase])
    assert history["loss"][0] == pytest.approx(math.log(3), abs=0.2)
    assert history["loss"].to_numpy()[-5:].max() < 0.1
    assert not model.training


def test_the_history_tells_every_phase(make_model: MakeModel, toy: PhotoSet, tmp_path: Path) -> None:
    long = dataclasses.replace(FIRST, steps=201, batch_size=2, frozen_backbone=True)
    answers = iter([0.25, 0.75])
    history = run(
        make_model(image_size=16), toy, tmp_path / "c.pt", [long, SECOND], Hardware(), validate=lambda _: next(answers)
    )
    first, second = history.filter(pl.col("phase") == "first"), history.filter(pl.col("phase") == "second")
    assert first["step"].to_list() == [*range(1, 201, 2), 200]  # every second step, the last one in any case
    assert second["step"].to_list() == [0, 1, 2, 3, 4]
    assert history.drop_nulls("val_top1").select("phase", "step", "val_top1").rows() == [
        ("first", 200, 0.25),
        ("second", 4, 0.75),
    ]
    assert first["epoch"][-1] == pytest.approx(201 * 2 / 12)
    for row in second.iter_rows(named=True):
        assert row["learning_rate"] == pytest.approx(SECOND.learning_rate * learning_rate_at(SECOND, row["step"]))


@pytest.mark.parametrize("prototypes", [False, True])
@pytest.mark.parametrize("broken_at", [[3], [8], [2, 9], [0]])
def test_an_interrupted_run_ends_with_the_same_bytes(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, steps: Steps, broken_at: list[int], prototypes: bool
) -> None:
    def fresh() -> Classifier:
        model = make_model(dropout=0.3, drop_path=0.3, prototypes=prototypes)
        if model.blend is not None:
            model.blend.set_counts(torch.tensor([1, 2, 3]), 2.0)
        return model

    whole = fresh()
    history = run(whole, toy, tmp_path / "whole.pt")
    assert steps.taken == 11
    done = 0
    for step in broken_at:
        steps.restart(step - done)
        with pytest.raises(Crash):
            run(fresh(), toy, tmp_path / "c.pt")
        done = step
    steps.restart()
    resumed = fresh()
    found = run(resumed, toy, tmp_path / "c.pt")
    assert steps.taken == 11 - done
    assert content(resumed) == content(whole)
    assert found.equals(history) and found.schema == history.schema
    assert whole.blend is None or whole.blend.prototypes.any(dim=1).all()


def test_a_crash_while_validating_repeats_the_phases_last_step(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, steps: Steps
) -> None:
    def crash(model: Classifier) -> float:
        raise Crash

    whole = make_model()
    history = run(whole, toy, tmp_path / "whole.pt", validate=lambda model: 0.5)
    steps.restart()
    with pytest.raises(Crash):
        run(make_model(), toy, tmp_path / "c.pt", validate=crash)
    assert steps.taken == 6
    steps.restart()
    resumed = make_model()
    found = run(resumed, toy, tmp_path / "c.pt", validate=lambda model: 0.5)
    assert steps.taken == 1 + 5
    assert content(resumed) == content(whole) and found.equals(history)


@pytest.mark.parametrize(
    "change", ["seed", "code", "weights", "target", "path", "phase", "dropout", "start", "image_size", "precision"]
)
def test_a_checkpoint_of_another_run_is_not_used(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, steps: Steps, change: str
) -> None:
    steps.restart(4)
    with pytest.raises(Crash):
        run(make_model(), toy, tmp_path / "c.pt")
    model, photos, hardware = make_model(), toy, ALWAYS
    phases, seed, identity = (FIRST, SECOND), 1, "code"
    match change:
        case "seed":
            seed = 2
        case "code":
            identity = "other code"
        case "weights":
            photos = dataclasses.replace(toy, weight=toy.weight * 2)
        case "target":
            photos = dataclasses.replace(toy, target=toy.target[::-1].copy())
        case "path":
            photos = dataclasses.replace(toy, paths=[*toy.paths[:-1], toy.paths[0]])
        case "phase":
            phases = (dataclasses.replace(FIRST, clip=4.0), SECOND)
        case "dropout":
            model = make_model(dropout=0.1)
        case "start":
            model = make_model(seed=5)
        case "image_size":
            model = make_model(image_size=40)
        case "precision":
            hardware = dataclasses.replace(ALWAYS, precision="bf16-mixed")
            phases = (dataclasses.replace(FIRST, steps=1), dataclasses.replace(SECOND, steps=1))
    steps.restart()
    run(model, photos, tmp_path / "c.pt", phases, hardware, seed, identity)
    assert steps.taken == sum(phase.steps for phase in phases)


def test_more_threads_memory_or_checkpoints_are_still_the_same_run(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, steps: Steps
) -> None:
    steps.restart(4)
    with pytest.raises(Crash):
        run(make_model(), toy, tmp_path / "c.pt")
    steps.restart()
    run(make_model(), toy, tmp_path / "c.pt", hardware=Hardware(cache_mb=3, decode_threads=3, checkpoint_seconds=9))
    assert steps.taken == 11 - 4


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "foreign"])
def test_a_damaged_checkpoint_is_ignored_with_a_warning(
    make_model: MakeModel,
    toy: PhotoSet,
    tmp_path: Path,
    steps: Steps,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    checkpoint = tmp_path / "c.pt"
    steps.restart(4)
    with pytest.raises(Crash):
        run(make_model(), toy, checkpoint)
    saved = checkpoint.read_bytes()
    if damage == "foreign":
        torch.save({"weights": torch.ones(2)}, checkpoint)
    else:
        checkpoint.write_bytes({"empty": b"", "truncated": saved[:-100], "garbage": b"\x80\x04nonsense" * 50}[damage])
    steps.restart()
    with caplog.at_level(logging.WARNING):
        run(make_model(), toy, checkpoint)
    assert steps.taken == 11
    assert f"{checkpoint} is damaged" in caplog.text


def test_checkpoints_are_no_more_frequent_than_asked(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, leftovers: Callable[[], list[str]]
) -> None:
    run(make_model(), toy, tmp_path / "c.pt", hardware=Hardware(checkpoint_seconds=3600))
    assert leftovers() == []
    run(make_model(), toy, tmp_path / "c.pt")
    assert leftovers() == ["c.pt"]


@pytest.mark.parametrize("hardware", [Hardware(cache_mb=0, decode_threads=1), Hardware(decode_threads=4)])
def test_threads_and_cache_change_nothing(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, hardware: Hardware
) -> None:
    expected, found = make_model(), make_model()
    run(expected, toy, tmp_path / "a.pt")
    run(found, toy, tmp_path / "b.pt", hardware=hardware)
    assert content(found) == content(expected)


@pytest.mark.parametrize("poison", ["weights", "photo weight"])
def test_a_loss_that_is_no_number_names_step_and_photos(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, poison: str
) -> None:
    model, photos = make_model(), toy
    if poison == "weights":
        with torch.no_grad():
            model.head.weight.fill_(math.nan)
    else:
        photos = dataclasses.replace(toy, weight=np.full(12, np.inf, dtype=np.float32))
    before = content(model)
    drawn = EpochSampler(np.arange(12), 1).positions(0, 4)
    names = ", ".join(toy.image_ids[row] for row in drawn)
    with pytest.raises(TrainingError, match=rf"first, step 0: loss nan.*photos {names}, …\. Lower learning_rate"):
        run(model, photos, tmp_path / "c.pt")
    assert content(model) == before


def test_a_frozen_backbone_stays_as_it_was(make_model: MakeModel, toy: PhotoSet, tmp_path: Path) -> None:
    model, start = make_model(), make_model()
    run(model, toy, tmp_path / "c.pt", [SECOND])
    assert content(model.backbone) == content(start.backbone)
    assert not torch.equal(model.neck.weight, start.neck.weight)
    assert not torch.equal(model.head.weight, start.head.weight)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norms_keep_statistics_and_scales(
    make_model: MakeModel, toy: PhotoSet, tmp_path: Path, frozen: bool
) -> None:
    model, start = make_model(), make_model()
    run(model, toy, tmp_path / "c.pt", [dataclasses.replace(FIRST, frozen_norms=frozen)])
    pairs = zip(model.backbone.modules(), start.backbone.modules(), strict=True)
    same = [content(new) == content(old) for new, old in pairs if isinstance(new, NORMS)]
    assert same and all(same) == frozen and any(same) == frozen
    assert content(model.backbone.conv_stem) != content(start.backbone.conv_stem)


def test_frozen_layers_keep_weights_and_statistics(make_model: MakeModel, toy: PhotoSet, tmp_path: Path) -> None:
    model, start = make_model(), make_model()
    run(model, toy, tmp_path / "c.pt", [dataclasses.replace(FIRST, frozen_layers=3, frozen_norms=False)])
    blocks = list(group_parameters(start.backbone, start.backbone.group_matcher(coarse=False)).values())
    frozen = {name for block in blocks[:3] for name in block}
    new, old = content(model.backbone), content(start.backbone)
    for name, _ in start.backbone.named_parameters():
        assert (new[name] == old[name]) == (name in frozen)
    # Running means lie in the block of their norm's own weight.
    for name in (name for name in old if name.endswith("running_mean")):
        assert (new[name] == old[name]) == (name.replace("running_mean", "weight") in frozen)


def test_a_later_phase_thaws_what_an_earlier_one_froze(make_model: MakeModel, toy: PhotoSet, tmp_path: Path) -> None:
    model, start = make_model(), make_model()
    run(model, toy, tmp_path / "c.pt", [SECOND, FIRST])
    assert content(model.backbone.conv_stem) != content(start.backbone.conv_stem)


def test_the_rate_warms_up_then_falls_to_zero_along_half_a_cosine() -> None:
    phase = Phase("p", steps=100, batch_size=1, learning_rate=1.0, warmup=0.1)
    rates = [learning_rate_at(phase, step) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], [0.5 + 0.5 * math.cos(math.pi * k / 90) for k in range(90)])
    assert max(rates) == 1 and 0 < rates[-1] < 0.001


@pytest.mark.parametrize(("steps_", "warmup"), [(1, 0.0), (1, 1.0), (7, 0.0), (7, 1.0), (2, 0.5)])
def test_the_rate_is_a_share_of_the_peak_for_odd_lengths_too(steps_: int, warmup: float) -> None:
    phase = Phase("p", steps=steps_, batch_size=1, learning_rate=1.0, warmup=warmup)
    assert all(0 < learning_rate_at(phase, step) <= 1 for step in range(steps_))


def test_batch_loss_adds_the_marginal_loss_of_photos_without_target(make_model: MakeModel, toy: PhotoSet) -> None:
    taxa = np.arange(12) % 2
    photos = dataclasses.replace(
        toy,
        target=np.where(np.arange(12) < 6, toy.target, -1),
        weight=np.linspace(0.1, 1, 12).astype(np.float32),
        taxon=taxa,
        taxon_of_class=np.array([0, 1, 1]),
    )
    rows = np.array([1, 4, 7, 8, 11])
    model, images = make_model().eval(), torch.rand(5, 3, 32, 32)
    phase = dataclasses.replace(FIRST, marginal_weight=0.7)
    logits = model(images)[1]
    target, weight = torch.tensor(photos.target[rows]), torch.tensor(photos.weight[rows])
    supervised = weighted_cross_entropy(logits[:2], target[:2], weight[:2], 0.1)
    coarse = marginal_loss(logits[2:], torch.tensor(taxa[rows[2:]]), torch.tensor([0, 1, 1]), weight[2:])
    found, _ = batch_loss(model, images, photos, rows, phase)
    torch.testing.assert_close(found, supervised + 0.7 * coarse)
    without, _ = batch_loss(model, images, photos, rows, FIRST)
    torch.testing.assert_close(without, supervised)
