"""`Skeleton`: a program's control without its arithmetic, for times where there are no weights.

It gives the resolved stream that `FastMachine` gives, and holds no more of the DRAM than the tables that control reads:
a model of 70 billion parameters on 64 slices takes some ten megabytes. Where it is told the loop over layers, it stops
at each iteration and says how many more must go as the last ones went (`repeats`), so that they need not be run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from systolith.isa.descriptor import Descriptor
from systolith.isa.facts import SLICES, facts
from systolith.isa.issue import C_BEFORE, C_LOOP, C_LOOPS, CARRY_COLS, OP_COLS, issues
from systolith.isa.program import Program
from systolith.isa.resolved import COLS, OP, QUEUE, WAIT
from systolith.isa.sequencer import Br, Desc, Loop
from systolith.spec import CELLS, DESCRIPTORS, REGISTERS, Chip, ProgramError

from . import _skeleton as loop
from . import _state as S
from ._interpreter import LIMIT, RANG, STOPPED
from .machine import FastMachine, Ints
from .repeat import Words
from .sequencer import COPY, GROUP, PICK, TOPK, VEC

__all__ = ["Skeleton"]

_PERIODS = 3
"""Most iterations after which control is looked for as it was."""
_MOST_ROWS = 1 << 20
"""Rows of all slices that are kept to compare with, some 120 MB; a program of longer iterations is run whole."""
_ISSUE_TABLES = (OP_COLS, 12, 8)
"""Columns of issues, of their operands' addresses (base, scales), and of word, operation and operands' spaces."""
_ADDRESSES = (S.D_BASE, S.D_SBASE)
_REST = [field for field in range(S.D_FIELDS) if field not in _ADDRESSES]


@dataclass
class _Cut:
    """Control at an iteration's start: state of all slices, what the tables hold; and where each slice's rows began."""

    state: Ints
    tables: Ints
    rows: list[list[Ints]]
    """Of the iteration that ends here, by slice: addresses of the operands [n, 12] of each piece."""
    heads: list[list[Ints]]
    """Likewise word, operation and spaces [n, 8]."""


class Skeleton(FastMachine):
    """Slices that run a program for its control only. Same surface as `FastMachine`, apart from `step`.

    dram_bytes : bytes of DRAM, from 0 on, that hold what control reads; nothing beyond is there.
    tables : (base, bytes) of scratchpad buffers that control lives in: integer tables, step records, request state.
    seed : of the choices that TOPK makes in place of a router: uniform, without repetition in a row.
    body : first word of the loop over layers and the word after it; None: it never stops.

    Every token it picks is 0. What control computes from data (a router's choice, a sampled token) is a scenario's, not
    the model's. Raises as FastMachine, but data is not checked: a trap of arithmetic goes unseen.
    """

    def __init__(
        self,
        chip: Chip,
        program: Program,
        dram_bytes: int,
        tables: Iterable[tuple[int, int]],
        seed: int = 0,
        body: tuple[int, int] | None = None,
    ) -> None:
        marks = np.zeros((chip.scratchpad_bytes >> loop._GRAIN) + 1, np.uint8)
        for base, count in tables:
            marks[base >> loop._GRAIN : (base + count + (1 << loop._GRAIN) - 1) >> loop._GRAIN] = 1
        self._dram_bytes = min(dram_bytes, program.requires.dram_bytes)
        super().__init__(chip, program)
        self._body = body
        self._passed = np.zeros(program.requires.slices, np.int64)
        self._told = np.zeros((len(program.words), 3), np.int64)
        self._turns = np.zeros(program.requires.slices, np.int64)
        cut = -1 if body is None else body[0]
        self._scenario = (marks, self._turns, seed, cut, chip.bank_size_bytes, self._passed, self._told)
        known = facts(chip).copy()
        known[SLICES] = program.requires.slices
        self._carry = np.zeros((program.requires.slices, CARRY_COLS), np.int64)
        memo = np.zeros((len(program.words), loop.MEMO_COLS), np.int64)
        self._issue = (cut, known, self._carry, _plain(program, cut, known), memo)
        self._issues = [np.zeros((1, columns), np.int64) for columns in _ISSUE_TABLES]
        self._tables = np.flatnonzero(marks)
        self.at_cut = False
        """Whether all slices stand at the start of an iteration."""
        self._cuts: list[_Cut] = []
        self._tries = self._kept = 0
        self._periods = _PERIODS
        self._before = np.zeros(0, np.int64)
        self._row = np.zeros((1, COLS), np.int64)
        self._rows: list[list[Ints]] = [[] for _ in range(program.requires.slices)]
        self._heads: list[list[Ints]] = [[] for _ in range(program.requires.slices)]

    def _call(self, only: int, limit: int, rows: Ints) -> int:
        assert not only, "a skeleton runs whole slices"
        memory, words, _, *rest = self._tail
        ops, bases, heads = self._issues
        why = int(
            loop.run(
                limit, *self._head, self._records, rows, self._fill, *self._scenario, *self._issue, ops, bases, heads,
                memory, words, *rest[:14],
            )
        )  # fmt: skip
        return self._after(why)

    def run_resolved(self, buffer: Ints) -> Ints:
        """As FastMachine; it also returns when all slices stand at a cut (`at_cut`), and goes on from there.

        `repeats` knows nothing of what has run in this way.
        """
        self._cuts.clear()
        return self._until_cut(lambda: super(Skeleton, self).run_resolved(buffer))

    def run_issues(self, most: int) -> tuple[Ints, Ints]:
        """Run until a slice that can go on has `most` issues (`isa.issue`), all stand at a cut, or all have halted.

        The marked word is the first of the body. Gives the issues [slices, most, OP_COLS], which are valid until the
        next call, and the count of each slice. Raises as `run_resolved`.
        """
        slices = len(self._state)
        if self._issues[0].shape[0] != slices * most:
            self._issues = [np.zeros((slices * most, columns), np.int64) for columns in _ISSUE_TABLES]
        counts = self._until_cut(lambda: self._run_issues(most))
        ops, bases, heads = (table.reshape(slices, most, -1) for table in self._issues)
        if self._body is not None and self._tries < 3 * self._periods:
            for s, count in enumerate(counts.tolist()):
                self._rows[s].append(bases[s, :count].copy())
                self._heads[s].append(heads[s, :count].astype(np.int16))
            self._kept += int(counts.sum())
            if self._kept > _MOST_ROWS:
                self._give_up()
        return ops, counts

    def _run_issues(self, most: int) -> Ints:
        self._fill[:] = 0
        self._fill[0], self._fill[1] = 2, most
        self._begin(False)
        while True:
            why = self._call(0, 1 << 62, self._row)
            self._drain(None)
            if why in (STOPPED, LIMIT):
                return self._fill[2:].copy()
            if why != RANG:
                raise self._fault(why)

    def _until_cut(self, run: Callable[[], Ints]) -> Ints:
        """Go on from a cut, or to the next one."""
        if self.at_cut:
            self._passed[:] = 1
            self.at_cut = False
        try:
            return run()
        except ProgramError:
            running = self._state[:, S.STATUS] != S.HALTED
            waits = (self._state[:, S.PC] == self._scenario[3]) & (self._passed == 0)
            if self._body is None or not running.any() or not waits[running].all():
                raise
            self.at_cut = True
            return self._fill[2:].copy()

    def _give_up(self) -> None:
        """Stop nowhere any more: an iteration is too long to be kept twice."""
        marks, turns, seed, _, bank, passed, told = self._scenario
        self._scenario = (marks, turns, seed, -1, bank, passed, told)
        self._body, self.at_cut = None, False
        self._cuts.clear()
        self._rows = self._heads = [[] for _ in self._state]

    # --- iterations that must go as those before ---

    @property
    def cuts(self) -> bool:
        """Whether it stops at iterations."""
        return self._body is not None

    @property
    def periods(self) -> int:
        """Iterations that a period of `repeats` may have."""
        return self._periods

    @cached_property
    def _deciding(self) -> frozenset[int]:
        """Words that write a cell or a table: those that have, and those whose last descriptor before them says so."""
        found = set(np.flatnonzero(self._told[:, 0]).tolist())
        marks = self._scenario[0]
        loaded: dict[int, Descriptor] = {}
        for pc, i in enumerate(self.program.code):
            if isinstance(i, Desc):
                loaded[i.d] = self.program.constants[i.k]
            for letter, d in i.operands().items():
                target = loaded.get(d)
                if letter not in i.WRITES or target is None:
                    continue
                table = target.space == S.SPAD and marks[target.base >> loop._GRAIN]
                if table or target.space == S.CELL or (target.space == S.DRAM and target.base < self._dram_bytes):
                    found.add(pc)
        return frozenset(found)

    @cached_property
    def _words(self) -> Words:
        lists = {int(pc): int(self._told[pc, 2]) for pc in np.flatnonzero(self._told[:, 2])}
        return Words(self.program.code, lists, self._deciding)

    def repeats(self, burst: int, bank: int) -> tuple[int, int]:
        """At a cut: how many more periods must go as the last two have gone, up to the last iteration of the loop but
        one; and iterations of a period. (0, 0): not known.

        As they went: the same rows but for addresses, which move by so much a period that `isa.cycles` cannot tell:
        whole bursts of `burst` bytes in DRAM; in the scratchpad, operands stay in one bank of `bank` bytes or in two.
        """
        assert self.at_cut
        assert self._body is not None
        left, before = self._left(self._state), self._before
        self._before = left
        self._tries += 1
        if len(before) and (before != left + 1).any():
            self._cuts.clear()  # another run of the loop
            self._tries = 1
        if self._tries > 3 * self._periods:
            self._cuts.clear()
            return 0, 0
        cells = [self._space(s, S.CELL) for s in range(len(self._state))]
        spad = [self._space(s, S.SPAD) for s in range(len(self._state))]
        grain = 1 << loop._GRAIN
        index = (self._tables[:, None] * grain + np.arange(grain)).ravel()
        index = index[index < len(spad[0])]
        tables = np.stack([np.concatenate([c[: 4 * CELLS], m[index]]) for c, m in zip(cells, spad, strict=True)])
        self._cuts.append(_Cut(self._state.copy(), tables, self._rows, self._heads))
        self._rows = [[] for _ in self._state]
        self._heads = [[] for _ in self._state]
        if len(self._cuts) > 1:  # the rows before the first cut are of no iteration
            self._periods = max(1, min(self._periods, _MOST_ROWS // (2 * max(1, self._kept))))
        else:
            self._cuts[0].rows = self._cuts[0].heads = [[] for _ in self._state]
        self._kept = 0
        del self._cuts[: -2 * self._periods - 1]
        for period in range(1, min(self._periods, (len(self._cuts) - 1) // 2) + 1):
            first, second, now = (self._cuts[-1 - i * period] for i in (2, 1, 0))
            times = self._alike(first, second, now, period, (int(left.min()) - 1) // period, burst, bank)
            if times > 0:
                return times, period
        return 0, 0

    def _left(self, state: Ints) -> Ints:
        """Iterations left of the loop, the one to come too, by slice; 0 outside."""
        assert self._body is not None
        loops = state[:, S.LOOPS : S.LOOPS + 8 * S.LOOP_FIELDS].reshape(len(state), -1, S.LOOP_FIELDS)
        here = (np.arange(loops.shape[1]) < state[:, S.DEPTH, None]) & (loops[:, :, S.LOOP_END] == self._body[1])
        return np.asarray((loops[:, :, S.LOOP_LEFT] * here).max(axis=1), np.int64)

    def _alike(self, first: _Cut, second: _Cut, now: _Cut, period: int, most: int, burst: int, bank: int) -> int:
        """Periods, `most` at most, that must follow as those from `first` to `second` to `now` went; 0: not known."""
        assert self._body is not None
        before, after = second.state, now.state
        if not np.array_equal(second.tables, now.tables):
            return 0
        if any(i.OPCODE in (TOPK, GROUP) for i in self.program.code[slice(*self._body)]):
            return 0  # the scenario's choices are new ones each time
        assert self._deciding.issuperset(np.flatnonzero(self._told[:, 0]).tolist()), (
            "a word decides that was not seen to"
        )
        masks, descriptors = self._decides
        used, used_descriptors = self._used
        loops = slice(S.LOOPS, S.DESCS)
        for columns in (slice(S.DEPTH, S.DEPTH + 1), slice(S.SEMS, S.LOOPS)):
            if not np.array_equal(before[:, columns], after[:, columns]):
                return 0
        old, new = before[:, loops].copy(), after[:, loops].copy()
        for table, state in ((old, before), (new, after)):
            fields = table.reshape(len(state), -1, S.LOOP_FIELDS)
            depth = np.arange(fields.shape[1]) < state[:, S.DEPTH, None]
            fields[~depth] = 0
            fields[:, :, S.LOOP_LEFT][fields[:, :, S.LOOP_END] == self._body[1]] = 0
        if not np.array_equal(old, new):
            return 0
        registers = slice(S.REGS, S.REGS + REGISTERS)
        if ((before[:, registers] ^ after[:, registers]) & masks).any():
            return 0
        shape = (len(before), DESCRIPTORS, S.D_FIELDS)
        d0, d1, d2 = (
            c.state[:, S.DESCS : S.DESCS + DESCRIPTORS * S.D_FIELDS].reshape(shape) for c in (first, second, now)
        )
        wanted = np.array([descriptors >> d & 1 for d in range(DESCRIPTORS)], bool)
        alive = np.array([used_descriptors >> d & 1 for d in range(DESCRIPTORS)], bool)
        if (
            not np.array_equal(d1[:, wanted], d2[:, wanted])
            or (d1[:, alive][..., _REST] != d2[:, alive][..., _REST]).any()
        ):
            return 0
        moves = d2[:, alive][..., _ADDRESSES] - d1[:, alive][..., _ADDRESSES]
        if not np.array_equal(moves, d1[:, alive][..., _ADDRESSES] - d0[:, alive][..., _ADDRESSES]):
            return 0
        if (moves.any(axis=2) & (d2[:, alive][..., S.D_WRAP] != 0)).any():
            return 0
        live = np.array([bool(m) for m in used])
        steps = (after[:, registers] - before[:, registers])[:, live]
        if not np.array_equal(steps, (before[:, registers] - first.state[:, registers])[:, live]):
            return 0
        changed = np.zeros(REGISTERS, bool)
        changed[live] = steps.any(axis=0)
        moved = np.zeros(DESCRIPTORS, bool)
        moved[alive] = moves.any(axis=(0, 2))
        low = self._words.linear(*self._body, _mask(changed), _mask(moved))
        if low < 0 or (steps & ((1 << low) - 1)).any():
            return 0
        return self._addresses(period, most, burst, bank)

    @cached_property
    def _decides(self) -> tuple[Ints, int]:
        assert self._body is not None
        masks, descriptors = self._words.control(self._body[0])
        return np.array(masks, np.int64), descriptors

    @cached_property
    def _used(self) -> tuple[list[int], int]:
        assert self._body is not None
        return self._words.used(self._body[0])

    def _addresses(self, period: int, most: int, burst: int, bank: int) -> int:
        """Periods, `most` at most, for which addresses move so that no cycle rule can tell."""
        for s in range(len(self._state)):
            units = []
            for start in (-2 * period, -period):
                cuts = self._cuts[len(self._cuts) + start : len(self._cuts) + start + period]
                units.append([np.concatenate([x for c in cuts for x in part(c)[s]]) for part in (_rows, _heads)])
            (old, old_heads), (new, heads) = units
            if not np.array_equal(old_heads, heads):
                return 0
            step = (new - old).reshape(len(new), 6, 2)
            moved = step.any(axis=2)
            if not moved.any():
                continue
            at, k = np.nonzero(moved)
            space, op, pc = heads[at, 2 + k], heads[at, 1], heads[at, 0]
            ring = self._told[pc, 1] >> k & 1 != 0
            dram = space == S.DRAM
            if (dram & (ring | (step[at, k] % burst != 0).any(axis=1))).any():
                return 0
            within = (op == COPY) & (heads[at, 2] == S.SPAD) & (heads[at, 3] == S.SPAD)
            banked = (space == S.SPAD) & (within | np.isin(op, (VEC, PICK, TOPK, GROUP)))
            banked &= self._told[pc, 1] >> (k + S.OPERANDS) & 1 == 0  # its ring never leaves its bank
            if (banked & ring).any():
                return 0
            rows = np.unique(at[banked])
            here = heads[rows, 2:] == S.SPAD
            most = min(
                most, _apart(np.where(here, new[rows, ::2], -1), np.where(here, step[rows, :, 0], 0), bank, most)
            )
        return most

    def skip(self, times: int, period: int) -> None:
        """Go on by `times` periods without running them. Only as many as `repeats` has said."""
        assert self.at_cut
        assert self._body is not None
        cuts = self._cuts
        before, now = cuts[-1 - period], cuts[-1]
        self._state[:] = self._later(before, now, times)
        for carry in self._carry:
            for i in range(int(carry[C_LOOPS])):
                if carry[C_LOOP + 2 * i] == self._body[1]:
                    carry[C_LOOP + 2 * i + 1] -= times * period
        if period == 1:
            # As if the last two had been run: the next one may already be known to repeat.
            self._cuts = [
                _Cut(
                    self._later(before, now, times - ago), now.tables, [
                        [new + (times - ago) * (new - old)]
                        for old, new in zip(_joined(before.rows), _joined(now.rows), strict=True)
                    ], now.heads,
                )
                for ago in (2, 1, 0)
            ]  # fmt: skip
        else:
            self._cuts.clear()
        self._tries = 0
        self._before = self._left(self._state)

    def _later(self, before: _Cut, now: _Cut, times: int) -> Ints:
        """State of all slices `times` periods after `now`, which is one after `before`."""
        assert self._body is not None
        state = now.state.copy()
        registers = slice(S.REGS, S.REGS + REGISTERS)
        moved = now.state[:, registers] - before.state[:, registers]
        state[:, registers] = (state[:, registers] + times * moved) & 0xFFFFFFFF
        for d in range(DESCRIPTORS):
            if self._used[1] >> d & 1:
                for field in _ADDRESSES:
                    column = S.DESCS + d * S.D_FIELDS + field
                    state[:, column] += times * (now.state[:, column] - before.state[:, column])
        loops = state[:, S.LOOPS : S.DESCS].reshape(len(state), -1, S.LOOP_FIELDS)
        left = self._left(before.state) - self._left(now.state)
        loops[:, :, S.LOOP_LEFT] -= times * left[:, None] * (loops[:, :, S.LOOP_END] == self._body[1])
        return state


def _joined(rows: list[list[Ints]]) -> list[Ints]:
    """Pieces of each slice as one."""
    return [np.concatenate(pieces) for pieces in rows]


def _plain(program: Program, mark: int, known: Ints) -> Ints:
    """Cycles of each word that only adds to what is carried (`isa.issue`), 0 of the others: of those that are issues,
    jump, begin or end a loop, and of the marked one."""
    code = program.code
    ends = {pc + i.len for pc, i in enumerate(code) if isinstance(i, Loop)}
    cycles, ops, row = np.zeros(len(code), np.int64), np.zeros((2, OP_COLS), np.int64), np.zeros((1, COLS), np.int64)
    for pc, i in enumerate(code):
        carry = np.zeros(CARRY_COLS, np.int64)
        row[0, [OP, QUEUE, WAIT]] = i.OPCODE, i.queue, i.waits
        if not isinstance(i, Loop | Br) and pc not in ends and pc != mark and not issues(known, row, carry, -1, ops):
            cycles[pc] = carry[C_BEFORE]
    return cycles


def _rows(cut: _Cut) -> list[list[Ints]]:
    return cut.rows


def _heads(cut: _Cut) -> list[list[Ints]]:
    return cut.heads


def _apart(bases: Ints, steps: Ints, bank: int, most: int) -> int:
    """Periods, `most` at most, after which the same operands share a bank as do now: all that a rule sees of banks.

    bases, steps : [rows, operands], byte address and what a period adds to it; base -1: no operand of the scratchpad.
    """
    both = np.unique(np.concatenate([bases, steps], axis=1), axis=0)
    bases, steps = both[:, : bases.shape[1]], both[:, bases.shape[1] :]
    banks = bases // bank
    shared = banks[:, :, None] == banks[:, None, :]
    for periods in range(1, most + 1):
        banks = (bases + periods * steps) // bank
        if not np.array_equal(shared, banks[:, :, None] == banks[:, None, :]):
            return periods - 1
    return most


def _mask(chosen: Ints) -> int:
    """A bit for each entry that is true."""
    return sum(1 << i for i, yes in enumerate(chosen.tolist()) if yes)
