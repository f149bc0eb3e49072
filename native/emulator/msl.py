"""MSL text to C++ for the emulator: refuses what it does not know, drops address spaces, and adds
an entry point per kernel that takes its arguments from a table.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.tokens import Refused, Token, closing, tokens_of

ADDRESS_SPACES = {"device", "threadgroup", "constant", "thread"}
POSITIONS = {
    "thread_position_in_grid", "threads_per_grid", "threadgroup_position_in_grid",
    "threadgroups_per_grid", "thread_position_in_threadgroup", "threads_per_threadgroup",
}  # fmt: skip
INDICES = {
    "thread_index_in_threadgroup", "thread_index_in_simdgroup", "simdgroup_index_in_threadgroup",
    "simdgroups_per_threadgroup",
}  # fmt: skip
ATTRIBUTES = POSITIONS | INDICES | {"buffer", "threadgroup", "max_total_threads_per_threadgroup"}
ENTRY = """
extern "C" __attribute__((no_sanitize("thread")))
void emulated_{name}(void* const* buffers, void* shared, const emulator::Ids& ids) {{
  (void)buffers, (void)shared, (void)ids;
  {name}({arguments});
}}
"""


@dataclass(frozen=True, slots=True)
class Translation:
    """C++ for the emulator.

    Attributes:
        kernels: by name, the kinds of its buffers by index: "input", "output" or "constant".
        threads_max: by name, threads of a threadgroup that the kernel is compiled for, where its
            `max_total_threads_per_threadgroup` says so.
    """

    source: str
    kernels: dict[str, dict[int, str]]
    threads_max: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Argument:
    expression: str
    index: int | None = None
    kind: str = ""


def translate(text: str) -> Translation:
    """Checks MSL text and returns C++ for the emulator.

    Raises:
        Refused: with the line and what is not known.
    """
    tokens = tokens_of(text)
    words: list[tuple[int, str]] = []
    entries: list[str] = []
    kernels: dict[str, dict[int, str]] = {}
    threads_max: dict[str, int] = {}
    index = 0
    while index < len(tokens):
        token = tokens[index]
        marks = token.text == "[["
        end = closing(tokens, index) if marks else index
        meaning = tokens[index + 1].text if marks else token.text
        if meaning == "kernel":
            if index and tokens[index - 1].text == ">":
                raise Refused(f"line {token.line}: a kernel template is not known")
            name, entry, buffers = _entry(tokens, end + 1)
            entries.append(entry)
            kernels[name] = buffers
            if marks and end > index + 2:
                threads_max[name] = _threads_max(tokens[index + 2 : end])
            words.append((token.line, "__attribute__((noinline))"))
        elif not marks:
            words.append((token.line, _word(tokens, index)))
        elif meaning not in ATTRIBUTES:
            raise Refused(f"line {token.line}: attribute {meaning} is not known")
        index = end + 1
    if not kernels:
        raise Refused("the text holds no [[kernel]] function")
    header = '#include "metal_stdlib.h"\n'
    return Translation(header + _joined(words) + "".join(entries), kernels, threads_max)


def _joined(words: list[tuple[int, str]]) -> str:
    """The words, each on the line it came from."""
    parts, line = [], 0
    for at, word in words:
        if at != line:
            parts.append(f'\n#line {at} "kernel.metal"\n')
            line = at
        parts.append(word + " ")
    return "".join(parts)


def _word(tokens: list[Token], index: int) -> str:
    """A token in C++. What is `constant` is const; the other address spaces have no word."""
    token = tokens[index]
    if token.text not in ADDRESS_SPACES:
        return token.text
    if token.text == "threadgroup":
        _refuse_variable(tokens, index)
    around = {tokens[index - 1].text if index else "", tokens[index + 1].text}
    return "const" if token.text == "constant" and not around & {"const", "constexpr"} else ""


def _refuse_variable(tokens: list[Token], index: int) -> None:
    for token in tokens[index + 1 :]:
        if token.text in ("*", "&"):
            return
        if token.text in (";", "[", "=", ")", ",", "{"):
            raise Refused(f"line {token.line}: a variable in threadgroup memory is not known")


def _threads_max(tokens: list[Token]) -> int:
    """The number in `, max_total_threads_per_threadgroup(number)`, which may be a product."""
    line = tokens[0].line
    texts = [token.text for token in tokens]
    if texts[:3] != [",", "max_total_threads_per_threadgroup", "("]:
        raise Refused(f"line {line}: {' '.join(texts)} is not known beside kernel")
    product = 1
    for text in texts[3:]:
        if text.isdigit():
            product *= int(text)
        elif text not in ("(", ")", "*"):
            raise Refused(f"line {line}: {text} is not known in a number of threads")
    return product


def _entry(tokens: list[Token], start: int) -> tuple[str, str, dict[int, str]]:
    """Name, entry point and buffers of the kernel whose declaration begins at `start`."""
    while tokens[start].text == "[[":
        start = closing(tokens, start) + 1
    name = tokens[start + 1].text
    if tokens[start].text != "void" or tokens[start + 2].text != "(":
        raise Refused(f"line {tokens[start].line}: a kernel returns void and has parameters")
    end = closing(tokens, start + 2)
    arguments = [_argument(part) for part in _parameters(tokens[start + 3 : end])]
    buffers = {a.index: a.kind for a in arguments if a.index is not None}
    if sorted(buffers) != list(range(len(buffers))):
        raise Refused(f"line {tokens[start].line}: {name} skips or repeats a buffer")
    listed = ",\n    ".join(a.expression for a in arguments)
    return name, ENTRY.format(name=name, arguments=listed), buffers


def _parameters(tokens: list[Token]) -> list[list[Token]]:
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in ("(", "<")) - (token.text in (")", ">"))
        if token.text == "," and not depth:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _argument(tokens: list[Token]) -> _Argument:
    """How the entry point gets an argument."""
    line = tokens[0].line
    start = next((i for i, token in enumerate(tokens) if token.text == "[["), None)
    if start is None or closing(tokens, start) != len(tokens) - 1:
        raise Refused(f"line {line}: a parameter of a kernel has one attribute, at its end")
    attribute = tokens[start + 1].text
    declared = tokens[: start - 1]
    spaces = [t.text for t in declared if t.text in ADDRESS_SPACES]
    kind = declared[-1].text
    if attribute in POSITIONS:
        scalar = kind in ("uint", "ushort")
        count = 1 if scalar else int(kind[-1])
        values = ", ".join(f"ids.{attribute}[{axis}]" for axis in range(count))
        return _Argument(values if scalar else f"{kind}({values})")
    if attribute in INDICES:
        return _Argument(f"ids.{attribute}")
    type_ = " ".join(_word(declared, i) for i in range(len(declared) - 1))
    if attribute not in ("buffer", "threadgroup"):
        raise Refused(f"line {line}: attribute {attribute} is not known")
    if attribute == "threadgroup":
        if spaces != ["threadgroup"] or kind != "*":
            raise Refused(f"line {line}: threadgroup memory comes as a threadgroup pointer")
        return _Argument(f"static_cast<{type_}*>(shared)")
    index = int(tokens[start + 3].text)
    if spaces == ["constant"] and kind == "&":
        return _Argument(f"*static_cast<{type_}*>(buffers[{index}])", index, "constant")
    if spaces != ["device"] or kind != "*":
        raise Refused(f"line {line}: a buffer is a device pointer or a constant reference")
    written = "const" not in [t.text for t in declared]
    how = "output" if written else "input"
    return _Argument(f"static_cast<{type_}*>(buffers[{index}])", index, how)
