"""Who knows the greedy tokens after a prompt beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

from mlxrt_client import Client, Scheduler

from mlxrt.testing.fake_model import FakeModel

FAKE_VOCABULARY_SIZE = 4096
"""Of `mlxrt serve --fake`, unless set."""


class Oracle(Protocol):
    """Prompts, and what follows each."""

    def prompt(self, random: Random) -> tuple[int, ...]:
        """A prompt that it knows the tokens after."""

    def after(self, prompt: tuple[int, ...], count: int) -> Sequence[int]:
        """The first `count` greedy tokens after `prompt`."""


class FakeOracle:
    """Knows what the fake model answers; every prompt is another."""

    def __init__(
        self, block_size: int = 16, max_model_length: int = 4096, prompt_length_max: int = 12
    ) -> None:
        self._model = FakeModel(FAKE_VOCABULARY_SIZE, max_model_length, block_size, 2, (0,))
        self._prompt_length_max = prompt_length_max

    def prompt(self, random: Random) -> tuple[int, ...]:
        """As Oracle.prompt."""
        length = random.randint(1, self._prompt_length_max)
        return tuple(random.choices(range(FAKE_VOCABULARY_SIZE), k=length))

    def after(self, prompt: tuple[int, ...], count: int) -> Sequence[int]:
        """As Oracle.after."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(self._model.expected_token(tokens))
        return tokens[len(prompt) :]


class RecordedOracle:
    """Knows what a server answered in an undisturbed run.

    Args:
        recorded: the tokens after each prompt.
    """

    def __init__(self, recorded: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        self._recorded = recorded

    def prompt(self, random: Random) -> tuple[int, ...]:
        """As Oracle.prompt."""
        return random.choice(list(self._recorded))

    def after(self, prompt: tuple[int, ...], count: int) -> Sequence[int]:
        """As Oracle.after; raises ValueError for more tokens than were recorded."""
        tokens = self._recorded[prompt]
        if count > len(tokens):
            raise ValueError(f"{len(tokens)} tokens were recorded, {count} are asked for")
        return tokens[:count]


def record(
    address: str, prompts: Sequence[Sequence[int]], count: int, block_count: int
) -> RecordedOracle:
    """Has the server generate `count` tokens after each prompt, all together, undisturbed."""
    tokens: dict[int, list[int]] = {}
    with Client(address) as client, client.open_session(client_name="record") as session:
        scheduler = Scheduler(
            session, client.model_info(), client.server_info().limits, block_count=block_count
        )
        ids = {scheduler.add(prompt, count): tuple(prompt) for prompt in prompts}
        for token in scheduler.run():
            assert token.token_id is not None, token.error
            tokens.setdefault(token.sequence_id, []).append(token.token_id)
    return RecordedOracle({ids[number]: answer for number, answer in tokens.items()})
