"""Fixtures that several tests share: a few tiny photos on disk, a tiny classifier, a finished run of the workflow.

torch is imported inside the fixtures, so that tests without it start at once.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from tests.project import Project, fresh_project

if TYPE_CHECKING:
    from fieldmark.models import Classifier
    from fieldmark.photosets import PhotoSet

# Read when torch and faiss are first imported: one thread each, because more make tiny arrays slower, not faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# At every start Snakemake's plugin asks SLURM's controller about itself, for nine seconds where SLURM is installed and
# does not run. No test but those in tests/slurm has to do with it.
os.environ.setdefault("SLURM_CONF", os.devnull)

# Files that run for minutes, the longest first: begun last, one of them would have all workers but its own wait.
LONG_FILES = (
    *("test_cluster.py", "test_workflow.py", "test_conda.py", "test_disk_faults.py", "test_evidence.py"),
    *("test_reruns.py", "test_interruptions.py", "test_inat_2021.py", "test_source.py", "test_profiles.py"),
    *("test_parallel.py", "test_rules.py", "test_comparisons.py"),
)
COLORS = [(220, 40, 40), (40, 200, 40), (40, 40, 220)]
SIZES = [(44, 40), (40, 52), (48, 48), (64, 40)]  # width, height


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG_FILES)))


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> "PhotoSet":
    """Twelve noisy photos of various sizes in three classes, told apart by their colour."""
    from fieldmark.photosets import PhotoSet

    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = []
    for number in range(12):
        width, height = SIZES[number // 3]
        pixels = np.array(COLORS[number % 3]) + generator.normal(0, 30, (height, width, 3))
        paths.append(folder / f"{number:02d}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return PhotoSet(
        image_ids=[path.stem for path in paths],
        paths=[str(path) for path in paths],
        target=np.arange(12) % 3,
        weight=np.ones(12, dtype=np.float32),
        taxon=np.full(12, -1),
    )


@pytest.fixture(scope="session")
def make_model() -> Callable[..., "Classifier"]:
    """A maker of classifiers with a tiny backbone (BN, 32 px); keyword arguments as in ``Architecture``."""
    from fieldmark.models import Architecture, Classifier, build_classifier

    def make(dropout: float = 0.0, drop_path: float = 0.0, seed: int = 0, **changes: object) -> Classifier:
        fields = {"backbone": "test_efficientnet", "embedding": 0, "classes": 3, "foreign": 0}
        fields |= {"prototypes": False, "image_size": 32, **changes}
        architecture = Architecture(**fields)  # type: ignore[arg-type]
        return build_classifier(architecture, "none", seed=seed, dropout=dropout, drop_path=drop_path)

    return make


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after a tiny run; everything up to the submission was made while there was no truth to read."""
    project = fresh_project(tmp_path_factory.mktemp("finished"))
    truth = project.folder / "results/demo/truth.csv"
    project.make("results/demo/truth.csv")
    content = truth.read_bytes()
    truth.unlink()
    project.make("results/submission.csv")
    assert not truth.exists()
    truth.write_bytes(content)
    project.make()
    return project


@pytest.fixture
def leftovers(tmp_path: Path) -> Callable[[], list[str]]:
    """A function that lists the names in the test's folder: what was left behind."""
    return lambda: sorted(path.name for path in tmp_path.iterdir())
