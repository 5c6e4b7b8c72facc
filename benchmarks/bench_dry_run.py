"""How long Snakemake takes to tell what is to be done: ``python -m benchmarks.bench_dry_run``.

The manifest is the only file that lists photos, so their number hardly counts; the number of jobs does. Everything
happens in a copy of the project, and no photo is needed: the large manifest is made up.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from fieldmark.artifacts import SCHEMAS, write_table
from tests.project import Project, fresh_project

TRIES = 2
BOTH = ("results/submission.csv", "results/report.html")


def make_up_manifest(photos: int, target: Path) -> None:
    """Write a manifest and the tables that come with it, of photos that do not exist."""
    draws = np.random.default_rng(0)
    splits = draws.choice(["labeled", "unlabeled", "val", "test"], photos, p=[0.03, 0.84, 0.01, 0.12])
    known = np.isin(splits, ["labeled", "val"])
    digits = draws.bytes(32 * photos).hex()
    columns = {
        "image_id": [f"photos/{number:08d}" for number in range(photos)],
        "path": [f"data/photos/{number:08d}.jpg" for number in range(photos)],
        "split": splits,
        "class_id": pl.Series(np.where(known, draws.integers(0, 810, photos), -1)).replace(-1, None),
        "width": 500,
        "height": 375,
        "sha256": [digits[64 * number : 64 * number + 64] for number in range(photos)],
        "phash": draws.integers(0, 2**63, photos, dtype=np.uint64),
    }
    rest = {name: pl.lit(None, pl.String) for name in SCHEMAS["manifest"].names if name not in columns}
    places = [name for name in rest if name.startswith(("box_", "lat", "lon", "loc"))]
    frame = pl.DataFrame(columns).with_columns(**rest).with_columns(pl.col(places).cast(pl.Float64))
    write_table(frame, "manifest", target)


def seconds(project: Project, *arguments: str) -> tuple[float, int]:
    """Processor seconds of a dry-run, which other work on the machine changes little, and the jobs it announces."""
    found, jobs = [], 0
    for _ in range(TRIES):
        before = os.times()
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--cores", "2", *BOTH, *arguments],
            cwd=project.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        after = os.times()
        found.append(after.children_user + after.children_system - before.children_user - before.children_system)
        totals = [line.split()[1] for line in (done.stdout + done.stderr).splitlines() if line.startswith("total ")]
        jobs = int(totals[0]) if totals else 0
    return min(found), jobs


def configure(project: Project, name: str, **values: object) -> tuple[str, str]:
    """Write an overriding configuration, and give the arguments that name it."""
    (project.folder / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return "--configfile", name


def large(project: Project, photos: int, shards: int) -> tuple[str, str]:
    """A project whose manifest of many photos is cut into shards and was touched afterwards, so that it is hashed."""
    data = project.folder / "data"
    data.mkdir()
    (data / "photos.csv").write_text("path,split,label\n", encoding="utf-8")
    make_up_manifest(photos, project.folder / "results/data/manifest.parquet")
    for name in ("classes", "rejected"):
        (project.folder / f"results/data/{name}.parquet").touch()
    chosen: dict[str, object] = {
        "format": "table",
        "root": "data",
        "annotations": "photos.csv",
        "coarse_taxa": [],
        "truth": None,
    }
    arguments = configure(project, "large.yaml", data=chosen, shards=shards)
    project.succeed("results/data/shards/0.parquet", "--cores", "2", "--allowed-rules", "shard_manifest", *arguments)
    os.utime(project.folder / "results/data/manifest.parquet")
    return arguments


def main() -> None:
    """Print seconds, jobs, and the ratio to the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=int, default=330_000)
    photos = parser.parse_args().photos
    with tempfile.TemporaryDirectory() as folder:
        project = fresh_project(Path(folder) / "project")
        demo, jobs = seconds(project)
        print(f"| the demo | {jobs} | {demo:.1f} s | |")
        for name, values in (
            ("6 rounds", {"rounds": 6}),
            ("33 shards", {"shards": 33}),
            ("6 rounds, 33 shards", {"rounds": 6, "shards": 33}),
        ):
            taken, jobs = seconds(project, *configure(project, "other.yaml", **values))
            print(f"| the demo with {name} | {jobs} | {taken:.1f} s | × {taken / demo:.2f} |")
        for shards in (1, 33):
            other = fresh_project(Path(folder) / f"large{shards}")
            arguments = large(other, photos, shards)
            size = (other.folder / "results/data/manifest.parquet").stat().st_size / 1e6
            taken, jobs = seconds(other, *arguments)
            what = f"{photos:,} photos (a manifest of {size:.0f} MB), shards: {shards}"
            print(f"| {what} | {jobs} | {taken:.1f} s | × {taken / demo:.2f} |")


if __name__ == "__main__":
    main()
