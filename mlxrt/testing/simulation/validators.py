"""The checks of a history once it is over: V1 to V4; the witness checks the others at once."""

from __future__ import annotations

from collections import defaultdict

from mlxrt.testing.simulation.history import History, Settled


def validate(history: History) -> list[str]:
    """What is wrong with a finished run; empty where nothing is."""
    settled: dict[tuple[str, int], list[Settled]] = defaultdict(list)
    for each in history.settled:
        settled[each.session_id, each.step_number].append(each)
    return [
        *_each_once(settled),
        *_acknowledged(history, settled),
        *_asked_for(history),
        *_in_order(history),
    ]


def _each_once(settled: dict[tuple[str, int], list[Settled]]) -> list[str]:
    return [
        f"V1: step {key} is in the log {len(s)} times" for key, s in settled.items() if len(s) > 1
    ]


def _acknowledged(history: History, settled: dict[tuple[str, int], list[Settled]]) -> list[str]:
    """V1 and V4: what a client was told is what the log says."""
    wrong = []
    for answer in history.answered:
        key = (answer.session_id, answer.step_number)
        logged = settled.get(key)
        if not logged:
            # The loss of a device answers what never ended.
            if answer.committed:
                wrong.append(f"V1: step {key} was acknowledged and is not in the log")
        elif logged[0].reply != answer.reply or logged[0].committed != answer.committed:
            wrong.append(f"V4: step {key} was answered otherwise than it ended")
    return wrong


def _asked_for(history: History) -> list[str]:
    """V2."""
    asked = {(a.session_id, a.epoch, a.step_number, a.digest) for a in history.asked}
    return [
        f"V2: step {each.step_number} of {each.session_id} was never asked for"
        for each in history.settled
        if (each.session_id, each.epoch, each.step_number, each.digest) not in asked
    ]


def _in_order(history: History) -> list[str]:
    """V3: a session's steps end as 1, 2, 3, …"""
    wrong = []
    last: dict[str, int] = defaultdict(int)
    for each in history.settled:
        if each.step_number != last[each.session_id] + 1:
            wrong.append(
                f"V3: {each.session_id} settled {each.step_number} after {last[each.session_id]}"
            )
        last[each.session_id] = each.step_number
    return wrong
