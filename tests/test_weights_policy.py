"""Which pretrained weights a competition allows: what the configuration refuses, and what the lists let through."""

import copy
import re

import pytest

from fieldmark.config import ConfigError, resolve
from fieldmark.weights_policy import known_lists, refusals
from tests.test_config import minimal

POLICIES = {"strict": ["in1k", "*_in1k", "weights/own.pth"], "wide": ["strict", "*_in22k"], "loop": ["ring"]}
POLICIES["ring"] = ["loop"]


@pytest.mark.parametrize(
    ("policy", "backbone", "weights", "message"),
    [
        ("strict", "swin_tiny_patch4_window7_224.ms_in1k", "hub", None),
        ("strict", "tf_efficientnet_lite0", "package", None),
        ("strict", "resnet18", "none", None),
        ("strict", "resnet18", "weights/own.pth", None),
        ("wide", "swin_large_patch4_window12_384.ms_in22k", "hub", None),
        (
            "strict",
            "swin_large_patch4_window12_384.ms_in22k",
            "hub",
            "m.backbone: weights tagged 'ms_in22k' are not o",
        ),
        (
            "strict",
            "resnet18",
            "hub",
            "m.backbone: expected the tag of the weights after a dot, because weights_po",
        ),
        (
            "strict",
            "resnet18",
            "weights/other.pth",
            "m.weights: 'weights/other.pth' are not on the allow-list of we",
        ),
        ("ring", "resnet18", "hub", "weights_policies.ring: contains itself, through ring → loop → ring"),
    ],
)
def test_weights_that_the_policy_does_not_list_are_refused(
    policy: str, backbone: str, weights: str, message: str | None
) -> None:
    config = minimal() | {"weights_policy": policy, "weights_policies": copy.deepcopy(POLICIES)}
    config["models"]["m"] |= {"backbone": backbone, "weights": weights}
    if message is None:
        resolve(config)
        return
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    assert message in str(caught.value)


def test_a_detector_from_elsewhere_is_weights_too() -> None:
    config = minimal() | {"weights_policy": "imagenet_1k"}
    config["models"]["m"] |= {"backbone": "tf_efficientnet_lite0", "weights": "package"}
    config["detection"] = {"method": "detector", "detector": "other/detector.safetensors"}
    with pytest.raises(ConfigError, match=r"detection\.detector: 'other/detector\.safetensors' are not on the allow"):
        resolve(config)


def test_the_remedy_of_a_refusal_is_one_that_works() -> None:
    config = minimal() | {"weights_policy": "imagenet_1k"}
    config["models"]["m"] |= {"backbone": "resnet18", "weights": "own.pth"}
    with pytest.raises(ConfigError) as caught:
        resolve(copy.deepcopy(config))
    assert "weights_policies: {mine: [imagenet_1k, 'own.pth']}" in str(caught.value)
    resolve(config | {"weights_policies": {"mine": ["imagenet_1k", "own.pth"]}, "weights_policy": "mine"})


def test_the_allow_list_of_imagenet_1k_names_no_weights_that_saw_other_photos() -> None:
    import timm

    def allowed(policy: str) -> set[str]:
        models = {f"models.{name}": {"backbone": name, "weights": "hub"} for name in timm.list_pretrained()}
        refused = {text.split(".backbone")[0] for text in refusals(models, policy, lists)}
        return {name.removeprefix("models.") for name in set(models) - refused}

    lists = known_lists()
    other = r"in2\dk|in12k|jft|ig1b|yfcc|laion|clip|webli|openai|m3\dm|lvd|seer|swag|ssld|usi|inat"
    strict = allowed("imagenet_1k")
    assert len(strict) > 400 and not [name for name in strict if re.search(other, name.partition(".")[2])]
    assert strict < allowed("inat_2021") and "swin_large_patch4_window12_384.ms_in22k_ft_in1k" in allowed("inat_2021")
    assert not [name for name in allowed("inat_2021") if re.search(r"jft|ig1b|laion|clip|webli|inat", name)]
