"""Results of one data set are not overwritten by another."""

import json
from pathlib import Path
from typing import Any

import pytest

from fieldmark.config import ConfigError, resolve
from fieldmark.source import MANIFEST, RECORD, check_files, check_source, record_source
from tests.minimal_config import minimal, put
from tests.project import TINY, fresh_project

ORCHIDS = {"data": {"format": "folder", "root": "/data/orchids", "dataset": None}}
DEMO = {"data": {"format": "demo", "root": "results/demo", "dataset": None}}
FLOWERS = {"data": {"format": "torchvision", "root": "data", "dataset": "Flowers102"}}


def test_results_of_other_photos_are_refused(tmp_path: Path) -> None:
    check_source(DEMO, tmp_path)
    record_source(ORCHIDS, tmp_path)
    check_source(DEMO, tmp_path)  # nothing was read in yet, so nothing is lost
    (tmp_path / MANIFEST).write_bytes(b"")
    check_source({"data": {**ORCHIDS["data"], "leaks": "drop"}}, tmp_path)
    for other in (DEMO, {"data": {**ORCHIDS["data"], "root": "/data/moths"}}):
        with pytest.raises(ConfigError, match=r"were made of /data/orchids \(data\.format: folder\), but .*--dir"):
            check_source(other, tmp_path)
    (tmp_path / RECORD).unlink()  # as the message says
    check_source(DEMO, tmp_path)


def test_data_sets_of_one_folder_are_told_apart(tmp_path: Path) -> None:
    record_source(FLOWERS, tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"made of Flowers102 .* is of CIFAR10"):
        check_source({"data": {**FLOWERS["data"], "dataset": "CIFAR10"}}, tmp_path)


@pytest.mark.parametrize("damaged", ["", "{", "{}", "[]", '{"format": "demo"}'])
def test_a_damaged_record_bars_nothing_and_is_written_anew(tmp_path: Path, damaged: str) -> None:
    record_source(ORCHIDS, tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"")
    (tmp_path / RECORD).write_text(damaged)
    check_source(DEMO, tmp_path)
    record_source(ORCHIDS, tmp_path)
    assert json.loads((tmp_path / RECORD).read_text()) == ORCHIDS["data"]
    assert sorted(path.name for path in (tmp_path / RECORD).parent.iterdir()) == ["manifest.parquet", "source.json"]


def test_files_that_are_not_there_are_named_with_their_keys(tmp_path: Path) -> None:
    def config(**changes: Any) -> dict[str, Any]:
        made = minimal() | {"data": {"format": "table", "root": str(tmp_path), "annotations": "photos.csv"}}
        for path, value in changes.items():
            put(made, path.replace("__", "."), value)
        return resolve(made)

    (tmp_path / "photos.csv").touch()
    check_files(config())
    check_files(resolve(minimal()))  # a folder names no files
    own = str(tmp_path / "own.pth")
    keys = {"data__truth": own, "models__m__weights": own, "data__annotations": "fotos.csv"}
    with pytest.raises(ConfigError) as caught:
        check_files(config(**keys, detection__method="activation", detection__weights=own, detection__detector=own))
    told = [f"data.annotations: no such file: {tmp_path}/fotos.csv"]
    told += [f"{key}: no such file: {own}" for key in ("data.truth", "models.m.weights", "detection.weights")]
    assert sorted(str(caught.value).split("\n  ")[1:]) == sorted(told)
    with pytest.raises(ConfigError, match=r"\n  detection\.detector: no such file: .*own\.pth$"):
        check_files(config(detection__method="detector", detection__weights="none", detection__detector=own))


def test_splits_of_coco_are_named(tmp_path: Path) -> None:
    data = {"format": "coco", "root": str(tmp_path), "annotations": {"labeled": "a.json", "val": "b.json"}}
    (tmp_path / "a.json").touch()
    with pytest.raises(ConfigError, match=rf":\n  data\.annotations\.val: no such file: {tmp_path}/b\.json$"):
        check_files(resolve(minimal() | {"data": data}))


def test_a_run_writes_down_its_photos_and_one_of_others_is_not_even_planned(tmp_path: Path) -> None:
    project = fresh_project(tmp_path)
    project.make("results/data/manifest.parquet")
    assert (project.folder / RECORD).is_file()
    (tmp_path / "other.yaml").write_text("data: {format: folder, root: elsewhere, truth: null}", encoding="utf-8")
    for arguments in (["--dry-run"], ["--cores", "1"], ["--delete-all-output", "--cores", "1"]):
        call = project.snakemake(*arguments, "--configfile", TINY, str(tmp_path / "other.yaml"))
        assert call.returncode != 0
        assert "results/ were made of results/demo (data.format: demo), but this configuration is of" in call.stdout
    project.succeed("--dry-run", "--configfile", TINY)
