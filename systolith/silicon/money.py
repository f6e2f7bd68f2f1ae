"""What a token costs on a chip of one's own: parts, design, servers, power, over the tokens of a life.

    USD a million tokens = (chip + server + once / volume + running) / tokens of a life
    once = design + masks + re-spins * (masks + a tenth of the design)

No margin is added: the question is to build, not to sell.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from systolith.silicon.area import Area, Stacks, area_of, node_of, stacks_of
from systolith.silicon.die import Die, best_spares, fabricate
from systolith.silicon.power import Load, Power, power_of
from systolith.silicon.ranges import Array, Draws, spread, total
from systolith.spec.chip import Chip

__all__ = ["Cost", "Swing", "break_even", "calendar", "cost_of", "tornado"]

HOURS = 24 * 365.25
MONTHS = 12


@dataclass(frozen=True)
class Cost:
    """A chip and its cost, draws [n]. parts: USD of one packaged chip; per_token: USD a million tokens by part."""

    area: Area
    die: Die
    stacks: Stacks
    power: Power
    parts: dict[str, Array]
    once: dict[str, Array]
    per_token: dict[str, Array]
    draw: Draws

    @property
    def chip(self) -> Array:
        """USD of a packaged, tested chip."""
        return total(self.parts.values())

    @property
    def million(self) -> Array:
        """USD a million tokens."""
        return total(self.per_token.values())


def cost_of(
    chip: Chip, load: Load, volume: int, *, draws: int = 4096, seed: int = 0, spares: int | None = None,
    fixed: dict[str, int] | None = None,
) -> Cost:  # fmt: skip
    """Cost of a chip of which `volume` are built. spares : spare slices; None: as many as make the die cheapest.

    Raises ConfigError where the chip's node is not known.
    """
    draw = Draws(node_of(chip), draws, seed, fixed)
    area, stacks = area_of(chip, draw), stacks_of(chip)
    die = fabricate(area, draw, best_spares(area, draw) if spares is None else spares)
    power = power_of(chip, area, load, draw)
    parts = {"dies": die.cost}
    if stacks.count:
        parts["HBM"] = stacks.gigabytes * draw("hbm_price")
    # A package without stacks beside the die needs no interposer: what the least one costs stands for it.
    parts["package"] = draw("package") if stacks.count else draw("package") / 2
    parts["test, assembly"] = draw("test")
    made = total(parts.values())
    parts["lost in assembly"] = made / draw("assembly_yield") - made
    design, masks = draw("design_cost") * 1e6, draw("mask_set") * 1e6
    once = {"design": design, "masks": masks, "re-spins": draw("respins") * (masks + design / 10)}
    years, duty = draw("life"), draw("duty")
    kilowatts = (duty * power.drawn + (1 - duty) * power.idle) * (1 + draw("host_power")) / 1e3
    top = power.drawn * (1 + draw("host_power")) / 1e3
    millions = power.tokens_per_s * duty * years * HOURS * 3600 / 1e6
    bill = {
        "chip": total(parts.values()),
        "server": draw("server"),
        "once": total(once.values()) / volume,
        "energy": kilowatts * draw("pue") * draw("electricity") * years * HOURS,
        "colocation": top * draw("colocation") * years * MONTHS,
    }
    return Cost(area, die, stacks, power, parts, once, {name: x / millions for name, x in bill.items()}, draw)


@dataclass(frozen=True)
class Swing:
    """USD a million tokens with one fact at P10 and at P90, all others at P50."""

    fact: str
    low: float
    high: float

    @property
    def width(self) -> float:
        """How much the fact matters."""
        return abs(self.high - self.low)


def tornado(chip: Chip, load: Load, volume: int, *, spares: int | None = None) -> tuple[float, list[Swing]]:
    """The cost with all facts at P50, and what each fact alone does to it, the widest first."""
    middle = cost_of(chip, load, volume, draws=1, spares=spares)
    swings = []
    for key, fact in middle.draw.used.items():
        if fact.low == fact.high:
            continue
        ends = [
            float(cost_of(chip, load, volume, draws=1, spares=spares, fixed={key: side}).million[0]) for side in (-1, 1)
        ]
        swings.append(Swing(key, *ends))
    return float(middle.million[0]), sorted(swings, key=lambda s: -s.width)


def break_even(cost: Cost, volume: int, other_usd_per_million: float) -> dict[str, float] | None:
    """Chips from which on a token costs less than elsewhere: P10, P50, P90 of the draws in which there is such a
    number; "share": of them all. None where there is none."""
    fixed = cost.per_token["once"]
    running = cost.million - fixed
    room = other_usd_per_million - running
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = np.where(room > 0, fixed * volume / room, np.inf)
    found = needed[np.isfinite(needed)]
    return None if found.size == 0 else spread(found) | {"share": found.size / needed.size}


def calendar(chip: Chip, draws: int = 4096, seed: int = 0) -> dict[str, Array]:
    """Months from start: of tape-out, of first silicon, of the first token served, of it after a re-spin."""
    draw = Draws(node_of(chip), draws, seed)
    silicon = (draw("fab_time") + draw("package_time")) * 7 / 30.44
    tape_out = draw("design_time")
    first = tape_out + silicon
    serves = first + draw("bring_up")
    return {
        "tape-out": tape_out, "first silicon": first, "first token served": serves,
        "served after one re-spin": serves + silicon + draw("bring_up"),
    }  # fmt: skip
