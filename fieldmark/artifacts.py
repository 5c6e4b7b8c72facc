"""The contract between stages: every table's schema, and atomic reading and writing of tables and weights.

A table is declared once, in :data:`SCHEMAS`, and checked each time it is read or written. Files appear under
their final name only when they are complete, so a stage that is killed never leaves a half-written artifact.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = "1"
SPLITS = ("labeled", "unlabeled", "val", "test")
TAXA = ("kingdom", "phylum", "class", "order", "family", "genus")


class ArtifactError(ValueError):
    """An artifact is missing, damaged or not of the declared schema."""


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_PLACE_FIELDS = [
    *(pa.field(name, pa.float64()) for name in ("latitude", "longitude", "location_uncertainty")),
    pa.field("date", pa.string()),
]
_TAXON_FIELDS = [pa.field(taxon, pa.string()) for taxon in TAXA]
# Width 0 stands for "any width": how wide an embedding or a top-k list is depends on the backbone and the data.
_EMBEDDING = pa.list_(pa.float16(), 0)
_CLASS_IDS = pa.list_(pa.int32(), 0)
_PROBABILITIES = pa.list_(pa.float32(), 0)

SCHEMAS: Mapping[str, pa.Schema] = {
    # One row per usable photo. Coordinates in degrees, boxes in pixels of the upright photo, date as ISO 8601.
    "manifest": pa.schema(
        [
            _required("image_id", pa.string()),
            _required("path", pa.string()),
            _required("split", pa.string()),
            pa.field("class_id", pa.int32()),
            *_TAXON_FIELDS,
            *_PLACE_FIELDS,
            pa.field("box_x", pa.float32()),
            pa.field("box_y", pa.float32()),
            pa.field("box_w", pa.float32()),
            pa.field("box_h", pa.float32()),
            _required("width", pa.int32()),
            _required("height", pa.int32()),
            _required("sha256", pa.string()),
            _required("phash", pa.uint64()),
        ]
    ),
    "classes": pa.schema(
        [
            _required("class_id", pa.int32()),
            _required("name", pa.string()),  # the source's own, as submissions need it; often a number
            pa.field("title", pa.string()),  # for people, where the source tells one
            *_TAXON_FIELDS,
            _required("labeled_count", pa.int32()),
        ]
    ),
    # One row per photo that is not used. Split and candidate_id, the image_id that it would have had, are null for
    # files that were refused before their split was known; so it is no image_id, which every row of a table has.
    "rejected": pa.schema(
        [
            _required("path", pa.string()),
            _required("reason", pa.string()),
            pa.field("split", pa.string()),
            pa.field("candidate_id", pa.string()),
        ]
    ),
    # What an embedding or a prediction depends on, and nothing else: relabeling a photo leaves its shard untouched.
    "shard": pa.schema(
        [
            _required("image_id", pa.string()),
            _required("path", pa.string()),
            _required("split", pa.string()),
            *_PLACE_FIELDS,
            _required("sha256", pa.string()),
        ]
    ),
    # The key region of a photo, as shares of its width and height; the full photo, with score 0, where none was found.
    "boxes": pa.schema(
        [
            _required("image_id", pa.string()),
            *(_required(name, pa.float32()) for name in ("x", "y", "width", "height", "score")),
        ]
    ),
    "features": pa.schema([_required("image_id", pa.string()), _required("embedding", _EMBEDDING)]),
    "clusters": pa.schema(
        [
            _required("image_id", pa.string()),
            _required("cluster", pa.int32()),
            _required("distance", pa.float32()),
            _required("runner_up_distance", pa.float32()),
        ]
    ),
    "kept_clusters": pa.schema(
        [
            _required("cluster", pa.int32()),
            _required("size", pa.int32()),
            _required("spread", pa.float32()),
            _required("neighbour_agreement", pa.float32()),
            pa.field("coarse_purity", pa.float32()),
            _required("labeled_share", pa.float32()),
            _required("nearest_class", pa.int32()),
            _required("nearest_class_similarity", pa.float32()),
            _required("kept", pa.bool_()),
            _required("foreign", pa.bool_()),
            _required("reason", pa.string()),
        ]
    ),
    "guide_scores": pa.schema(
        [
            _required("image_id", pa.string()),
            _required("embedding", _EMBEDDING),
            _required("class_ids", _CLASS_IDS),
            _required("probabilities", _PROBABILITIES),
            _required("foreign_probability", pa.float32()),
        ]
    ),
    "pseudo_labels": pa.schema(
        [
            _required("image_id", pa.string()),
            _required("class_id", pa.int32()),
            _required("confidence", pa.float32()),
            _required("neighbour_agreement", pa.float32()),
            _required("in_class_score", pa.float32()),
            _required("selected", pa.bool_()),
            # Of the photo's loss in fine-tuning; 0 where it is not selected.
            _required("weight", pa.float32()),
        ]
    ),
    "subclusters": pa.schema(
        [
            _required("image_id", pa.string()),
            _required("class_id", pa.int32()),
            _required("subcluster", pa.int32()),
        ]
    ),
    "history": pa.schema(
        [
            _required("phase", pa.string()),
            _required("step", pa.int32()),
            _required("epoch", pa.float32()),
            _required("loss", pa.float32()),
            _required("learning_rate", pa.float32()),
            _required("gradient_norm", pa.float32()),
            pa.field("val_top1", pa.float32()),
        ]
    ),
    "detection_history": pa.schema(
        [
            _required("step", pa.int32()),
            *(_required(name, pa.float32()) for name in ("epoch", "loss", "learning_rate", "gradient_norm")),
            *(pa.field(name, pa.float32()) for name in ("val_mean_iou", "val_ap50", "val_ap")),
        ]
    ),
    # Best class first; probabilities over the labeled classes, their tail cut at k.
    "predictions": pa.schema(
        [
            _required("image_id", pa.string()),
            _required("class_ids", _CLASS_IDS),
            _required("probabilities", _PROBABILITIES),
        ]
    ),
    "ensemble_weights": pa.schema(
        [_required("method", pa.string()), _required("member", pa.string()), _required("weight", pa.float32())]
    ),
    "ensemble_history": pa.schema(
        [_required("generation", pa.int32()), _required("best", pa.float32()), _required("mean", pa.float32())]
    ),
    # One measured figure a row: see fieldmark/evaluation.py for the metrics' names.
    "scores": pa.schema(
        [
            _required("stage", pa.string()),
            pa.field("round", pa.int32()),
            pa.field("member", pa.string()),
            _required("split", pa.string()),
            _required("metric", pa.string()),
            _required("value", pa.float64()),
            pa.field("low", pa.float64()),
            pa.field("high", pa.float64()),
            _required("count", pa.int64()),
        ]
    ),
    "confusion": pa.schema(
        [
            _required("class_id", pa.int32()),
            _required("predicted", pa.int32()),
            _required("count", pa.int64()),
        ]
    ),
}


def write_atomically(target: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` with a temporary path beside ``target``, then rename it to ``target``.

    A process that is killed outright leaves its temporary file; the next try of the job deletes it
    (:func:`fieldmark.stage.remove_leftovers`).

    Raises:
        OSError: if the folder cannot be written or the disk is full; nothing is left behind.
    """
    target = Path(target)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        # mkstemp makes private files; artifacts get the permissions that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except Exception as error:
        if not _disk_is_full(error, target.parent):
            raise
        message = "the disk is full; free some space and run the workflow again. Not written"
        raise OSError(errno.ENOSPC, message, str(target)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _disk_is_full(error: Exception, folder: Path) -> bool:
    """Whether a write failed for want of space: few libraries pass the system's error number on, torch not even why."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return os.strerror(errno.ENOSPC) in str(error) or (folder.is_dir() and shutil.disk_usage(folder).free == 0)


def _matches(found: pa.DataType, declared: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(declared) and declared.list_size == 0:
        return pa.types.is_fixed_size_list(found) and found.value_type == declared.value_type
    return bool(found == declared)


def _check(table: pa.Table, kind: str, where: str) -> None:
    declared = SCHEMAS[kind]
    if table.schema.names != declared.names:
        raise ArtifactError(
            f"{where}: expected the columns of a {kind!r} table, {', '.join(declared.names)}; "
            f"found {', '.join(table.schema.names)}"
        )
    for field in declared:
        found = table.schema.field(field.name).type
        if not _matches(found, field.type):
            raise ArtifactError(f"{where}: column {field.name!r} must be {field.type}, found {found}")
        nulls = table.column(field.name).null_count
        if nulls and not field.nullable:
            raise ArtifactError(f"{where}: column {field.name!r} may not be null, but {nulls} rows are")
    if "image_id" in declared.names and table.num_rows > 1:
        ids = table.column("image_id").to_numpy()
        if not (ids[:-1] < ids[1:]).all():
            raise ArtifactError(f"{where}: rows must be unique and ordered by image_id")


def write_table(frame: pl.DataFrame | pa.Table, kind: str, target: str | Path) -> None:
    """Write ``frame`` as a Parquet table of the declared ``kind``, atomically.

    Columns are cast to the declared types; rows of a table with an ``image_id`` are sorted by it.

    Args:
        frame: the rows; list columns of fixed width as polars ``Array`` or Arrow fixed-size lists.
        kind: a key of :data:`SCHEMAS`.
        target: where the file appears when it is complete.

    Raises:
        ArtifactError: if a column is missing, unknown, of another type or null where it may not be.
    """
    declared = SCHEMAS[kind]
    table = frame.to_arrow() if isinstance(frame, pl.DataFrame) else frame
    missing = [name for name in declared.names if name not in table.schema.names]
    unknown = [name for name in table.schema.names if name not in declared.names]
    if missing or unknown:
        raise ArtifactError(f"{target}: a {kind!r} table lacks columns {missing} and has undeclared columns {unknown}")
    columns = []
    for field in declared:
        column = table.column(field.name)
        kind_of = field.type
        if pa.types.is_fixed_size_list(kind_of) and pa.types.is_fixed_size_list(column.type):
            kind_of = pa.list_(kind_of.value_type, column.type.list_size)
        try:
            columns.append(column.cast(kind_of))
        except pa.ArrowException as error:
            raise ArtifactError(
                f"{target}: column {field.name!r} must be {kind_of}, found {column.type} ({error})"
            ) from error
    fields = [field.with_type(column.type) for field, column in zip(declared, columns, strict=True)]
    metadata = {"fieldmark": kind, "fieldmark_schema": SCHEMA_VERSION}
    table = pa.Table.from_arrays(columns, schema=pa.schema(fields, metadata=metadata))
    if "image_id" in declared.names:
        table = table.sort_by("image_id")
    _check(table, kind, str(target))
    write_atomically(Path(target), lambda path: pq.write_table(table, path, compression="zstd"))


def read_table(kind: str, source: str | Path | Iterable[str | Path]) -> pl.DataFrame:
    """Read one Parquet table of the declared ``kind``, or the shards of one, in the order given.

    Raises:
        ArtifactError: if a file is missing, damaged, of another kind or of another schema version.
    """
    paths = [source] if isinstance(source, str | Path) else list(source)
    if not paths:
        raise ArtifactError(f"no {kind!r} table to read: the list of files is empty")
    tables = [_read_one(kind, Path(path)) for path in paths]
    frame = pl.concat([pl.DataFrame(table) for table in tables])
    return frame.sort("image_id") if len(tables) > 1 and "image_id" in frame.columns else frame


def _read_one(kind: str, path: Path) -> pa.Table:
    remedy = "delete it and run the workflow again, and its stage will make it anew"
    if not path.exists():
        raise ArtifactError(f"{path}: expected a {kind!r} table, but there is no such file")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path}: damaged {kind!r} table ({error}); {remedy}") from error
    metadata = table.schema.metadata or {}
    found = metadata.get(b"fieldmark", b"").decode()
    version = metadata.get(b"fieldmark_schema", b"").decode()
    if found != kind or version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: expected a {kind!r} table of schema version {SCHEMA_VERSION}, "
            f"found {found or 'a foreign file'!r} of version {version or 'unknown'}; {remedy}"
        )
    _check(table, kind, str(path))
    return table
