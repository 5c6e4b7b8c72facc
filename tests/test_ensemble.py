import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark import ensemble
from fieldmark.artifacts import ArtifactError, read_table, write_table
from fieldmark.ensemble import (
    Objective,
    combine,
    evolve_weights,
    find_candidates,
    greedy_weights,
    normalise,
    uniform_weights,
)
from fieldmark.evaluation import wilson_interval
from fieldmark.methods import chosen_method
from fieldmark.predictions import TopLists, to_table, top_classes
from tests.dense import to_dense

SCRIPTS = Path(__file__).parents[1] / "workflow" / "scripts"


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_members(seed, members, count, classes, k, noise=1.5):
    """Members that see the true class through noise of their own; and the labels."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(classes, size=count)
    ids = [f"p{i:04}" for i in range(count)]
    lists, dense = [], []
    for member in range(members):
        logits = draws.normal(size=(count, classes)) * (noise + member / 2)
        logits[np.arange(count), labels] += 2
        values = np.exp(logits - logits.max(axis=1, keepdims=True))
        values = (values / values.sum(axis=1, keepdims=True)).astype(np.float32)
        lists.append(TopLists(ids, *top_classes(values, k)))
        dense.append(to_dense(to_table(ids, values, k), classes)[1])
    return lists, np.stack(dense), labels


@pytest.fixture(scope="module")
def drawn():
    return make_members(1, 4, 120, 9, 3)


def random_weights(seed, count, members):
    return np.random.default_rng(seed).dirichlet(np.ones(members), size=count)


def test_candidates_hold_every_listed_class_and_the_dense_values(drawn):
    members, dense, _ = drawn
    found = find_candidates(members, 9)
    for row in range(120):
        listed = sorted({c for member in members for c in member.class_ids[row].tolist()})
        real = found.class_ids[row][found.class_ids[row] < 9]
        assert real.tolist() == listed
        np.testing.assert_allclose(found.probabilities[:, row, : len(real)], dense[:, row, real], atol=1e-7)
        assert (found.probabilities[:, row, len(real) :] == -1).all()


@pytest.mark.parametrize("k", [2, 9])
def test_combination_equals_the_dense_weighted_mean(k, monkeypatch):
    monkeypatch.setattr(ensemble, "_COMBINED_ROWS", 13)  # several uneven blocks
    members, dense, _ = make_members(2, 3, 60, 9, k)
    weights = np.array([0.2, 0.5, 0.3])
    ids, class_ids, probabilities = combine(members, weights, 9)
    mean = np.tensordot(weights, dense.astype(np.float64), 1)
    assert ids == members[0].image_ids
    assert class_ids.shape == (60, k)
    np.testing.assert_array_equal(class_ids[:, 0], mean.argmax(axis=1))
    np.testing.assert_allclose(probabilities, np.take_along_axis(mean, class_ids, 1), atol=1e-6)
    np.testing.assert_allclose(probabilities, -np.sort(-mean, axis=1)[:, :k], atol=1e-6)


def test_members_may_list_different_numbers_of_classes_and_ties_go_to_the_smaller_id():
    first = TopLists(["a"], np.array([[3, 1]], np.int32), np.array([[0.6, 0.4]], np.float32))
    second = TopLists(["a"], np.array([[1]], np.int32), np.array([[0.5]], np.float32))
    _, class_ids, probabilities = combine([first, second], np.array([0.5, 0.5]), 6)
    np.testing.assert_allclose(probabilities, [[0.45, 0.35]], atol=1e-6)  # class 3: (.6 + .5 / 5) / 2
    assert class_ids.tolist() == [[1, 3]]
    mirrored = [TopLists(["a"], np.array([[c, 5 - c]], np.int32), np.array([[0.7, 0.3]], np.float32)) for c in (4, 1)]
    assert combine(mirrored, np.array([0.5, 0.5]), 6)[1].tolist() == [[1, 4]]


def test_weights_off_the_simplex_and_unlike_photos_are_refused(drawn):
    members = drawn[0]
    for bad in ([0.5, 0.5], [1.2, -0.2, 0, 0], [0.5, 0.5, 0.5, 0]):
        with pytest.raises(ValueError, match="4 weights of at least 0 with sum 1"):
            combine(members, np.array(bad), 9)
    other = TopLists(["x"], members[0].class_ids[:1], members[0].probabilities[:1])
    with pytest.raises(ValueError, match="same photos"):
        find_candidates([members[0], other], 9)
    with pytest.raises(ValueError, match="at least one member"):
        find_candidates([], 9)
    with pytest.raises(ValueError, match="labeled validation photo"):
        Objective(members, np.array([], dtype=int), 9)


def test_objective_equals_naive_accuracy_and_likelihood(drawn, monkeypatch):
    members, dense, labels = drawn
    weights = random_weights(5, 20, 4)
    weights[0] = [0, 0, 1, 0]
    whole = Objective(members, labels, 9)(weights)
    monkeypatch.setattr(ensemble, "_BLOCK_VALUES", 500)
    objective = Objective(members, labels, 9)
    np.testing.assert_array_equal(objective(weights), whole)
    for row, score in zip(weights, whole, strict=True):
        mean = np.tensordot(row, dense.astype(np.float64), 1)
        hits = int((mean.argmax(axis=1) == labels).sum())
        likelihood = np.exp(np.log(mean[np.arange(120), labels]).mean())
        assert score == pytest.approx((hits + likelihood) / 120, abs=1e-6)


def test_likelihood_never_outvotes_a_photo():
    # With all weight on the first member two photos are right but barely; the second is sure, and right once.
    first = np.array([[0.51, 0.49], [0.51, 0.49]], np.float32)
    second = np.array([[0.9999, 0.0001], [0.45, 0.55]], np.float32)
    members = [TopLists(["a", "b"], *top_classes(values, 2)) for values in (first, second)]
    scores = Objective(members, np.array([0, 0]), 2)(np.eye(2))
    assert scores[0] > scores[1]


def test_uniform_and_normalised_weights_are_on_the_simplex():
    np.testing.assert_allclose(uniform_weights(3), [1 / 3] * 3)
    weights = normalise(np.array([[1.0, -3.0], [0.0, 0.0], [0.0, -2.0]]))
    np.testing.assert_allclose(weights, [[0.25, 0.75], [0.5, 0.5], [0, 1]])


def naive_greedy(dense, labels, steps):
    chosen, best, best_score = [], None, -1.0
    for _ in range(steps):
        scores = []
        for member in range(len(dense)):
            mean = dense[[*chosen, member]].mean(axis=0)
            true = mean[np.arange(len(labels)), labels]
            scores.append((mean.argmax(axis=1) == labels).sum() + np.exp(np.log(true).mean()))
        chosen.append(int(np.argmax(scores)))
        if max(scores) > best_score:
            best, best_score = np.bincount(chosen, minlength=len(dense)) / len(chosen), max(scores)
    return best


def test_greedy_selection_equals_the_naive_one(drawn):
    members, dense, labels = drawn
    found = greedy_weights(Objective(members, labels, 9), steps=12)
    np.testing.assert_allclose(found, naive_greedy(dense.astype(np.float64), labels, 12))
    assert found.sum() == pytest.approx(1)


def test_greedy_takes_the_first_of_equal_members(drawn):
    members, _, labels = drawn
    assert greedy_weights(Objective([members[0]] * 3, labels, 9)).tolist() == [1, 0, 0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_evolution_is_never_worse_than_uniform_and_stays_on_the_simplex(seed):
    members, _, labels = make_members(10 + seed, 5, 150, 8, 4)
    objective = Objective(members, labels, 8)
    weights, generations = evolve_weights(objective, seed)
    assert objective(weights[None])[0] >= objective(uniform_weights(5)[None])[0]
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)
    assert len(generations) == 50 * 5 // 25
    assert all(0 <= generation.mean <= generation.best <= 1 for generation in generations)
    assert [generation.generation for generation in generations] == list(range(10))


def test_evolution_depends_on_its_seed_alone(drawn):
    members, _, labels = drawn
    objective = Objective(members, labels, 9)
    np.random.seed(3)  # noqa: NPY002 — the search must neither read nor advance numpy's global state
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = evolve_weights(objective, 7)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    np.random.seed(4)  # noqa: NPY002
    again, other = evolve_weights(objective, 7), evolve_weights(objective, 8)
    assert first[0].tolist() == again[0].tolist()
    assert first[1] == again[1]
    assert first[0].tolist() != other[0].tolist()


def test_one_member_needs_no_search(drawn):
    members, _, labels = drawn
    weights, generations = evolve_weights(Objective(members[:1], labels, 9), 0)
    assert (weights.tolist(), generations) == ([1.0], [])


def test_evolution_drops_a_member_that_only_harms():
    members, _, labels = make_members(20, 2, 300, 6, 6, noise=1.0)
    liar = TopLists(members[0].image_ids, *top_classes(np.eye(6, dtype=np.float32)[(labels + 1) % 6], 6))
    objective = Objective([*members, liar], labels, 6)
    weights, _ = evolve_weights(objective, 1)
    assert weights[2] < 0.2
    assert objective.hits(weights[None])[0] > objective.hits(uniform_weights(3)[None])[0] + 50


def make_workspace(folder, members=3, classes=5, val=40, test=30):
    """Predictions, manifest and classes as the workflow lays them out."""
    lists, _, labels = make_members(30, members, val + test, classes, 3)
    ids = lists[0].image_ids
    rows = [
        {"image_id": image_id, "path": f"{image_id}.jpg", "split": "val" if i < val else "test", "sha256": image_id}
        for i, image_id in enumerate(ids)
    ]
    taxa = dict.fromkeys(("kingdom", "phylum", "class", "order", "family", "genus"), pl.lit(None, pl.String))
    empty = dict.fromkeys(("latitude", "longitude", "location_uncertainty"), pl.lit(None, pl.Float64))
    boxes = dict.fromkeys(("box_x", "box_y", "box_w", "box_h"), pl.lit(None, pl.Float32))
    manifest = pl.DataFrame(rows).with_columns(
        class_id=pl.Series([int(c) if i < val else None for i, c in enumerate(labels)], dtype=pl.Int32),
        date=pl.lit(None, pl.String),
        width=pl.lit(9, pl.Int32),
        height=pl.lit(9, pl.Int32),
        phash=pl.lit(0, pl.UInt64),
        **taxa,
        **empty,
        **boxes,
    )
    write_table(manifest, "manifest", folder / "manifest.parquet")
    known = pl.DataFrame({"class_id": range(classes), "name": [f"c{i}" for i in range(classes)]}).with_columns(
        pl.col("class_id").cast(pl.Int32), labeled_count=pl.lit(4, pl.Int32), title=pl.lit(None, pl.String), **taxa
    )
    write_table(known, "classes", folder / "classes.parquet")
    paths = []
    for member, tops in enumerate(lists):
        for shard in range(2):
            path = folder / f"results/round{member}/lite0/layerwise/predictions/{shard}.parquet"
            frame = pl.DataFrame({"image_id": ids}).with_columns(
                class_ids=pl.Series(tops.class_ids, dtype=pl.Array(pl.Int32, 3)),
                probabilities=pl.Series(tops.probabilities, dtype=pl.Array(pl.Float32, 3)),
            )
            write_table(frame[shard::2], "predictions", path)
            paths.append(str(path))
    return paths, lists, labels


def run_fit(folder, paths, method, out="out"):
    script = load_script("fit_ensemble")
    targets = {name: str(folder / out / f"{name}.parquet") for name in ("weights", "history", "predictions", "scores")}
    script.fit_ensemble(
        predictions=paths,
        manifest=str(folder / "manifest.parquet"),
        classes=str(folder / "classes.parquet"),
        method=method,
        search=script.Search(seed=1, sigma=0.2, population=25, evaluations_per_member=50),
        **{f"{name}_target": target for name, target in targets.items()},
    )
    return targets


@pytest.mark.parametrize("method", ["uniform", "greedy", "evolutionary"])
def test_the_stage_writes_what_its_method_predicts(tmp_path, method):
    paths, lists, labels = make_workspace(tmp_path)
    targets = run_fit(tmp_path, paths, method)
    weights = read_table("ensemble_weights", targets["weights"])
    assert weights["member"].unique().sort().to_list() == [f"round{i}/lite0/layerwise" for i in range(3)]
    for _, group in weights.group_by("method"):
        assert group["weight"].sum() == pytest.approx(1, abs=1e-6)
        assert group["weight"].min() >= 0
    chosen = weights.filter(pl.col("method") == method)["weight"].to_numpy()
    found = read_table("predictions", targets["predictions"])
    _, class_ids, probabilities = combine(lists, chosen, 5)
    np.testing.assert_array_equal(found["class_ids"].to_numpy(), class_ids)
    np.testing.assert_array_equal(found["probabilities"].to_numpy(), probabilities)
    assert read_table("ensemble_history", targets["history"]).height == 6

    scores = read_table("scores", targets["scores"])
    assert set(scores.select("member", "split").iter_rows()) == {
        (name, split) for name in ("uniform", "greedy", "evolutionary") for split in ("val_fit", "val_report")
    }
    assert scores["count"].to_list() == [20] * 6
    row = scores.row(0, named=True)
    assert (row["low"], row["high"]) == wilson_interval(round(row["value"] * 20), 20)
    uniform = scores.filter(pl.col("member") == "uniform")
    right = combine(lists, uniform_weights(3), 5)[1][:40, 0] == labels[:40]
    assert (uniform["value"] * uniform["count"]).sum() == pytest.approx(right.sum())


def test_the_stage_repeats_byte_for_byte_and_does_not_read_test_classes(tmp_path):
    paths, _, _ = make_workspace(tmp_path)
    first = run_fit(tmp_path, paths, "evolutionary", "a")
    manifest = read_table("manifest", tmp_path / "manifest.parquet").with_columns(
        class_id=pl.when(pl.col("split") == "test").then(1).otherwise("class_id").cast(pl.Int32)
    )
    write_table(manifest, "manifest", tmp_path / "manifest.parquet")
    second = run_fit(tmp_path, paths[::-1], "evolutionary", "b")
    for name, target in first.items():
        assert Path(target).read_bytes() == Path(second[name]).read_bytes(), name


def test_the_stage_refuses_an_unknown_method_and_a_member_without_a_photo(tmp_path):
    paths, _, _ = make_workspace(tmp_path)
    with pytest.raises(ValueError, match=r"ensemble\.method.*'best'"):
        run_fit(tmp_path, paths, "best")
    with pytest.raises(ArtifactError, match=r"round0/lite0/layerwise: 35 of 70 expected photos"):
        run_fit(tmp_path, paths[1:], "uniform")


def test_auto_takes_the_simplest_within_one_standard_error_of_the_best():
    def table(uniform, greedy, evolutionary, count=100):
        values = {"uniform": uniform, "greedy": greedy, "evolutionary": evolutionary}
        rows = [
            {"member": name, "split": "val_report", "value": value, "count": count} for name, value in values.items()
        ]
        return pl.DataFrame([*rows, *({**row, "split": "val_fit", "value": 1 - row["value"]} for row in rows)])

    # One standard error of .7 is .046 with 100 photos, and .0046 with 10,000.
    assert chosen_method("auto", table(0.5, 0.6, 0.7)) == "evolutionary"
    assert chosen_method("auto", table(0.66, 0.6, 0.7)) == "uniform"
    assert chosen_method("auto", table(0.65, 0.66, 0.7)) == "greedy"
    assert chosen_method("auto", table(0.69, 0.69, 0.7, count=10_000)) == "evolutionary"
    assert chosen_method("auto", table(0.5, 0.6, 0.6)) == "greedy"
    # One photo of sixty is no reason, however few are named wrongly.
    assert chosen_method("auto", table(58 / 60, 59 / 60, 59 / 60, count=60)) == "uniform"
    assert chosen_method("auto", table(59 / 60, 59 / 60, 1.0, count=60)) == "uniform"
    assert chosen_method("greedy", table(0.7, 0.6, 0.7)) == "greedy"
