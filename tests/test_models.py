"""The classifier's parts, and what happens to weights on the way to and from disk."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.models import group_parameters

from fieldmark import models
from fieldmark.artifacts import ArtifactError
from fieldmark.models import (
    Architecture,
    Classifier,
    PrototypeBlend,
    WeightsError,
    build_classifier,
    freeze_layers,
    freeze_norms,
    is_classifier_file,
    load_classifier,
    load_pretrained,
    save_classifier,
)
from fieldmark.phases import Phase, prepare

MakeModel = Callable[..., Classifier]


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def backbone_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(9)
    return dict(timm.create_model("test_efficientnet").state_dict())  # with timm's own classifier, which is left out


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_an_untrained_neck_of_the_backbones_width_changes_nothing(make_model: MakeModel) -> None:
    model = make_model().eval()
    torch.testing.assert_close(model.embed(images()), model.backbone(images()))


def test_a_narrow_neck_starts_orthogonal_and_outputs_have_the_declared_shapes(make_model: MakeModel) -> None:
    model = make_model(embedding=10, classes=5, foreign=2)
    torch.testing.assert_close(model.neck.weight @ model.neck.weight.T, torch.eye(10), atol=1e-5, rtol=0)
    embedding, logits = model(images())
    assert embedding.shape == (4, 10) and logits.shape == (4, 7) and logits.dtype == torch.float32


def test_a_backbone_may_keep_a_layer_between_its_features_and_the_classes(make_model: MakeModel) -> None:
    model = make_model(backbone="mobilenetv3_small_050")
    assert model.backbone.num_features != model.neck.in_features == 1024
    assert [tuple(part.shape) for part in model(images())] == [(4, model.width), (4, model.outputs)]


def test_an_unknown_backbone_is_refused_by_name(make_model: MakeModel) -> None:
    with pytest.raises(WeightsError, match=r"has no 'efficientnet_lite9'; did you mean 'efficientnet_lite\d'\?"):
        make_model(backbone="efficientnet_lite9")


def test_construction_is_a_function_of_the_seed(make_model: MakeModel) -> None:
    assert same(make_model(seed=1).state_dict(), make_model(seed=1).state_dict())
    assert not same(make_model(seed=1).state_dict(), make_model(seed=2).state_dict())


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_efficientnet_gn", "test_vit"])
def test_frozen_norms_take_no_gradient(make_model: MakeModel, backbone: str) -> None:
    model = make_model(backbone=backbone)
    freeze_norms(model.backbone)
    norms = [layer for layer in model.backbone.modules() if isinstance(layer, models.NORMS)]
    frozen = {id(parameter) for layer in norms for parameter in layer.parameters()}
    assert frozen
    for parameter in model.parameters():
        assert parameter.requires_grad == (id(parameter) not in frozen)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_freeze_layers_freezes_the_first_blocks_in_timms_order(make_model: MakeModel, count: int) -> None:
    backbone = make_model().backbone
    blocks = list(group_parameters(backbone, backbone.group_matcher(coarse=False)).values())
    freeze_layers(backbone, count)
    wanted = {name for block in blocks[:count] for name in block}
    found = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert found == wanted
    assert count == 0 or any(name.startswith("conv_stem") for name in found)


def test_freezing_every_layer_is_refused(make_model: MakeModel) -> None:
    backbone = make_model().backbone
    number = len(group_parameters(backbone, backbone.group_matcher(coarse=False)))
    freeze_layers(backbone, number - 1)
    with pytest.raises(WeightsError, match=rf"frozen_layers: {number} would freeze all {number} blocks"):
        freeze_layers(backbone, number)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_vit"])
def test_layer_wise_rates_are_timms(make_model: MakeModel, backbone: str) -> None:
    model = make_model(backbone=backbone)
    phase = Phase("p", 10, 4, 0.1, head_multiplier=7.0, layer_decay=0.5, weight_decay=0.03, frozen_norms=False)
    found = {
        id(parameter): (group["scale"], group["weight_decay"])
        for group in prepare(model, phase).param_groups
        for parameter in group["params"]
    }
    theirs = timm.optim.create_optimizer_v2(model.backbone, "adamw", lr=0.1, weight_decay=0.03, layer_decay=0.5)
    expected = {
        id(parameter): (group["lr_scale"], group["weight_decay"])
        for group in theirs.param_groups
        for parameter in group["params"]
    }
    for layer in (model.neck, model.head):
        expected |= {id(layer.weight): (7.0, 0.03), id(layer.bias): (7.0, 0.0)}
    assert found == expected
    # By hand as well: the deepest block at the full rate, each one before it at half the next one's.
    blocks = list(group_parameters(backbone_ := model.backbone, backbone_.group_matcher(coarse=False)).values())
    parameters = dict(model.backbone.named_parameters())
    for depth, block in enumerate(reversed(blocks)):
        assert {found[id(parameters[name])][0] for name in block if name in parameters} == {0.5**depth}


def test_blended_logits_lean_on_prototypes_where_labels_are_few() -> None:
    draws = np.random.default_rng(0)
    embedding, logits = draws.normal(size=(6, 5)), draws.normal(size=(6, 4))
    prototypes = draws.normal(size=(4, 5))
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    counts = [0, 3, 10, 1000]
    blend = PrototypeBlend(5, 4, scale=16.0)
    blend.prototypes.copy_(torch.tensor(prototypes))
    blend.set_counts(torch.tensor(counts), strength=10.0)
    found = blend(torch.tensor(embedding), torch.tensor(logits)).numpy()
    for photo in range(6):
        for cls, count in enumerate(counts):
            cosine = embedding[photo] @ prototypes[cls] / np.linalg.norm(embedding[photo])
            beta = 10 / (10 + count)
            assert found[photo, cls] == pytest.approx((1 - beta) * logits[photo, cls] + beta * 16 * cosine, abs=1e-4)


def test_blended_logits_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    blend = PrototypeBlend(5, 4)
    blend.prototypes.normal_()
    blend.set_counts(torch.tensor([1, 2, 3, 4]), strength=5.0)
    embedding, logits = torch.randn(3, 5, requires_grad=True), torch.randn(3, 4)
    expected = blend(embedding, logits)
    with torch.autocast("cpu", torch.bfloat16):
        found = blend(embedding, logits)
    found.sum().backward()
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_without_counts_only_linear_logits_count() -> None:
    logits = torch.randn(3, 4)
    assert torch.equal(PrototypeBlend(5, 4)(torch.randn(3, 5), logits), logits)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def test_prototypes_are_running_means_of_unit_embeddings() -> None:
    draws = np.random.default_rng(0)
    blend = PrototypeBlend(5, 4, momentum=0.9)
    expected = np.zeros((4, 5))
    for target in ([0, 0, 2, -1, 0], [2, -1, 2, 1, 1], [-1, -1, -1, -1, -1]):
        embedding = draws.normal(size=(5, 5))
        blend.update(torch.tensor(embedding, dtype=torch.float32), torch.tensor(target))
        for cls in set(target) - {-1}:
            own = [unit(row) for row, t in zip(embedding, target, strict=True) if t == cls]
            mean = unit(np.mean(own, axis=0))
            expected[cls] = unit(0.9 * expected[cls] + 0.1 * mean) if expected[cls].any() else mean
    np.testing.assert_allclose(blend.prototypes.numpy(), expected, atol=1e-5)
    assert not blend.prototypes[3].any()


def test_save_and_load_give_the_same_model(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(embedding=10, foreign=2, prototypes=True)
    assert model.blend is not None
    model.blend.set_counts(torch.arange(5), 3.0)
    model.blend.update(torch.randn(8, 10), torch.arange(8) % 5)
    save_classifier(model, tmp_path / "model.safetensors")
    loaded = load_classifier(tmp_path / "model.safetensors")
    assert loaded.architecture == model.architecture
    assert same(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded.eval()(images())[1], model.eval()(images())[1])


def test_saving_is_deterministic_and_atomic(
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    leftovers: Callable[[], list[str]],
) -> None:
    target = tmp_path / "model.safetensors"
    save_classifier(make_model(), target)
    before = target.read_bytes()
    save_classifier(make_model(), target)
    assert target.read_bytes() == before

    def fail(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_classifier(make_model(seed=1), target)
    assert target.read_bytes() == before and leftovers() == ["model.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "foreign", "other weights"])
def test_an_unusable_model_file_is_named(make_model: MakeModel, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "model.safetensors"
    save_classifier(make_model(), path)
    content = path.read_bytes()
    if damage == "foreign":
        safetensors.torch.save_file({"x": torch.ones(2)}, path)
    elif damage == "other weights":
        model = make_model()
        model.architecture = Architecture("test_efficientnet", 0, 99, 0, False, 32)
        save_classifier(model, path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "garbage": b"\xff" * 500}[damage])
    with pytest.raises(ArtifactError, match=r"(?s)model\.safetensors.*run the workflow again"):
        load_classifier(path)


def test_what_is_a_model_file_of_ours(make_model: MakeModel, tmp_path: Path) -> None:
    ours, theirs, damaged = (str(tmp_path / f"{name}.safetensors") for name in ("ours", "theirs", "damaged"))
    save_classifier(make_model(), ours)
    safetensors.torch.save_file(backbone_weights(), theirs)
    Path(damaged).write_bytes(b"\x01")
    assert is_classifier_file(ours) and not is_classifier_file(theirs) and not is_classifier_file("package")
    with pytest.raises(ArtifactError, match=r"damaged\.safetensors"):
        is_classifier_file(damaged)


def test_a_new_model_takes_backbone_and_neck_of_an_old_one_but_never_its_head(
    make_model: MakeModel, tmp_path: Path
) -> None:
    old = make_model(embedding=10, prototypes=True, seed=1)
    save_classifier(old, tmp_path / "old.safetensors")
    # The same number of outputs, though they may stand for other things.
    new = build_classifier(old.architecture, str(tmp_path / "old.safetensors"), seed=2)
    for key, value in new.state_dict().items():
        assert torch.equal(value, old.state_dict()[key]) != key.startswith("head.weight")
    narrower = Architecture("test_efficientnet", 8, 3, 0, False, 32)
    with pytest.raises(WeightsError, match=r"old\.safetensors does not fit test_efficientnet: 'neck"):
        build_classifier(narrower, str(tmp_path / "old.safetensors"), seed=2)


def write_weights(path: Path, state: Any) -> None:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "wrapped.pth"])
def test_weights_come_from_files_of_either_kind(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    weights = backbone_weights()
    write_weights(tmp_path / name, {"model": weights, "epoch": 3} if name == "wrapped.pth" else weights)
    model = make_model()
    load_pretrained(model, str(tmp_path / name))
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, weights[key])


def test_weights_that_do_not_fit_are_refused_with_the_first_tensor(make_model: MakeModel, tmp_path: Path) -> None:
    weights = backbone_weights()
    weights["conv_stem.weight"] = torch.zeros(1)
    del weights["bn1.bias"]
    write_weights(tmp_path / "a.pth", weights)
    number = len(make_model().backbone.state_dict())
    with pytest.raises(WeightsError, match=rf"a\.pth does not fit test_efficientnet: 2 of {number}.*'conv_stem"):
        load_pretrained(make_model(), str(tmp_path / "a.pth"))


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.target, "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_weights_file_with_code_is_refused_and_the_code_not_run(make_model: MakeModel, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": Payload(str(proof))}, tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(str(proof))))
    for name in ("evil.pth", "plain.pth"):
        with pytest.raises(WeightsError, match=rf"{name} is damaged, or holds more than tensors"):
            load_pretrained(make_model(), str(tmp_path / name))
    assert not proof.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_or_missing_weights_are_named(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=f"no file .*{name}; give package, hub, none"):
        load_pretrained(make_model(), str(tmp_path / name))
    write_weights(tmp_path / name, backbone_weights())
    whole = (tmp_path / name).read_bytes()
    for content in (b"", b"\x80garbage" * 9, whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=rf"{name} is damaged"):
            load_pretrained(make_model(), str(tmp_path / name))


def test_a_file_without_state_dict_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match=r"list\.pth holds a list; expected a state dict"):
        load_pretrained(make_model(), str(tmp_path / "list.pth"))


def test_hub_weights_keep_the_options_of_the_model(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(drop_path=0.3)
    shape = repr(model)
    hub = timm.create_model("test_efficientnet", num_classes=0)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: hub)
    load_pretrained(model, "hub")
    assert same(model.backbone.state_dict(), hub.state_dict()) and repr(model) == shape


@pytest.mark.filterwarnings("ignore::UserWarning:timm.layers.interpolate")
@pytest.mark.parametrize("backbone", ["test_vit3", "test_vit_relpos", "test_maxvit"])
def test_transformers_take_the_configured_image_size(make_model: MakeModel, tmp_path: Path, backbone: str) -> None:
    torch.manual_seed(0)
    native = timm.create_model(backbone, num_classes=0)
    torch.save(native.state_dict(), tmp_path / "native.pth")
    model = make_model(backbone=backbone, image_size=64)
    load_pretrained(model, str(tmp_path / "native.pth"))
    native.set_input_size((64, 64))  # type: ignore[operator]
    views = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model.eval().backbone(views), native.eval()(views))
    save_classifier(model, tmp_path / "m.safetensors")
    assert torch.equal(load_classifier(tmp_path / "m.safetensors").eval()(views)[0], model(views)[0])


def test_hub_weights_that_cannot_be_had_are_reported(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"hub .*test_efficientnet.*no route"):
        load_pretrained(model, "hub")


def test_package_weights_are_those_of_lite0_alone(make_model: MakeModel) -> None:
    with pytest.raises(WeightsError, match="package holds tf_efficientnet_lite0 only, not 'test_efficientnet'"):
        load_pretrained(make_model(), "package")
    model = make_model(backbone="tf_efficientnet_lite0").eval()
    random = copy.deepcopy(model.backbone.state_dict())
    load_pretrained(model, "package")
    # Every tensor came from the package, the statistics of the norms too.
    for key, value in model.backbone.state_dict().items():
        assert key.endswith("num_batches_tracked") or not torch.equal(value, random[key])
    with torch.inference_mode():
        embedding, _ = model(images(2))
    assert embedding.shape == (2, 1280) and embedding.isfinite().all() and embedding.std() > 0


def test_dropout_and_stochastic_depth_act_while_training_only(make_model: MakeModel) -> None:
    model = make_model(dropout=0.5, drop_path=0.5)
    model.train()
    freeze_norms(model)
    assert not torch.equal(model(images())[1], model(images())[1])
    model.eval()
    assert torch.equal(model(images())[1], model(images())[1])


def test_the_model_file_holds_plain_tensors(make_model: MakeModel, tmp_path: Path) -> None:
    save_classifier(make_model(), tmp_path / "m.safetensors")
    assert same(safetensors.torch.load_file(tmp_path / "m.safetensors"), dict(make_model().state_dict()))
