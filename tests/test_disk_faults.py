"""A disk that is full, damaged files, results that cannot be written: each is named, and what to do about it.

The disks are small ones in memory, which only root can mount; elsewhere those tests are skipped.
"""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fieldmark.artifacts import write_atomically, write_table
from fieldmark.stage import remove_leftovers
from tests.interruption import differences, files_of
from tests.project import TINY, Project, fresh_project


def mount(*arguments: str) -> None:
    """Mount something, or skip the test where that is not allowed."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a quarter of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder))
    yield folder
    # Lazily: torch keeps a file open that it could not write.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Write a file until nothing more goes onto the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return ballast


def write_rows(target: Path) -> None:
    ids = [f"{number:06d}" for number in range(20_000)]
    digits = np.random.default_rng(0).bytes(20 * len(ids)).hex()
    hashes = [digits[40 * number : 40 * number + 40] for number in range(len(ids))]
    rows = pl.DataFrame({"path": ids, "reason": hashes, "split": "test", "candidate_id": ids})
    write_table(rows, "rejected", target)


def write_text(target: Path) -> None:
    write_atomically(target, lambda path: path.write_text("x" * 1_000_000))


def write_csv(target: Path) -> None:
    write_atomically(target, pl.DataFrame({"x": range(100_000)}).write_csv)


def write_model(target: Path) -> None:
    import torch

    from fieldmark.models import Architecture, Classifier, save_classifier

    torch.manual_seed(0)
    save_classifier(Classifier(Architecture("test_efficientnet", 1024, 1000, 0, True, 32)), target)


def write_checkpoint(target: Path) -> None:
    import lightning_fabric
    import torch

    from fieldmark.checkpoint import Checkpoint

    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    Checkpoint(target, "identity", 0.0).save(fabric, lambda: {"model": torch.ones(1_000_000)})


@pytest.mark.parametrize("write", [write_rows, write_text, write_csv, write_model, write_checkpoint])
def test_a_full_disk_is_called_so_and_nothing_half_written_stays(disk: Path, write: Callable[[Path], None]) -> None:
    target = disk / "new" / "artifact.parquet"
    with pytest.raises(OSError, match="the disk is full; free some space and run the workflow again") as caught:
        write(target)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(target)
    assert [path for path in disk.rglob("*") if path.is_file()] == []


def test_other_errors_are_not_taken_for_a_full_disk(disk: Path) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "the cable is loose")

    with pytest.raises(OSError, match="the cable is loose"):
        write_atomically(disk / "a.parquet", fail)


def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    names = [".0.parquet.abcd1234.parquet", ".0.parquet.abcd.parquet", ".1.parquet.abcd1234.parquet", "0.parquet"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "0.parquet")
    remove_leftovers(tmp_path / "absent" / "0.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_the_workflow_on_a_full_and_on_a_read_only_disk(finished: Project, tmp_path: Path) -> None:
    project = fresh_project(tmp_path / "project")
    results = project.folder / "results"
    results.mkdir()
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(results))
    try:
        shutil.copytree(finished.folder / "results/demo", results / "demo")
        ballast = fill(results)
        arguments = ("results/data/manifest.parquet", "--cores", "1", "--configfile", TINY, "--allowed-rules")
        arguments += ("ingest_photos",)
        full = project.snakemake(*arguments)
        assert full.returncode != 0 and "the disk is full" in full.stdout
        assert "'results/data/manifest.parquet'" in full.stdout
        assert not [path for path in (results / "data").rglob("*") if path.is_file()]
        ballast.unlink()
        mount("-o", "remount,ro", str(results))
        read_only = project.snakemake(*arguments)
        assert read_only.returncode != 0 and "results/ cannot be written" in read_only.stdout
        assert "Traceback" not in read_only.stdout
        mount("-o", "remount,rw", str(results))
        project.succeed(*arguments)
        for name in ("manifest", "classes", "rejected"):
            path = f"data/{name}.parquet"
            assert (results / path).read_bytes() == (finished.folder / "results" / path).read_bytes()
    finally:
        subprocess.run(["umount", "--lazy", str(results)], check=True)


def test_a_damaged_artifact_is_named_and_made_anew_once_deleted(finished: Project, tmp_path: Path) -> None:
    project = finished.copy(tmp_path / "project")
    damaged = project.folder / "results/ensemble/predictions.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    said = project.snakemake("results/submission.csv", "--cores", "1", "--configfile", TINY)
    assert said.returncode != 0
    assert "results/ensemble/predictions.parquet: damaged 'predictions' table" in said.stdout
    assert "delete it and run the workflow again" in said.stdout
    damaged.unlink()
    project.make("results/submission.csv")
    assert not differences(files_of(project), files_of(finished))
