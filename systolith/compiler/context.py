"""What all kernels share: the plan, the memory map, the builder, rings, cells and constants.

A ring is a buffer of several entries; a register counts its uses, and ADV takes the count modulo the ring.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum

from systolith.compiler.builder import Builder, Label, tensor
from systolith.compiler.memory import Memory, stage_bytes
from systolith.compiler.model import Experts
from systolith.compiler.plan import LinearPlan, Plan, padded
from systolith.isa.descriptor import Descriptor, Space
from systolith.isa.instruction import Queue
from systolith.isa.sequencer import AluFn
from systolith.numerics.formats import FORMATS
from systolith.spec.limits import BLOCK

__all__ = ["ROUND_COUNTERS", "SCRATCH", "Cell", "Constant", "Context", "Counter", "Mixture", "Norm"]

SCRATCH = 1
"""Descriptor register that takes a reduction whose instruction has no elementwise result (D[0 + 1])."""


class Cell(IntEnum):
    """Cells by meaning. 1..8: head of the step record. 9..: of the slice, from the rank table. Others: late values."""

    ROWS = 1
    SEGMENTS = 2
    OUT_ROWS = 3
    O_FIRST = 9
    O_TILES = 10
    """Parts of the residual stream: tiles, or blocks of the only tile."""
    Q_FIRST = 11
    """Heads; with latent attention K and V stand for tiles of q_a and of kv_a."""
    Q_HEADS = 12
    K_FIRST = 13
    K_HEADS = 14
    V_FIRST = 15
    V_HEADS = 16
    FFN_FIRST = 17
    FFN_TILES = 18
    HEAD_FIRST = 19
    HEAD_TILES = 20
    UNIT_FIRST = 21
    UNITS = 22
    GROUP_RANK = 23
    STEPS = 24
    DECODE = 4
    """Rows that continue a request slot, the first of the step."""
    UPDATES = 5
    NEXT = 6
    """Such rows of the steps after this one, until a new message comes."""
    STOP = 7
    ROUTER_FIRST = 25
    ROUTER_TILES = 26
    DENSE_FIRST = 27
    DENSE_TILES = 28
    """Of gate and up in layers without experts, where others have them."""
    SHARED_FIRST = 29
    SHARED_TILES = 30
    NEXT_RANK = 31
    """The slice behind this one, the first behind the last, where columns are dealt out evenly."""
    GRID_CHUNKS = 2
    GRID_FIRST = 3
    """Chunks and first position of a step on the grid, behind its rows; then first page entry, first lane, number."""
    GRID_PICK = 7
    """1 + the row that makes the first token, or 0; then its row group and, from bit 8 on, its request slot."""
    GRID_PICKER = 8
    FROM_GRID = 8
    """1: the rows of this step's logits were made on the grid."""
    COLUMN_FIRST = 61
    """Lowest rank of the slices with the same columns, on the grid."""
    GRID_STEPS = 62
    ROW_FIRST = 63
    """Lowest rank of the slices with the same rows, on the grid."""
    TEAM = 60
    """Four cells: ranks of a team, this slice's own first, when steps on the grid are over."""
    TEAM_MORE = 27
    """Four more; of a team of eight, in models whose layers are alike and share no expert."""
    GRID_PAGE = 44
    """Eight cells: the page of each chunk of a step on the grid."""
    GRID_KEEPER = 52
    """Eight: the rank that keeps it."""
    Q_RECEIVERS = 31
    """31 to 33: first rank that takes this slice's heads of q, of k, of v, where no columns are dealt out evenly."""
    K_RECEIVERS = 32
    V_RECEIVERS = 33
    SEGMENT = 34
    """Four cells: request slot, first row, rows, first position."""
    BELL = 38
    MAIL = 39
    """Messages that the host has written, as slice 0 reads it and as it tells all."""
    OUT_SLOT = 40
    LIVE = 41
    GREEDY = 43
    """1: the row in hand takes the best token."""
    ENTRIES = 42
    """Experts that rows of the step have chosen."""
    ENTRY = 44
    """Four entries of four cells: expert, first pair, pairs, 0."""
    ROW = 44
    """Two sets of four decode rows, two cells each: request slot, position. Attention comes before the experts of a
    layer and before the head."""
    OWNERS = 44
    """Two sets of cells with ranks that rows of logits go to; the head follows the last expert of a step."""


class Constant(IntEnum):
    """Words of the constant table."""

    ZERO = 0
    ONE = 1
    EMPTY = 2
    """-2^31: the exponent of an empty partial."""
    SCORE_SCALE = 3
    MEAN = 4
    EPS = 5
    MINUS_LOG2E = 6
    INT_ONE = 7
    MEAN_HEAD = 8
    """1/d, where heads are normed."""
    LOG2E = 9
    ALPHA = 10
    LIMIT = 11
    MINUS_LIMIT = 12
    ROUTE_SCALE = 13
    """10 to 13: of experts."""
    EMBED_SCALE = 14
    GELU_0 = 15
    GELU_1 = 16
    """The linear and the cubic coefficient of the exponent of gelu_tanh."""
    ROUTE_TINY = 17
    """1e-20: no sum of weights is divided by less."""
    MOST = 18
    """2^31 - 1, an integer."""
    MINUS_INFINITY = 19
    MEAN_Q = 20
    MEAN_LATENT = 21
    EPS_LOW = 22
    """20 to 22: of the norms inside latent attention."""


class Counter(IntEnum):
    """Arrival counters. Two gathers that follow each other never share one."""

    OPERAND_A = 0
    OPERAND_Q = 1
    OPERAND_ATTENTION = 2
    OPERAND_B = 3
    OPERAND_H = 4
    SUMS_A = 5
    SUMS_B = 6
    KV = 7
    """On the grid."""
    LOGITS = 8
    EXCHANGE = 9
    """And 10: exchanges of partials take turns."""
    OPERAND_H_FIRST = 9
    """That of EXCHANGE: of the first part of a tile of h, where no slices share lanes."""
    KV_FRESH = 11
    MAIL = 13
    """And 14: polls take turns."""
    ROUTES = 12
    SUMS_POST = 15
    TOKENS = 11
    """That of KV_FRESH again, far from it."""
    LOW = 15
    """That of SUMS_POST: a model with latent attention has no such norms."""
    COLUMNS = 15
    """That again: models with either have no columns that are dealt out evenly."""
    ATTENDED = 8
    """That of LOGITS again, far from it."""
    TEAM = 7
    """That of KV: steps on the grid are over when teams gather."""
    TEAM_AGAIN = 12
    """That of ROUTES: of the second part of a tile of h, which experts do not have."""


ROUND_COUNTERS = (Counter.OPERAND_A, Counter.OPERAND_Q, Counter.OPERAND_B, Counter.EXCHANGE)
"""Rounds of weights on the grid take turns; the gathers of these names are of other steps."""


class Norm(IntEnum):
    """Norms by the place of their gains: the first layer's first; of layer n the second, and the next layer's first;
    of layer n those of what o and down give."""

    FIRST = 0
    SECOND = 1
    NEXT = 2
    POST_O = 3
    POST_DOWN = 4


@dataclass(frozen=True, slots=True)
class Mixture:
    """How many layers with experts lie before layer n of a loop: (n - first) / every * mixed + before. first: the
    layer's number in the first round; every: layers of a round, mixed: of them with experts; before: before `first`."""

    first: int = 0
    every: int = 1
    mixed: int = 1
    before: int = 0


@dataclass
class Context:
    """State of the compilation of one program."""

    plan: Plan
    memory: Memory
    b: Builder = field(default_factory=Builder)

    def __post_init__(self) -> None:
        b = self.b
        b.reserve(SCRATCH)
        # Rings: weight slots, accumulator halves, stages, loads, parts of K and V.
        self.r_slot, self.r_acc, self.r_stage, self.r_load, self.r_kv = (b.register() for _ in range(5))
        self.r_steps, self.r_decoding, self.r_log, self.r_layer = (b.register() for _ in range(4))
        self.r_exchange = b.register() if self.plan.group > 1 else 0
        self.r_arrived = b.register()
        # Loads of the first decode row that have been made ahead; its slot and position, -1 before they are known.
        self.r_ahead, self.r_first, self.r_first_at = (
            (b.register() for _ in range(3)) if self.plan.row_ahead else (0, 0, 0)
        )
        # Steps that a job has still to do; a program that serves counts the messages it has taken instead.
        self.r_taken = self.r_steps
        self.streams: dict[str, int] = {}
        self.labels: list[Label] = []
        self.nothing = b.descriptor()
        self.norm = Norm.FIRST
        self.kind = self.plan.model.kinds[0]
        self.mixture = Mixture()
        self.after_grid = False

    # ---- descriptors -----------------------------------------------------------------------------------------------

    def spad(self, name: str, fmt: str, ext: tuple[int, int, int], stride: tuple[int, int, int], *, offset: int = 0,
             scales: int | None = None, step: int = 0, xb: int = 0, xe: int = 0, via: int = 0, unit: int = 0,
             wrap: int = 0) -> Descriptor:  # fmt: skip
        """Describe a part of a scratchpad buffer. offset: in bytes; scales: elements in the buffer whose scales follow
        the codes, or None."""
        base = self.memory.spad[name]
        sbase = (
            None if scales is None else base + padded(scales * FORMATS[fmt].bits // 8, 4) + _scale_offset(offset, fmt)
        )
        return tensor(
            Space.SPAD, fmt, base + offset, ext, stride, sbase=sbase, step=step, xb=xb, xe=xe, via=via, unit=unit,
            wrap=wrap,
        )  # fmt: skip

    def dram(self, name: str, fmt: str, ext: tuple[int, int, int], stride: tuple[int, int, int], *, scales: str = "",
             offset: int = 0, step: int = 0, xb: int = 0, xe: int = 0, via: int = 0, unit: int = 0,
             wrap: int = 0) -> Descriptor:  # fmt: skip
        """Describe a part of a DRAM region; `scales` names the region of the scales."""
        sbase = self.memory.dram[scales] if scales else None
        base = self.memory.dram[name] + offset
        return tensor(
            Space.DRAM, fmt, base, ext, stride, sbase=sbase, step=step, xb=xb, xe=xe, via=via, unit=unit, wrap=wrap
        )

    def cell(self, number: int, count: int = 1) -> Descriptor:
        """Describe cells as INT32."""
        return tensor(Space.CELL, "INT32", 4 * number, (1, 1, count), (0, 0, 1))

    def constant(self, which: Constant, fmt: str = "FP32") -> Descriptor:
        """Describe a constant, the same at every index."""
        return self.spad("consts", fmt, (1, 1, 1), (0, 0, 0), offset=4 * which)

    def acc(self, rows: int, columns: int, *, span: int = 0, xe: int = 0, group: int = 1) -> Descriptor:
        """Describe a tile in the accumulator's ring of two halves: [rows, group, columns]."""
        half = self.plan.acc_half_words
        return tensor(
            Space.ACC, "FP32", 4 * span * rows * group * columns, (rows, group, columns),
            (group * columns, columns, 1), step=half, wrap=2 * half, xe=xe,
        )  # fmt: skip

    def slot(self, linear: LinearPlan) -> Descriptor:
        """Describe a weight slot in its ring: [nt, 1, kt * terms]."""
        plan, width = self.plan, FORMATS[linear.format].bits
        step = plan.slot_bytes * 8 // width
        codes = plan.slots * plan.slot_bytes
        others = {FORMATS[p.format].bits for p in plan.linears} - {width}
        scales = codes + (plan.slots * plan.slot_bytes // BLOCK if width == 4 and others else 0)
        k = linear.kt * linear.terms
        return tensor(
            Space.SLOT, linear.format, 0, (linear.nt, 1, k), (k, 0, 1), sbase=scales, step=step, wrap=plan.slots * step
        )

    def stage(self, fmt: str, ext: tuple[int, int, int], stride: tuple[int, int, int], *, xe: int = 0,
              scales: bool = False) -> Descriptor:  # fmt: skip
        """Describe the staging ring of two entries in a format."""
        width = FORMATS[fmt].bits
        step = stage_bytes(self.plan) * 8 // width
        sbase = self.memory.spad[f"stage_scales{width}"] if scales else None
        base = self.memory.spad["stage"]
        return tensor(Space.SPAD, fmt, base, ext, stride, sbase=sbase, step=step, wrap=2 * step, xe=xe)

    def ring(self, name: str, fmt: str, pitch: int, ext: tuple[int, int, int], stride: tuple[int, int, int], *,
             scales: bool = False, xe: int = 0, entries: int = 2) -> Descriptor:  # fmt: skip
        """Describe a ring of entries, `pitch` bytes of codes apart, in a quantised format."""
        step = pitch * 8 // FORMATS[fmt].bits
        sbase = self.memory.spad[f"{name}_scales"] if scales else None
        return tensor(
            Space.SPAD, fmt, self.memory.spad[name], ext, stride, sbase=sbase, step=step, wrap=entries * step, xe=xe
        )

    def words(self, name: str, fmt: str, count: int, ext: tuple[int, int, int], stride: tuple[int, int, int], *,
              xe: int = 0, entries: int = 2) -> Descriptor:  # fmt: skip
        """Describe a ring of entries of `count` words or bytes (FP32, INT32, E8M0)."""
        return tensor(Space.SPAD, fmt, self.memory.spad[name], ext, stride, step=count, wrap=entries * count, xe=xe)

    def load_ring(self, d: int, descriptor: Descriptor, counter: int) -> None:
        """D[d] = the entry of a ring that a register counts to."""
        self.b.load(d, descriptor)
        self.b.advance_r(d, 3, counter)

    def bump(self, counter: int, by: int = 1) -> None:
        """Count uses of a ring."""
        self.b.alu(AluFn.ADD, counter, counter, by)

    def arrive(self, *gathers: tuple[str, int]) -> None:
        """End gathers: this slice arrives at (semaphore, counter) of all, once its V has done everything before.

        V's work stands for all of the slice's: who has seen the arrivals may write what this slice has read.
        """
        b = self.b
        b.sync(Queue.V, wait="stage_free", post="stage_full")
        for number, (semaphore, counter) in enumerate(gathers):
            last = number == len(gathers) - 1
            b.arrive(self.nothing, semaphore, counter, wait="" if number else "stage_full",
                     post="stage_free" if last else "")  # fmt: skip

    def mixtures_before(self, r: int) -> None:
        """R[r] = layers with experts before this one."""
        m, b = self.mixture, self.b
        b.move(r, self.r_layer)
        whole = m.every == m.mixed
        for fn, value in (
            (AluFn.SUB, 0 if whole else m.first), (AluFn.CEILDIV, 0 if whole else m.every),
            (AluFn.MUL, 0 if whole else m.mixed), (AluFn.ADD, m.before - (m.first if whole else 0)),
        ):  # fmt: skip
            if value:
                b.alu(fn, r, r, value)

    # ---- sizes -----------------------------------------------------------------------------------------------------

    @property
    def experts(self) -> Experts:
        """The mixture of a model that has one."""
        experts = self.plan.model.experts
        assert experts is not None
        return experts

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.plan.rows

    @property
    def hidden(self) -> int:
        """Hidden dimension, padded."""
        return padded(self.plan.model.hidden)

    @property
    def shard(self) -> int:
        """Columns of the residual shard of the slice that has most."""
        return self.plan.shard

    # ---- control ---------------------------------------------------------------------------------------------------

    def label(self) -> Label:
        """Make a label."""
        label = Label()
        self.labels.append(label)
        return label

    @contextmanager
    def cell_loop(self, cell: Cell) -> Iterator[int]:
        """Repeat X[cell] times; gives the register that counts from 0."""
        b = self.b
        with b.registers(1) as (index,):
            b.set(index, 0)
            with b.registers(1) as (count,):
                b.read(count, cell)
                place = b.open_loop(count)
            yield index
            b.alu(AluFn.ADD, index, index, 1)
            b.close_loop(place)


def _scale_offset(offset: int, fmt: str) -> int:
    """Scale bytes that lie before a byte offset in codes."""
    return offset * 8 // FORMATS[fmt].bits // BLOCK
