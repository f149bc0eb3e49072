"""Sequences that start behind blocks which others fill in the very same step: tokens and logits are
those of mlx-lm alone, over gRPC, with one step in flight and with two."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlxrt_client import Client, Session, messages
from mlxrt_client.v1 import GetModelInfoResponse, StepRequest, StepResponse

from mlxrt import bundled
from mlxrt.check.numbers import run_oracle
from mlxrt.testing.server_process import ServerProcess

CASES = ["bundled", "gemma3_text", "cohere2"]
BLOCK = 4
ENTRIES = 12
LAST_STEP = 12
A, B, C, D = 1, 2, 3, 4


@pytest.fixture
def folder(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Path:
    """The checkpoint of a case: one group of layers, or a full one and one with a window."""
    return bundled.path() if request.param == "bundled" else folder_of(request.param)


class Scene:
    """Four sequences. B starts behind the prompt's beginning that A computes in the same step, C
    behind what A and B compute in it, and D, three steps later, behind a block whose last position
    a decode of C fills.
    """

    def __init__(
        self, session: Session, model: GetModelInfoResponse, texts: Mapping[int, list[int]]
    ) -> None:
        """`texts` are what the sequences will say, prompts included."""
        self.texts = texts
        self._windows = {group.group: group.window for group in model.groups}
        leased = session.allocate_blocks(dict.fromkeys(self._windows, 4 * ENTRIES))
        # No two neighbours in a table are neighbours in the pool.
        self._own = {
            sequence: {group: blocks[sequence - 1 :: 4] for group, blocks in leased.items()}
            for sequence in texts
        }
        self._tables: dict[int, dict[int, list[int]]] = {A: self._own[A]}

    def steps(self) -> Iterator[StepRequest]:
        """All steps, which are known beforehand."""
        first = StepRequest(new_sequences=[self._new(A, 26)])
        first.items.append(messages.chunk_item(A, 10, sample=False))
        yield first
        fill = StepRequest(new_sequences=[self._behind(B, A, 24, 29), self._behind(C, B, 28, 29)])
        fill.items.append(messages.chunk_item(A, 14, sample=False))
        fill.items.append(messages.chunk_item(B, 5, start_position=24, sample=True))
        fill.items.append(messages.chunk_item(C, 1, start_position=28, sample=True))
        for item in fill.items:
            item.return_logits = True
        yield fill
        yield StepRequest(
            decode_sequence_ids=[B, C], items=[messages.chunk_item(A, 2, sample=True)]
        )
        yield StepRequest(decode_sequence_ids=[A, B, C])
        behind = StepRequest(
            decode_sequence_ids=[A, B, C], new_sequences=[self._behind(D, C, 32, 34)]
        )
        behind.items.append(messages.chunk_item(D, 2, start_position=32, sample=True))
        behind.items[-1].return_logits = True
        yield behind
        for _ in range(LAST_STEP - 5):
            yield StepRequest(decode_sequence_ids=[A, B, C, D])

    def _new(self, sequence: int, prompt_length: int) -> Any:
        prompt = self.texts[sequence][:prompt_length]
        return messages.new_sequence(sequence, prompt, self._tables[sequence])

    def _behind(self, sequence: int, donor: int, start: int, prompt_length: int) -> Any:
        """Over the donor's blocks below `start`, with holes where no row sees them."""
        shared = start // BLOCK
        tables = {}
        for group, window in self._windows.items():
            holes = max(0, start - window + 1) // BLOCK if window else 0
            given = [0] * holes + self._tables[donor][group][holes:shared]
            tables[group] = given + self._own[sequence][group][shared:]
        self._tables[sequence] = tables
        return self._new(sequence, prompt_length)


def _play(session: Session, scene: Scene, inflight_steps: int) -> list[StepResponse]:
    responses: list[StepResponse] = []
    waiting: deque[Future[StepResponse]] = deque()
    most = 0
    with session.stream(inflight_steps) as stream:
        for step in scene.steps():
            waiting.append(stream.submit(step))
            most = max(most, len(waiting))
            if len(waiting) == inflight_steps:
                responses.append(waiting.popleft().result(60))
        responses += [future.result(60) for future in waiting]
    assert most == inflight_steps
    return responses


def _said(scene: Scene, responses: list[StepResponse]) -> dict[int, list[int]]:
    """The tokens of each sequence."""
    said: dict[int, list[int]] = {sequence: [] for sequence in scene.texts}
    for step, response in zip(scene.steps(), responses, strict=True):
        for sequence, token in zip(step.decode_sequence_ids, response.token_ids, strict=True):
            said[sequence].append(token)
        for item, result in zip(step.items, response.results, strict=True):
            assert not result.HasField("error")
            said[item.sequence_id] += result.token_ids
    return said


@cache
def _texts(folder: Path, vocabulary_size: int) -> dict[int, tuple[list[int], Any]]:
    """What mlx-lm says alone, by sequence, and its logits."""
    rng = random.Random(17)

    def own(count: int) -> list[int]:
        return [rng.randrange(vocabulary_size) for _ in range(count)]

    def say(*prompts: list[int]) -> list[tuple[list[int], Any]]:
        return run_oracle(folder, "float32", "reference", list(prompts), LAST_STEP)

    a = own(26)
    b = a[:24] + own(5)
    of_a, of_b, of_c = say(a, b, b[:28] + own(1))
    (of_d,) = say(of_c[0][:32] + own(2))
    return {A: of_a, B: of_b, C: of_c, D: of_d}


@pytest.mark.parametrize("attention", ["gather", "native"])
@pytest.mark.parametrize("folder", CASES, indirect=True)
def test_tokens_and_logits(folder: Path, attention: str) -> None:
    arguments = ["--model", str(folder), "--attention", attention, "--blas", "reference"]
    pool = ["--block-size", str(BLOCK), "--num-blocks", str(4 * ENTRIES + 1), "--poison-pool"]
    with (
        ServerProcess([*arguments, *pool, "--dtype", "float32"]) as server,
        Client(server.address) as client,
    ):
        assert client.server_info().attention_path == attention
        model = client.model_info()
        expected = _texts(folder, model.vocabulary_size)
        texts = {sequence: text for sequence, (text, _) in expected.items()}
        for inflight_steps in (1, 2):
            with client.open_session() as session:
                scene = Scene(session, model, texts)
                responses = _play(session, scene, inflight_steps)
                said = _said(scene, responses)
            for sequence, prompt_length in ((A, 26), (B, 29), (C, 29), (D, 34)):
                tokens = said[sequence]
                assert len(tokens) >= 8
                assert tokens == texts[sequence][prompt_length:][: len(tokens)]
            results = {r.sequence_id: r for i in (1, 4) for r in responses[i].results}
            tolerance = 0.0 if attention == "gather" else 1e-4
            for sequence, row in ((A, 23), (B, 28), (C, 28), (D, 33)):
                logits = np.frombuffer(results[sequence].logits.data, "<f4")
                wanted = expected[sequence][1][row]
                assert np.abs(logits - wanted).max() <= tolerance * np.abs(wanted).max()
