"""Fitting finds what made the data, gives the same twice; the page and the packaged scalars are those of the data."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace

import numpy as np
import pytest

from systolith.peers.evaluate import Batch
from systolith.peers.facts_file import Facts, packaged
from systolith.peers.fit import Observed, fit, median
from systolith.peers.fitting import CALIBRATION, fit_all, observe
from systolith.peers.model import Scalars, step_seconds
from systolith.peers.operators import read_a100, read_h200
from systolith.peers.page import render
from systolith.peers.rows import parse, read_measurements
from systolith.peers.validation import AIM, judge, report, summary
from systolith.spec.errors import ConfigError
from tests.peers.helpers import GOLDEN, text_of

ROWS = read_measurements(GOLDEN / "calibrate.csv")
TRUE = Scalars(0.62, 0.81, 0.31, 4.4e-6, 3.1e-6, 2.2e-5)


def made(scalars: Scalars, keep: str) -> list[Observed]:
    """Rows of the measurements, with values that the model gives for known scalars."""
    some = [one for _, one in observe(ROWS)[0] if one.case.device.generation == keep]
    values = Batch([one.case for one in some]).predict(np.array([list(asdict(scalars).values())]))[0]
    return [replace(one, measured=float(value)) for one, value in zip(some, values, strict=True)]


def test_a_fit_finds_the_scalars_that_made_the_data() -> None:
    rows = made(TRUE, "hopper")
    found = fit(rows, {}, seed=3).generations["hopper"]
    got = Batch([row.case for row in rows]).predict(np.array([list(asdict(found).values())]))[0]
    assert np.median(abs(got / np.array([row.measured for row in rows]) - 1)) < 0.01
    for name in ("compute", "memory", "vector"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.1)


def test_the_same_data_and_seed_give_the_same_scalars_in_any_order() -> None:
    rows = made(TRUE, "ada") + made(TRUE, "cdna3")
    first, again, turned = fit(rows, {}, 1), fit(rows, {}, 1), fit(rows[::-1], {}, 1)
    assert first == again
    for name in Scalars.names():
        assert getattr(turned.generations["ada"], name) == pytest.approx(
            getattr(first.generations["ada"], name), rel=0.02
        )


def test_one_wild_row_does_not_move_the_others() -> None:
    rows = made(TRUE, "ampere")
    wild = [replace(rows[0], measured=rows[0].measured * 50), *rows[1:]]
    found = fit(wild, {}, 0).generations["ampere"]
    got = Batch([row.case for row in rows]).predict(np.array([list(asdict(found).values())]))[0]
    assert np.median(abs(got / np.array([row.measured for row in rows]) - 1)) < 0.03


def test_a_device_left_out_takes_the_median_of_the_others_and_knows_no_row_of_its_own() -> None:
    rows = made(TRUE, "ada") + made(replace(TRUE, memory=0.6), "cdna3") + made(replace(TRUE, memory=0.7), "ampere")
    rows = [row for row in rows if row.case.work.name in ("llama-2-7b", "llama-3.1-70b")]
    facts = fit_all(rows, {}, 0)
    other = fit_all([replace(r, measured=r.measured * (3 if r.case.device.key == "l40s" else 1)) for r in rows], {}, 0)
    assert facts.without_device["l40s"] == other.without_device["l40s"]
    assert facts.generations["ada"] != other.generations["ada"]
    assert facts.devices == {"a100": "ampere", "l40s": "ada", "mi300x": "cdna3"}
    whole = [facts.generations[g] for g in facts.devices.values()]
    assert facts.middle == median(whole)
    case = rows[0].case
    assert facts.of(case, "device") == (facts.without_device["l40s"], "median of the measured devices without l40s")
    assert facts.of(case)[1] == "fitted on ada"
    stranger = replace(case, device=replace(case.device, key="x", facts=observe(ROWS)[0][0][1].case.device.facts))
    assert facts.of(stranger) == (facts.middle, "median of the measured devices: nothing of this one was measured")


def test_the_batch_gives_what_the_scalar_path_gives() -> None:
    cases = [one.case for _, one in observe(ROWS)[0]]
    facts, _ = packaged()
    own = [facts.of(case)[0] for case in cases]
    got = Batch(cases).predict(np.array([[list(asdict(s).values()) for s in own]]))[0]
    for case, scalars, value in zip(cases, own, got, strict=True):
        times = (
            step_seconds(case.work, case.precision, case.device, case.layout, step, scalars)
            for step in (case.prompt, case.decode)
        )
        assert value == pytest.approx(case.value(*times), rel=1e-9)


def test_operators_are_read_and_predicted_by_hand() -> None:
    (a100,) = read_a100(GOLDEN / "a100_matmul_fp16.csv")
    got = a100.predict(np.array([[0.8, 0.9, 0.1, 5e-6, 0, 0]]))[0, 0]
    work, moved = 2 * 64 * 12288 * 12288 / (0.8 * 312e12), 2 * (12288**2 + 2 * 64 * 12288) / (0.9 * 2.039e12)
    assert got == pytest.approx((work**2 + moved**2) ** 0.5 + 5e-6)
    assert a100.measured[0] == pytest.approx(190e-6)


def test_bad_operator_files_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "h200_ops.csv"
    path.write_text("op,m\ngemm,1\n")
    with pytest.raises(ConfigError, match=r"h200_ops.csv: its header must have op, dtype, kv_dtype, m, n, k, "):
        read_h200(path)
    path = tmp_path / "a.csv"
    path.write_text("m,n,k,latency_ms\n1,2,3,x\n1,-2,3,4\n")
    with pytest.raises(ConfigError) as caught:
        read_a100(path)
    assert [fault.split(": ", 1)[1] for fault in caught.value.faults] == [
        "row 2: latency_ms='x' must be a number, 0 or more", "row 3: n='-2' must be a number, 0 or more",
    ]  # fmt: skip


def test_the_packaged_scalars_are_those_of_the_measurements() -> None:
    facts, text = packaged()
    assert facts.inputs[CALIBRATION] == hashlib.sha256((GOLDEN / CALIBRATION).read_bytes()).hexdigest()
    assert facts.to_json() == text
    assert len(facts.rows) == len(ROWS) == 222
    for found in (*facts.generations.values(), *facts.without_device.values()):
        assert 0 < found.compute <= 0.9
        assert 0 < found.memory <= 0.93
        assert len(asdict(found)) == 6


def test_every_row_of_the_measurements_is_evaluated_and_known_as_fitted_on() -> None:
    facts, _ = packaged()
    counts = report(judge(ROWS, facts))["counts"]
    assert counts == {"rows": 222, "evaluated": 222, "refused": 0, "used_in_fit": 222, "without_conclusion": 0}
    assert report(judge(ROWS, facts, "device"))["counts"]["used_in_fit"] == 0
    other, _ = parse(text_of({}), "a.csv")
    assert not judge(other, facts)[0].used


def test_errors_of_rows_left_out_stay_where_the_page_says_they_are() -> None:
    """The medians by regime are within their aims, for devices and for models left out."""
    facts, _ = packaged()
    for leave_out in ("device", "model"):
        found = summary(judge(ROWS, facts, leave_out))
        for regime, aim in AIM.items():
            assert found[regime]["all"]["median"] <= aim, (leave_out, regime)


def test_the_page_is_the_one_that_fit_writes() -> None:
    facts, _ = packaged()
    page = (GOLDEN.parents[2] / "docs" / "peers.md").read_text(encoding="utf-8")
    assert render(facts, ROWS) == page, (
        "run systolith fit --data DIR -o systolith/peers/facts/fitted.json --page docs/peers.md"
    )


def test_weak_rows_and_claims_carry_no_conclusion() -> None:
    facts, _ = packaged()
    rows, _ = parse(
        text_of({"confidence": "weak"}, {"confidence": "claimed"}, {"chip": "Maia 200", "framework": "x"}, {}), "a.csv"
    )
    judged = judge(rows, facts)
    assert [one.silent for one in judged] == [
        "the row is marked 'weak'", "claimed by a vendor, not measured", None, None,
    ]  # fmt: skip
    assert judged[2].reason == "maia-200 has no figure for its rate in bf16, which attention needs"
    assert judged[1].to_dict()["kind"] == "claimed"
    assert report(judged)["counts"] == {
        "rows": 4, "evaluated": 3, "refused": 1, "used_in_fit": 0, "without_conclusion": 2,
    }  # fmt: skip
    assert observe(rows)[0][0][0].id == "4"


def test_a_file_that_holds_no_scalars_is_refused() -> None:
    for text in ("", "{}", "[1]", '{"seed": 0, "inputs": {}}'):
        with pytest.raises(ConfigError, match=r"^f: holds no fitted scalars .*; give a file of systolith fit$"):
            Facts.from_json(text, "f")
