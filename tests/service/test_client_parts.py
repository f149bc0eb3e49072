"""The pure parts of the client: allocator, retries, addresses, errors, tokenizer files."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from mlxrt_client import BlockAllocator, RetryPolicy, messages, v1
from mlxrt_client.blocks import BlocksExhausted
from mlxrt_client.channel import ChannelSettings, target_of
from mlxrt_client.errors import (
    CODES,
    REASONS,
    ExhaustedError,
    MlxrtError,
    TransportError,
    UnavailableError,
    error_from_message,
)
from mlxrt_client.retry import Retry

from mlxrt.errors import Reason


def allocator(count: int = 8) -> BlockAllocator:
    """An allocator with blocks 1 to `count` of group 0."""
    made = BlockAllocator()
    made.add({0: range(1, count + 1)})
    return made


def test_blocks_are_handed_out_shared_and_returned() -> None:
    blocks = allocator(4)
    first = blocks.allocate({0: 3})
    assert (blocks.free_count(), blocks.used_count()) == (1, 3)
    with pytest.raises(BlocksExhausted):
        blocks.allocate({0: 2})
    prefix = {0: first[0][:1]}
    blocks.share(prefix)
    assert blocks.is_shared(0, prefix[0][0])
    blocks.release(first)
    assert blocks.free_count() == 3
    assert not blocks.is_shared(0, prefix[0][0])
    blocks.release(prefix)
    assert sorted(blocks.take_free(0, 9)) == [1, 2, 3, 4]
    assert (blocks.free_count(), blocks.used_count()) == (0, 0)


@pytest.mark.parametrize(
    "act",
    [
        lambda blocks: blocks.add({0: [1]}),
        lambda blocks: blocks.add({0: [0]}),
        lambda blocks: blocks.share({0: [1]}),
        lambda blocks: blocks.release({0: [1]}),
        lambda blocks: blocks.release({1: [1]}),
        lambda blocks: blocks.claim({0: [99]}),
    ],
)
def test_misuse_is_refused_and_changes_nothing(act: Any) -> None:
    blocks = allocator(4)
    with pytest.raises(ValueError):
        act(blocks)
    assert (blocks.free_count(), blocks.used_count()) == (4, 0)


def test_a_block_listed_more_often_than_it_has_users_is_refused() -> None:
    blocks = allocator(4)
    taken = blocks.allocate({0: 1})[0]
    with pytest.raises(ValueError):
        blocks.release({0: taken + taken})
    assert blocks.used_count() == 1


@given(st.lists(st.tuples(st.sampled_from("ascrt"), st.integers(1, 4)), max_size=60))
def test_the_allocator_against_a_plain_model(rules: list[tuple[str, int]]) -> None:
    blocks, held = allocator(12), Counter[int]()
    leased = set(range(1, 13))
    for rule, number in rules:
        free = leased - set(held)
        if rule == "a" and number <= len(free):
            taken = blocks.allocate({0: number})[0]
            assert len(set(taken)) == number and set(taken) <= free
            held.update(taken)
        elif rule == "a":
            with pytest.raises(BlocksExhausted):
                blocks.allocate({0: number})
        elif rule == "s" and held:
            chosen = sorted(held)[number % len(held)]
            blocks.share({0: [chosen]})
            held[chosen] += 1
        elif rule == "c" and leased:
            chosen = sorted(leased)[number % len(leased)]
            blocks.claim({0: [0, chosen]})
            held[chosen] += 1
        elif rule == "r" and held:
            chosen = sorted(held)[number % len(held)]
            blocks.release({0: [0, chosen]})
            held -= Counter([chosen])
        elif rule == "t":
            leased -= set(blocks.take_free(0, number))
        assert blocks.free_count() == len(leased) - len(held)
        assert blocks.used_count() == len(held)
        assert {b for b in held if blocks.is_shared(0, b)} == {b for b in held if held[b] > 1}


def test_retries_back_off_double_and_end() -> None:
    retry = Retry(RetryPolicy(patience_s=2, initial_delay_s=0.5, maximum_delay_s=1))
    lost = TransportError("TRANSPORT", 14, "gone")
    assert [retry.delay_s(lost, now_s=now) for now in (10, 10.5, 11.5)] == [0.5, 1, None]
    retry.succeeded()
    assert retry.delay_s(lost, now_s=99) == 0.5


def test_the_server_s_wait_wins_over_a_shorter_one() -> None:
    loading = UnavailableError("LOADING", 14, "loading", retry_delay_s=3)
    assert Retry(RetryPolicy()).delay_s(loading, now_s=0) == 3


@pytest.mark.parametrize(
    "error",
    [
        TransportError("TRANSPORT", 8, "a message is too large"),
        TransportError("TRANSPORT", 12, "no such service"),
        ExhaustedError("NO_FREE_BLOCKS", 8, "none", retry_delay_s=1),
    ],
)
def test_what_no_wait_helps_is_not_repeated(error: MlxrtError) -> None:
    assert Retry(RetryPolicy()).delay_s(error, now_s=0) is None


@pytest.mark.parametrize("address", ["unix:/run/mlxrt.sock", "localhost:1", "[::1]:65535"])
def test_addresses(address: str) -> None:
    assert target_of(address) == address


@pytest.mark.parametrize("address", ["", "unix:", "localhost", "http://a:1", "a:b", "::1:80"])
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="neither unix:/path nor host:port"):
        target_of(address)


def test_keepalive_is_set_under_names_that_the_library_knows() -> None:
    options = dict(ChannelSettings(keepalive_time_ms=7).options())
    assert options["grpc.keepalive_time_ms"] == 7
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.name)
def test_every_reason_has_a_class(reason: Reason) -> None:
    message = v1.Error(
        code=int(reason.code),
        reason=reason.number,
        message="why",
        metadata={"limit": "x"},
        field_violations=[v1.FieldViolation(field="items[0]", description="wrong")],
        retry_delay=Duration(seconds=1, nanos=500_000_000),
    )
    error = error_from_message(message, accepted=True)
    assert type(error) is (REASONS.get(reason.name) or CODES[int(reason.code)])
    assert (error.reason, error.code, error.accepted) == (reason.name, int(reason.code), True)
    assert error.retry_delay_s == 1.5 and error.metadata == {"limit": "x"}
    assert str(error) == f"{reason.name}: why (items[0]: wrong)"


def test_classes_are_of_reasons_that_exist() -> None:
    assert set(REASONS) <= set(Reason.__members__)


def test_a_reason_of_a_later_server_goes_by_its_status_code() -> None:
    error = error_from_message(v1.Error(code=8, reason=9999, message="new"))
    assert type(error) is ExhaustedError and error.reason == "9999"
    assert error.retry_delay_s is None


def test_tokenizer_files_are_put_together_and_checked() -> None:
    digest = hashlib.sha256(b"abcd").hexdigest()
    assembly = messages.FileAssembly()
    assembly.add(v1.GetTokenizerResponse(file_name="a", chunk=b"ab"))
    assembly.add(v1.GetTokenizerResponse(file_name="a", chunk=b"cd", file_sha256=digest))
    assert assembly.files() == {"a": b"abcd"}
    assembly.add(v1.GetTokenizerResponse(file_name="b", chunk=b"x", file_sha256=digest))
    with pytest.raises(RuntimeError, match="b arrived damaged"):
        assembly.files()
