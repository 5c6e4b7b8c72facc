"""Hash a script together with every project module that it imports, so that only a change of meaning reruns a stage.

Snakemake compares a script's modification time and does not look into its imports. A rule's ``code`` parameter holds
this hash instead: it is taken over the syntax trees, without comments, docstrings and formatting.
"""

import ast
import functools
import hashlib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                if isinstance(body[0].value.value, str):
                    node.body = body[1:]
    return tree


def _written(node: object) -> str:
    """A syntax tree as text, the same from Python 3.11 on: newer versions add fields, which are empty in older code."""
    if isinstance(node, ast.AST):
        # The context (load or store) follows from where a name stands, and is not always given.
        parts = {name: part for name, part in ast.iter_fields(node) if part not in (None, []) and name != "ctx"}
        return f"{type(node).__name__}({', '.join(f'{name}={_written(parts[name])}' for name in sorted(parts))})"
    if isinstance(node, list):
        return f"[{', '.join(map(_written, node))}]"
    return repr(node)


def _module_file(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imported_names(tree: ast.AST, package: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names.add(base)
            # ``from fieldmark import losses`` names a module, not a function.
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


@functools.cache
def _parsed(path: Path, root: Path) -> tuple[str, frozenset[Path]]:
    """The digest of one file, and the project files that it imports directly."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    relative = path.relative_to(root)
    package = ".".join(relative.parent.parts)
    files: set[Path] = set()
    for name in _imported_names(tree, package):
        parts = name.split(".")
        # Importing a.b.c also runs a/__init__.py and a/b/__init__.py.
        for length in range(1, len(parts) + 1):
            found = _module_file(".".join(parts[:length]), root)
            if found is not None:
                files.add(found)
    digest = hashlib.sha256(_written(_without_docstrings(tree)).encode()).hexdigest()
    return digest, frozenset(files)


def imported_files(script: Path, root: Path = PROJECT) -> list[Path]:
    """Every project file that ``script`` imports, directly or through others, and the script itself, sorted."""
    seen: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting.extend(_parsed(path, root)[1])
    return sorted(seen)


def fingerprint(script: str | Path, root: Path = PROJECT) -> str:
    """Hash what a script means: its own code and that of the project modules it imports, transitively.

    Args:
        script: name of a script in ``workflow/scripts``, without ``.py``, or the path of any file of the project.
        root: the project's folder.

    Returns:
        16 hexadecimal digits. They stay the same under comments, docstrings, formatting and file times.

    Raises:
        FileNotFoundError: if there is no such script.
        SyntaxError: if the script or a module that it imports does not parse; the message names the file.
    """
    whole = hashlib.sha256()
    file = script if isinstance(script, Path) else root / "workflow" / "scripts" / f"{script}.py"
    for path in imported_files(file, root):
        whole.update(f"{path.relative_to(root).as_posix()} {_parsed(path, root)[0]}\n".encode())
    return whole.hexdigest()[:16]
