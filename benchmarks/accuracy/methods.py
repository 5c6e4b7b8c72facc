"""The methods that are compared: how tables call them, in the order of the tables."""

import re

# What benchmarks/accuracy/references.py trains.
REFERENCES = {
    "centroid": "nearest class mean of pretrained features",
    "taxonomy": "supervised, with taxonomy loss",
    "long": "supervised, all steps",
    "naive": "naive pseudo-labels",
    "long_naive": "naive pseudo-labels, all steps",
    "fixmatch": "FixMatch",
    "freematch": "FreeMatch",
    "fixmatch_in_class": "FixMatch, in-class photos only",
    "freematch_in_class": "FreeMatch, in-class photos only",
    "simclr": "SimCLR, then supervised",
    "after_pretrain": "labels alone after pre-training",
    "after_refine": "labels alone after refining",
    "oracle": "oracle",
    "long_oracle": "oracle, all steps",
}
# These get as many optimizer steps as lead to the pipeline's last model, through all rounds.
AS_LONG_AS_THE_PIPELINE = (
    *("long", "long_naive", "long_oracle", "simclr"),
    *("fixmatch", "freematch", "fixmatch_in_class", "freematch_in_class"),
)
# No baselines, since the truth chooses their unlabeled photos: without foreign ones these methods are on their own
# ground, where they were published to gain. What they do there tells whether our short versions work.
CLOSED_SET = {"fixmatch_in_class": "fixmatch", "freematch_in_class": "freematch"}
# These see photos alone, without places, dates and crops; a model that looks at crops cannot be trained by them.
PHOTOS_ALONE = ["fixmatch", "freematch", "fixmatch_in_class", "freematch_in_class", "simclr"]
# The pipeline half-way, by the stage whose model is fine-tuned.
HALF_WAY = {"after_pretrain": "pretrain", "after_refine": "refine"}
# What a user could pick instead; the best of them is what the pipeline has to beat.
BASELINES = (
    "probe",
    "centroid",
    "supervised",
    "taxonomy",
    "long",
    "naive",
    "long_naive",
    "fixmatch",
    "freematch",
    "simclr",
)
ORACLES = ("oracle", "long_oracle")

_OTHERS = {"probe": "linear probe of pretrained features", "supervised": "supervised", "ensemble": "ensemble"}
_ORDER = [*BASELINES, *CLOSED_SET, *HALF_WAY, "round", "ensemble", "vote", *ORACLES, "ablation"]


def title(method: str, member: str) -> str:
    """How a row is called in tables."""
    if method == "vote":
        return f"equal vote of the {member}" if " " in member else f"ensemble, {member} weights"
    number = re.fullmatch(r"round(\d+)", method)
    name = f"round {number[1]}" if number else REFERENCES.get(method) or _OTHERS[method]
    return name if method in ("probe", "centroid", "ensemble") else f"{name}, {member.split('/')[-1]}"


def rank(method: str) -> tuple[int, str]:
    """Sorts methods as tables list them."""
    family = "ablation" if method.startswith("ablation/") else re.sub(r"\d+$", "", method)
    return _ORDER.index(family), method
