"""Fitting the scalars of each generation to measurements, reproducibly, and with rows left out.

Loss: of each row the logarithm of predicted over measured, in a loss that is quadratic near zero and linear beyond a
tenth, so that single strange rows do not decide; the rows of a device and regime share one weight, and so does each
kind of operator. A weak pull holds a scalar that the rows say nothing of where all generations together have it.

The search is Gauss-Newton on logarithms with damping, from a fixed start and from starts drawn with a seed. It reads no
clock and its order is fixed: the same inputs give the same scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from systolith.peers.cases import Case
from systolith.peers.evaluate import Batch
from systolith.peers.model import Scalars
from systolith.peers.operators import Operators

__all__ = ["START", "Fitted", "Observed", "fit", "median"]

Array = npt.NDArray[np.float64]

START = Scalars(0.7, 0.85, 0.3, 5e-6, 5e-6, 5e-6)
"""Where the search begins and what the pull of the first fit is to: shares that data sheets' figures usually give, and
microseconds for kernels, collectives and the host."""
LOW = Scalars(0.02, 0.02, 0.02, 5e-7, 1e-7, 1e-7)
HIGH = Scalars(0.9, 0.93, 1.0, 2e-4, 2e-4, 5e-3)
"""Bounds: no share is above the data sheet's figure."""
BEND = 0.1
PULL = 0.003
"""Weight of the pull, in groups of rows."""
SPREAD = Scalars(0.25, 0.25, 1.0, 1.0, 1.0, 3.0)
"""Doublings that the pull takes for usual: shares of data sheets are alike on all devices, the host's times are not."""
OPERATORS = 0.25
"""Weight of each kind of operator beside a device's rows of one regime."""
STARTS = 3
ITERATIONS = 25


@dataclass(frozen=True)
class Observed:
    """A case, what was measured of it, and the name of the row's model and device."""

    case: Case
    measured: float

    @property
    def group(self) -> tuple[str, str]:
        """Rows that share a weight."""
        return self.case.device.key, self.case.regime


@dataclass(frozen=True)
class Fitted:
    """The scalars of all generations together, and of each by itself."""

    pooled: Scalars
    generations: Mapping[str, Scalars]

    def of(self, generation: str) -> Scalars | None:
        """Of a generation; None where nothing of it was measured."""
        return self.generations.get(generation)


def _array(scalars: Scalars) -> Array:
    return np.array([getattr(scalars, name) for name in Scalars.names()])


def _scalars(values: Array) -> Scalars:
    """Rounded to six digits, which is more than a measurement has, so that no machine's last bit is seen."""
    return Scalars(*(float(f"{value:.6g}") for value in values))


def median(found: Sequence[Scalars]) -> Scalars:
    """The median of each scalar."""
    return _scalars(np.median(np.array([_array(s) for s in found]), axis=0))


class _Problem:
    """Residuals of some rows and operators as a function of the logarithms of the scalars."""

    def __init__(self, rows: Sequence[Observed], operators: Sequence[Operators], prior: Scalars) -> None:
        self.batch = Batch([row.case for row in rows])
        self.measured = np.array([row.measured for row in rows])
        self.operators = list(operators)
        groups: dict[tuple[str, str], int] = {}
        for row in rows:
            groups[row.group] = groups.get(row.group, 0) + 1
        weights = [np.array([1 / groups[row.group] for row in rows])]
        weights += [np.full(len(some.measured), OPERATORS / len(some.measured)) for some in self.operators]
        self.weights = np.concatenate(weights)
        self.prior = np.log(_array(prior))
        self.spread = np.log(2) * _array(SPREAD)
        self.low, self.high = np.log(_array(LOW)), np.log(_array(HIGH))

    def residuals(self, x: Array) -> Array:
        """Logarithms of predicted over measured, [sets, rows and operators]."""
        scalars = np.exp(x)
        found = [np.log(self.batch.predict(scalars) / self.measured)] if len(self.measured) else []
        found += [np.log(some.predict(scalars) / some.measured) for some in self.operators]
        return np.concatenate(found, axis=1)

    def loss(self, residuals: Array, x: Array) -> Array:
        """Of each set."""
        bent = BEND**2 * (np.sqrt(1 + (residuals / BEND) ** 2) - 1)
        pull = PULL * BEND * (((x - self.prior) / self.spread) ** 2).sum(axis=1)
        return np.asarray((bent * self.weights).sum(axis=1) + pull)

    def solve(self, start: Array) -> tuple[float, Array]:
        """Gauss-Newton with damping from a start."""
        x, damping, step = start.copy(), 1e-2, 1e-4
        size = len(x)
        best = float("inf")
        for _ in range(ITERATIONS):
            near = np.vstack([x, x + step * np.eye(size)])
            residuals = self.residuals(near)
            here = float(self.loss(residuals[:1], x[None])[0])
            slopes = (residuals[1:] - residuals[0]).T / step
            weight = self.weights / np.sqrt(1 + (residuals[0] / BEND) ** 2)
            pull = 2 * PULL * BEND / self.spread**2
            normal = slopes.T @ (weight[:, None] * slopes) + np.diag(pull)
            slope = slopes.T @ (weight * residuals[0]) + pull * (x - self.prior)
            tries = damping * 10.0 ** np.arange(-1, 4)
            away = [np.linalg.solve(normal + t * np.diag(np.diag(normal)), -slope) for t in tries]
            ahead = np.clip(x + np.clip(np.array(away), -1.0, 1.0), self.low, self.high)
            losses = self.loss(self.residuals(ahead), ahead)
            pick = int(np.argmin(losses))
            if losses[pick] >= here * (1 - 1e-7):
                best = min(best, here)
                break
            x, best, damping = ahead[pick], float(losses[pick]), max(1e-6, float(tries[pick]))
        return best, x


def _search(problem: _Problem, start: Scalars, rng: np.random.Generator) -> Scalars:
    first = np.log(_array(start))
    starts = [first] + [np.clip(first + rng.normal(0, 0.5, 6), problem.low, problem.high) for _ in range(STARTS - 1)]
    found = [problem.solve(x) for x in starts]
    return _scalars(np.exp(min(found, key=lambda pair: pair[0])[1]))


def fit(
    rows: Sequence[Observed], operators: Mapping[str, Sequence[Operators]], seed: int,
    progress: Callable[[str], None] = lambda name: None,
) -> Fitted:  # fmt: skip
    """Fit all generations together, then each.

    operators : measured operators, by generation.      progress : gets the name of each generation that is done.
    """
    rng = np.random.default_rng(seed)
    every = [some for name in sorted(operators) for some in operators[name]]
    pooled = _search(_Problem(rows, every, START), START, rng)
    found = {}
    names = sorted({row.case.device.generation for row in rows} | set(operators))
    for name in names:
        mine = [row for row in rows if row.case.device.generation == name]
        rng = np.random.default_rng([seed, *name.encode()])
        found[name] = _search(_Problem(mine, operators.get(name, ()), pooled), pooled, rng)
        progress(name)
    return Fitted(pooled, found)
