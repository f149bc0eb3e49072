"""The house style, as far as a machine can see it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 500
NATIVE_FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
BANNED_WORDS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
BANNED_MODULES = {"utils", "helpers", "common", "misc", "util", "helper"}
ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "clients" / "python" / "mlxrt_client" / "v1"


def python_files(*folders: str) -> list[Path]:
    """Returns the Python files below the folders, generated ones left out."""
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    hidden = {"build", "node_modules", "__pycache__"}
    return sorted(
        path
        for path in found
        if GENERATED not in path.parents and hidden.isdisjoint(path.relative_to(ROOT).parts)
    )


PRODUCT = python_files("mlxrt", "clients")
TESTS = python_files("tests", "native")
NATIVE = sorted(p for p in (ROOT / "native").rglob("*") if p.suffix in {".cpp", ".h", ".hpp"})


def named(path: Path) -> str:
    """Returns the path as a test's name."""
    return str(path.relative_to(ROOT))


def test_ruff_is_content() -> None:
    """Line length, imports, names and known mistakes are ruff's to find."""
    folders = ["mlxrt", "tests", "clients", "native"]
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--output-format", "concise", *folders],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout


def test_the_files_are_found() -> None:
    assert len(PRODUCT) > 20 and len(TESTS) > 5 and NATIVE


@pytest.mark.parametrize("path", PRODUCT + TESTS + NATIVE, ids=named)
def test_file_size_and_words(path: Path) -> None:
    source = path.read_text()
    limit = FILE_LINES_MAX if path in PRODUCT else TEST_FILE_LINES_MAX
    if path in NATIVE:
        limit = NATIVE_FILE_LINES_MAX
    assert source.count("\n") <= limit
    assert path.stem not in BANNED_MODULES
    if path != Path(__file__):
        assert not BANNED_WORDS.search(source)


@pytest.mark.parametrize("path", PRODUCT + TESTS, ids=named)
def test_function_size(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_public_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) is not None, "the module"
    for name, node in public_definitions(tree):
        text = ast.get_docstring(node)
        assert text, name
        assert text.split("\n\n")[0].rstrip().endswith((".", ":", "…")), f"{name}: a whole sentence"


def public_definitions(
    tree: ast.Module,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Yields the public functions, classes and methods of a module with their names."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        yield node.name, node
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not (
                    member.name.startswith("_") or is_overload(member)
                ):
                    yield f"{node.name}.{member.name}", member


def is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Returns whether a definition only declares a type, or sets what a property documents."""
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return bool(names & {"overload", "setter", "override"})


def test_the_emulator_is_typed_to_the_last_function() -> None:
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--strict", "emulator"]
    result = subprocess.run(command, cwd=ROOT / "native", capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_client_is_typed_to_the_last_function() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary"],
        cwd=ROOT / "clients" / "python",
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout


def test_the_server_is_typed_to_the_last_function() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "mlxrt"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
