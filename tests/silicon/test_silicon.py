"""Ranges, yield, power and cost of our own chips: held to closed forms, to counting defects, and to what must move."""

from __future__ import annotations

import csv
import itertools
import math
from importlib import resources

import numpy as np
import pytest

from systolith.silicon.area import area_of, stacks_of
from systolith.silicon.die import dies_per_wafer, fabricate, yield_of
from systolith.silicon.money import break_even, cost_of, tornado
from systolith.silicon.plan import plan_die
from systolith.silicon.power import Load, power_of
from systolith.silicon.ranges import Draws, Range, facts, find, spread, text
from systolith.spec.catalogue import load
from systolith.spec.errors import ConfigError

SERVER = load("server")
DECODE = Load(340e-6, 1, {"E4M3xE2M1": 7.5e9}, 4.8e9, 8e7, 4e7)


def test_draws_have_the_three_points_of_their_fact() -> None:
    fact = Range("x", "", 2.0, 5.0, 30.0, "", "", "", "stated")
    values = fact.at(np.random.default_rng(1).standard_normal(400_000))
    for share, value in ((10, 2.0), (50, 5.0), (90, 30.0)):
        assert np.percentile(values, share) == pytest.approx(value, rel=0.02)
    assert values.min() > 0


def test_every_fact_has_a_source_a_date_and_a_known_confidence() -> None:
    kinds = {"stated", "secondary", "derived", "uncertain", "assumption"}
    for fact in facts().values():
        assert all((fact.source, fact.date, fact.unit)), fact.key
        assert fact.confidence in kinds, fact.key
    text_ = resources.files("systolith.silicon").joinpath("facts/process.csv").read_text()
    assert len(list(csv.DictReader(text_.splitlines()))) == len(facts())


def test_a_fact_is_drawn_alike_whatever_else_is_asked_for() -> None:
    one, two = Draws("3", 64, seed=5), Draws("3", 64, seed=5)
    two("duty")
    assert (one("wafer_price") == two("wafer_price")).all()
    assert (Draws("3", 64, seed=6)("wafer_price") != one("wafer_price")).any()


def test_yield_is_that_of_counted_defects() -> None:
    """Dies with defects thrown at random, density by a gamma law, against the integral."""
    rng = np.random.default_rng(3)
    shared, each, slices, spares, density, cluster = 150.0, 7.0, 60, 2, 0.2, 3.0
    n = 400_000
    per_mm2 = density / 100 * rng.gamma(cluster, 1 / cluster, n)
    bad = rng.binomial(slices + spares, 1 - np.exp(-per_mm2 * each))
    counted = np.mean((rng.poisson(per_mm2 * shared) == 0) & (bad <= spares))
    found = yield_of(*(np.array([x]) for x in (shared, each)), slices, spares, np.array([density]), np.array([cluster]))
    assert found[0] == pytest.approx(counted, abs=3 * math.sqrt(0.25 / n))


def test_yield_without_spares_is_the_negative_binomial_of_the_whole_die() -> None:
    shared, each = np.array([100.0]), np.array([5.0])
    for density, cluster in ((0.1, 2.0), (0.2, 10.0)):
        closed = (1 + density / 100 * 400 / cluster) ** -cluster
        found = yield_of(shared, each, 60, 0, np.array([density]), np.array([cluster]))
        assert found[0] == pytest.approx(closed, rel=1e-6)


def test_spare_slices_raise_the_yield_and_the_best_number_is_the_cheapest() -> None:
    draw = Draws("3", 1)
    area = area_of(SERVER, draw)
    dies = [fabricate(area, draw, spares) for spares in range(6)]
    assert all(a.yielded[0] < b.yielded[0] for a, b in itertools.pairwise(dies))
    chosen = cost_of(SERVER, DECODE, 1000, draws=1)
    assert chosen.die.cost[0] == min(fabricate(area, draw, spares).cost[0] for spares in range(9))


def test_dies_of_a_wafer() -> None:
    # 814 mm2: pi 150^2 / 814 - pi 300 / sqrt(1628) = 86.84 - 23.36.
    assert dies_per_wafer(np.array([814.0]))[0] == pytest.approx(63.48, abs=0.01)


def test_area_counts_what_the_record_counts() -> None:
    draw = Draws("3", 1)
    area = area_of(SERVER, draw)
    # 192 MiB and 16 MiB of program at 32.7 Mib a mm2, times 1.5 for small macros, times 1.2 for wires.
    sram = sum(float(area.blocks()[n][0]) for n in ("scratchpad", "weight slots", "accumulator", "program"))
    assert sram == pytest.approx(8 * (192 + 16) / 32.7 * 1.5 * 1.2, rel=1e-6)
    twice = area_of(SERVER.vary(arrays=32), draw)
    assert twice.blocks()["arrays"][0] == pytest.approx(2 * area.blocks()["arrays"][0])


def test_a_chip_larger_than_the_reticle_is_cut_in_dies() -> None:
    big = SERVER.vary(slices=160)
    found = cost_of(big, DECODE, 1000, draws=256)
    assert found.die.dies > 1
    assert np.median(found.die.area) <= find("reticle").mid
    assert plan_die(big).dies == found.die.dies


def test_memory_on_the_chip_has_area_and_no_stacks() -> None:
    chip = load("server-sram").vary(process="TSMC N3P")
    assert stacks_of(chip).count == 0
    blocks = area_of(chip, Draws("3", 1)).blocks()
    assert "resident memory" in blocks
    assert "HBM interfaces" not in blocks


def test_power_counts_events_and_the_limit_slows_the_load() -> None:
    draw = Draws("3", 1)
    area = area_of(SERVER, draw)
    power = power_of(SERVER, area, DECODE, draw)
    assert power.dynamic["HBM"][0] == pytest.approx(4.8e9 * 8 * 3.0e-12 / 340e-6)
    assert power.rate[0] == 1.0
    busy = Load(1e-3, 64, {"E2M1xE2M1": 4e12, "E4M3xE4M3": 1.5e12}, 14e9, 1e9, 1e9)
    hot = power_of(SERVER, area, busy, draw)
    assert hot.wanted[0] > 700
    assert hot.drawn[0] == pytest.approx(700)
    assert hot.tokens_per_s[0] == pytest.approx(hot.rate[0] * 64e3)


def test_cost_moves_as_it_must() -> None:
    def million(volume: int = 100_000, **fields: object) -> float:
        return float(cost_of(SERVER.vary(**fields), DECODE, volume, draws=1, spares=2).million[0])

    assert million(1_000) > million(100_000) > million(10_000_000)
    assert million(arrays=32) > million()
    parts = cost_of(SERVER, DECODE, 100_000, draws=512)
    assert sum(np.median(x) for x in parts.per_token.values()) == pytest.approx(np.median(parts.million), rel=0.35)
    low, middle, high = spread(parts.million).values()
    assert low < middle < high


def test_the_tornado_is_what_each_fact_alone_does() -> None:
    middle, swings = tornado(SERVER, DECODE, 100_000, spares=2)
    assert [s.width for s in swings] == sorted((s.width for s in swings), reverse=True)
    duty = next(s for s in swings if s.fact == "duty")
    assert duty.high < middle < duty.low
    again = cost_of(SERVER, DECODE, 100_000, draws=1, spares=2, fixed={"duty": 1})
    assert duty.high == pytest.approx(float(again.million[0]))


def test_break_even_is_where_both_cost_the_same() -> None:
    found = cost_of(SERVER, DECODE, 100_000, draws=1, spares=2)
    price = 0.5
    chips = break_even(found, 100_000, price)
    assert chips is not None
    there = cost_of(SERVER, DECODE, round(chips["p50"]), draws=1, spares=2)
    assert float(there.million[0]) == pytest.approx(price, rel=1e-3)
    assert break_even(found, 100_000, 1e-6) is None


def test_a_chip_without_a_node_is_refused() -> None:
    with pytest.raises(ConfigError, match='mini: process=None names no node; write one such as "TSMC N3P"'):
        cost_of(load("mini"), DECODE, 10)
    with pytest.raises(ConfigError, match="wafer_price of '4' is not known; there are figures for 2, 3, 5, 7"):
        cost_of(SERVER.vary(process="TSMC N4P"), DECODE, 10)


@pytest.mark.parametrize(("value", "said"), [(0.0123, "0.012"), (7.66, "7.7"), (123456, "120,000"), (0, "0")])
def test_two_digits(value: float, said: str) -> None:
    assert text(value) == said
