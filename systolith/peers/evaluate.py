"""Predictions of many cases at once, for any scalars: what fitting and validation run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from systolith.peers.cases import Case
from systolith.peers.formats import Precision
from systolith.peers.model import Scalars
from systolith.peers.vector import Points, variant_seconds
from systolith.peers.work import Work

__all__ = ["Batch"]

Array = npt.NDArray[np.float64]


class Batch:
    """Cases laid out for the vectorised model. `predict` gives their metrics, one row a set of scalars."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = list(cases)
        variants: dict[tuple[Work, Precision], list[int]] = {}
        for number, case in enumerate(self.cases):
            variants.setdefault((case.work, case.precision), []).append(number)
        self.groups = [(*variant, np.array(index), _points(self.cases, index)) for variant, index in variants.items()]
        self.a, self.b, self.tokens, self.unit = (
            np.array([getattr(case, name) for case in self.cases], dtype=np.float64)
            for name in ("a", "b", "tokens", "unit")
        )

    def predict(self, scalars: Array) -> Array:
        """Metrics [sets, cases]. scalars : [sets, 6], or [sets, cases, 6] where each case has its own."""
        sets = scalars.shape[0]
        if scalars.ndim == 2:
            scalars = np.broadcast_to(scalars[:, None, :], (sets, len(self.cases), scalars.shape[1]))
        steps = np.empty((2, sets, len(self.cases)))
        for work, precision, index, points in self.groups:
            of = np.broadcast_to(scalars[None, :, index, :], (2, sets, len(index), scalars.shape[2]))
            for number, name in enumerate(Scalars.names()):
                setattr(points, name, np.ascontiguousarray(of[..., number]).ravel())
            whole = Points(**{
                name: value if len(value) == points.compute.size else np.repeat(
                    value.reshape(2, 1, len(index)), sets, axis=1
                ).ravel()
                for name, value in vars(points).items()
            })  # fmt: skip
            steps[:, :, index] = variant_seconds(work, precision, whole).reshape(2, sets, len(index))
        total = self.a * steps[0] + self.b * steps[1]
        with np.errstate(divide="ignore"):
            return np.asarray(np.where(self.tokens > 0, self.tokens / total, total / self.unit))


def _points(cases: Sequence[Case], index: Sequence[int]) -> Points:
    """Prompt steps, then decode steps, of some cases; the scalars are filled in later."""
    chosen = [cases[i] for i in index]
    steps = [case.prompt for case in chosen] + [case.decode for case in chosen]
    both = chosen + chosen

    def array(values: list[float]) -> Array:
        return np.array(values, dtype=np.float64)

    def rates(name: str) -> Array:
        return array([float(c.device.rate(getattr(c.precision, name)[1]) or 0.0) for c in both])

    blank = np.zeros(len(both))
    return Points(
        linear_rate=rates("linear"), expert_rate=rates("expert"), head_rate=rates("head"),
        rate=array([float(c.device.rate("bf16") or 0.0) for c in both]),
        bandwidth=array([float(c.device.bytes_per_s or 0.0) for c in both]),
        link=array([float(c.device.link_bytes_per_s or 1.0) for c in both]),
        tensor=array([c.layout.tensor for c in both]), data=array([c.layout.data for c in both]),
        pipeline=array([c.layout.pipeline for c in both]),
        sequences=array([s.sequences for s in steps]), rows=array([s.rows for s in steps]),
        context=array([s.context for s in steps]), first=np.array([s.first for s in steps]),
        shared=array([s.shared for s in steps]), launched=array([s.launched for s in steps]),
        hosted=array([s.hosted for s in steps]),
        compute=blank, memory=blank, vector=blank, kernel_s=blank, launch_s=blank, row_s=blank,
    )  # fmt: skip
