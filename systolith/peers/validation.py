"""Measured rows beside what the device model gives for them, and the errors by regime and device."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from systolith.peers.cases import REGIMES, Case, Refused, case_of
from systolith.peers.facts_file import Facts
from systolith.peers.fitting import claimed, no_conclusion
from systolith.peers.model import step_parts
from systolith.peers.rows import Measurement

__all__ = ["AIM", "Judged", "judge", "report", "summary"]

AIM = {"single stream": 0.12, "static batch": 0.12, "prefill": 0.20, "saturated": 0.25}
"""Median error that is aimed at, of rows left out of the fit."""


@dataclass(frozen=True)
class Judged:
    """A row with its prediction, or with the reason why there is none.

    error : predicted / measured - 1.      scalars : where they come from.      used : whether the row was fitted on.
    silent : why the row carries no conclusion; None where it does.
    """

    row: Measurement
    case: Case | None = None
    predicted: float | None = None
    reason: str | None = None
    scalars: str = ""
    used: bool = False
    silent: str | None = None
    parts: dict[str, float] | None = None

    @property
    def error(self) -> float | None:
        """Relative error."""
        if self.predicted is None or self.row.value is None:
            return None
        return self.predicted / self.row.value - 1

    @property
    def counts(self) -> bool:
        """Whether the row enters the summary."""
        return self.error is not None and self.silent is None

    def to_dict(self) -> dict[str, Any]:
        """The object of `--json`."""
        row, case = self.row, self.case
        found: dict[str, Any] = {
            "line": row.line, "id": row.id, "chip": row.chip, "model": row.model, "metric": row.metric,
            "kind": "claimed" if claimed(row) else "measured", "measured": row.value, "predicted": self.predicted,
            "error": self.error, "regime": case.regime if case else None, "used_in_fit": self.used,
            "evaluated": self.predicted is not None, "reason": self.reason,
        }  # fmt: skip
        if case is not None:
            layout = case.layout
            found |= {
                "device": case.device.key, "config": case.work.name, "formats": list(case.formats),
                "layout": {
                    "tensor": layout.tensor, "data": layout.data, "pipeline": layout.pipeline,
                    "replicas": layout.replicas,
                },
                "sequences": case.sequences, "assumed": list(case.assumed), "scalars": self.scalars,
                "conclusion": self.silent is None, "no_conclusion": self.silent, "decode_parts_s": self.parts,
            }  # fmt: skip
        return found


def judge(rows: Sequence[Measurement], facts: Facts, leave_out: str | None = None) -> list[Judged]:
    """Evaluate rows, in their order. leave_out : "device" or "model", None for the fit's own scalars."""
    found = []
    for row in rows:
        try:
            case = case_of(row)
        except Refused as error:
            found.append(Judged(row, reason=str(error)))
            continue
        scalars, source = facts.of(case, leave_out)
        prompt, decode = (
            step_parts(case.work, case.precision, case.device, case.layout, step, scalars)
            for step in (case.prompt, case.decode)
        )
        value = case.value(sum(prompt.values()), sum(decode.values()))
        used = row.key in facts.rows and source.startswith("fitted on") and leave_out is None
        silent = no_conclusion(row, case.uncertain)
        found.append(
            Judged(row, case, value, scalars=source, used=used, silent=silent, parts=decode if case.b else prompt)
        )
    return found


def summary(judged: Sequence[Judged]) -> dict[str, dict[str, dict[str, float]]]:
    """By regime, of all devices (under "all") and of each: rows, median and mean of |error|."""
    errors: dict[str, dict[str, list[float]]] = {regime: {} for regime in REGIMES}
    for one in judged:
        if one.counts and one.case is not None and one.error is not None:
            for name in ("all", one.case.device.key):
                errors[one.case.regime].setdefault(name, []).append(abs(one.error))
    return {
        regime: {
            name: {"rows": len(some), "median": statistics.median(some), "mean": statistics.fmean(some)}
            for name, some in sorted(found.items(), key=lambda pair: (pair[0] != "all", pair[0]))
        }
        for regime, found in errors.items()
    }


def report(judged: Sequence[Judged]) -> dict[str, Any]:
    """Rows, counts and summary as the object of `--json`."""
    reasons: dict[str, int] = {}
    for one in judged:
        if one.reason is not None:
            reasons[one.reason] = reasons.get(one.reason, 0) + 1
    return {
        "rows": [one.to_dict() for one in judged],
        "counts": {
            "rows": len(judged), "evaluated": sum(one.predicted is not None for one in judged),
            "refused": sum(one.reason is not None for one in judged), "used_in_fit": sum(one.used for one in judged),
            "without_conclusion": sum(one.predicted is not None and not one.counts for one in judged),
        },
        "refused": reasons,
        "summary": summary(judged),
        "aim": AIM,
    }  # fmt: skip
