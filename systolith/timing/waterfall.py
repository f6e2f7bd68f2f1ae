"""Where the time went: cycles of a window by part, from the critical path that ends in it; they sum to it exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from systolith.isa import facts
from systolith.spec import Chip

from .path import PARTS, WHY, walk
from .state import State

__all__ = ["Repeat", "Waterfall", "overlaps", "waterfall"]


class Repeat(NamedTuple):
    """A stretch of the time line that stands for `times` more like it, which were not simulated. The time line is the
    one of records after the jump: everything before it has moved by what was skipped."""

    start: int
    end: int
    times: int

    @property
    def skipped(self) -> int:
        """Cycles that were left out."""
        return self.times * (self.end - self.start)


@dataclass(frozen=True)
class Waterfall:
    """Cycles of a window by part of `path.PARTS`."""

    start: int
    end: int
    parts: dict[str, int]
    why: dict[str, int] = field(repr=False)
    """The same cycles as "part: why", for those who ask further."""
    edges: npt.NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    """[n, 5]: from, to, part, why, record; earliest first. Records are numbered from the start of the run."""
    repeats: tuple[Repeat, ...] = field(default=(), repr=False, compare=False)
    """Stretches of the edges' time line that count several times; the edges then begin later than `start`."""

    @property
    def cycles(self) -> int:
        """Length of the window."""
        return self.end - self.start

    @property
    def other(self) -> float:
        """Share of cycles that no unit and no wait explains."""
        return self.parts["other"] / max(1, self.cycles)

    @classmethod
    def total(cls, windows: Iterable[Waterfall]) -> Waterfall:
        """Add up windows that follow each other."""
        all_ = list(windows)
        parts = {part: sum(w.parts[part] for w in all_) for part in PARTS}
        why: dict[str, int] = {}
        for w in all_:
            for key, value in w.why.items():
                why[key] = why.get(key, 0) + value
        return cls(all_[0].start if all_ else 0, all_[-1].end if all_ else 0, parts, why)


def overlaps(edges: npt.NDArray[np.int64], repeats: Iterable[Repeat]) -> npt.NDArray[np.int64]:
    """Cycles that each edge stands for: its length, and what of it lies in a stretch as often as that is repeated."""
    total = edges[:, 1] - edges[:, 0]
    for r in repeats:
        inside = np.minimum(edges[:, 1], r.end) - np.maximum(edges[:, 0], r.start)
        total = total + r.times * np.maximum(inside, 0)
    return total


def waterfall(
    st: State, chip: Chip, oldest: int, number: int, end: int, since: int, repeats: tuple[Repeat, ...] = ()
) -> Waterfall:
    """Walk back from record `number` at cycle `end` to cycle `since`.

    repeats : stretches between the two that stand for others, which were skipped.
    """
    edges = np.empty((max(1 << 12, 2 * (number - oldest)), 5), np.int64)
    begin = since + sum(r.skipped for r in repeats)
    while True:
        n = walk(st.rec, int(st.f[facts.SEMAPHORE]), oldest, number, end, begin, edges)
        if n >= 0:
            break
        edges = np.empty((4 * len(edges), 5), np.int64)
    edges = edges[:n][::-1].copy()
    table = np.zeros((len(PARTS), len(WHY)), np.int64)
    np.add.at(table, (edges[:, 2], edges[:, 3]), overlaps(edges, repeats))
    why = {f"{PARTS[i]}: {WHY[j]}": int(table[i, j]) for i, j in np.argwhere(table)}
    parts = {part: int(table[i].sum()) for i, part in enumerate(PARTS)}
    assert sum(parts.values()) == end - since, "the path is not contiguous"
    return Waterfall(since, end, parts, why, edges, repeats)
