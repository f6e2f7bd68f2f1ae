"""Teams: neighbouring slices that bring rows together before they send them.

A slice's columns of a gathered operand are a short run in every row, and a member of a PUT writes one run a cycle,
however short (docs/decisions/0010-rtl.md). So with many rows slices gather in two stages: each hands row r of what it
has made to member r mod H of its team of H, and that one sends the row's columns of the whole team to all.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from systolith.compiler.plan import LinearPlan, Plan
from systolith.numerics.formats import FORMATS
from systolith.spec.chip import Chip
from systolith.spec.limits import BLOCK

__all__ = ["MOST_MEMBERS", "Deal", "deal_of_h", "deal_of_x", "gate_of", "later_columns", "team_shape", "teams_of"]

LEAST_BATCH = 4
"""Least batch with teams: fewer rows are sent as fast without."""
MOST_MEMBERS = 8
"""Cells that there are for the ranks of a team."""


@dataclass(frozen=True, slots=True)
class Deal:
    """How columns of an operand are dealt out to slices: in units of `unit` columns, rank * made // unit (even ones) or
    rank is a slice's first. units: over all slices; made: columns that each slice makes, 0: a unit each."""

    unit: int
    units: int
    made: int

    def first(self, rank: int) -> int:
        """First unit of a rank."""
        return min(rank * self.made // self.unit, self.units) if self.made else rank

    def most(self, slices: int, team: int) -> int:
        """Columns of the team that has most."""
        return self.unit * max(self.first(r + team) - self.first(r) for r in range(0, slices, team))


def deal_of_x(plan: Plan) -> Deal | None:
    """How the residual stream is dealt out; None where slices send several tiles of it, or not all send one."""
    if not plan.one_residual_tile:
        return None
    return _deal(plan, plan.o) if plan.o.unit else Deal(plan.o.nt, plan.slices, 0)


def deal_of_h(plan: Plan, gate: LinearPlan) -> Deal | None:
    """The same of h, or of a part of a tile of it; None where a slice sends it tile by tile or expert by expert."""
    if gate.unit:
        return _deal(plan, gate)
    return Deal(gate.nt, plan.slices, 0) if gate.copies == 1 and plan.one_tile(gate) else None


def _deal(plan: Plan, linear: LinearPlan) -> Deal:
    first, count = plan.owned(linear, plan.slices - 1)
    return Deal(linear.unit, first + count, plan.made(linear))


def gate_of(plan: Plan) -> LinearPlan:
    """The gate whose h all slices gather: where layers differ, of those without experts."""
    return plan.gate if plan.dense is None else plan.dense.gate


def teams_of(plan: Plan, most: int = MOST_MEMBERS, *, norms: bool = True) -> tuple[int, bool]:
    """Slices of a team, a power of two up to `most`, and whether operands of norms are gathered by teams, too, which
    only `norms` allows: what takes the least time, worked out from pieces of a bank and the network's rate. 1: each
    slice sends by itself."""
    if plan.options.batch < LEAST_BATCH:
        return 1, False
    if plan.dense is not None or plan.shared is not None:
        most = min(most, MOST_MEMBERS // 2)
    sizes = [1]
    while 2 * sizes[-1] <= most and plan.slices % (2 * sizes[-1]) == 0:
        sizes.append(2 * sizes[-1])
    norms = norms and deal_of_x(plan) is not None
    ways = [(team, with_norms) for team in sizes for with_norms in ({False, norms and team > 1})]
    return min(ways, key=lambda way: (_cycles(plan, *way), way))


def _cycles(plan: Plan, team: int, norms: bool) -> Fraction:
    """Cycles of the gathers of a layer in a decode step: of the operands of both norms, and of h."""
    chip, bits = plan.chip, FORMATS[plan.profile.activations].bits
    rows = min(plan.rows, plan.options.batch)
    total = Fraction(0)
    x = deal_of_x(plan)
    if x is not None:
        total += 2 * _gather(chip, team if norms else 1, rows, x, bits)
        # Sums of squares of teams go block by block, a run of rows each (kernels/norm.py).
        each = -(-x.most(chip.slices, 1) // BLOCK)
        count, length = (each, 4 * rows) if norms else (rows, 4 * each)
        total += 2 * chip.slices * _flits(chip, count, [length])
    for gate in gate_of(plan).parts:
        h = deal_of_h(plan, gate)
        if h is not None:
            total += _gather(chip, team, plan.pairs // plan.rows * rows, h, bits)
    return total


def _gather(chip: Chip, team: int, rows: int, deal: Deal, bits: int) -> Fraction:
    """Cycles of a gather of rows whose columns are dealt out like this, in both its stages."""
    columns = deal.most(chip.slices, team)

    def flits(count: int, wide: int) -> Fraction:
        """Of codes and scales of `count` rows of so many columns."""
        return _flits(chip, count, [wide * bits // 8, -(-wide // BLOCK)])

    of_members = [-(-max(0, rows - member) // team) for member in range(team)]
    total = chip.slices // team * sum((flits(count, columns) for count in of_members), Fraction(0))
    if team > 1:
        total += chip.network_latency_cycles + 2 * chip.bank_cycles + chip.semaphore_cycles
        total += sum((flits(count, -(-columns // team)) for count in of_members), Fraction(0))
    return total


def _flits(chip: Chip, count: int, lengths: list[int]) -> Fraction:
    """Cycles of `count` runs of each of some lengths in bytes, in one PUT: pieces of a bank, or the network's rate."""
    pieces = count * sum(-(-length // chip.bank_bytes) for length in lengths)
    return max(Fraction(1), Fraction(pieces), count * sum(lengths) / Fraction(chip.ingress_bytes_per_cycle))


def later_columns(plan: Plan) -> int:
    """Columns of h that the first parts of its tiles give, where M begins with them before the others come; else 0.
    There must be one tile on either side, and no exchange of partials, whose counter tells of them."""
    down, gate = plan.down, plan.gate
    one = plan.made(down) == down.nt if down.unit else plan.one_residual_tile
    alone = one and plan.one_tile(gate) and plan.model.experts is None and plan.group == 1
    return gate.tiles * gate.cuts[0] if gate.cuts and alone and plan.model.post_norms is None else 0


def team_shape(plan: Plan, rows: int, deal: Deal) -> tuple[int, int]:
    """Rows that a member of a team brings together of `rows`, and their columns."""
    return -(-rows // plan.team), deal.most(plan.slices, plan.team)
