"""The report is rendered from small drawn tables; what is checked is what a reader would miss or be misled by."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path, PurePath

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import ArtifactError, read_table, write_table
from fieldmark.evaluation import at, scores_table
from fieldmark.report.charts import Row, Series, bars, histogram, intervals, lines, running_mean, scatter, steps
from fieldmark.report.lookalikes_section import confused_pairs
from fieldmark.report.making_section import belongs, stage_times
from fieldmark.report.results_section import difference_text
from fieldmark.report.rounds_section import drop_reasons, with_fate
from fieldmark.report.svg import round_values
from tests.fake_results import Fake, drawn_photos
from workflow.scripts.render_report import render_report

CONFIG = {
    "seed": 1,
    "track": "semi_supervised",
    "rounds": 2,
    "shards": 2,
    "models": {"lite0": {"recipes": ["layerwise"]}},
    "ensemble": {"method": "evolutionary"},
    "data": {"root": 'a<b>&"c"'},
}
NASTY = "<b>&\"Moth'"
SECTIONS = ("result", "data", "rounds", "training", "accuracy", "ensemble", "classes", "lookalikes", "making")


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    photos = drawn_photos(tmp_path_factory.mktemp("photos"), 4)
    return Fake(photos, [NASTY, "Underwing", "7", "Emerald"], rounds=2)


def render(fake: Fake, folder: Path, **changes: object) -> str:
    inputs = replace(fake.write(folder / "results"), **changes)
    render_report(inputs, folder / "report.html", 'Moths & "co" <1>', CONFIG, seed=1)
    return (folder / "report.html").read_text(encoding="utf-8")


class _Checker(HTMLParser):
    """Notes ids, links, images without alternative text, and tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.unnamed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.addresses += [str(values[key]) for key in ("src", "href", "srcset", "data", "action") if key in values]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if not values.get({"img": "alt", "svg": "aria-label"}.get(tag, ""), tag not in ("img", "svg")):
            self.unnamed.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(fake: Fake, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(fake, tmp_path_factory.mktemp("whole"))


def test_every_section_is_there_and_the_markup_is_sound(page: str) -> None:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert set(SECTIONS) <= set(checker.ids) and len(checker.ids) == len(set(checker.ids))
    assert checker.unnamed == []
    assert checker.headings[0] == "h1" and checker.headings.count("h1") == 1
    for before, after in zip(checker.headings, checker.headings[1:], strict=False):
        assert int(after[1]) <= int(before[1]) + 1, "a heading level is skipped"


def test_nothing_outside_the_page_is_asked_for(page: str) -> None:
    checker = _Checker()
    checker.feed(page)
    inner = [address for address in checker.addresses if address.startswith("#")]
    assert all(address.startswith(("#", "data:")) for address in checker.addresses)
    assert {address[1:] for address in inner} <= set(checker.ids)
    assert not re.search(r"https?://|url\(|@import|<script", page)


def test_names_are_escaped(page: str) -> None:
    assert NASTY not in page and "&lt;b&gt;&amp;" in page
    assert "<1>" not in page and "<i>.jpg" not in page and "<2" not in page


def test_the_same_tables_give_the_same_bytes(fake: Fake, page: str, tmp_path: Path) -> None:
    again = render(fake, tmp_path)
    assert again == page


def test_key_regions_are_told_beside_the_full_photos(fake: Fake, page: str, tmp_path: Path) -> None:
    assert "Key regions against" not in page
    inputs = fake.write(tmp_path / "results")
    measured = [
        replace(at("detection", "val", member=member), metric=metric, value=value, count=120)
        for member, metric, value in (
            ("key_region", "mean_iou", 0.731),
            ("key_region", "ap50", 0.962),
            ("full_photo", "mean_iou", 0.358),
        )
    ]
    scores = pl.concat([read_table("scores", inputs.scores), scores_table(measured)])
    write_table(scores, "scores", inputs.scores)
    render_report(inputs, tmp_path / "report.html", "Moths", CONFIG, seed=1)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Key regions against the boxes of 120 validation photos" in text
    assert "73.1 %<small>35.8 % for the full photos" in text and "96.2 %" in text


def test_the_headline_tells_the_figures_of_the_table(fake: Fake, page: str, tmp_path: Path) -> None:
    inputs = fake.write(tmp_path)
    scores = pl.read_parquet(inputs.scores).filter((pl.col("member") == "ensemble") & (pl.col("split") == "test"))
    row = scores.filter(pl.col("metric") == "top1").row(0, named=True)
    value, low, high = (f"{100 * row[key]:.1f}" for key in ("value", "low", "high"))
    assert f"<dd>{value} %</dd><dt>top-1 on 16 test photos</dt>" in page
    assert f"interval {low} to {high} %" in page
    weights = pl.read_parquet(inputs.weights).filter(pl.col("method") == "evolutionary")["weight"]
    voting = int((weights >= 0.005).sum())
    who = "all 4" if voting == 4 else f"{voting} of 4"
    assert "classes of 16 test photos" in page and f"average of {who} models with evolutionary weights" in page


def test_without_truth_the_unseen_half_of_val_is_told_and_why(fake: Fake, tmp_path: Path) -> None:
    text = render(replace(fake, truth=False), tmp_path)
    assert "<dd>77.5 %</dd><dt>top-1 on 40 validation photos</dt>" in text  # 31 of 40
    assert "No truth of the test photos was given" in text and "too favourable" in text
    assert "On all validation photos it is" in text and "against supervised fine-tuning</dt>" not in text
    assert "against the truth" not in text and "test photos right" not in text


def test_equal_weights_have_seen_no_photo_so_all_of_val_is_told(fake: Fake, tmp_path: Path) -> None:
    config = {**CONFIG, "ensemble": {"method": "uniform"}}
    render_report(replace(fake, truth=False).write(tmp_path / "results"), tmp_path / "report.html", "T", config, seed=1)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    val = sum(photo.image_id.startswith("val/") for photo in fake.photos)
    assert f"<dt>top-1 on {val} validation photos</dt>" in text
    assert "Equal weights have learned nothing from them" in text and "too favourable" not in text
    assert "were fitted on these very photos" not in text and "on its other half" not in text
    assert "against supervised fine-tuning</dt>" in text


def test_the_supervised_track_has_no_rounds_and_compares_with_its_own_members(fake: Fake, tmp_path: Path) -> None:
    inputs = replace(fake, rounds=0).write(tmp_path)
    render_report(inputs, tmp_path / "report.html", "Labels alone", CONFIG | {"track": "supervised"}, seed=1)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="rounds"' not in text and 'href="#rounds"' not in text and "unlabeled photos." not in text
    assert "its best single model (lite0" in text and "against the best single model</dt>" in text
    assert ("average of" in text and "of 2 models" in text) or "all 2 models" in text
    assert "Baselines" not in text and "supervised fine-tuning" not in text


def test_self_training_shows_what_each_round_selected_and_no_clusters(fake: Fake, tmp_path: Path) -> None:
    inputs = replace(fake.write(tmp_path), clusters=[], kept_clusters=[])
    render_report(inputs, tmp_path / "report.html", "No clusters", CONFIG | {"track": "self_training"}, seed=1)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="round-0"' in text and "that the last model and the nearest labeled photos agree on" in text
    assert "unlabeled photos were selected" in text
    assert "Kept clusters" not in text and "into clusters" not in text and "cluster's centre" not in text


def test_without_rejected_photos_and_dropped_clusters(fake: Fake, tmp_path: Path) -> None:
    text = render(replace(fake, rejected=False, dropped=False), tmp_path)
    assert "none was rejected" in text and "No cluster was dropped." in text
    assert "Rejected photos" not in text and "Dropped clusters" not in text


def test_two_classes_that_are_one_pair(tmp_path: Path) -> None:
    photos = drawn_photos(tmp_path / "photos", 2)
    text = render(Fake(photos, [NASTY, "Underwing"], rounds=1, accuracy=0.5), tmp_path)
    assert text.count('<article class="pair">') == 1 and "This pair accounts" in text


def test_no_confusion_at_all(tmp_path: Path) -> None:
    photos = drawn_photos(tmp_path / "photos", 2)
    text = render(Fake(photos, ["a", "b"], accuracy=1.0), tmp_path)
    assert "confused no two classes" in text


def test_the_worst_classes_are_shown_first_and_the_others_on_demand(tmp_path: Path) -> None:
    names = [f"class{number:02}" for number in range(12)]
    page = render(Fake(drawn_photos(tmp_path / "photos", 12), names, rounds=1), tmp_path)
    section = page.partition('<section id="classes"')[2].partition("</section>")[0]
    before, _, after = section.partition("The other 2 classes")
    shown = [re.findall(r'<th scope="row">(class\d\d)</th>', part) for part in (before, after)]
    assert [len(part) for part in shown] == [10, 2] and sorted(shown[0] + shown[1]) == names
    counts = [(int(a), int(b)) for a, b in re.findall(r"(\d+) of (\d+)</td>", section)]
    shares = [right / photos for right, photos in counts]
    assert len(shares) == 12 and shares == sorted(shares)
    assert ">Pseudo-labels</th>" in section


def test_a_lost_photo_is_named(fake: Fake, tmp_path: Path) -> None:
    gone = tmp_path / "gone.jpg"
    photos = [replace(p, path=gone) if p.image_id == "labeled/0_0" else p for p in fake.photos]
    with pytest.raises(ValueError, match=r"gone\.jpg: no such file"):
        render(replace(fake, photos=photos), tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_round_without_one_of_its_tables_is_named(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="of the same rounds"):
        render(fake, tmp_path, pseudo_labels=[])


def test_times_are_summed_by_rule(fake: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    for name, seconds, memory in (("cut/0", 10.0, "200.5"), ("cut/1", 20.0, "-"), ("round0/fit", 90.0, "50.0")):
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"s\th:m:s\tmax_rss\n{seconds}\t0:00:10\t{memory}\n", encoding="utf-8")
    times, total = stage_times(folder, CONFIG)
    assert [(t.rule, t.jobs, t.time, t.memory) for t in times] == [
        ("fit", 1, "1 min 30 s", "50 MB"),
        ("cut", 2, "30 s", "200 MB"),
    ]
    assert total == 120 and times[0].share == 0.75
    assert "2 min 00 s of jobs in all" in render(fake, tmp_path, benchmarks=folder)


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("ingest_photos", True),
        ("round1/cluster_photos", True),
        ("round2/cluster_photos", False),
        ("round1/lite0/train_guide", True),
        ("round1/other/train_guide", False),
        ("baseline/lite0/extract_features/1", True),
        ("baseline/lite0/extract_features/2", False),
        ("round0/lite0/layerwise/finetune_classifier", True),
        ("round0/lite0/two_stage/finetune_classifier", False),
        ("round0/lite0/two_stage/predict_photos/0", False),
        ("baseline/metadata/probe_metadata", True),
        ("detection/detect_photos/0", True),
    ],
)
def test_times_of_jobs_that_the_configuration_no_longer_has_are_left_out(path: str, counts: bool) -> None:
    assert belongs(PurePath(f"{path}.tsv"), CONFIG) == counts
    assert not belongs(PurePath("round0/lite0/train_guide.tsv"), CONFIG | {"track": "supervised"})
    quick = CONFIG | {"track": "self_training"}
    assert not belongs(PurePath("round0/lite0/train_guide.tsv"), quick)
    assert not belongs(PurePath("round0/lite0/extract_features/0.tsv"), quick)
    assert belongs(PurePath("baseline/lite0/extract_features/0.tsv"), quick)
    assert belongs(PurePath("round0/lite0/score_photos/0.tsv"), quick)


@pytest.mark.parametrize(
    ("low", "value", "high", "words"),
    [(-0.01, 0.02, 0.05, "includes 0"), (0.01, 0.03, 0.05, "above"), (-0.05, -0.03, -0.01, "below")],
)
def test_a_difference_is_worded_by_its_interval(low: float, value: float, high: float, words: str) -> None:
    row = {"low": low, "value": value, "high": high}
    text = difference_text(row, "baseline/lite0/layerwise", {"value": 0.7}, 1)
    assert words in text and ("chance" in text) == (words == "includes 0")
    assert "same backbone on the labeled photos alone (lite0 · layerwise, 70.0 %)" in text
    assert "No supervised fine-tuning" in difference_text(None, None, None, 0)


def test_confused_pairs_count_both_directions() -> None:
    rows = [(0, 0, 9), (0, 1, 2), (1, 0, 3), (2, 1, 4), (1, 1, 1)]
    table = pl.DataFrame(rows, schema=["class_id", "predicted", "count"], orient="row")
    assert confused_pairs(table).rows() == [(0, 1, 2, 3, 5), (1, 2, 0, 4, 4)]


def test_reasons_are_counted_without_their_figures() -> None:
    table = pl.DataFrame(
        {
            "kept": [True, True, False, False, False],
            "foreign": [False, True, True, False, False],
            "reason": ["", "", "too few: 1", "too few: 2", "spread: 3"],
            "size": [9, 8, 1, 2, 7],
        }
    )
    fated = with_fate(table)
    assert fated["fate"].to_list() == ["kept", "foreign", "dropped", "dropped", "dropped"]
    assert drop_reasons(fated) == [("too few", 2, 3), ("spread", 1, 7)]


def test_ticks_are_round_and_inside() -> None:
    assert round_values(0, 10) == [0, 5, 10]
    assert round_values(0.55, 0.9) == pytest.approx([0.6, 0.7, 0.8, 0.9])
    assert round_values(3, 3) == [3]


def test_running_mean_is_that_of_the_window() -> None:
    values = np.arange(10.0) ** 2
    naive = [values[max(0, i - 1) : i + 2].mean() for i in range(10)]
    assert running_mean(values, 3) == pytest.approx(naive)


def test_charts_bear_empty_and_constant_data_and_escape() -> None:
    figures = [
        histogram(NASTY, [Series(NASTY, "s1", [], []), Series("b", "s0", [0.5, 0.5], [])], "x", "y"),
        scatter(NASTY, [Series(NASTY, "s1", [4], [0.5])], "x", "y", (0, 1)),
        steps(NASTY, [Series("a", "s1", [], [0, 0])], "x", "y"),
        lines(NASTY, [Series(NASTY, "s1", [0, 1], [0.5, 0.5])], "x", "y"),
        bars(NASTY, [Row(NASTY, "0", 0.0)]),
        intervals(NASTY, [Row(NASTY, "50 %", 0.5, 0.4, 0.6), Row("b", "", 0.5)], 0.4, 0.6, 0.5, "r"),
    ]
    for figure in figures:
        assert "<b>" not in figure.drawing and "nan" not in figure.drawing and "inf" not in figure.drawing
        assert figure.drawing.startswith("<svg ") and figure.drawing.endswith("</svg>")


def test_a_histogram_draws_every_value_once() -> None:
    figure = histogram("h", [Series("a", "s1", [0, 0, 1], []), Series("b", "s0", [1, 1, 1], [])], "x", "y", bins=2)
    columns = re.findall(r'<rect [^>]*height="([\d.]+)"[^>]*class="(s\d) fill"', figure.drawing)
    heights = {style: sum(float(height) for height, own in columns if own == style) for style in ("s1", "s0")}
    assert heights["s1"] == pytest.approx(heights["s0"], abs=0.2)  # three values each


def test_many_classes_share_steps_of_their_mean() -> None:
    figure = steps("s", [Series("a", "s1", [], np.arange(10_000))], "x", "y")
    assert figure.drawing.count("L") < 2_000
