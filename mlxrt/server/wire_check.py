"""Large messages are counted before they are parsed.

A parser makes an object of some hundred bytes for each submessage, and two bytes are enough to ask
for one: a message of 4 MiB can ask for 250 MB and a quarter of a second in which nobody else is
served. So what a large message repeats is counted on its bytes first, and the count ends at the
first entry too many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxrt.core.model import Limits
from mlxrt.errors import MlxrtError, Reason, field_invalid, limit_exceeded

SMALL_BYTES = 16 * 1024
"""Messages up to here are parsed as they are."""
NESTED_BYTES = 256
"""Submessages up to here are not looked into."""
TABLES_MAX = 64
"""Entries of a list that has at most one for each group."""
SINGLE_MAX = 16
"""How often a field that is no list, or one that nobody knows, may stand; the last one counts."""
ENTRIES_MAX = 1 << 16
"""Entries of any other list."""
DEPTH_MAX = 16

_LIMITED = {
    "release_sequence_ids": "max_sequences",
    "new_sequences": "max_sequences",
    "block_copies": "max_step_copies",
    "decode_sequence_ids": "max_step_sequences",
    "items": "max_step_sequences",
    "masks": "max_mask_rows",
    "chunks": "max_step_sequences",
    "appended": "max_step_sequences",
    "sequence_ids": "max_sequences",
    "logit_bias": "max_logit_bias",
}
"""Lists by name, and the limit that counts their entries."""
_PER_GROUP = {"tables", "leading_holes", "append", "blocks", "counts"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LABEL_REPEATED = 3


class WireCheck:
    """Counts under the declared limits.

    Args:
        limits: None before any is in force; every list may then have ENTRIES_MAX entries.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits
        self._fields: dict[str, Mapping[int, tuple[Any, int]]] = {}

    def check(self, descriptor: Any, data: bytes) -> None:
        """Refuses bytes that would make too many objects; those that are no message are left to
        the parser.

        Args:
            descriptor: of the message that the bytes should be.

        Raises:
            MlxrtError: LIMIT_EXCEEDED, FIELD_INVALID or MALFORMED_REQUEST.
        """
        if len(data) > SMALL_BYTES:
            self._scan(descriptor, data, 0, len(data), "", 0)

    def _scan(
        self, descriptor: Any, data: bytes, at: int, end: int, path: str, depth: int
    ) -> None:
        fields = self._fields_of(descriptor)
        counts: dict[int, int] = {}
        while at < end:
            tag, at = _varint(data, at, end)
            number = tag >> 3
            count = counts[number] = counts.get(number, 0) + 1
            field, maximum = fields.get(number, (None, SINGLE_MAX))
            if count > maximum:
                raise self._too_many(field, number, count, maximum, path)
            kind = tag & 7
            if kind == _BYTES:
                length, at = _varint(data, at, end)
                if (
                    length > NESTED_BYTES and field is not None
                    and field.message_type is not None and depth < DEPTH_MAX
                    and at + length <= end
                ):  # fmt: skip
                    inner = f"{path}{field.name}"
                    if _repeated(field):
                        inner += f"[{count - 1}]"
                    self._scan(field.message_type, data, at, at + length, f"{inner}.", depth + 1)
                at += length
            elif kind == _VARINT:
                _, at = _varint(data, at, end)
            elif kind in (_FIXED64, _FIXED32):
                at += 8 if kind == _FIXED64 else 4
            else:
                return  # groups: the parser's to refuse

    def _fields_of(self, descriptor: Any) -> Mapping[int, tuple[Any, int]]:
        known = self._fields.get(descriptor.full_name)
        if known is None:
            known = {f.number: (f, self._maximum(f)) for f in descriptor.fields}
            self._fields[descriptor.full_name] = known
        return known

    def _maximum(self, field: Any) -> int:
        if not _repeated(field):
            return SINGLE_MAX
        if field.name in _LIMITED and self._limits is not None:
            return int(getattr(self._limits, _LIMITED[field.name]))
        return TABLES_MAX if field.name in _PER_GROUP else ENTRIES_MAX

    def _too_many(
        self, field: Any, number: int, count: int, maximum: int, path: str
    ) -> MlxrtError:
        if field is None or not _repeated(field):
            name = f"number {number}" if field is None else field.name
            return MlxrtError(
                Reason.MALFORMED_REQUEST, f"the field {path}{name} stands more than {maximum} times"
            )
        place = f"{path}{field.name}"
        if field.name in _LIMITED and self._limits is not None:
            return limit_exceeded(_LIMITED[field.name], maximum, count, place)
        return field_invalid(place, f"more than {maximum} entries")


def _repeated(field: Any) -> bool:
    known = getattr(field, "is_repeated", None)  # `label` has gone from newer protobufs
    return bool(field.label == _LABEL_REPEATED if known is None else known)


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at `at` and where it ends; the end of everything where it has none."""
    value = shift = 0
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            break
    return 0, end
