"""Tokens a second by batch as a picture: one line for the chip, one for each user."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

__all__ = ["svg"]

_WIDE, _HIGH, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 400, 90, 90, 56, 56
_CHIP, _USER = "#2f6fab", "#b35f2f"


def svg(batches: Sequence[int], chip: Sequence[float], user: Sequence[float], title: str) -> str:
    """An SVG page of 760 x 400 pixels. Both axes of rates begin at 0, the chip's on the left; batches on a log scale.

    chip, user : tokens a second of all requests, and of one, for each batch; at least one point.
    """
    inner, tall = _WIDE - _LEFT - _RIGHT, _HIGH - _TOP - _BOTTOM
    first, last = math.log2(min(batches)), math.log2(max(batches))
    xs = [_LEFT + inner * ((math.log2(b) - first) / (last - first) if last > first else 0.5) for b in batches]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDE}" height="{_HIGH}" viewBox="0 0 {_WIDE} {_HIGH}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDE}" height="{_HIGH}" fill="white"/>',
        f'<text x="12" y="26" font-size="16">{escape(title)}</text>',
    ]
    for x, batch in zip(xs, batches, strict=True):
        out.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + tall}" stroke="#ddd"/>')
        out.append(f'<text x="{x:.1f}" y="{_TOP + tall + 20}" text-anchor="middle">{batch}</text>')
    out.append(f'<text x="{_LEFT + inner / 2}" y="{_HIGH - 12}" text-anchor="middle">requests in a batch</text>')
    for values, colour, x, anchor, name in (
        (chip, _CHIP, _LEFT - 8, "end", "tokens/s of the chip"),
        (user, _USER, _LEFT + inner + 8, "start", "tokens/s of a user"),
    ):
        top = _ceiling(max(values))
        for part in range(5):
            y = _TOP + tall * (1 - part / 4)
            out.append(
                f'<text x="{x}" y="{y + 4:.1f}" text-anchor="{anchor}" fill="{colour}">{top * part / 4:,g}</text>'
            )
        ys = [_TOP + tall * (1 - value / top) for value in values]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(xs, ys, strict=True))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>' for a, b in zip(xs, ys, strict=True)]
        place, side = (_LEFT, "start") if anchor == "end" else (_LEFT + inner, "end")
        out.append(f'<text x="{place}" y="{_TOP - 10}" text-anchor="{side}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _ceiling(value: float) -> float:
    """The next larger of 1, 2, 4, 8 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * unit for step in (1, 2, 4, 8, 10) if step * unit >= value)
