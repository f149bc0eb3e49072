"""Which source files the bundled model learns from, in which order, and which are held out."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

EXCLUDED = (
    "__pycache__",
    "config-*",
    "encodings",
    "ensurepip/_bundled",
    "html/entities.py",
    "idlelib",
    "lib-dynload",
    "lib2to3/tests",
    "pydoc_data",
    "site-packages",
    "stringprep.py",
    "_sysconfigdata_*",
    "test/encoded_modules",
    "test/tokenizedata",
)
"""Folders and files left out: third-party code, generated tables, prose, deliberate nonsense."""

TEST_FOLDERS = frozenset({"test", "tests"})
"""A file below a folder so named belongs to the test suite, any other to the library."""

HOLD_OUT_ONE_IN = 25
"""One file in this many, by the hash of its path, is held out for the validation loss."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the corpus.

    Attributes:
        name: its path under the standard library's root, with forward slashes.
        text: its content, decoded as UTF-8, line ends as they are.
    """

    name: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to the library's test suite."""
        return not TEST_FOLDERS.isdisjoint(self.name.split("/")[:-1])

    @property
    def is_held_out(self) -> bool:
        """Whether the file is kept from training and measures the validation loss."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:8], "big") % HOLD_OUT_ONE_IN == 0


def standard_library() -> Path:
    """Returns the root of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_corpus(root: Path) -> list[SourceFile]:
    """Returns the corpus under `root`, sorted by name; files that aren't UTF-8 are left out.

    Raises:
        FileNotFoundError: there is no Python file under `root`.
    """
    files = list(_decoded(root, sorted(root.rglob("*.py"), key=lambda p: p.as_posix())))
    if not files:
        raise FileNotFoundError(f"no Python source under {root}")
    return sorted(files, key=lambda file: file.name)


def corpus_sha256(files: Iterable[SourceFile]) -> str:
    """Returns the hash that pins a corpus: over each file's name and content, in order."""
    digest = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.text.encode()).hexdigest()
        digest.update(f"{content}  {file.name}\n".encode())
    return digest.hexdigest()


def _decoded(root: Path, paths: Iterable[Path]) -> Iterator[SourceFile]:
    for path in paths:
        relative = path.relative_to(root)
        if _is_excluded(relative):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield SourceFile(relative.as_posix(), text)


def _is_excluded(relative: Path) -> bool:
    ancestry = [relative, *relative.parents][:-1]
    return "__pycache__" in relative.parts or any(
        candidate.match(pattern) and len(candidate.parts) == pattern.count("/") + 1
        for candidate in ancestry
        for pattern in EXCLUDED
    )
