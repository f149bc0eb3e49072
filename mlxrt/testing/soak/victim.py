"""A client of the soak in a process of its own, which is killed: `python -m
mlxrt.testing.soak.victim ADDRESS TTL_MS PROMPT_TOKEN…`."""

from __future__ import annotations

import sys

from mlxrt_client import Client, messages
from mlxrt_client.errors import SessionLostError
from mlxrt_client.v1 import StepRequest

from mlxrt.testing.soak.run import SESSION_LOST


def main() -> None:
    """Decodes one sequence over and over, two steps in flight, until killed."""
    address, ttl_ms, *prompt = sys.argv[1:]
    with Client(address) as client, client.open_session(lease_ttl_ms=int(ttl_ms)) as session:
        blocks = session.allocate_blocks({0: 4})
        new = messages.new_sequence(1, [int(token) for token in prompt], blocks)
        item = messages.chunk_item(1, len(prompt), sample=True)
        session.step(StepRequest(new_sequences=[new], items=[item]))
        print("steps", flush=True)
        decode = messages.explicit_item(1, [int(prompt[-1])], sample=True, start_position=0)
        with session.stream() as stream:
            while True:
                stream.submit(StepRequest(items=[decode]))


if __name__ == "__main__":
    try:
        main()
    except SessionLostError:
        sys.exit(SESSION_LOST)
