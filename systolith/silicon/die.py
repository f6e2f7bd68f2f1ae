"""What a good die costs: dies of a wafer, yield with spare slices, dies of a package.

Defects follow a negative binomial: Poisson with a density that varies over wafers by a gamma law of shape `cluster`. A
die is good where what its slices share has no defect and at most as many slices as there are spares have one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from systolith.silicon.area import Area
from systolith.silicon.ranges import Array, Draws

__all__ = ["Die", "best_spares", "dies_per_wafer", "fabricate", "yield_of"]

WAFER_MM = 300.0
MOST_SPARES = 8
POISSON = 30.0
"""Shape from which on the gamma law is as good as one density."""
_NODES, _WEIGHTS = np.polynomial.laguerre.laggauss(64)


@dataclass(frozen=True)
class Die:
    """Draws [n] of a die. area: mm2 of one; yielded: share of good ones; cost: USD of all good dies of a package.

    dies : in a package, each with an equal share of the slices.    spares : slices too many, on each.
    """

    area: Array
    yielded: Array
    cost: Array
    dies: int
    spares: int


def dies_per_wafer(area: Array) -> Array:
    """Whole dies of an area in mm2 on a wafer: the disc over the area, less what the edge cuts."""
    across = math.pi * (WAFER_MM / 2) ** 2 / area
    return np.maximum(0.0, across - math.pi * WAFER_MM / np.sqrt(2 * area))


def yield_of(shared: Array, each: Array, slices: int, spares: int, density: Array, cluster: Array) -> Array:
    """Share of dies that work. shared, each : mm2 of what is shared and of a slice; density : defects a cm2; [n]."""
    # E over x ~ Gamma(cluster, 1) of density * x / cluster, by Gauss-Laguerre; beyond POISSON it is Poisson's law.
    cluster = np.minimum(cluster, POISSON)
    total = np.zeros_like(shared)
    norm = np.zeros_like(shared)
    for x, w in zip(_NODES, _WEIGHTS, strict=True):
        weight = w * (x / cluster) ** (cluster - 1)
        faults = density / 100 * x / cluster
        good = np.exp(-faults * each)
        built = slices + spares
        enough = np.zeros_like(shared)
        for bad in range(spares + 1):
            enough += math.comb(built, bad) * (1 - good) ** bad * good ** (built - bad)
        total += weight * np.exp(-faults * shared) * enough
        norm += weight
    return total / norm


def fabricate(area: Area, draw: Draws, spares: int) -> Die:
    """Dies of a chip with `spares` slices too many on each; of as few dies as the reticle allows."""
    reticle = float(draw("reticle")[0])
    dies = 1
    while True:
        shared, slices = area.uncore / dies, -(-area.slices // dies)
        whole = shared + (slices + spares) * area.slice
        if float(np.median(whole)) <= reticle or dies >= area.slices:
            break
        dies += 1
    yielded = yield_of(shared, area.slice, slices, spares, draw("defect_density"), draw("cluster"))
    # A draw whose die is larger than the reticle would be cut in more dies: it costs its area, no more.
    printed = np.minimum(whole, reticle)
    per_wafer = dies_per_wafer(printed) * printed / whole
    return Die(whole, yielded, dies * draw("wafer_price") / (per_wafer * yielded), dies, spares)


def best_spares(area: Area, draw: Draws) -> int:
    """Spare slices that make the good die cheapest, at the middle of its draws."""
    costs = [float(np.median(fabricate(area, draw, spares).cost)) for spares in range(MOST_SPARES + 1)]
    return int(np.argmin(costs))
