"""What matters most for a figure: one bar a fact, from its value at P10 to that at P90."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["svg"]

_WIDE, _LEFT, _RIGHT, _TOP, _ROW = 760, 190, 90, 64, 26
_LOW, _HIGH = "#2f6fab", "#b35f2f"


def svg(middle: float, bars: Sequence[tuple[str, float, float]], title: str) -> str:
    """An SVG page, 760 pixels wide. bars : fact, the figure with it at P10 and at P90; the widest first."""
    tall = _TOP + _ROW * max(1, len(bars)) + 40
    values = [middle, *(value for _, low, high in bars for value in (low, high))]
    first, last = min(values), max(values)
    span = (last - first) or 1.0

    def x(value: float) -> float:
        return _LEFT + (_WIDE - _LEFT - _RIGHT) * (value - first) / span

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDE}" height="{tall}" viewBox="0 0 {_WIDE} {tall}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{_WIDE}" height="{tall}" fill="white"/>',
        f'<text x="12" y="24" font-size="15">{escape(title)}</text>',
        f'<text x="12" y="44" fill="{_LOW}">fact at P10</text><text x="100" y="44" fill="{_HIGH}">fact at P90</text>',
    ]
    for number, (fact, low, high) in enumerate(bars):
        y = _TOP + _ROW * number
        out.append(f'<text x="{_LEFT - 8}" y="{y + 16}" text-anchor="end">{escape(fact)}</text>')
        for value, colour in ((low, _LOW), (high, _HIGH)):
            left, right = sorted((x(value), x(middle)))
            out.append(
                f'<rect x="{left:.1f}" y="{y + 3}" width="{max(right - left, 0.5):.1f}" height="{_ROW - 8}" '
                f'fill="{colour}"><title>{escape(fact)}: {value:.2g}</title></rect>'
            )
        right = max(x(low), x(high), x(middle))
        out.append(f'<text x="{right + 6:.1f}" y="{y + 16}" fill="#555">{low:.2g} | {high:.2g}</text>')
    bottom = _TOP + _ROW * len(bars)
    out.append(f'<line x1="{x(middle):.1f}" y1="{_TOP - 4}" x2="{x(middle):.1f}" y2="{bottom}" stroke="#333"/>')
    out.append(f'<text x="{x(middle):.1f}" y="{bottom + 20}" text-anchor="middle">{middle:.2g}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
