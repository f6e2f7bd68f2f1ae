"""What the kernels of the grid share beside the context of all kernels: their plan, their memory, who sits where."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Self

from systolith.compiler.builder import tensor
from systolith.compiler.context import Cell, Context
from systolith.compiler.grid import Grid
from systolith.compiler.memory import Memory
from systolith.compiler.plan import Plan
from systolith.isa.descriptor import Descriptor, Space
from systolith.isa.sequencer import AluFn
from systolith.numerics.formats import FORMATS
from systolith.spec.limits import RANK_REGISTER

__all__ = ["GridContext"]


class GridContext(Context):
    """A context whose plan and addresses are those of the grid's body. It writes into the same program."""

    grid: Grid

    @classmethod
    def of(cls, base: Context, grid: Grid, memory: Memory) -> Self:
        """Share all of `base` but plan and memory; takes the registers that the body keeps."""
        ctx = cls.__new__(cls)
        ctx.__dict__ = copy.copy(base.__dict__)
        ctx.plan, ctx.memory, ctx.grid, ctx.first_plan = grid.plan, memory, grid, base.plan
        # This slice's row group; rounds done; steps left. Registers of other steps serve, which come later.
        ctx.r_member, ctx.r_round, ctx.r_left = ctx.r_arrived, ctx.r_slot, ctx.r_decoding
        ctx.r_turn, ctx.r_mine = base.b.register(), base.b.register()
        return ctx

    @property
    def kv_tokens(self) -> int:
        """Tokens of kv_free at the start of a program."""
        return self.first_plan.kv_entries

    def give_back(self) -> None:
        """Leave the registers as other steps expect them."""
        self.b.set(self.r_round, 0)
        self.b.release(self.r_mine)
        self.b.release(self.r_turn)

    @contextmanager
    def reading(self, cell: int) -> Iterator[int]:
        """A register with a cell's value."""
        with self.b.registers(1) as (r,):
            self.b.read(r, cell)
            yield r

    def to_group(self, d: int) -> None:
        """Move D[d] by as many steps as this slice's column group says."""
        with self.b.registers(1) as (group,):
            self.b.alu(AluFn.SHR, group, RANK_REGISTER, self.grid.apart)
            self.b.advance_r(d, 3, group)

    def arrive_at_rows(self, semaphore: str, counter: int, wait: str = "", post: str = "") -> None:
        """Say to the slices with the same rows that all has been sent."""
        self.b.arrive(self.nothing, semaphore, counter, Cell.ROW_FIRST, self.grid.groups, wait, post, self.grid.apart)

    first_plan: Plan
    r_member: int
    r_round: int
    r_left: int
    r_turn: int
    r_mine: int
    """The round that is arrived at next, and the one that needs this slice's first part of the operand (`Deal`)."""

    @property
    def hidden(self) -> int:
        """Hidden dimension, with the zeros that make all column groups alike."""
        return self.grid.hidden

    def ring_of(self, name: str, fmt: str, elements: int, entries: int, ext: tuple[int, int, int],
                stride: tuple[int, int, int], *, xe: int = 0) -> Descriptor:  # fmt: skip
        """Describe a ring of quantised entries of `elements` each, whose scales are a buffer of their own."""
        return tensor(Space.SPAD, fmt, self.memory.spad[name], ext, stride, sbase=self.memory.spad[f"{name}_scales"],
                      step=elements, wrap=entries * elements, xe=xe)  # fmt: skip

    def plain(self, ring: Descriptor) -> Descriptor:
        """The same without scales."""
        return replace(ring, scale=0, sbase=0)

    def stage(self, fmt: str, ext: tuple[int, int, int], stride: tuple[int, int, int], *, xe: int = 0,
              scales: bool = False) -> Descriptor:  # fmt: skip
        """Describe the staging ring of two entries in a format."""
        elements = self.memory.spad_sizes["stage"] // 2 * 8 // FORMATS[fmt].bits
        sbase = self.memory.spad["stage_scales"] if scales else None
        return tensor(Space.SPAD, fmt, self.memory.spad["stage"], ext, stride, sbase=sbase, step=elements,
                      wrap=2 * elements, xe=xe)  # fmt: skip

    def put_to_rows(self, d: int, a: int, wait: str = "", post: str = "",
                    arrival: tuple[str, int] | None = None, expect: int = 0) -> None:  # fmt: skip
        """PUT to the slices that have the same rows. expect: arrivals to a token where others too arrive."""
        self.b.put(d, a, Cell.ROW_FIRST, self.grid.groups, wait, post, arrival, self.grid.apart, expect)

    def put_to_columns(self, d: int, a: int, wait: str = "", post: str = "",
                       arrival: tuple[str, int] | None = None, expect: int = 0) -> None:  # fmt: skip
        """PUT to the slices that have the same columns."""
        self.b.put(d, a, Cell.COLUMN_FIRST, self.grid.members, wait, post, arrival, expect=expect)
