"""The lock and envs/ repeat requirements.txt, and every script finds in its environment what it imports."""

import ast
import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from fieldmark.fingerprint import imported_files

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
# What conda itself installs; everything else comes through pip.
CONDA_PACKAGES = {"python", "pip", "c-compiler", "zlib", "pillow"}
# Written in parts, or this file would be a finding of its own test.
REGISTRY_HOSTS = [
    f"{name}.{domain}"
    for name, domain in [
        ("pypi", "org"),
        ("python" + "hosted", "org"),
        ("anaconda", "org"),
        ("download.pytorch", "org"),
        ("registry." + "npmjs", "org"),
        ("deb." + "debian", "org"),
    ]
]
UNTRACKED = {".git", ".venv", ".snakemake", ".cache", "results", "__pycache__"}
UNTRACKED |= {".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


class ScriptRule(NamedTuple):
    """A rule that runs a script, and the conda environment it names."""

    name: str
    script: Path
    environment: Path | None


def pins(*names: str) -> dict[str, str]:
    """Distribution → version of the given requirement files."""
    lines = [line.split(";")[0].split(" #")[0].strip() for name in names for line in (ROOT / name).open()]
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def pip_pins(environment: Path) -> dict[str, str]:
    """Distribution → version of an environment's pip section."""
    dependencies = yaml.safe_load(environment.read_text())["dependencies"]
    (section,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return dict(entry.split("==") for entry in section)


def rule_files() -> list[Path]:
    return [*ROOT.glob("Snakefile"), *sorted((ROOT / "workflow" / "rules").glob("*.smk"))]


def script_rules() -> list[ScriptRule]:
    """Every rule of the workflow with a ``script:``."""
    found = []
    for source in rule_files():
        _, *parts = re.split(r"^\s*(?:rule|checkpoint)\s+(\w+)\s*:", source.read_text(), flags=re.MULTILINE)
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            script = re.search(r"^\s+script:\s*\"([^\"]+)\"", body, flags=re.MULTILINE)
            conda = re.search(r"^\s+conda:\s*\"([^\"]+)\"", body, flags=re.MULTILINE)
            if script:
                environment = (source.parent / conda[1]).resolve() if conda else None
                found.append(ScriptRule(name, (source.parent / script[1]).resolve(), environment))
    return found


@functools.cache
def distributions() -> dict[str, list[str]]:
    """Importable name → the distributions that bring it. Stock Pillow counts as pillow-simd, its stand-in."""
    canonical = {
        module: [re.sub(r"[-_.]+", "-", name).lower() for name in names]
        for module, names in importlib.metadata.packages_distributions().items()
    }
    return canonical | {"PIL": ["pillow-simd"]}


def third_party_imports(script: Path) -> Iterator[tuple[str, Path]]:
    """Foreign top-level modules that a script imports, itself or through project modules, with the importing file."""
    for path in imported_files(script):
        for node in ast.walk(ast.parse(path.read_bytes())):
            match node:
                case ast.Import(names=names):
                    modules = [alias.name for alias in names]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module]
                case ast.Call(func=ast.Name(id="import_module"), args=[ast.Constant(value=str(module)), *_]):
                    modules = [module]
                case _:
                    modules = []
            for top in {module.split(".")[0] for module in modules}:
                if top not in sys.stdlib_module_names and not (ROOT / top).is_dir():
                    yield top, path


def test_lock_holds_every_direct_pin() -> None:
    lock, direct = pins("requirements.lock"), pins("requirements.txt", "requirements-dev.txt")
    assert {name: lock.get(name) for name in direct} == direct, "requirements.lock is out of date: run `make lock`"


def test_lock_has_pillow_simd_and_no_pillow() -> None:
    assert "pillow-simd" in pins("requirements.lock")
    assert "pillow" not in pins("requirements.lock"), "pillow came back into the lock: overrides.txt must exclude it"


def test_one_pillow_is_installed() -> None:
    installed = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    assert len(installed & {"pillow", "pillow-simd", "pillow_simd"}) == 1


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_environment_repeats_requirements(environment: Path) -> None:
    direct = pins("requirements.txt")
    found = pip_pins(environment)
    assert {name: direct.get(name) for name in found} == found


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_conda_packages_are_pinned_and_alike(environment: Path) -> None:
    entries = [entry for entry in yaml.safe_load(environment.read_text())["dependencies"] if isinstance(entry, str)]
    versions = dict(entry.split("=") for entry in entries)
    assert set(versions) == CONDA_PACKAGES
    assert all(versions.values())
    assert versions["pillow"] == pins("requirements.txt")["pillow-simd"].split(".post")[0]
    assert entries == [e for e in yaml.safe_load(ENVIRONMENTS[0].read_text())["dependencies"] if isinstance(e, str)]


def test_torch_environment_extends_core() -> None:
    assert pip_pins(ROOT / "envs" / "core.yaml").items() <= pip_pins(ROOT / "envs" / "torch.yaml").items()


def test_rules_with_scripts_are_found() -> None:
    scripts = [line for path in rule_files() for line in path.open() if line.strip().startswith("script:")]
    assert scripts, "no rule with a `script:` line in Snakefile or workflow/rules/*.smk"
    assert len(scripts) == len(script_rules()), 'each `script:` must be followed by the path as a plain "string"'


@pytest.mark.parametrize("rule", script_rules(), ids=lambda rule: rule.name)
def test_environment_provides_what_the_script_imports(rule: ScriptRule) -> None:
    assert rule.script.is_file(), f"rule {rule.name} names a script that does not exist: {rule.script}"
    assert rule.environment is not None, f"rule {rule.name} has no `conda:` line"
    assert rule.environment in ENVIRONMENTS, f"rule {rule.name} names no file of envs/: {rule.environment}"
    provided = pip_pins(rule.environment)
    missing = {
        f"{module} (imported in {path.relative_to(ROOT)})"
        for module, path in third_party_imports(rule.script)
        if not provided.keys() & set(distributions().get(module, []))
    }
    assert not missing, f"rule {rule.name}: envs/{rule.environment.name} lacks {', '.join(sorted(missing))}"


def test_rule_files_import_only_what_snakemake_brings() -> None:
    modules = {
        m for path in rule_files() for m in re.findall(r"^\s*from (fieldmark\.\w+) import", path.read_text(), re.M)
    }
    assert modules, "no rule file imports a project module"
    foreign = {top for m in modules for top, _ in third_party_imports(ROOT / f"{m.replace('.', '/')}.py")}
    assert foreign <= {"jsonschema", "snakemake", "yaml"}, "parsing the rules would need more than Snakemake installed"


def test_no_file_names_a_registry_host() -> None:
    named = []
    for path in ROOT.rglob("*"):
        if path.is_file() and not UNTRACKED & set(path.relative_to(ROOT).parts):
            content = path.read_bytes()
            named += [f"{path.relative_to(ROOT)}: {host}" for host in REGISTRY_HOSTS if host.encode() in content]
    assert not named
