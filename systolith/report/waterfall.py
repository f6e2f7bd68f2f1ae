"""A waterfall as bars: where the time of a step goes, part by part along the critical path."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

__all__ = ["bars", "svg"]

_BLOCKS = " ▏▎▍▌▋▊▉█"
_COLOURS = {
    "weights": "#2f6fab", "kv": "#5fa3d9", "compute": "#3f8f4f", "vector": "#8fbf5f", "issue": "#c98f2f",
    "semaphores": "#b35f2f", "collectives": "#9f4f8f", "host": "#7f7f7f", "other": "#bfbfbf",
}  # fmt: skip


def time_text(seconds: float) -> str:
    """A time in the unit that reads best."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.4g} {unit}"
    return f"{seconds * 1e9:.4g} ns"


def bars(parts: Mapping[str, float], width: int = 44) -> str:
    """Lines of text, one a part: name, bar, time, share. Each bar starts where the one before ended."""
    total = sum(parts.values()) or 1.0
    name = max(map(len, parts), default=0)
    lines, start = [], 0.0
    for part, seconds in parts.items():
        first, last = start / total * width, (start + seconds) / total * width
        start += seconds
        lines.append(
            f"{part:<{name}}  {_bar(first, last, width)}  {time_text(seconds):>9}  {seconds / total * 100:5.1f} %"
        )
    return "\n".join(lines)


def _bar(first: float, last: float, width: int) -> str:
    """Cells of a bar from `first` to `last` of `width`; the ends in eighths, the left one rounded to a cell."""
    begin = int(first)
    eighths = max(0, round((last - begin) * 8)) if last > first else 0
    filled = "█" * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")
    return (" " * begin + (filled or ("▏" if last > first else ""))).ljust(width)[:width]


def svg(parts: Mapping[str, float], title: str, notes: list[str] | None = None) -> str:
    """An SVG page of 760 pixels: a bar a part, each from where the one before ended; title above, notes below."""
    total = sum(parts.values()) or 1.0
    row, left, right, top = 26, 110, 170, 44
    wide = 760 - left - right
    notes = notes or []
    height = top + row * len(parts) + 14 + 18 * len(notes) + 8
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" viewBox="0 0 760 {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="760" height="{height}" fill="white"/>',
        f'<text x="12" y="26" font-size="16">{escape(title)}</text>',
    ]
    start = 0.0
    for i, (part, seconds) in enumerate(parts.items()):
        y = top + row * i
        x = left + start / total * wide
        length = seconds / total * wide
        colour = _COLOURS.get(part, "#7f7f7f")
        out.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(part)}</text>')
        out.append(f'<rect x="{x:.2f}" y="{y + 3}" width="{max(length, 0.5):.2f}" height="{row - 8}" fill="{colour}"/>')
        out.append(
            f'<text x="{left + wide + 10}" y="{y + 16}">{time_text(seconds)}, {seconds / total * 100:.1f} %</text>'
        )
        start += seconds
    for i, note in enumerate(notes):
        out.append(f'<text x="12" y="{top + row * len(parts) + 24 + 18 * i}" fill="#444">{escape(note)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
