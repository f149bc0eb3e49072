"""Steps that a scheduler might send, most of them valid."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from core_model import Known, Machine, State

from mlxrt.core.step import Item, NewSequence, StepInput, TokenSource

MISTAKE_SHARE = 0.15


class StepMaker:
    """Draws one step from what the session has planned."""

    def __init__(self, machine: Machine, planned: State, random: Random) -> None:
        self.machine = machine
        self.facts = machine.facts
        self.planned = planned
        self.random = random
        named = set(planned.named())
        self.unused = {
            group: [b for g, b in planned.blocks if g == group and (g, b) not in named]
            for group in machine.groups
        }
        for ids in self.unused.values():
            random.shuffle(ids)
        self.parts: dict[str, Any] = {
            "releases": [],
            "copies": [],
            "new_sequences": [],
            "decode_ids": [],
            "items": [],
        }

    def draw(self, number: int) -> StepInput:
        """A step of this number."""
        random = self.random
        for sequence_id, sequence in self.planned.sequences.items():
            if random.random() < (0.3 if sequence.failed else 0.03):
                self.parts["releases"].append(sequence_id)
            elif random.random() < 0.9:
                self._act(sequence_id, sequence)
        if random.random() < 0.5:
            self._register()
        for _ in range(2):
            if random.random() < 0.4:
                self._register_behind()
        if random.random() < MISTAKE_SHARE:
            self._spoil()
        self.parts["deferred"] = random.random() < 0.15
        return StepInput(number, repr(self.parts).encode(), **self.parts)

    def _act(self, sequence_id: int, sequence: Known) -> None:
        known = len(sequence.tokens)
        decodable = sequence.given and sequence.position == known - 1
        choices: list[tuple[int, Callable[[int, Known], None]]] = [
            (20, self._decode if decodable else self._chunk),
            (3, self._roll_back),
            (1, self._preempt),
            (2, self._resume),
            (1, self._give),
            (1, self._grow),
            (2, self._pierce),
            (2, self._copy_shared),
            (1, self._copy_over),
            (8 * decodable, self._verify),
        ]
        weights, actions = zip(*choices, strict=True)
        self.random.choices(actions, weights)[0](sequence_id, sequence)

    def _append_for(self, tables: list[list[int]], end: int) -> dict[int, list[int]] | None:
        """Blocks that the tables lack to cover `end` positions, as far as there are any."""
        append = {}
        for group, table in enumerate(tables):
            lacking = -(-end // self.facts.block_size) - len(table)
            if lacking > 0:
                append[group] = [
                    self.unused[group].pop() for _ in range(lacking) if self.unused[group]
                ]
        return {g: ids for g, ids in append.items() if ids} or None

    def _verify(self, sequence_id: int, sequence: Known) -> None:
        """A decode with drafts, of which one in seven is right."""
        drafts = [self.random.randrange(7 + (self.random.random() < 0.03)) for _ in range(2)]
        end = sequence.position + 1 + len(drafts)
        append = self._append_for(sequence.tables, end)
        if end < self.facts.max_model_length:
            item = Item(sequence_id, 1, None, TokenSource.LAST_SAMPLED, append=append)
            item.sample, item.draft_tokens = self.random.random() < 0.95, drafts
            self.parts["items"].append(item)

    def _decode(self, sequence_id: int, sequence: Known) -> None:
        append = self._append_for(sequence.tables, sequence.position + 1)
        covered = min(len(t) for t in sequence.tables) * self.facts.block_size > sequence.position
        if not covered and append is None and self.random.random() < 0.9:
            return
        if append is None and self.random.random() < 0.9:
            self.parts["decode_ids"].append(sequence_id)
        else:
            self.parts["items"].append(
                Item(
                    sequence_id,
                    1,
                    None,
                    TokenSource.LAST_SAMPLED,
                    append=append,
                    sample=self.random.random() < 0.9,
                )
            )

    def _chunk(
        self, sequence_id: int, sequence: Known, start: int | None = None, **more: Any
    ) -> None:
        known = len(sequence.tokens)
        first = sequence.position if start is None else start
        if first >= known:
            first = start = known - 1
        count = self.random.randint(1, known - first)
        append = None
        if "replace" not in more:
            append = self._append_for(sequence.tables, first + count)
            room = min(
                len(t) + len((append or {}).get(g, ())) for g, t in enumerate(sequence.tables)
            )
            if self.random.random() < 0.95:
                count = min(count, room * self.facts.block_size - first)
        if count < 1:
            return
        sample = first + count == known and self.random.random() < 0.8
        self.parts["items"].append(
            Item(
                sequence_id,
                count,
                start,
                TokenSource.REGISTERED,
                append=append,
                sample=sample,
                **more,
            )
        )

    def _roll_back(self, sequence_id: int, sequence: Known) -> None:
        self._chunk(sequence_id, sequence, self.random.randint(0, sequence.position))

    def _preempt(self, sequence_id: int, sequence: Known) -> None:
        self.parts["items"].append(Item(sequence_id, replace={}))

    def _resume(self, sequence_id: int, sequence: Known) -> None:
        """New tables: some entries of the old one or of another sequence kept, the rest unused
        blocks.
        """
        donor = self.random.choice([sequence, *self.planned.sequences.values()])
        kept = self.random.randint(0, 3)
        length = -(-len(sequence.tokens) // self.facts.block_size)
        tables = {}
        for group, table in enumerate(donor.tables):
            ids = table[:kept]
            ids += [
                self.unused[group].pop() for _ in range(length - len(ids)) if self.unused[group]
            ]
            tables[group] = ids
        limit = max(0, len(sequence.tokens) - 1)
        start = min(kept * self.facts.block_size, limit) if self.random.random() < 0.7 else 0
        self._chunk(sequence_id, sequence, start, replace=tables)

    def _give(self, sequence_id: int, sequence: Known) -> None:
        """Explicit tokens at or before the end."""
        start = self.random.randint(0, sequence.position)
        count = self.random.randint(1, 3)
        tokens = [self.random.randrange(self.facts.vocabulary_size) for _ in range(count)]
        append = self._append_for(sequence.tables, start + count)
        absent = start == sequence.position and self.random.random() < 0.5
        self.parts["items"].append(
            Item(
                sequence_id,
                count,
                None if absent else start,
                TokenSource.EXPLICIT,
                tokens,
                append,
                sample=self.random.random() < 0.5,
            )
        )

    def _grow(self, sequence_id: int, sequence: Known) -> None:
        group = self.random.choice(self.machine.groups)
        if self.unused[group]:
            ids = [self.unused[group].pop()]
            self.parts["items"].append(Item(sequence_id, append={group: ids}))

    def _pierce(self, sequence_id: int, sequence: Known) -> None:
        """Holes in front, mostly only where the window has passed."""
        group = len(self.machine.groups) - 1
        gone = self.machine.first_read(group, sequence.position) // self.facts.block_size
        if self.random.random() < 0.1:
            group, gone = 0, 1
        if gone and gone <= len(sequence.tables[group]):
            self.parts["items"].append(Item(sequence_id, leading_holes={group: gone}))

    def _copy_shared(self, sequence_id: int, sequence: Known) -> None:
        """Copies the block that the next row writes, and puts the copy in its place."""
        index = sequence.position // self.facts.block_size
        tables = {group: list(table) for group, table in enumerate(sequence.tables)}
        for group, table in tables.items():
            if index >= len(table) or not table[index] or not self.unused[group]:
                return
        for group, table in tables.items():
            fresh = self.unused[group].pop()
            self.parts["copies"].append((group, table[index], fresh))
            table[index] = fresh
        self._chunk(sequence_id, sequence, sequence.position, replace=tables)

    def _copy_over(self, sequence_id: int, sequence: Known) -> None:
        """Copies any block over one of the sequence's."""
        group = self.random.choice(self.machine.groups)
        sources = [block_id for g, block_id in self.planned.blocks if g == group]
        named = [block_id for block_id in sequence.tables[group] if block_id]
        taken = [destination for g, _, destination in self.parts["copies"] if g == group]
        if named and (destination := self.random.choice(named)) not in taken:
            self.parts["copies"].append((group, self.random.choice(sources), destination))

    def _register(self) -> None:
        """A new sequence, sometimes over the first blocks of another one and with its first
        tokens.
        """
        random = self.random
        free = [
            i for i in range(1, 6) if i not in self.planned.sequences or i in self.parts["releases"]
        ]
        if not free or (len(self.planned.sequences) >= 4 and random.random() < 0.9):
            return
        sequence_id = random.choice(free)
        prompt = [random.randrange(self.facts.vocabulary_size) for _ in range(random.randint(1, 9))]
        tables: dict[int, list[int]] = {}
        shared = 0
        if self.planned.sequences and random.random() < 0.5:
            donor = random.choice(list(self.planned.sequences.values()))
            shared = min(donor.position, len(donor.tokens) - 1) // self.facts.block_size
            prompt[: shared * self.facts.block_size] = donor.tokens[
                : shared * self.facts.block_size
            ]
            named = shared + (random.random() < 0.3)
            tables = {group: table[:named] for group, table in enumerate(donor.tables)}
        self.parts["new_sequences"].append(NewSequence(sequence_id, prompt, tables))
        if random.random() < 0.8:
            start = min(shared * self.facts.block_size, len(prompt) - 1)
            known = Known([tables.get(g, []) for g in self.machine.groups], prompt)
            self._chunk(sequence_id, known, start if shared else None)

    def _register_behind(self) -> None:
        """A new sequence that starts behind blocks which rows of this very step fill."""
        random, size = self.random, self.facts.block_size
        items = [i for i in self.parts["items"] if i.row_count]
        items += [Item(i, 1) for i in self.parts["decode_ids"]]
        named = {new.sequence_id: new for new in self.parts["new_sequences"]}
        there = [*self.planned.sequences, *named]
        free = [i for i in range(1, 6) if i not in there or i in self.parts["releases"]]
        free = [i for i in free if i not in named]
        full = len(there) - len(self.parts["releases"]) >= 4
        if not items or not free or (full and random.random() < 0.95):
            return
        item = random.choice(items)
        donor = self.planned.sequences.get(item.sequence_id)
        if item.sequence_id in named:
            new = named[item.sequence_id]
            donor = Known([new.tables.get(g, []) for g in self.machine.groups], list(new.prompt))
        if donor is None:
            return
        tables = item.replace or dict(enumerate(donor.tables))
        start = donor.position if item.start_position is None else item.start_position
        end = start + item.row_count
        shared = min(end // size + (random.random() < 0.1), 4)
        ids = {
            group: [*tables.get(group, []), *(item.append or {}).get(group, [])][:shared]
            for group in self.machine.groups
        }
        if not shared:
            return
        for group in self.machine.groups:
            if self.unused[group]:
                ids[group].append(self.unused[group].pop())
        head = (donor.tokens + [0] * 14)[: shared * size]
        prompt = [*head, random.randrange(self.facts.vocabulary_size)]
        if len(prompt) > self.facts.max_model_length:
            return
        self.parts["new_sequences"].append(NewSequence(free[0], prompt, ids))
        self.parts["items"].append(
            Item(free[0], 1, shared * size, TokenSource.REGISTERED, sample=random.random() < 0.8)
        )

    def _spoil(self) -> None:
        """One thing that is probably wrong."""
        random, parts = self.random, self.parts
        block_id = random.choice([0, *range(1, self.facts.groups[0].block_count + 2)])
        other = random.choice([0, *range(1, self.facts.groups[0].block_count)])
        sequence_id = random.randint(1, 6)
        kind = random.randrange(8)
        if kind == 0:
            parts["decode_ids"].append(sequence_id)
        elif kind == 1:
            parts["items"].append(
                Item(
                    sequence_id,
                    random.randint(0, 3),
                    random.choice([None, *range(12)]),
                    TokenSource.REGISTERED,
                )
            )
        elif kind == 2:
            parts["items"].append(Item(sequence_id, append={random.randint(0, 2): [block_id]}))
        elif kind == 3:
            copy = (random.randint(0, 1), block_id, other)
            parts["copies"] += [copy, copy] if random.random() < 0.6 else [copy]
        elif kind == 4:
            parts["releases"].append(sequence_id)
        elif kind == 5 and parts["items"]:
            item = random.choice(parts["items"])
            item.row_count = random.randint(0, 20)
        elif kind == 6 and parts["items"]:
            item = random.choice(parts["items"])
            item.start_position = random.randint(0, 14)
        elif kind == 7:
            parts["new_sequences"].append(
                NewSequence(sequence_id, [1] * random.choice([0, 2, 17]), {0: [block_id]})
            )
