"""Sampling rules of a sequence, with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """As mlxrt.v1.SamplingParams defines each field; already validated.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        logit_bias: `(token id, bias)` pairs, each id once.
        top_logprobs: None for no logprobs, 0 for the sampled token's alone.
        processed_logprobs: logprobs describe the distribution after the rules rather than the
            model's own.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None
    processed_logprobs: bool = False

    @property
    def penalised(self) -> bool:
        """Whether rule 2 changes anything."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


GREEDY = Sampling()
