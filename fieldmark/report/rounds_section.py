"""Section "Round by round": what became of the clusters, and which unlabeled photos were given a class."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from fieldmark.artifacts import ArtifactError, read_table
from fieldmark.report.album import Strip, spread_out
from fieldmark.report.charts import Figure, Series, histogram, scatter, steps
from fieldmark.report.inputs import Material, by_round
from fieldmark.report.svg import percent as percent_tick
from fieldmark.report.wording import between, metric_name, percent

_PHOTOS_SHOWN = 8
# With more rounds each shows fewer pictures, so that the page keeps its size.
_STRIPS_IN_ALL = 8
_KINDS = (("kept", "kept", "s1"), ("dropped", "dropped", "s0"), ("foreign", "kept as foreign", "s3"))


@dataclass(frozen=True)
class Measure:
    """One measured figure: name, value, and its interval or what to compare it with."""

    name: str
    value: str
    beside: str


@dataclass(frozen=True)
class ClusterGroup:
    """Clusters of one fate: how many, of how many photos, and samples."""

    title: str
    explanation: str
    clusters: int
    photos: int
    strips: list[Strip]


@dataclass(frozen=True)
class Clustering:
    """What the template shows of a round's clusters."""

    clusters: int
    groups: list[ClusterGroup]
    reasons: list[tuple[str, int, int]]
    figures: list[Figure]
    measures: list[Measure]


@dataclass(frozen=True)
class RoundSection:
    """What the template shows of one round; in self-training there are no clusters."""

    number: int
    clustering: Clustering | None
    unlabeled: int
    selected: int
    empty_classes: list[str]
    selection_figures: list[Figure]
    selection_measures: list[Measure]
    selection_strips: list[tuple[Strip, Strip]]


def round_sections(material: Material) -> list[RoundSection]:
    """Collect the section of every round.

    Raises:
        ArtifactError: if a round lacks one of its tables.
    """
    clusters, judged = by_round(material.inputs.clusters), by_round(material.inputs.kept_clusters)
    pseudo = by_round(material.inputs.pseudo_labels)
    expected = pseudo.keys() if material.config["track"] == "semi_supervised" else set()
    if not clusters.keys() == judged.keys() == expected:
        raise ArtifactError(
            f"expected clusters, kept_clusters and pseudo_labels of the same rounds, found rounds {list(clusters)}, "
            f"{list(judged)} and {list(pseudo)}"
        )
    return [
        _round_section(
            material,
            number,
            _clustering(material, number, clusters[number], judged[number]) if clusters else None,
            read_table("pseudo_labels", path),
        )
        for number, path in pseudo.items()
    ]


def _clustering(material: Material, number: int, clusters: Path, judged: Path) -> Clustering:
    photos, table = read_table("clusters", clusters), with_fate(read_table("kept_clusters", judged))
    return Clustering(
        clusters=table.height,
        groups=_groups(material, photos, table),
        reasons=drop_reasons(table),
        figures=_cluster_figures(table),
        measures=_cluster_measures(material, number),
    )


def _round_section(
    material: Material, number: int, clustering: Clustering | None, labels: pl.DataFrame
) -> RoundSection:
    chosen = labels.filter("selected")
    missing = material.classes.join(chosen, on="class_id", how="anti")["class_id"].to_list()
    return RoundSection(
        number=number,
        clustering=clustering,
        unlabeled=labels.height,
        selected=chosen.height,
        empty_classes=[material.names[class_id] for class_id in missing],
        selection_figures=_selection_figures(material, labels),
        selection_measures=_selection_measures(material, number),
        selection_strips=_selection_strips(material, chosen),
    )


def with_fate(judged: pl.DataFrame) -> pl.DataFrame:
    """Clusters with a column ``fate``: kept, dropped, or foreign for those kept as far from every labeled class."""
    fate = pl.when(~pl.col("kept")).then(pl.lit("dropped")).when("foreign").then(pl.lit("foreign"))
    return judged.with_columns(fate.otherwise(pl.lit("kept")).alias("fate"))


def drop_reasons(table: pl.DataFrame) -> list[tuple[str, int, int]]:
    """Why clusters were dropped, the figures aside: reason, clusters, photos; the most frequent reason first."""
    dropped = table.filter(pl.col("fate") == "dropped")
    rule = pl.col("reason").str.split(":").list.first()
    counted = dropped.group_by(rule).agg(pl.len().alias("clusters"), pl.col("size").sum())
    return list(counted.sort("clusters", "reason", descending=[True, False]).iter_rows())


def _groups(material: Material, photos: pl.DataFrame, table: pl.DataFrame) -> list[ClusterGroup]:
    words = {
        "kept": ("Kept", "Candidates of the labeled classes, from the most to the least coherent."),
        "dropped": ("Dropped", "Not learned from; one of every reason first."),
        "foreign": ("Foreign", "Coherent, but far from every labeled class: kept as examples of what is none of them."),
    }
    count = max(1, min(4, _STRIPS_IN_ALL // len(material.rounds)))
    groups = []
    for fate, _, style in _KINDS:
        own = table.filter(pl.col("fate") == fate)
        strips = [_cluster_strip(material, photos, row, style) for row in _examples(own, fate, count)]
        groups.append(ClusterGroup(*words[fate], own.height, int(own["size"].sum()), strips))
    return groups


def _examples(own: pl.DataFrame, fate: str, count: int) -> list[dict]:
    """Rows of the clusters to show."""
    if fate == "dropped":
        # Round robin over the reasons, the largest cluster of each first.
        turns = own.sort("size", "cluster", descending=[True, False]).with_columns(
            pl.int_range(pl.len()).over(pl.col("reason").str.split(":").list.first()).alias("turn")
        )
        return turns.sort("turn", "cluster").head(count).to_dicts()
    ordered = own.sort("neighbour_agreement", "cluster", descending=[True, False])
    rows = spread_out(list(range(ordered.height)), count)
    return [ordered.row(row, named=True) for row in rows]


def _cluster_strip(material: Material, photos: pl.DataFrame, row: dict, style: str) -> Strip:
    members = photos.filter(pl.col("cluster") == row["cluster"]).sort("distance", "image_id")["image_id"].to_list()
    facts = [f"{row['size']} photos", f"agreement {row['neighbour_agreement']:.2f}"]
    if row["coarse_purity"] is not None:
        facts.append(f"taxon purity {row['coarse_purity']:.2f}")
    facts.append(f"nearest class {material.names[row['nearest_class']]}")
    if row["reason"]:
        facts = [row["reason"], *facts[:1]]
    pictures = material.album.pictures(spread_out(members, _PHOTOS_SHOWN))
    return Strip(f"Cluster {row['cluster']}", " · ".join(facts), pictures, style)


def _cluster_figures(table: pl.DataFrame) -> list[Figure]:
    groups = {name: table.filter(pl.col("fate") == fate) for fate, name, _ in _KINDS}
    styles = {name: style for _, name, style in _KINDS}
    some = {name: rows.sort("cluster") for name, rows in groups.items() if rows.height}
    dots = [
        Series(name, styles[name], rows["size"].to_list(), rows["neighbour_agreement"].to_list())
        for name, rows in some.items()
    ]
    similar = [
        Series(name, styles[name], rows["nearest_class_similarity"].to_list(), []) for name, rows in some.items()
    ]
    return [
        scatter("Size and neighbour agreement of each cluster", dots, "photos in it", "agreement", (0.0, 1.0)),
        histogram("Similarity to the nearest labeled class", similar, "cosine", "clusters", bins=20),
    ]


def _cluster_measures(material: Material, number: int) -> list[Measure]:
    """What the evaluation found of the clusters kept, with the purity before anything was dropped beside it."""
    before = material.pick("cluster", "unlabeled", None, number)
    found = []
    for metric, row in material.pick("filter", "unlabeled", None, number).items():
        beside = f"{percent(before[metric]['value'])} in all clusters" if metric in before else between(row)
        found.append(Measure(metric_name(metric), percent(row["value"]), beside))
    return found


def _selection_measures(material: Material, number: int) -> list[Measure]:
    """What the evaluation found of the selected photos."""
    found = []
    for metric, row in material.pick("select", "unlabeled", None, number).items():
        name = metric_name(metric)
        if metric.startswith("auroc"):
            found.append(Measure(name, f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"))
        else:
            found.append(Measure(name, percent(row["value"]), between(row)))
    return found


def _selection_figures(material: Material, labels: pl.DataFrame) -> list[Figure]:
    chosen, others = labels.filter("selected"), labels.filter(~pl.col("selected"))
    groups = [
        Series("selected", "s1", chosen["in_class_score"].to_numpy(), []),
        Series("not selected", "s0", others["in_class_score"].to_numpy(), []),
    ]
    ranked = material.classes.sort("labeled_count", "class_id", descending=[True, False])
    counts = chosen.group_by("class_id").len()
    selected = ranked.join(counts, on="class_id", how="left", maintain_order="left")["len"].fill_null(0)
    shares = [
        Series("selected", "s1", [], (selected / max(1, chosen.height)).to_list()),
        Series("labeled", "s2", [], (ranked["labeled_count"] / max(1, ranked["labeled_count"].sum())).to_list()),
    ]
    return [
        histogram("In-class score of the unlabeled photos", groups, "in-class score", "photos"),
        steps("Share of each class in the photos", shares, "classes, most labeled first", "share", percent_tick),
    ]


def _selection_strips(material: Material, chosen: pl.DataFrame) -> list[tuple[Strip, Strip]]:
    """Of a few classes, one labeled photo and photos that were given the class, from the surest on."""
    count = max(1, min(6, (_STRIPS_IN_ALL + 4) // len(material.rounds)))
    ranked = material.classes.sort("labeled_count", "class_id", descending=[True, False])
    present = ranked.join(chosen, on="class_id", how="semi", maintain_order="left")["class_id"].to_list()
    labeled = material.manifest.filter(pl.col("split") == "labeled")
    strips = []
    for class_id in spread_out(present, count):
        own = chosen.filter(pl.col("class_id") == class_id).sort("in_class_score", "image_id", descending=[True, False])
        example = labeled.filter(pl.col("class_id") == class_id)["image_id"].to_list()[:1]
        name = material.names[class_id]
        note = f"{own.height} selected, score {own['in_class_score'][0]:.2f} to {own['in_class_score'][-1]:.2f}"
        pictures = material.album.pictures(spread_out(own["image_id"].to_list(), _PHOTOS_SHOWN - 1))
        strips.append(
            (Strip(name, "labeled", material.album.pictures(example), "s2"), Strip(name, note, pictures, "s1"))
        )
    return strips
