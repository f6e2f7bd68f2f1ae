"""A die to scale: slices by block, HBM along two edges, links along the third, the reticle's field around it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from systolith.silicon.plan import DiePlan

__all__ = ["svg"]

_SCALE, _MARGIN, _LEGEND = 18.0, 60.0, 230.0
_COLOURS = (
    "#b35f2f", "#d99a6c", "#8a6fae", "#9a9a9a", "#2f6fab", "#6fa3d4", "#9cc3e6", "#c9dcef", "#3c8a6a",
)  # fmt: skip
_HBM, _LINKS, _STACK = "#c9a227", "#777777", "#efe3b0"


def svg(plan: DiePlan) -> str:
    """An SVG page, 18 pixels a millimetre."""
    wide, high = plan.width * _SCALE, plan.height * _SCALE
    stack_high = 9.0 * _SCALE if plan.stacks else 0.0
    left, top = _MARGIN, _MARGIN + stack_high + 10
    page_wide, page_high = left + wide + _LEGEND + 20, top + high + stack_high + 60
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{page_wide:.0f}" height="{page_high:.0f}" '
        f'viewBox="0 0 {page_wide:.0f} {page_high:.0f}" font-family="sans-serif" font-size="13">',
        f'<rect width="{page_wide:.0f}" height="{page_high:.0f}" fill="white"/>',
        f'<text x="12" y="26" font-size="16">{escape(plan.sentences()[0])}</text>',
    ]

    def box(x: float, y: float, w: float, h: float, colour: str, name: str, stroke: str = "none") -> None:
        out.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{max(h, 0):.1f}" fill="{colour}" '
            f'stroke="{stroke}"><title>{escape(name)}</title></rect>'
        )

    # Stacks stand along the top and the bottom, as far as they need edge.
    for number in range(plan.stacks):
        below, place, of = number % 2, number // 2, -(-plan.stacks // 2)
        x = left + (place + 0.5) * wide / of - plan.edge * _SCALE / 2
        y = top + high + 4 if below else top - stack_high - 4
        box(x + 2, y, plan.edge * _SCALE - 4, stack_high, _STACK, "HBM stack, outside the die", "#b9a85a")
        out.append(f'<text x="{x + 10:.1f}" y="{y + 20:.1f}" fill="#6b5e1f">HBM</text>')
    strip, side = plan.strip * _SCALE, plan.side * _SCALE
    box(left, top, wide, high, "#f4f4f4", "die", "#333")
    box(left, top, wide, strip, _HBM, "HBM interfaces")
    box(left, top + high - strip, wide, strip, _HBM, "HBM interfaces")
    box(left + wide - side, top + strip, side, high - 2 * strip, _LINKS, "links, host")
    cell_w, cell_h = (wide - side) / plan.columns, (high - 2 * strip) / plan.rows
    whole = sum(plan.blocks.values())
    for number in range(plan.slices + plan.spares):
        x = left + number % plan.columns * cell_w
        y = top + strip + number // plan.columns * cell_h
        at = x + 1
        for (name, area), colour in zip(plan.blocks.items(), _COLOURS, strict=False):
            w = (cell_w - 2) * area / whole
            box(at, y + 1, w, cell_h - 2, colour, f"slice {number}: {name}, {area:.2g} mm2")
            at += w
        if number >= plan.slices:
            out.append(f'<text x="{x + 4:.1f}" y="{y + 16:.1f}" fill="white">spare</text>')
    x = left + wide + 20
    entries = [(name, colour, area) for (name, area), colour in zip(plan.blocks.items(), _COLOURS, strict=False)]
    for number, (name, colour, area) in enumerate(entries):
        y = top + 22 * number
        box(x, y, 14, 14, colour, name)
        out.append(f'<text x="{x + 20:.1f}" y="{y + 12:.1f}">{escape(name)}: {area:.2g} mm2</text>')
    y = top + 22 * len(entries) + 20
    out.append(f'<text x="{x:.1f}" y="{y:.1f}">of one slice; {plan.slices} + {plan.spares} spare</text>')
    for number, (name, colour) in enumerate((("HBM interfaces", _HBM), ("links, host", _LINKS))):
        lower = y + 16 + 22 * number
        box(x, lower, 14, 14, colour, name)
        out.append(f'<text x="{x + 20:.1f}" y="{lower + 12:.1f}">{name}</text>')
    for number, line in enumerate(plan.warnings):
        out.append(f'<text x="12" y="{page_high - 16 - 18 * number:.0f}" fill="#a00">{escape(line)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
