"""Which pretrained weights a competition allows: an allow-list, checked before anything runs.

Only light imports: this is part of checking the configuration.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

ANY = "any"
LISTS_FILE = Path(__file__).resolve().parent.parent / "workflow" / "schemas" / "weights_policies.yaml"
# The package ships TensorFlow's weights of ImageNet-1k, which timm has under this tag.
PACKAGE_TAG = "in1k"


def known_lists() -> dict[str, list[str]]:
    """The lists that come with the project."""
    lists: dict[str, list[str]] = yaml.safe_load(LISTS_FILE.read_text(encoding="utf-8"))
    return lists


def allowed_patterns(policy: str, policies: Mapping[str, Sequence[str]]) -> list[str]:
    """The patterns of a policy; an entry that is another policy's name stands for that one's.

    Raises:
        ValueError: if policies name each other in a circle.
    """

    def expand(name: str, above: tuple[str, ...]) -> Iterator[str]:
        if name in above:
            raise ValueError(f"weights_policies.{name}: contains itself, through {' → '.join((*above, name))}")
        for entry in policies[name]:
            if entry in policies:
                yield from expand(entry, (*above, name))
            else:
                yield entry

    return list(expand(policy, ()))


def refusals(
    networks: Mapping[str, Mapping[str, Any]], policy: str, policies: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """What is wrong with the networks' weights under a policy, one sentence each.

    Args:
        networks: sections of the config with a backbone and weights, by their paths. A detector from elsewhere takes
            the place of its backbone's weights.
        policy: ``any``, or a key of ``policies``.
        policies: patterns of the allowed weights: of timm's tags (what follows the dot in a model's name), and of
            paths of files.
    """
    if policy == ANY:
        return
    if policy not in policies:
        yield f"weights_policy: expected {ANY} or one of {', '.join(policies)}; found {policy!r}"
        return
    try:
        patterns = allowed_patterns(policy, policies)
    except ValueError as error:
        yield str(error)
        return
    for path, model in networks.items():
        weights, (_, _, tag) = model["weights"], model["backbone"].partition(".")
        if weights == "none":
            continue
        if weights == "hub" and not tag:
            yield (
                f"{path}.backbone: expected the tag of the weights after a dot, because weights_policy is "
                f"{policy} and timm's own choice for {model['backbone']!r} may change; timm.list_pretrained() has them"
            )
            continue
        origin = {"hub": tag, "package": PACKAGE_TAG}.get(weights, weights)
        if not any(fnmatchcase(origin, pattern) for pattern in patterns):
            file_key = "detector" if weights == model.get("detector") else "weights"
            key, what = ("backbone", f"weights tagged {tag!r}") if weights == "hub" else (file_key, repr(origin))
            # A list of the same name would replace the one that comes with the project.
            own = f"make a list of your own, weights_policies: {{mine: [{policy}, {origin!r}]}}, and say so"
            remedy = own if policy in known_lists() else f"add them to weights_policies.{policy}"
            yield (
                f"{path}.{key}: {what} are not on the allow-list of weights_policy {policy}; choose others, or "
                f"if you know that the rules allow them, {remedy}"
            )
