"""Entry points that take bytes from outside, a scene that gives them meaning, and a mutator.

`python tests/fuzz/fuzzer.py Step 100000 0` sends so many mutants with this seed.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from random import Random

from mlxrt_client.v1 import execution_pb2, step_pb2

from mlxrt.errors import MlxrtError
from mlxrt.testing.fake_engine import FakeEngine
from mlxrt.testing.simulation import silence_logs
from mlxrt.testing.simulation.clock import Clocks, EventQueue
from mlxrt.testing.simulation.engine import EngineFaults, SimulatedEngine
from mlxrt.testing.simulation.history import History
from mlxrt.testing.simulation.server import ServerStream, SimulatedServer
from mlxrt.testing.simulation.simulation import LIMITS

CORPUS = Path(__file__).parent / "corpus"
LOOK_EVERY = 16
"""Refused inputs between two proofs that nothing has changed since the last accepted one."""
_ENDING = ("CloseSession", "ResumeSession", "Step", "Execute", "Prefill", "Decode", "SampleStep")
"""Entry points that, once they have accepted something, refuse most of what follows."""


class Scene:
    """A server with a session of two sequences; its ids are the same every time.

    Args:
        rpc: what it is for. For SampleStep a step waits for its masks.
    """

    def __init__(self, rpc: str) -> None:
        self.history = History()
        self.queue = EventQueue()
        template = FakeEngine(
            vocabulary_size=509, block_size=4, num_blocks=40, windows=(0, 6), max_model_length=48
        )
        engine = SimulatedEngine(template, self.queue, Random(1), EngineFaults(step_us=(1, 2)))
        self.server = SimulatedServer(
            1, self.queue, Clocks(self.queue), Random(2), LIMITS, engine, self.history, lambda: None
        )
        for name in ("OpenSession", "AllocateBlocks", "Step"):
            assert self.send(name, (CORPUS / name / "scene").read_bytes()) == "accepted", name
        self.settle()
        if rpc == "SampleStep":
            self.server.call("Step", (CORPUS / "Step" / "deferred").read_bytes(), lambda _: None)
            self.settle()
            assert self.server.core.inflight_count() == 1

    def send(self, rpc: str, data: bytes) -> str:
        """Sends bytes; answers "accepted" or the reason of the refusal."""
        answers: list[bytes | MlxrtError] = []
        if rpc == "Execute":
            ServerStream(self.server, answers.append, answers.append).take(data)
        else:
            self.server.call(rpc, data, answers.append)
        self.settle()
        assert not self.history.violations, self.history.violations
        if not answers:
            # Masks have no answer of their own, and a step that waits for them has none yet.
            assert rpc == "Execute" or self.server.core.inflight_count() > 0
            return "accepted"
        (answer,) = answers
        if isinstance(answer, MlxrtError):
            return answer.reason.name
        if rpc == "Execute":
            response = execution_pb2.ExecuteResponse.FromString(answer)
            if response.WhichOneof("message") == "error":
                return str(response.error.reason)
            if response.WhichOneof("message") == "sampling_refusal":
                return str(response.sampling_refusal.error.reason)
        return "accepted"

    def settle(self) -> None:
        """Lets steps end and their answers come."""
        self.queue.run_until(self.queue.now_us + 2_000)


def mutate(random: Random, data: bytes) -> bytes:
    """Changes, drops, doubles or inserts a few bytes."""
    mutant = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 1, 2, 4))):
        at = random.randrange(len(mutant) + 1)
        match random.randrange(10):
            case 0 | 1 | 2 | 3 | 4 | 5 | 6 if at < len(mutant):
                mutant[at] = random.choice((0, 1, 2, 127, 128, 255, random.randrange(256)))
            case 7:
                del mutant[at : at + random.randint(1, 4)]
            case 8:
                mutant[at:at] = mutant[at : at + random.randint(1, 12)]
            case _:
                mutant[at:at] = random.randbytes(random.randint(1, 3))
    return bytes(mutant)


def fuzz(rpc: str, inputs: int, seed: int = 0) -> Counter[str]:
    """Sends mutants of the corpus; answers how often each thing came back."""
    random = Random(f"{rpc} {seed}")
    seeds = [path.read_bytes() for path in sorted((CORPUS / rpc).iterdir())]
    met: Counter[str] = Counter()
    scene, age = Scene(rpc), 0
    before = scene.server.core.digest()
    for index in range(inputs):
        data = random.choice(seeds)
        if random.random() < 0.98:
            data = mutate(random, data)
        outcome = scene.send(rpc, data)
        met[outcome] += 1
        if outcome == "accepted":
            age += 1
            if age >= 8 or rpc in _ENDING:
                scene.server.core.check_integrity()
                scene, age = Scene(rpc), 0
            before = scene.server.core.digest()
        elif index % LOOK_EVERY == 0:
            assert scene.server.core.digest() == before, (rpc, data.hex())
    assert scene.server.core.digest() == before
    return met


def scene_step(ref: object) -> step_pb2.StepRequest:
    """The step that the scene begins with, for whoever makes the corpus anew."""
    new = [
        {
            "sequence_id": i,
            "prompt_token_ids": [3, 4, 5, 6, 7, 8],
            "tables": [{"group": g, "block_ids": [2 * i - 1, 2 * i]} for g in (0, 1)],
        }
        for i in (1, 2)
    ]
    items = [
        {"sequence_id": i, "row_count": 6, "sample": True, "registered": {}} for i in (1, 2)
    ]
    return step_pb2.StepRequest(session=ref, step_number=1, new_sequences=new, items=items)


if __name__ == "__main__":
    silence_logs()
    print(json.dumps(fuzz(sys.argv[1], *map(int, sys.argv[2:]))))
