"""MSL text as tokens, after the preprocessor; what is no MSL, or not known here, is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HEADERS = Path(__file__).resolve().parent / "driver_headers"

PREDEFINED = ("-D__METAL_VERSION__=310", "-D__METAL__=1")
"""What the Metal compiler defines for MSL 3.1, the version of macOS 14."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\f\v]+) | (?P<line>\n) | (?P<marker>(?m:^)\#[^\n]*) |
    (?P<name>[A-Za-z_]\w*) | (?P<string>"[^"\n]*") | (?P<number>\.?\d(?:[eE][+-]|[\w.])*) |
    (?P<symbol>\[\[|\]\]|::|->|<<=|>>=|<<|>>|&&|\|\||[-+*/%&|^=!<>]=|\+\+|--|[][(){};:,.?~!%^&*\-+=|<>/])
    """,
    re.VERBOSE,
)

UNKNOWN_WORDS = {
    "double", "std", "new", "delete", "throw", "try", "catch", "virtual", "typeid", "goto", "asm",
    "dynamic_cast", "thread_local", "wchar_t", "static", "extern", "mutable", "co_await",
    "co_yield", "co_return", "register", "volatile", "emulator", "_Float16", "signed",
}  # fmt: skip
"""Words of C++ that MSL has not, and a few that are spelled otherwise here."""


class Refused(ValueError):
    """The text holds something that MSL, or the emulator, does not have."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the preprocessed text. `kind` is name, string, number or symbol."""

    kind: str
    text: str
    line: int


def compiler() -> str:
    """Returns the host's C++ compiler.

    Raises:
        FileNotFoundError: there is none.
    """
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise FileNotFoundError("there is no g++ or c++ on PATH")
    return found


def tokens_of(text: str) -> list[Token]:
    """Returns the tokens of MSL text, macros expanded.

    Raises:
        Refused: with the line and what is not known.
    """
    if not text.isascii():
        raise Refused("the text is not ASCII")
    tokens = _tokens(_preprocessed(text))
    for token, following in zip(tokens, [*tokens[1:], Token("symbol", "", 0)], strict=True):
        _check(token, following)
    return tokens


def closing(tokens: list[Token], start: int) -> int:
    """Returns the index of the bracket that closes the one at `start`."""
    opening = tokens[start].text
    end = {"[[": "]]", "(": ")", "{": "}", "[": "]"}[opening]
    depth = 0
    for index in range(start, len(tokens)):
        depth += (tokens[index].text == opening) - (tokens[index].text == end)
        if not depth:
            return index
    raise Refused(f"line {tokens[start].line}: {opening} without {end}")


def _preprocessed(text: str) -> str:
    command = [
        compiler(), "-E", "-undef", "-nostdinc", "-x", "c++", "-std=c++20", f"-I{HEADERS}",
        *PREDEFINED, "-",
    ]  # fmt: skip
    result = subprocess.run(command, input=text, capture_output=True, text=True)
    if result.returncode:
        raise Refused(result.stderr.strip())
    return result.stdout


def _tokens(text: str) -> list[Token]:
    tokens, line, place, own_text = [], 1, 0, True
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise Refused(f"line {line}: {text[place]!r} is not known")
        place = match.end()
        kind = str(match.lastgroup)
        if kind == "line":
            line += 1
        elif kind == "marker":
            line, own_text = _after_marker(match.group(), line)
        elif kind != "space" and own_text:
            # "]]" may close two subscripts; attributes are told apart by what opened them.
            tokens.append(Token(kind, match.group(), line))
    return _with_subscripts(tokens)


def _after_marker(marker: str, line: int) -> tuple[int, bool]:
    """The line before the next one, and whether it is of the text."""
    fields = marker.split()
    if len(fields) > 2 and fields[1].isdigit():
        return int(fields[1]) - 1, fields[2] == '"<stdin>"'
    if fields[0] == "#pragma" and fields[1:2] in (["unroll"], ["clang"]):
        return line, True
    raise Refused(f"line {line}: {marker} is not known")


def _with_subscripts(tokens: list[Token]) -> list[Token]:
    """Takes "]]" apart where it ends two subscripts."""
    result: list[Token] = []
    inside_attribute = False
    for token in tokens:
        if token.text == "[[":
            inside_attribute = True
        elif token.text == "]]" and not inside_attribute:
            result += [Token("symbol", "]", token.line)] * 2
            continue
        elif token.text == "]]":
            inside_attribute = False
        result.append(token)
    return result


def _check(token: Token, following: Token) -> None:
    if token.kind == "name" and (token.text in UNKNOWN_WORDS or token.text.startswith("__")):
        raise Refused(f"line {token.line}: {token.text} is not known")
    if token.text == "long" and following.text in ("long", "double"):
        raise Refused(f"line {token.line}: {token.text} {following.text} is not known")
    if token.text in ("=", "(", ",", "return", "{", ";") and following.text == "[":
        raise Refused(f"line {following.line}: a lambda is not known")
