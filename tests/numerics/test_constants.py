import decimal
import hashlib
import json
import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.numerics import constants, fp32, trig
from systolith.numerics._exact import Interval, iroot
from systolith.spec.errors import SystolithError

from .oracle import as_float, rne, value

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/numerics/constants.json").read_text())
CONTEXT = decimal.Context(prec=80)
LOG2E = 1 / CONTEXT.ln(Decimal(2))


def rounded(exact: Decimal) -> int:
    """FP32 bits of an 80-digit decimal, which is far enough from a midpoint by the test's own check."""
    slack = abs(Fraction(exact)) / 10**70
    low, high = rne(Fraction(exact) - slack), rne(Fraction(exact) + slack)
    assert low == high
    return low


def test_golden_constants() -> None:
    assert fp32.to_bits(constants.LOG2E) == int(GOLDEN["log2e_bits"], 16)
    assert fp32.to_bits(constants.score_scale(48)) == int(GOLDEN["score_scale_d48_bits"], 16)


def test_golden_rotary_table() -> None:
    cosines, sines = constants.rotary_tables(48, 1e4, 600)
    assert cosines.shape == sines.shape == (600, 24)
    assert cosines.dtype == sines.dtype == np.float32
    digest = hashlib.sha256(cosines.tobytes() + sines.tobytes()).hexdigest()
    assert digest == GOLDEN["rotary_600x24_d48_theta1e4_cosines_then_sines_fp32_sha256"]


@pytest.mark.parametrize("d", [*range(1, 66), 80, 96, 100, 112, 128, 192, 256, 576])
def test_score_scale_of_a_head_size(d: int) -> None:
    with decimal.localcontext(CONTEXT):
        assert fp32.to_bits(constants.score_scale(d)) == rounded(1 / CONTEXT.ln(Decimal(2)) / Decimal(d).sqrt())


@given(st.floats(1e-30, 1e30))
def test_model_scale_and_temperature_enter_exactly(x: float) -> None:
    with decimal.localcontext(CONTEXT):
        log2e = 1 / CONTEXT.ln(Decimal(2))
        assert fp32.to_bits(constants.score_scale(64, x)) == rounded(Decimal(x) * log2e)
        assert fp32.to_bits(constants.temperature_scale(x)) == rounded(log2e / Decimal(x))


def test_mean_scale_and_eps() -> None:
    for D in [*range(1, 300), 4096, 16777217, 2**30 - 1]:
        assert fp32.to_bits(constants.mean_scale(D)) == rne(Fraction(1, D))
    assert fp32.to_bits(constants.eps_constant(1e-5)) == rne(Fraction(1e-5))


@pytest.mark.parametrize(("d", "theta"), [(2, 1e4), (48, 1e4), (64, 5e5), (128, 1e6), (128, 150000.0), (96, 10000.25)])
def test_inverse_frequencies(d: int, theta: float) -> None:
    got = constants.inverse_frequencies(d, theta)
    assert got.shape == (d // 2,)
    assert got[0] == 1
    with decimal.localcontext(CONTEXT):
        for i, f in enumerate(got[1:].tolist(), 1):
            power = CONTEXT.exp(-CONTEXT.ln(Decimal(theta)) * 2 * i / d)
            assert fp32.to_bits(f) == rounded(power)


def test_inverse_frequencies_that_are_exact() -> None:
    assert constants.inverse_frequencies(16, 65536.0).tolist() == [4.0**-i for i in range(8)]
    assert constants.inverse_frequencies(4, 0.25).tolist() == [1.0, 2.0]


def test_a_scaling_acts_before_the_one_rounding() -> None:
    third = constants.inverse_frequencies(64, 1e4, lambda i, f, bits: f / Interval.exact(3))
    with decimal.localcontext(CONTEXT):
        for i, f in enumerate(third.tolist()):
            assert fp32.to_bits(f) == rounded(CONTEXT.exp(-CONTEXT.ln(Decimal(10000)) * 2 * i / 64) / 3)
    twice = constants.inverse_frequencies(64, 1e4) / np.float32(3)
    assert (third != twice).any()  # two roundings give other bits


def test_llama3_scaling() -> None:
    scaling = constants.llama3_scaling(8.0, 1.0, 4.0, 8192)
    got = constants.inverse_frequencies(128, 5e5, scaling).astype(np.float64)
    plain = 500000.0 ** (-np.arange(0, 128, 2) / 128)
    turns = 8192 * plain / (2 * math.pi)
    s = np.clip((turns - 1) / 3, 0, 1)
    assert (turns < 1).any()
    assert ((turns > 1) & (turns < 4)).any()
    np.testing.assert_allclose(got, (1 - s) * plain / 8 + s * plain, rtol=2**-23)
    assert (got[turns > 4].astype(np.float32) == constants.inverse_frequencies(128, 5e5)[turns > 4]).all()
    with pytest.raises(
        SystolithError, match=r"^rope_scaling: low_freq_factor=4.0 must be above 0 and below high_freq_factor=1.0$"
    ):
        constants.llama3_scaling(8.0, 4.0, 1.0, 8192)


def test_yarn_scaling() -> None:
    d, theta, factor, context = 64, 150000.0, 32.0, 4096
    got = constants.inverse_frequencies(d, theta, constants.yarn_scaling(d, theta, factor, context)).astype(np.float64)
    plain = theta ** (-np.arange(0, d, 2) / d)
    low, high = (d * math.log(context / (2 * math.pi * n)) / (2 * math.log(theta)) for n in (32, 1))
    ramp = np.clip((np.arange(d // 2) - math.floor(low)) / (math.ceil(high) - math.floor(low)), 0, 1)
    assert ((ramp > 0) & (ramp < 1)).sum() > 5
    np.testing.assert_allclose(got, plain / factor * ramp + plain * (1 - ramp), rtol=2**-23)
    cosines, sines = constants.rotary_tables(
        d, theta, 3, constants.yarn_scaling(d, theta, factor, context), constants.yarn_attention_factor(factor)
    )
    with decimal.localcontext(CONTEXT):
        attention = Fraction(CONTEXT.ln(Decimal(32))) / 10 + 1
    assert (cosines[0] == np.float32(value(rne(attention)))).all()
    assert (sines[0] == 0).all()
    np.testing.assert_allclose(cosines[1:] ** 2 + sines[1:] ** 2, float(attention) ** 2, rtol=1e-6)
    angle = np.float32(3.5)
    for own in (0.7, 1.25):
        exact = [x * Fraction(own) for x in (Fraction(c) for c in decimal_cos_sin(Fraction(3.5)))]
        pair = trig.cos_sin(np.array([angle]), constants.yarn_attention_factor(8.0, own))
        assert [fp32.to_bits(float(x[0])) for x in pair] == [rne(x) for x in exact]
    for wrong, sentence in (
        ({"theta": 1.0}, r"^rope_scaling: theta=1.0 must be above 1 for YaRN$"),
        ({"beta_fast": 0.5}, r"^rope_scaling: beta_fast=0.5 must be at least beta_slow=1.0$"),
    ):
        arguments = {"d": d, "theta": theta, "factor": factor, "original_context": context, **wrong}
        with pytest.raises(SystolithError, match=sentence):
            constants.yarn_scaling(**arguments)  # type: ignore[arg-type]


@given(st.fractions(min_value=Fraction(1, 10**9), max_value=10**9))
def test_logarithms_enclose_those_of_decimals(x: Fraction) -> None:
    with decimal.localcontext(CONTEXT):
        expected = Fraction(CONTEXT.ln(Decimal(x.numerator) / Decimal(x.denominator)))
    for bits in (64, 128):
        got = trig._exact.ln(trig._exact.Interval.exact(x), bits)
        near = Fraction(1, 10**60)
        assert got.lo - near <= expected <= got.hi + near
        assert got.hi - got.lo < Fraction(1, 1 << (bits - 8))


def test_angles_are_the_exact_product_rounded_once() -> None:
    inv_freq = constants.inverse_frequencies(128, 1e6)
    positions = [0, 1, 3, 4607, 131071, 2**24 - 1]
    angles = constants.rotary_angles(positions, inv_freq)
    for row, p in zip(angles, positions, strict=True):
        for angle, f in zip(row.tolist(), inv_freq.tolist(), strict=True):
            assert fp32.to_bits(angle) == rne(p * Fraction(f))
    with pytest.raises(SystolithError, match=r"^rotary: position=16777216 must be in 0\.\.16777215$"):
        constants.rotary_angles([2**24], inv_freq)
    with pytest.raises(SystolithError, match=r"^rotary: position=-1 must be in 0\.\.16777215$"):
        constants.rotary_angles([3, -1], inv_freq)


def decimal_cos_sin(angle: Fraction) -> tuple[Decimal, Decimal]:
    """Taylor series of the whole angle in decimals, no reduction: another method than the package's."""
    x = Decimal(angle.numerator) / Decimal(angle.denominator)
    term, k, sums = Decimal(1), 0, [Decimal(0), Decimal(0)]
    while abs(term) > Decimal(10) ** -95 or k < x:
        sums[k % 2] += term if k % 4 < 2 else -term
        k += 1
        term = term * x / k
    return sums[0], sums[1]


@settings(max_examples=60, deadline=None)
@given(st.builds(lambda e, f: as_float(e << 23 | f), st.integers(90, 131), st.integers(0, 2**23 - 1)))
def test_cosine_and_sine_by_another_series(angle: float) -> None:
    with decimal.localcontext(decimal.Context(prec=130)):
        cosine, sine = decimal_cos_sin(Fraction(angle))
        expected = rounded(cosine), rounded(sine)
    assert tuple(fp32.to_bits(x) for x in trig.cos_sin_exact(angle)) == expected
    got = trig.cos_sin(np.array([angle], np.float32))
    assert tuple(fp32.to_bits(float(x[0])) for x in got) == expected


def test_vectorised_equals_exact_on_samples_and_hard_angles() -> None:
    rng = np.random.default_rng(11)
    bits = rng.integers(0, as_bits(2.0**24), 1500).astype(np.uint32)
    uniform = rng.uniform(0, 2**24, 1500).astype(np.float32)
    # angles next to quarter turns, where the reduced angle is small
    quarters = (rng.integers(1, 10**7, 500) * (math.pi / 2)).astype(np.float32)
    angles = np.concatenate([bits.view(np.float32), uniform, quarters, np.float32([0, 2**24, 3e7, 1e30, 1e-45])])
    cosines, sines = trig.cos_sin(angles)
    for angle, c, s in zip(angles.tolist(), cosines.tolist(), sines.tolist(), strict=True):
        assert (c, s) == trig.cos_sin_exact(angle)


def as_bits(x: float) -> int:
    return fp32.to_bits(x)


@pytest.mark.parametrize("times", [None, 1.25, 0.7], ids=["plain", "exact_factor", "factor"])
def test_the_error_bound_holds_with_room(times: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The float64 values before rounding are within a thirtieth of the margin claimed for them."""
    seen = []
    original = trig._decide
    factor = None if times is None else constants.yarn_attention_factor(1.0, times)

    def spy(values, factor):  # type: ignore[no-untyped-def]
        seen.append(values.copy())
        return original(values, factor)

    monkeypatch.setattr(trig, "_decide", spy)
    rng = np.random.default_rng(12)
    angles = rng.uniform(0, 2**24, 400).astype(np.float32)
    angles[:200] = (rng.integers(1, 10**7, 200) * (math.pi / 2)).astype(np.float32)
    trig.cos_sin(angles, factor)
    for function, values in zip((0, 1), seen, strict=True):
        for angle, got in zip(angles.tolist(), values.tolist(), strict=True):
            exact = trig._exact.cos_sin(Fraction(angle), 160)[function].lo * Fraction(times or 1)
            assert abs(Fraction(got) - exact) < Fraction(float(trig._margin(np.float64(got)))) / 30
            assert trig._margin(np.float64(got)) < 2**-45 * abs(got) + 2**-79


def test_few_entries_are_doubtful() -> None:
    angles = constants.rotary_angles(range(4608), constants.inverse_frequencies(128, 5e5))
    doubtful = trig._evaluate(angles.reshape(-1))[2]
    assert doubtful.mean() < 1e-4


def test_the_shape_of_angles_is_kept() -> None:
    cosines, sines = trig.cos_sin(np.zeros((2, 3, 4), np.float32))
    assert cosines.shape == sines.shape == (2, 3, 4)
    assert (cosines == 1).all()
    assert (sines == 0).all()


@given(st.integers(0, 2**300), st.integers(1, 70))
def test_iroot(n: int, k: int) -> None:
    root = iroot(n, k)
    assert root**k <= n < (root + 1) ** k


def test_errors() -> None:
    with pytest.raises(SystolithError, match=r"^theta=0.0 must be a finite number above 0$"):
        constants.inverse_frequencies(64, 0.0)
    with pytest.raises(SystolithError, match=r"^rotary: d=7 must be even and 2 or more, the rotated part of a head$"):
        constants.inverse_frequencies(7, 1e4)
    with pytest.raises(SystolithError, match=r"^temperature=0 must be a finite number above 0$"):
        constants.temperature_scale(0)
    with pytest.raises(
        SystolithError, match=r"^temperature=1e-39 must be at least 2\^-127; use 0 to take the largest logit$"
    ):
        constants.temperature_scale(1e-39)
    assert constants.temperature_scale(2.0**-127) < math.inf
    with pytest.raises(SystolithError, match=r"^score_scale: d=0 must be 1 or more, the unpadded head size$"):
        constants.score_scale(0)
    with pytest.raises(SystolithError, match=r"^mean_scale: D=0 must be 1 or more, the unpadded size$"):
        constants.mean_scale(0)
    assert value(0x3F800000) == 1
