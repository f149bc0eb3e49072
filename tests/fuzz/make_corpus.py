"""Writes the seed corpus: a few small valid requests for each entry point."""

from __future__ import annotations

from random import Random

from fuzzer import CORPUS, scene_step
from mlxrt_client.v1 import execution_pb2, session_pb2, step_pb2

random = Random(2)
REF = session_pb2.SessionRef(session_id=random.getrandbits(128).to_bytes(16).hex(), epoch=1)
STEPS = {
    "decode": step_pb2.StepRequest(session=REF, step_number=2, decode_sequence_ids=[1, 2]),
    "release": step_pb2.StepRequest(
        session=REF, step_number=2, release_sequence_ids=[1],
        new_sequences=[{"sequence_id": 3, "prompt_token_ids": [1, 2],
                        "tables": [{"group": 0, "block_ids": [9]}, {"group": 1, "block_ids": [9]}],
                        "sampling": {"temperature": 0.5, "top_k": 3, "seed": 7, "top_p": 0.9}}],
        items=[{"sequence_id": 3, "row_count": 2, "sample": True, "registered": {}}],
    ),
    "change": step_pb2.StepRequest(
        session=REF, step_number=2,
        block_copies=[{"group": 0, "source_block_id": 1, "destination_block_id": 8}],
        items=[{"sequence_id": 1, "row_count": 3, "sample": True, "start_position": 4,
                "explicit": {"token_ids": [9, 8, 7]},
                "leading_holes": [{"group": 1, "count": 0}],
                "append": {"tables": [{"group": 0, "block_ids": [7]}]}},
               {"sequence_id": 2, "replace": {}}],
    ),
}  # fmt: skip
ALLOWED = {"data_type": "DATA_TYPE_INT32", "shape": [3, 16], "data": bytes(range(192))}
STEPS["drafts"] = step_pb2.StepRequest(
    session=REF, step_number=2,
    items=[{"sequence_id": 1, "row_count": 1, "sample": True, "last_sampled": {},
            "draft_token_ids": [5, 6]}],
    masks=[{"sequence_id": 1, "allowed": ALLOWED}],
)  # fmt: skip
STEPS["deferred"] = step_pb2.StepRequest(
    session=REF, step_number=2, decode_sequence_ids=[1, 2], defer_sampling=True
)
STEPS["prompt"] = step_pb2.StepRequest(
    session=REF, step_number=2,
    new_sequences=[{"sequence_id": 3, "prompt_token_ids": [1, 2, 3], "prompt_top_logprobs": 2,
                    "tables": [{"group": g, "block_ids": [9]} for g in (0, 1)]}],
    items=[{"sequence_id": 3, "row_count": 3, "registered": {}}],
)  # fmt: skip
REQUESTS = {
    "OpenSession": {"scene": session_pb2.OpenSessionRequest(
        request_id="scene", client_name="fuzz", lease_ttl_ms=10_000)},
    "RenewSession": {"renew": session_pb2.RenewSessionRequest(session=REF)},
    "ResumeSession": {"resume": session_pb2.ResumeSessionRequest(session=REF, request_id="r")},
    "GetSession": {"all": session_pb2.GetSessionRequest(
        session=REF, include_tables=True, include_tokens=True)},
    "CloseSession": {"close": session_pb2.CloseSessionRequest(session=REF)},
    "AllocateBlocks": {"scene": execution_pb2.AllocateBlocksRequest(
        session=REF, request_id="scene-blocks",
        counts=[{"group": 0, "count": 12}, {"group": 1, "count": 12}])},
    "FreeBlocks": {"free": execution_pb2.FreeBlocksRequest(
        session=REF, request_id="f", blocks=[{"group": 0, "block_ids": [10, 11]}])},
    "FreeSequences": {"free": execution_pb2.FreeSequencesRequest(
        session=REF, request_id="s", sequence_ids=[1], free_blocks=True)},
    "Step": {"scene": scene_step(REF), **STEPS},
    "SampleStep": {
        "free": execution_pb2.SampleStepRequest(sampling={"session": REF, "step_number": 2}),
        "masks": execution_pb2.SampleStepRequest(sampling={
            "session": REF, "step_number": 2,
            "masks": [{"sequence_id": i, "allowed": {**ALLOWED, "shape": [1, 16],
                                                     "data": bytes(range(64))}} for i in (1, 2)]}),
    },
    "Execute": {name: execution_pb2.ExecuteRequest(step=step) for name, step in STEPS.items()},
    "Prefill": {"prefill": execution_pb2.PrefillRequest(
        session=REF, step_number=2, chunks=[{"row_count": 2, "sample": True, "sequence": {
            "sequence_id": 3, "prompt_token_ids": [1, 2],
            "tables": [{"group": 0, "block_ids": [9]}, {"group": 1, "block_ids": [9]}]}}])},
    "Decode": {"decode": execution_pb2.DecodeRequest(
        session=REF, step_number=2, sequence_ids=[1, 2], appended=[
            {"sequence_id": 1, "append": [{"group": 0, "block_ids": [7]}]}])},
}  # fmt: skip

if __name__ == "__main__":
    for rpc, requests in REQUESTS.items():
        (CORPUS / rpc).mkdir(parents=True, exist_ok=True)
        for name, request in requests.items():
            (CORPUS / rpc / name).write_bytes(request.SerializeToString(deterministic=True))
