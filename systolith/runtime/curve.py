"""Batches of several sizes side by side: tokens a second for each user, and for the chip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from systolith.models.graph import ModelGraph
from systolith.models.profile import Profile
from systolith.runtime.estimate import Estimate, Question, estimate
from systolith.spec.chip import Chip
from systolith.spec.errors import CapacityError, ConfigError

__all__ = ["Point", "batches_of", "curve"]

MOST_POINTS = 32


def batches_of(text: str) -> tuple[int, ...]:
    """Read a list of batches, "32,64,128". Raises ConfigError."""
    words = [word.strip() for word in text.split(",")]
    wrong = next((w for w in words if not (w.isascii() and w.isdigit() and 0 < int(w) < 1 << 16)), None)
    if wrong is not None:
        raise ConfigError(f"batches: {wrong[:20]!r} must be a number 1..65535; give them as in 32,64,128")
    if len(words) > MOST_POINTS:
        raise ConfigError(f"batches: {len(words)} were given, at most {MOST_POINTS} are allowed; give fewer")
    return tuple(int(word) for word in words)


@dataclass(frozen=True)
class Point:
    """A batch and what it gives; `fault` is why its program does not fit, where `timed` is missing."""

    batch: int
    timed: Estimate | None
    fault: str = ""

    def to_dict(self) -> dict[str, Any]:
        """An entry of the list of `--json`: seconds, tokens a second; `steps`: that make a token for each request."""
        if self.timed is None:
            return {"batch": self.batch, "fault": self.fault}
        found, plan = self.timed.to_dict(made_of={}), self.timed.compiled.plan
        tpot_s = self.timed.tpot_s
        return {
            "batch": self.batch, "rows": plan.rows, "steps": plan.decode_steps, "tpot_s": tpot_s,
            "tokens_per_s_user": 1 / tpot_s, "tokens_per_s_chip": self.batch / tpot_s,
            **{key: found[key] for key in ("bytes", "bound_s", "fractions", "waterfall", "decode_steps")},
        }  # fmt: skip


def curve(
    graph: ModelGraph, chip: Chip, profile: Profile, batches: Sequence[int], question: Question, *, source: str = ""
) -> Iterator[Point]:
    """Time a decode step for each batch, each on the program that is compiled for it; prompts are not timed.

    question : its batch is replaced. A batch that does not fit gives its reason. Raises ConfigError, ModelError.
    """
    for batch in batches:
        asked = replace(question, batch=batch, prefill=False, sensitivity=False)
        try:
            yield Point(batch, estimate(graph, chip, profile, asked, source=source))
        except CapacityError as fault:
            yield Point(batch, None, str(fault))
