"""A die as a drawing needs it: slices in rows in the middle, HBM along two edges, the rest along a third."""

from __future__ import annotations

import math
from dataclasses import dataclass

from systolith.silicon.area import area_of, node_of, stacks_of
from systolith.silicon.die import best_spares, fabricate
from systolith.silicon.ranges import Draws, find, text
from systolith.spec.chip import Chip

__all__ = ["DiePlan", "plan_die"]

FIELD = (26.0, 33.0)
"""A scanner's field in mm: the reticle's limit, either way round."""


@dataclass(frozen=True)
class DiePlan:
    """A die at the middle of its facts. Lengths in mm, areas in mm2.

    width, height : of the die; strip: height of the HBM interfaces along the top and the bottom; side: width of what
    links and host take along the right; columns, rows: of slices; blocks: of one slice; spares: of the slices; dies:
    in a package; stacks: of HBM, half along each edge; edge: of a die's edge that a stack takes.
    """

    name: str
    node: str
    width: float
    height: float
    strip: float
    side: float
    columns: int
    rows: int
    slices: int
    spares: int
    dies: int
    blocks: dict[str, float]
    stacks: int
    edge: float
    warnings: tuple[str, ...]

    @property
    def area(self) -> float:
        """Of the die."""
        return self.width * self.height

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return dict(vars(self)) | {"area_mm2": self.area}

    def sentences(self) -> list[str]:
        """What the drawing says."""
        said = (
            f"{self.name}, N{self.node}, at the middle of its ranges: {self.dies} die{'s' if self.dies > 1 else ''} of "
            f"{self.width:.0f} x {self.height:.0f} mm ({text(self.area)} mm2), {self.slices} slices and {self.spares} "
            f"spare each, {self.stacks} stacks"
        )
        return [said, *self.warnings]


def plan_die(chip: Chip, spares: int | None = None) -> DiePlan:
    """Lay out a die. Raises ConfigError where the chip's node is not known."""
    draw = Draws(node_of(chip), 1)
    area = area_of(chip, draw)
    spares = best_spares(area, draw) if spares is None else spares
    die = fabricate(area, draw, spares)
    each = {name: float(x[0]) for name, x in area.slice_blocks.items()}
    slices = -(-area.slices // die.dies) + spares
    hbm = float(area.shared["HBM interfaces"][0]) / die.dies if "HBM interfaces" in area.shared else 0.0
    rest = (float(area.uncore[0])) / die.dies - hbm
    total = float(die.area[0])
    stacks = -(-stacks_of(chip).count // die.dies)
    # As near to the field's shape as the stacks' edges allow: they lie along the two edges of `width`.
    edge = find("hbm_edge").mid
    width = math.sqrt(total * FIELD[1] / FIELD[0])
    width = max(width, edge * -(-stacks // 2) if stacks else 0.0)
    height = total / width
    strip = hbm / width / 2
    middle = height - 2 * strip
    side = rest / middle
    core = width - side
    columns = max(1, min(slices, round(math.sqrt(slices * core / middle))))
    warnings = []
    if total > find("reticle").mid:
        warnings.append(f"{text(total)} mm2 are more than a reticle's {find('reticle').mid:g}: no scanner prints it")
    elif not ((width <= FIELD[1] and height <= FIELD[0]) or (width <= FIELD[0] and height <= FIELD[1])):
        warnings.append(
            f"{width:.0f} x {height:.0f} mm do not fit a field of {FIELD[0]:g} x {FIELD[1]:g}: the stacks need "
            f"{edge * -(-stacks // 2):.0f} mm of edge a side; use fewer, or all four edges"
        )
    return DiePlan(
        chip.name, draw.item, width, height, strip, side, columns, -(-slices // columns), slices - spares, spares,
        die.dies, each, stacks, edge, tuple(warnings),
    )  # fmt: skip
