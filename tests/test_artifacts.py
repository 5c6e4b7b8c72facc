"""Tables on disk: every schema survives a round trip, and whatever departs from it is refused with its column."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fieldmark.artifacts import SCHEMA_VERSION, SCHEMAS, ArtifactError, read_table, write_atomically, write_table

KINDS = sorted(SCHEMAS)


def column(kind: pa.DataType, count: int, nulls: bool) -> pa.Array:
    """Some values of a declared type; the last one null where that is asked for."""
    if pa.types.is_fixed_size_list(kind):
        values = column(kind.value_type, count * 3, False)
        return pa.FixedSizeListArray.from_arrays(values, 3)
    if pa.types.is_string(kind):
        values = [f"s{number:03d}" for number in range(count)]
    elif pa.types.is_boolean(kind):
        values = [number % 2 == 0 for number in range(count)]
    elif pa.types.is_floating(kind):
        values = (np.arange(count) / 4).astype(kind.to_pandas_dtype()).tolist()
    else:
        values = list(range(count))
    if nulls and count:
        values[-1] = None
    return pa.array(values, kind)


def example(kind: str, count: int = 4) -> pa.Table:
    """Rows of a declared table, with a null in each column that may have one."""
    return pa.table({field.name: column(field.type, count, field.nullable) for field in SCHEMAS[kind]})


def stored(table: pa.Table, path: Path, kind: str, version: str = SCHEMA_VERSION) -> Path:
    """Write a table as it is, past all checks."""
    metadata = {"fieldmark": kind, "fieldmark_schema": version}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_table_survives_a_round_trip(tmp_path: Path, kind: str, count: int) -> None:
    rows = example(kind, count)
    path = tmp_path / "new" / "folder" / "t.parquet"
    write_table(rows, kind, path)
    found = read_table(kind, path)
    assert found.equals(pl.DataFrame(rows))
    # Through polars and back it is the same file, byte for byte.
    write_table(found, kind, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_files_have_the_declared_types_and_name_kind_and_version(tmp_path: Path, kind: str) -> None:
    write_table(example(kind), kind, tmp_path / "t.parquet")
    schema = pq.read_schema(tmp_path / "t.parquet")
    assert schema.names == SCHEMAS[kind].names
    for field in SCHEMAS[kind]:
        found = schema.field(field.name)
        if pa.types.is_fixed_size_list(field.type):
            assert found.type == pa.list_(field.type.value_type, 3)
        else:
            assert found.type == field.type
    assert schema.metadata[b"fieldmark"].decode() == kind
    assert schema.metadata[b"fieldmark_schema"].decode() == SCHEMA_VERSION


def test_rows_are_sorted_by_image_id_and_columns_put_in_order(tmp_path: Path) -> None:
    frame = pl.DataFrame({"split": ["a", "b", "c"], "sha256": ["1", "2", "3"], "path": ["p", "q", "r"]})
    places = dict.fromkeys(("latitude", "longitude", "location_uncertainty", "date"), None)
    frame = frame.with_columns(image_id=pl.Series(["z", "B", "é"]), **places)
    write_table(frame, "shard", tmp_path / "t.parquet")
    found = read_table("shard", tmp_path / "t.parquet")
    assert found.columns == SCHEMAS["shard"].names
    assert found["image_id"].to_list() == ["B", "z", "é"] and found["path"].to_list() == ["q", "p", "r"]


def test_numbers_are_cast_to_the_declared_types(tmp_path: Path) -> None:
    frame = pl.DataFrame({"image_id": ["a"], "class_id": [3], "subcluster": [4]})
    write_table(frame, "subclusters", tmp_path / "t.parquet")
    assert read_table("subclusters", tmp_path / "t.parquet").schema["class_id"] == pl.Int32
    embeddings = pl.Series("embedding", np.ones((1, 5), np.float32), dtype=pl.Array(pl.Float32, 5))
    write_table(pl.DataFrame([frame["image_id"], embeddings]), "features", tmp_path / "f.parquet")
    assert read_table("features", tmp_path / "f.parquet").schema["embedding"] == pl.Array(pl.Float16, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("path"), r"'shard' table lacks columns \['path'\]"),
        (lambda t: t.append_column("extra", t["path"]), r"has undeclared columns \['extra'\]"),
        (lambda t: t.set_column(1, "path", pa.array([None, "b", "c", "d"])), "'path' may not be null, but 1 rows are"),
        (lambda t: pa.concat_tables([t, t]), "unique and ordered by image_id"),
        (lambda t: t.set_column(1, "path", pa.array([["x"]] * 4)), "column 'path' must be string, found list"),
    ],
)
def test_writing_refuses_what_departs_from_the_schema(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str, leftovers: Callable[[], list[str]]
) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        write_table(change(example("shard")), "shard", tmp_path / "t.parquet")
    assert str(tmp_path / "t.parquet") in str(caught.value)
    assert leftovers() == []


@pytest.mark.parametrize("values", [["x"], [2**40], [1.5], [[1]]], ids=["words", "too large", "not whole", "list"])
def test_writing_refuses_values_that_do_not_fit_their_type(tmp_path: Path, values: list[object]) -> None:
    frame = pl.DataFrame({"image_id": ["a"], "class_id": values, "subcluster": [4]})
    with pytest.raises(ArtifactError, match=r"t\.parquet: column 'class_id' must be int32, found "):
        write_table(frame, "subclusters", tmp_path / "t.parquet")


def test_lists_of_varying_width_are_no_embeddings(tmp_path: Path) -> None:
    frame = pl.DataFrame({"image_id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]})
    with pytest.raises(ArtifactError, match="column 'embedding' must be fixed_size_list"):
        write_table(frame, "features", tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("path"), "expected the columns of a 'shard' table"),
        (lambda t: t.append_column("extra", t["path"]), "found .*extra"),
        (lambda t: t.select(["path", *(name for name in t.schema.names if name != "path")]), "expected the columns"),
        (lambda t: t.set_column(2, "split", pa.array([1, 2, 3, 4])), "'split' must be string, found int64"),
        (lambda t: t.set_column(2, "split", pa.array([None] * 4, pa.string())), "'split' may not be null, but 4"),
        (lambda t: t.take([1, 0, 2, 3]), "unique and ordered by image_id"),
        (lambda t: t.take([0, 0, 1]), "unique and ordered by image_id"),
    ],
)
def test_reading_checks_the_schema_again(tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    path = stored(change(example("shard")), tmp_path / "t.parquet", "shard")
    with pytest.raises(ArtifactError, match=message):
        read_table("shard", path)


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "folder"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "t.parquet"
    write_table(example("shard"), "shard", path)
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "truncated": content[:-20], "garbage": b"PAR1" + b"\xff" * 200}[damage])
    with pytest.raises(ArtifactError, match=r"t\.parquet: .*delete it and run the workflow again"):
        read_table("shard", path)


def test_a_table_of_another_kind_version_or_maker_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_table(example("shard"), "shard", path)
    with pytest.raises(ArtifactError, match="expected a 'features' table of schema version 1, found 'shard'"):
        read_table("features", path)
    stored(example("shard"), path, "shard", version="0")
    with pytest.raises(ArtifactError, match="found 'shard' of version 0; delete it"):
        read_table("shard", path)
    pq.write_table(example("shard"), path)
    with pytest.raises(ArtifactError, match="found 'a foreign file' of version unknown"):
        read_table("shard", path)


def test_rejected_photos_of_before_their_splits_were_kept_are_told_from_those_of_today(tmp_path: Path) -> None:
    path = stored(example("rejected").select(["path", "reason"]), tmp_path / "t.parquet", "rejected")
    message = r"t\.parquet: expected the columns .* path, reason, split, candidate_id; found path, reason$"
    with pytest.raises(ArtifactError, match=message):
        read_table("rejected", path)


def test_a_missing_table_or_an_empty_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.parquet: expected a 'shard' table, but there is no such file"):
        read_table("shard", tmp_path / "none.parquet")
    with pytest.raises(ArtifactError, match="no 'shard' table to read"):
        read_table("shard", [])


def test_shards_are_read_as_one_sorted_table(tmp_path: Path) -> None:
    whole = example("clusters", 6)
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    write_table(whole.take([1, 3, 5]), "clusters", paths[0])
    write_table(whole.take([0, 2, 4]), "clusters", paths[1])
    assert read_table("clusters", paths).equals(pl.DataFrame(whole))
    history = example("history", 6)  # without image_id the order is that of the files
    for path, rows in zip(paths, ([3, 4, 5], [0, 1, 2]), strict=True):
        write_table(history.take(rows), "history", path)
    assert read_table("history", paths)["step"].to_list() == [3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, leftovers: Callable[[], list[str]], error: BaseException
) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half of the n")
        raise error

    with pytest.raises(type(error)):
        write_atomically(target, fail)
    assert target.read_text() == "old" and leftovers() == ["a.txt"]


def test_a_file_appears_when_it_is_whole_with_the_usual_permissions(
    tmp_path: Path, leftovers: Callable[[], list[str]]
) -> None:
    target = tmp_path / "a.txt"

    def write(path: Path) -> None:
        path.write_text("new")
        assert not target.exists() and path.parent == target.parent and path.suffix == ".txt"

    write_atomically(target, write)
    (tmp_path / "b.txt").touch()
    assert target.read_text() == "new" and leftovers() == ["a.txt", "b.txt"]
    assert target.stat().st_mode == (tmp_path / "b.txt").stat().st_mode
