"""A sequence that comes back after a discarded step: what it had generated still counts so."""

from __future__ import annotations

import numpy as np

from mlxrt.core.sampling import Sampling
from mlxrt.core.step import Registration
from mlxrt.engine.mirrors import SequenceMirrors


def test_tokens_that_were_generated_are_no_prompt() -> None:
    mirrors = SequenceMirrors(group_count=1, vocabulary_size=64)
    rules = Sampling(frequency_penalty=1.0)
    mirrors.register(Registration(1, [7, 7, 5, 9, 9], rules, seed=3, generated_count=2))
    (line,) = mirrors.lines_of([1])
    assert mirrors.prompt_length[line] == 3
    assert mirrors.tokens[line, :5].tolist() == [7, 7, 5, 9, 9]
    sampling = mirrors.sampling[line]
    assert sampling is not None
    assert sampling.prompt.tolist() == [5, 7]


def test_given_tokens_end_what_is_left_of_the_prompt() -> None:
    mirrors = SequenceMirrors(group_count=1, vocabulary_size=64)
    mirrors.register(Registration(1, [7, 8, 5, 9], Sampling(repetition_penalty=1.5), seed=3))
    (line,) = mirrors.lines_of([1])
    sampling = mirrors.sampling[line]
    assert sampling is not None
    for start, left, prompt in ((4, 4, [5, 7, 8, 9]), (2, 2, [7, 8]), (3, 2, [7, 8]), (0, 0, [])):
        mirrors.overwrite([1], np.array([line]), np.array([start]), np.array([33]))
        mirrors.keep_prompt(line, start)
        assert mirrors.prompt_length[line] == left
        assert sampling.prompt.tolist() == prompt
