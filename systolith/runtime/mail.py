"""Messages from the host to a program that serves: what the next step holds, and what changes in the request slots.

`compiler.kernels.mail` is the other side. The host may run ahead of the device by the entries of the mailbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.memory import MAIL_ENTRIES, PARAM_WORDS, SEGMENT_WORDS, STATE_WORDS, STOPS, Record
from systolith.isa.program import Program
from systolith.runtime.job import NO_STOP, NO_TOKEN, Sampling
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["Mailbox", "Message", "Prefill", "SlotUpdate", "is_end"]

Words = NDArray[np.uint32]


def is_end(record: tuple[int, ...]) -> bool:
    """Whether a record of the done-ring ends a step: messages taken, request slots that live; else it is a token."""
    return len(record) == 2


@dataclass(frozen=True, slots=True)
class Prefill:
    """A run of prompt tokens of a request slot, inside one chunk of attention; `ends` where the prompt does."""

    slot: int
    tokens: tuple[int, ...]
    position: int
    ends: bool


@dataclass(frozen=True, slots=True)
class SlotUpdate:
    """New words of a request slot. tag: told with each token; pages: page numbers in the order of positions; `live`
    False: the slot runs nothing any more."""

    slot: int
    tag: int
    length: int
    max_tokens: int
    sampling: Sampling
    stops: tuple[int, ...]
    pages: tuple[int, ...]
    live: bool = True

    def words(self, starts: dict[str, int], block: int) -> Words:
        """The block of the message."""
        words = np.zeros(block, np.uint32)
        words[starts["state"] :][:STATE_WORDS] = (NO_TOKEN, self.length, int(self.live), self.tag)
        words[starts["params"] :][:PARAM_WORDS] = self.sampling.words(self.length + self.max_tokens - 1)
        stops = words[starts["stops"] :][:STOPS]
        stops[:] = NO_STOP
        stops[: len(self.stops)] = self.stops
        words[starts["pages"] :][: len(self.pages)] = self.pages
        return words


@dataclass(slots=True)
class Message:
    """One step, and those to follow. decode: slots that go on; pattern: slots that go on in the steps after it."""

    decode: Sequence[int] = ()
    prefill: Sequence[Prefill] = ()
    pattern: Sequence[int] = ()
    updates: Sequence[SlotUpdate] = ()
    stop: bool = False
    outputs: list[int] = field(default_factory=list)
    """Slots of the rows that need logits, in the order of the tokens told: filled in when it is written."""

    @property
    def rows(self) -> int:
        """Rows of the step."""
        return len(self.decode) + sum(len(p.tokens) for p in self.prefill)


class Mailbox:
    """The host's side of the mailbox of a machine that runs `program`."""

    def __init__(self, machine: Any, program: Program) -> None:
        meta: dict[str, Any] = program.meta
        self._machine, self._slices, self._dram = machine, program.requires.slices, meta["dram"]
        self._record = Record(**meta["record"])
        self._batch: int = meta["options"]["batch"]
        pages = meta["pages"]["chunks"] * (CHUNK_TOKENS // meta["pages"]["tokens"])
        self._layout = self._record.message(self._batch, pages)
        self.written = 0
        """Messages so far."""
        for rank in range(self._slices):
            for name, words in (("state", STATE_WORDS), ("params", PARAM_WORDS), ("stops", STOPS), ("pages", pages)):
                machine.write_dram(rank, self._dram[name], bytes(4 * words * self._batch))
        machine.write_dram(0, self._dram["bell"], bytes(4))

    def room(self, taken: int) -> bool:
        """Whether a message may be written when the device has told that it has taken `taken`."""
        return self.written - taken < MAIL_ENTRIES - 1

    def write(self, message: Message) -> None:
        """Write a message to every slice, then ring slice 0."""
        layout, record = self._layout, self._record
        words = np.zeros(layout.words, np.uint32)
        message.outputs = self._step(words[: record.words], message)
        self._step(words[layout.pattern :][: record.words], Message(message.pattern, pattern=message.pattern))
        for number, update in enumerate(message.updates):
            at = layout.updates + number * layout.block
            words[at : at + layout.block] = update.words(layout.starts, layout.block)
        entry = self._dram["mail"] + 4 * layout.words * (self.written % MAIL_ENTRIES)
        data = words.tobytes()
        for rank in range(self._slices):
            self._machine.write_dram(rank, entry, data)
        self.written += 1
        self._machine.write_dram(0, self._dram["bell"], np.uint32(self.written).tobytes())

    def _step(self, words: Words, message: Message) -> list[int]:
        """Fill in a record; give the slots of its outputs. Tokens and positions of decode rows are the device's."""
        at = self._record
        segments = [(slot, row, 1, 0) for row, slot in enumerate(message.decode)]
        outputs = list(enumerate(message.decode))
        row = len(message.decode)
        for part in message.prefill:
            count = len(part.tokens)
            words[at.ids + row :][:count] = part.tokens
            words[at.positions + row :][:count] = np.arange(part.position, part.position + count)
            segments.append((part.slot, row, count, part.position))
            row += count
            if part.ends:
                outputs.append((row - 1, part.slot))
        assert row == message.rows
        assert len(segments) <= at.max_segments
        updated = [u.slot for u in message.updates]
        words[:7] = (row, len(segments), len(outputs), len(message.decode), len(updated), len(message.pattern),
                     message.stop)  # fmt: skip
        for i, segment in enumerate(segments):
            words[at.segments + SEGMENT_WORDS * i :][:SEGMENT_WORDS] = segment
        for i, (r, slot) in enumerate(outputs):
            words[at.out_rows + i], words[at.out_slots + i] = r, slot
        words[at.updates :][: len(updated)] = updated
        return [slot for _, slot in outputs]
