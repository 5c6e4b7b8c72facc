"""Fingerprints on a miniature project: only a change of meaning changes them."""

import ast
import os
from pathlib import Path

import pytest

from fieldmark.fingerprint import PROJECT, _parsed, _written, fingerprint, imported_files

FILES = {
    "workflow/scripts/train.py": '"Train."\nfrom pack import losses\n\n\ndef run():\n    return losses.total(1)\n',
    "workflow/scripts/other.py": "import pack.unrelated\n",
    "workflow/scripts/deep.py": "def run():\n    from pack.sub.leaf import grow\n    return grow()\n",
    "pack/__init__.py": '"""The package."""\n',
    "pack/losses.py": "import numpy as np\nfrom .numbers import half\n\n\ndef total(x):\n    return half(x) + 1\n",
    "pack/numbers.py": "def half(x):\n    return x / 2  # exact\n",
    "pack/unrelated.py": "VALUE = 1\n",
    "pack/sub/__init__.py": "",
    "pack/sub/leaf.py": "from ..numbers import half\n\n\ndef grow():\n    return half(3)\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of three scripts and a package."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def changed_by(project: Path, name: str, text: str) -> set[str]:
    """The scripts whose fingerprint changes when a file gets new text."""

    def now() -> dict[str, str]:
        _parsed.cache_clear()  # each file is parsed once per process
        return {script: fingerprint(script, project) for script in ("train", "other", "deep")}

    before = now()
    (project / name).write_text(text)
    after = now()
    return {script for script in before if before[script] != after[script]}


def test_comments_docstrings_formatting_and_times_do_not_count(project: Path) -> None:
    same = '"""Another docstring,\n\nlonger."""\n\n# A comment.\nfrom pack import (\n    losses,\n)\n'
    same += 'def run():\n    """Run."""\n    return (losses .total( 1 ))\n'
    assert changed_by(project, "workflow/scripts/train.py", same) == set()
    assert (
        changed_by(project, "pack/numbers.py", '"""Numbers."""\ndef half(x):\n    "Half."\n    return x/2\n') == set()
    )
    os.utime(project / "pack/numbers.py", (0, 0))
    assert changed_by(project, "pack/unrelated.py", "VALUE = 1  # one\n") == set()


def test_a_function_that_is_only_a_docstring_counts_as_empty(project: Path) -> None:
    first = 'class Error(Exception):\n    """One."""\n'
    changed_by(project, "pack/unrelated.py", first)
    assert changed_by(project, "pack/unrelated.py", first.replace("One", "Two")) == set()


def test_strings_that_are_no_docstrings_count(project: Path) -> None:
    changed_by(project, "pack/unrelated.py", 'VALUE = 1\nNAME = "a"\n')
    assert changed_by(project, "pack/unrelated.py", 'VALUE = 1\nNAME = "b"\n') == {"other"}


def test_a_change_of_code_reruns_exactly_the_scripts_that_import_it(project: Path) -> None:
    assert changed_by(project, "workflow/scripts/other.py", "import pack.unrelated as u\n") == {"other"}
    assert changed_by(project, "pack/unrelated.py", "VALUE = 2\n") == {"other"}
    assert changed_by(project, "pack/losses.py", FILES["pack/losses.py"].replace("+ 1", "+ 2")) == {"train"}


def test_transitive_relative_and_late_imports_count(project: Path) -> None:
    assert changed_by(project, "pack/numbers.py", "def half(x):\n    return x / 3\n") == {"train", "deep"}
    assert changed_by(project, "pack/sub/__init__.py", "X = 1\n") == {"deep"}
    assert changed_by(project, "pack/__init__.py", "X = 1\n") == {"train", "other", "deep"}


def test_a_new_import_of_a_module_counts(project: Path) -> None:
    changed_by(project, "workflow/scripts/other.py", "import pack.unrelated, pack.numbers\n")
    assert changed_by(project, "pack/numbers.py", "def half(x):\n    return 0\n") == {"train", "other", "deep"}


def test_imported_files_are_those_of_the_project_alone(project: Path) -> None:
    files = [
        path.relative_to(project).as_posix() for path in imported_files(project / "workflow/scripts/train.py", project)
    ]
    assert files == ["pack/__init__.py", "pack/losses.py", "pack/numbers.py", "workflow/scripts/train.py"]


def test_modules_that_import_one_another_come_to_an_end(project: Path) -> None:
    (project / "pack/numbers.py").write_text("from pack import losses\n\n\ndef half(x):\n    return x\n")
    _parsed.cache_clear()
    assert len(fingerprint("train", project)) == 16


def test_fields_that_newer_pythons_add_do_not_count() -> None:
    tree = ast.parse("def half(x):\n    return x / 2\n")
    text = _written(tree)
    tree.body[0].type_params = []  # type: ignore[attr-defined]
    tree.body[0]._fields = (*tree.body[0]._fields, "type_params")  # type: ignore[misc]
    assert _written(tree) == text
    assert _written(ast.parse("f(None)")) != _written(ast.parse("f()")) != _written(ast.parse("f(0)"))


def test_two_copies_of_a_project_have_the_same_fingerprint(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("copy")
    for name, text in FILES.items():
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text(text)
    assert fingerprint("deep", project) == fingerprint("deep", other)


def test_renaming_a_module_counts(project: Path) -> None:
    before = fingerprint("other", project)
    (project / "pack/unrelated.py").rename(project / "pack/renamed.py")
    (project / "workflow/scripts/other.py").write_text("import pack.renamed\n")
    _parsed.cache_clear()
    assert fingerprint("other", project) != before


def test_mistakes_are_named(project: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.py"):
        fingerprint("nothing", project)
    (project / "pack/unrelated.py").write_text("def (:\n")
    with pytest.raises(SyntaxError) as caught:
        fingerprint("other", project)
    assert str(caught.value.filename).endswith("unrelated.py")


@pytest.mark.parametrize("script", sorted((PROJECT / "workflow/scripts").glob("*.py")), ids=lambda path: path.stem)
def test_every_script_of_this_project_has_a_fingerprint_over_what_it_imports(script: Path) -> None:
    assert len(fingerprint(script.stem)) == 16
    found = {path.relative_to(PROJECT).with_suffix("").as_posix() for path in imported_files(script)}
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fieldmark."):
            name = (node.module or "").replace(".", "/")
            assert name in found or f"{name}/__init__" in found
