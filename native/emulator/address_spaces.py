"""Checks the address spaces of MSL text with clang: `device`, `threadgroup`, `constant` and
`thread` pointers are different types, so that a wrong kind is an error, as in Metal's compiler.

What MSL forbids and C++ with address spaces does not is checked by the tokens: an attribute or word
that is not known, and a pointer or reference that names no address space.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from emulator.msl import ATTRIBUTES
from emulator.tokens import Refused, Token, closing, tokens_of

HERE = Path(__file__).resolve().parent
SPACES = ("device", "threadgroup", "constant", "thread")
STATEMENTS = ("else", "return")
FLAGS = (
    "-x", "c++", "-std=c++20", "-fsyntax-only", "-w", "-Wno-c++11-narrowing", "-nostdinc",
    "-target", "x86_64-linux-gnu",
)  # fmt: skip


def has_clang() -> bool:
    """Returns whether ziglang, which brings clang, is installed."""
    return importlib.util.find_spec("ziglang") is not None


def check_address_spaces(text: str) -> None:
    """Checks MSL text.

    Raises:
        Refused: with the line and what is wrong.
    """
    tokens = tokens_of(text)
    _check_declared(tokens)
    parts, line, index = [f'#include "{HERE / "address_spaces.h"}"\n'], 0, 0
    while index < len(tokens):
        token = tokens[index]
        if token.text == "[[":
            end = closing(tokens, index)
            if tokens[index + 1].text not in (*ATTRIBUTES, "kernel"):
                raise Refused(f"line {token.line}: attribute {tokens[index + 1].text} is not known")
            index = end + 1
            continue
        if token.line != line:
            line = token.line
            parts.append(f'\n#line {line} "kernel.metal"\n')
        doubled = token.text == "const" and "constant" in _around(tokens, index)
        parts.append("" if doubled else token.text + " ")
        index += 1
    command = [sys.executable, "-m", "ziglang", "clang", *FLAGS, "-"]
    result = subprocess.run(command, input="".join(parts), capture_output=True, text=True)
    if result.returncode:
        raise Refused(result.stderr.strip())


def _around(tokens: list[Token], index: int) -> set[str]:
    return {token.text for token in tokens[max(0, index - 1) : index + 2]}


def _check_declared(tokens: list[Token]) -> None:
    """Every parameter that is a pointer or reference names its address space."""
    for index, token in enumerate(tokens):
        if token.text != "(" or not index or tokens[index - 1].kind != "name":
            continue
        end = closing(tokens, index)
        if end + 1 == len(tokens) or tokens[end + 1].text not in ("{", ";"):
            continue
        if index < 2 or tokens[index - 2].kind != "name" or tokens[index - 2].text in STATEMENTS:
            continue  # a call, or "else if"
        _check_parameters(tokens[index + 1 : end])


def _check_parameters(tokens: list[Token]) -> None:
    parameter: list[Token] = []
    for token in [*tokens, Token("symbol", ",", 0)]:
        if token.text != ",":
            parameter.append(token)
            continue
        texts = [t.text for t in parameter]
        if ("*" in texts or "&" in texts) and not set(texts) & set(SPACES):
            raise Refused(f"line {parameter[0].line}: {' '.join(texts)} names no address space")
        parameter = []
