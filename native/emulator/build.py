"""Compiles translated kernels and the machine; results are kept by their contents."""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from emulator.msl import Translation
from emulator.tokens import compiler

HERE = Path(__file__).resolve().parent
KERNEL_FLAGS = (
    "-std=c++20", "-O1", "-g1", "-fPIC", "-c", "-w", "-ffp-contract=off", "-fno-exceptions",
    # Every access calls the machine; so does what C++ leaves undefined.
    "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0",
    "-fsanitize=bounds,shift,integer-divide-by-zero,signed-integer-overflow",
    "-fsanitize=float-cast-overflow,alignment",
    # A variable that nothing has set holds the same garbage in every run.
    "-ftrivial-auto-var-init=pattern",
)  # fmt: skip
MACHINE_FLAGS = ("-std=c++20", "-O2", "-g1", "-fPIC", "-shared", "-Wall", "-Wextra")


class CompileError(ValueError):
    """The translated text is no C++ for the emulating header: most often a construct that the
    emulator does not know."""


@functools.cache
def cache_folder() -> Path:
    """Returns the folder of compiled kernels: build/emulator, or where MLXRT_EMULATOR_CACHE says;
    one for this process where neither can be written."""
    named = os.environ.get("MLXRT_EMULATOR_CACHE")
    folder = Path(named) if named else HERE.parents[1] / "build" / "emulator"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="mlxrt_emulator_"))
    return folder


@functools.cache
def machine_library() -> Path:
    """Builds the machine and returns its shared library."""
    sources = sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h"), *HERE.glob("*.inc")])
    contents = b"".join(path.read_bytes() for path in sources)
    library = cache_folder() / f"machine_{_digest(contents, MACHINE_FLAGS)}.so"
    if not library.exists():
        programs = [str(path) for path in sources if path.suffix == ".cpp"]
        _compile([*MACHINE_FLAGS, *programs, "-ldl"], library, "")
    return library


@functools.cache
def build_program(name: str, sources: tuple[str, ...], flags: tuple[str, ...]) -> Path:
    """Builds a program from sources of native/; paths are relative to it."""
    folder = Path(tempfile.mkdtemp(prefix="mlxrt_emulator_"))
    files = [str(HERE.parent / source) for source in sources]
    common = ("-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{HERE.parent}")
    _compile([*common, *files, *flags], folder / name, "")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / name


def compile_kernels(translation: Translation) -> Path:
    """Compiles translated MSL and returns the shared library.

    Raises:
        CompileError: with the compiler's messages; lines are those of the MSL text.
    """
    headers = b"".join((HERE / name).read_bytes() for name in ("metal_stdlib.h", "machine.h"))
    digest = _digest(headers + translation.source.encode(), KERNEL_FLAGS)
    library = cache_folder() / f"kernels_{digest}.so"
    if not library.exists():
        # In two steps: linking with the sanitizers' flags would bring in their own hooks.
        compiled = library.with_suffix(".o")
        _compile([*KERNEL_FLAGS, f"-I{HERE}", "-x", "c++", "-"], compiled, translation.source)
        _compile(["-shared", str(compiled)], library, "")
    return library


def _digest(contents: bytes, flags: tuple[str, ...]) -> str:
    return hashlib.sha256(contents + " ".join(flags).encode()).hexdigest()[:24]


def _compile(arguments: list[str], result_path: Path, source: str) -> None:
    place = result_path.with_suffix(f".{os.getpid()}")
    command = [compiler(), *arguments, "-o", str(place)]
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    if result.returncode:
        raise CompileError(result.stderr)
    place.replace(result_path)
