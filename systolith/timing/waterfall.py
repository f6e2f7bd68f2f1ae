"""Where the time went: cycles of a window by part, from the critical path that ends in it; they sum to it exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from systolith.isa import facts
from systolith.spec import Chip

from .path import PARTS, WHY, walk
from .state import State

__all__ = ["Waterfall", "waterfall"]


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


def waterfall(st: State, chip: Chip, oldest: int, number: int, end: int, since: int) -> Waterfall:
    """Walk back from record `number` at cycle `end` to cycle `since`."""
    edges = np.zeros((1 << 12, 5), np.int64)
    while True:
        n = walk(st.rec, int(st.f[facts.SEMAPHORE]), oldest, number, end, since, edges)
        if n >= 0:
            break
        edges = np.zeros((2 * len(edges), 5), np.int64)
    edges = edges[:n][::-1].copy()
    lengths = edges[:, 1] - edges[:, 0]
    table = np.zeros((len(PARTS), len(WHY)), np.int64)
    np.add.at(table, (edges[:, 2], edges[:, 3]), lengths)
    why = {f"{PARTS[i]}: {WHY[j]}": int(table[i, j]) for i, j in np.argwhere(table)}
    parts = {part: int(table[i].sum()) for i, part in enumerate(PARTS)}
    assert sum(parts.values()) == end - since, "the path is not contiguous"
    return Waterfall(since, end, parts, why, edges)
