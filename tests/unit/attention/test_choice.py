"""`auto` takes the native path where it serves every layer, and says why where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlxrt import kernels
from mlxrt.attention import AttentionChoice, LayerCall, LayerShape, choose_path

SERVED = LayerCall(LayerShape(2, 64, 64, mx.float32), 4, mx.float32, 0, False)
UNSERVED = LayerCall(LayerShape(2, 60, 60, mx.float32), 4, mx.float32, 0, False)


def refusing(reason: str) -> Callable[..., Any]:
    """Returns an op like one on a device without kernels: it refuses when it is evaluated."""

    def op(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError(reason)

    return op


@pytest.mark.parametrize("block_size", [1, 8, 16, 256])
@pytest.mark.parametrize("window", [0, 1, 5])
def test_auto_takes_native_and_says_nothing(block_size: int, window: int) -> None:
    calls = [SERVED, LayerCall(SERVED.shape, 2, mx.bfloat16, window, True)]
    before = kernels.counters()["paged_attention"]
    chosen = choose_path(AttentionChoice.AUTO, calls, block_size)
    assert (chosen.path.name, chosen.reason) == ("native", "")
    assert kernels.counters()["paged_attention"] == before + 2


def test_layers_alike_are_tried_once() -> None:
    before = kernels.counters()["paged_attention"]
    choose_path(AttentionChoice.AUTO, [SERVED] * 28, 16)
    assert kernels.counters()["paged_attention"] == before + 1


def test_one_layer_that_is_not_served_decides_and_is_named() -> None:
    chosen = choose_path(AttentionChoice.AUTO, [SERVED, UNSERVED], 16)
    assert chosen.path.name == "gather"
    assert "head size 60" in chosen.reason


def test_a_device_without_kernels_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "paged_attention", refusing("no kernels here"))
    chosen = choose_path(AttentionChoice.AUTO, [SERVED], 16)
    assert (chosen.path.name, chosen.reason) == ("gather", "no kernels here")


def test_native_is_never_replaced() -> None:
    with pytest.raises(ImportError, match=r"native attention can't be used: .*head size 60"):
        choose_path(AttentionChoice.NATIVE, [UNSERVED], 16)


def test_gather_tries_nothing() -> None:
    before = kernels.counters()
    chosen = choose_path(AttentionChoice.GATHER, [UNSERVED], 16)
    assert (chosen.path.name, chosen.reason) == ("gather", "")
    assert kernels.counters() == before
