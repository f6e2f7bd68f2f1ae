"""Which field of a chip a decode step waits for: the step timed again with one field changed at a time.

The program is compiled anew for each chip, as a field may change how a model lies on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from systolith.models.graph import ModelGraph
from systolith.models.profile import Profile
from systolith.runtime.estimate import Question, compile_for, decode_step
from systolith.spec.chip import Chip
from systolith.spec.errors import SystolithError

__all__ = ["FIELDS", "Trial", "try_fields"]

FIELDS = (
    ("dram_latency_ns", Fraction(1, 2)), ("slots_bytes", Fraction(2)), ("fp32_add_cycles", Fraction(1, 2)),
    ("lanes", Fraction(2)), ("hop_ns", Fraction(1, 2)), ("ingress_bytes_per_s", Fraction(2)),
    ("semaphore_cycles", Fraction(1, 2)), ("weight_load_bytes", Fraction(2)), ("accumulator_bytes", Fraction(2)),
)  # fmt: skip
"""Fields that may cost time beside bandwidth, and what each is multiplied by. Fields in cycles and lanes keep a least
value of 1."""


@dataclass(frozen=True)
class Trial:
    """A field changed. value, was: as in a chip file; seconds: of the step, None with a reason where no such chip can
    be built; of_stated: share of what the memory's stated efficiency, or the arithmetic, allows."""

    field: str
    was: str
    value: str
    seconds: float | None
    of_stated: float | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def try_fields(
    graph: ModelGraph, chip: Chip, profile: Profile, question: Question, *, source: str = "", sha256: str = ""
) -> Iterator[Trial]:
    """Time the middle decode step of a question with each of FIELDS changed; the first trial changes none."""
    context = question.contexts[len(question.contexts) // 2]
    for name, factor in (("", Fraction(1)), *FIELDS):
        was = Fraction(_value(chip, name)) if name else Fraction(0)
        value = was * factor
        if name.endswith("_cycles"):
            value = Fraction(max(1, int(value)))
        try:
            other = chip.vary(**{name: int(value) if value.denominator == 1 else value}) if name else chip
            compiled = compile_for(graph, other, profile, question, source=source, sha256=sha256)
        except SystolithError as error:
            yield Trial(name, _text(was), _text(value), None, None, str(error))
            continue
        step = decode_step(compiled, context, question)
        memory, compute = step.cost.seconds(other)
        seconds = step.cycles / other.clock_hz
        allowed = float(max(memory / other.dram_efficiency, compute))
        yield Trial(name, _text(was), _text(value), seconds, allowed / seconds)


def _value(chip: Chip, name: str) -> Fraction:
    """A field of the config, or what it is derived to be where the config leaves it out."""
    given = getattr(chip.config, name)
    return Fraction(given or getattr(chip, name))


def _text(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
