"""Structured output: vLLM computes the masks while the server runs the forward."""

from __future__ import annotations

import json

import jsonschema
import pytest
from test_speculation import SPECULATION
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from workload import executor_of

REQUESTS = 200
COMPACT = {"backend": "xgrammar", "disable_any_whitespace": True}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer"},
        "kind": {"enum": ["list", "dict", "set"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "size", "kind", "tags"],
    "additionalProperties": False,
}


def run(llm, count: int, max_tokens: int = 64):
    """Two thirds of the requests are constrained: their outputs, then those of the others."""
    structured = StructuredOutputsParams(json=SCHEMA)
    requests = [f"# {index}\nvalue = " for index in range(count)]
    params = [
        SamplingParams(
            temperature=0.8,
            seed=index,
            max_tokens=max_tokens,
            structured_outputs=structured if index % 3 else None,
        )
        for index in range(count)
    ]
    outputs = [output.outputs[0] for output in llm.generate(requests, params, use_tqdm=False)]
    return [o for i, o in enumerate(outputs) if i % 3], outputs[::3]


@pytest.mark.parametrize("two_in_flight", [False, True])
def test_every_answer_that_ends_is_of_the_schema(bundled_server, make_llm, two_in_flight):
    """200 requests in a small pool, two thirds of them with a JSON schema."""
    llm = make_llm(
        bundled_server,
        num_gpu_blocks_override=44,
        async_scheduling=two_in_flight,
        structured_outputs_config=COMPACT,
    )
    constrained, free = run(llm, REQUESTS)
    executor = executor_of(llm)
    assert executor.inflight_max == (2 if two_in_flight else 1)
    assert executor.counts.masks > 1000
    assert executor.counts.mixed_steps > 0 and executor.counts.preemptions > 0
    ended = [output for output in constrained if output.finish_reason == "stop"]
    assert len(ended) > 0.5 * len(constrained)
    for output in ended:
        jsonschema.validate(json.loads(output.text), SCHEMA)
    assert not any(output.text.startswith('{"name"') for output in free)


def test_drafts_under_a_schema(bundled_server, make_llm):
    """A mask for each draft: answers are of the schema, and those of a run without drafts."""
    plain = make_llm(bundled_server, structured_outputs_config=COMPACT)
    expected, _ = run(plain, 24)
    plain.llm_engine.engine_core.shutdown()
    llm = make_llm(
        bundled_server, speculative_config=SPECULATION, structured_outputs_config=COMPACT
    )
    constrained, _ = run(llm, 24)
    counts = executor_of(llm).counts
    assert counts.masks > 100 and counts.accepted_drafts > 0
    assert [output.text for output in constrained] == [output.text for output in expected]
    for output in constrained:
        if output.finish_reason == "stop":
            jsonschema.validate(json.loads(output.text), SCHEMA)
