"""Pointers of MSL have kinds: the texts of the Metal host mix none, and a mixture is refused."""

from __future__ import annotations

import pytest
from emulator import Refused
from emulator.address_spaces import check_address_spaces, has_clang
from emulator.ops import plan

pytestmark = pytest.mark.skipif(not has_clang(), reason="clang comes with ziglang")

SHAPE = {
    "num_q_heads": 4, "num_kv_heads": 2, "block_size": 16, "num_blocks": 20, "max_blocks": 8,
    "num_sequences": 2, "num_rows": 5,
}  # fmt: skip


def attention_texts(element: int, head_dim: int, softcap: float) -> dict[str, str]:
    """Returns the texts of an attention call by the names of their libraries."""
    key = {"element": element, "head_dim": head_dim, "softcap": softcap}
    return plan("paged_attention", *SHAPE.items(), *key.items()).texts


@pytest.mark.parametrize(
    ("element", "head_dim", "softcap"),
    [(0, 64, 0.0), (1, 80, 0.0), (2, 96, 1.0), (0, 112, 1.0), (1, 128, 0.0), (2, 192, 0.0),
     (2, 256, 0.0)],
)  # fmt: skip
def test_attention(element: int, head_dim: int, softcap: float) -> None:
    texts = attention_texts(element, head_dim, softcap)
    assert len(texts) == 2
    for text in texts.values():
        check_address_spaces(text)


def test_writes_and_copies() -> None:
    write = plan("kv_write", ("rows", 1), ("slots", 8), ("key_bytes", 16), ("value_bytes", 16))
    copy = plan("copy_blocks", ("pairs", 1), ("num_blocks", 2), ("block_bytes", 16))
    for text in [*write.texts.values(), *copy.texts.values()]:
        check_address_spaces(text)


PLANTED = {
    "a device pointer for a threadgroup's": ("THREADGROUP float* states = THREADGROUP_MEMORY",
                                             "DEVICE float* states = THREADGROUP_MEMORY"),
    "threadgroup memory passed as a thread's": ("INLINE void store_lane(THREADGROUP float* states",
                                                "INLINE void store_lane(THREAD float* states"),
    "a thread's array passed as the device's": ("INLINE void unpack(uint4 vector, THREAD float*",
                                                "INLINE void unpack(uint4 vector, DEVICE float*"),
    "parameters taken as a thread's": ("INLINE Part find_part(Work work, int index, CONSTANT",
                                       "INLINE Part find_part(Work work, int index, THREAD"),
    "a cast across": ("(THREADGROUP int*)(states", "(DEVICE int*)(states"),
    "a write to constants": ("const int lane = LANE;", "params.group = 1; const int lane = LANE;"),
    "a pointer of no kind": ("INLINE uint4 pack(THREAD const float*",
                             "INLINE uint4 pack(const float*"),
    "a write to an input": ("const int lane = LANE;", "*q = pack(0); const int lane = LANE;"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_wrong_kind_is_refused(name: str) -> None:
    old, new = PLANTED[name]
    for text in attention_texts(2, 128, 0.0).values():
        assert old in text
        with pytest.raises(Refused, match=r"line|kernel\.metal"):
            check_address_spaces(text.replace(old, new))
