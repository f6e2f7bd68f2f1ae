import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.numerics import fp32, vector_math
from systolith.numerics import functions as fn

from .oracle import INF, NAN, SIGN, any_bits, as_float, finite_bits, is_nan, rne, value

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/numerics/constants.json").read_text())
Bits = npt.NDArray[np.uint32]


# The table.


def bracket_power_of_two(n: int, squarings: int, exponent: int) -> tuple[bool, bool]:
    """Whether n^(2^squarings) is surely below, surely above 2^exponent, with mantissas cut outward to 400 bits."""
    low = high = n
    low_exp = high_exp = 0
    for _ in range(squarings):
        low, high, low_exp, high_exp = low * low, high * high, 2 * low_exp, 2 * high_exp
        cut = max(0, low.bit_length() - 400)
        low, low_exp = low >> cut, low_exp + cut
        cut = max(0, high.bit_length() - 400)
        high, high_exp = (high >> cut) + 1, high_exp + cut
    below = high.bit_length() + high_exp <= exponent
    above = low.bit_length() - 1 + low_exp >= exponent
    return below, above


@pytest.mark.parametrize(("table", "squarings"), [("EXP2_T1", 8), ("EXP2_T2", 16)])
def test_every_factor_is_the_nearest_integer(table: str, squarings: int) -> None:
    # n nearest to 2^27 * 2^(i / 2^s)  <=>  (2n - 1)^(2^s) < 2^(28 * 2^s + i) < (2n + 1)^(2^s)
    for i, n in enumerate(getattr(fn, table)):
        exponent = 28 * 2**squarings + i
        assert bracket_power_of_two(2 * n - 1, squarings, exponent)[0]
        assert bracket_power_of_two(2 * n + 1, squarings, exponent)[1]


def test_all_65536_entries_are_the_product_rounded_once() -> None:
    table = fn.exp2_table().tolist()
    assert len(table) == 65536
    for f in range(65536):
        exact = fn.EXP2_T1[f >> 8] * fn.EXP2_T2[f & 255]  # / 2^54, and a table entry is in units of 2^-23
        floor, rest = divmod(exact, 2**31)
        nearest = floor + (rest > 2**30 or (rest == 2**30 and floor % 2 == 1))
        assert table[f] == fn.exp2_entry(f) == nearest
        assert 2**23 <= nearest < 2**24


def test_the_table_is_the_golden_one() -> None:
    table = fn.exp2_table()
    assert table.dtype == np.uint32
    assert hashlib.sha256(table.tobytes()).hexdigest() == GOLDEN["exp2_table_uint32_sha256"]
    assert {str(i): int(table[int(i)]) for i in GOLDEN["exp2_table_entries"]} == GOLDEN["exp2_table_entries"]
    assert not table.flags.writeable


# exp2fx and fix.

fixed = st.integers(-(2**31) + 1, 2**31 - 2) | st.integers(-160 * 65536, 130 * 65536)


@settings(max_examples=400)
@given(fixed, st.integers(-200, 200) | st.integers(-32768, 32768))
def test_exp2fx_is_the_table_entry_scaled_and_rounded_once_more(F: int, M: int) -> None:
    f = F - M * 65536
    octave = f // 65536
    exact = Fraction(fn.exp2_entry(f % 65536), 2**23) * Fraction(2) ** max(-400, min(400, octave))
    assert fp32.to_bits(fn.exp2fx(F, M)) == rne(exact)


def test_exp2fx_sentinels_are_recognised_before_m_is_subtracted() -> None:
    assert math.isnan(fn.exp2fx(fn.NAN_FX, 32768))
    assert fp32.to_bits(fn.exp2fx(fn.MASKED, -32768)) == 0  # as a number it would be 2^0
    assert fn.exp2fx(-1, -32768) == math.inf  # F - M * 2^16 = 2^31 - 1 is a number here
    assert fn.exp2fx(0) == 1.0
    assert fn.exp2fx(-149 * 65536) == 2.0**-149
    assert fp32.to_bits(fn.exp2fx(-150 * 65536)) == 0  # a tie
    assert fp32.to_bits(fn.exp2fx(-150 * 65536 + 1)) == 1
    assert fn.exp2fx(10**15) == math.inf
    assert fp32.to_bits(fn.exp2fx(-(10**15))) == 0


@settings(max_examples=400)
@given(
    any_bits
    | st.builds(
        lambda e, f, s: s << 31 | e << 23 | f, st.integers(105, 143), st.integers(0, 2**23 - 1), st.integers(0, 1)
    )
)
def test_fix(bits: int) -> None:
    got = fn.fix(as_float(bits))
    if is_nan(bits):
        assert got == 0x7FFFFFFF
    elif bits & 0x7FFFFFFF == INF:
        assert got == (-(2**31) + 1 if bits >> 31 else 2**31 - 2)
    else:
        exact = value(bits) * 65536
        floor = exact.numerator // exact.denominator
        rest = exact - floor
        nearest = floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1))
        assert got == max(-(2**31) + 1, min(2**31 - 2, nearest))


def test_fix_ties_and_limits() -> None:
    unit = 2.0**-16
    assert [fn.fix(k * unit / 2) for k in (1, 3, 5, -1, -3)] == [0, 2, 2, 0, -2]
    assert [fn.fix(x) for x in (32768.0, -32768.0, 1e30, -1e30)] == [2**31 - 2, -(2**31) + 1] * 2
    assert fn.MASKED not in (fn.FX_MIN, fn.FX_MAX, fn.NAN_FX)


@given(st.integers(-(2**31), 2**31 - 1))
def test_ceil_fx(F: int) -> None:
    assert fn.ceil_fx(F) == math.ceil(Fraction(F, 65536))


# rcp and rsqrt.


def check_rcp(x: Bits, y: Bits) -> npt.NDArray[np.bool_]:
    """Whether y is 1/x rounded to nearest, in exact integers; x normal, 1/x normal, both positive.

    With mantissas mx, my: 1/x has the exponent such that 2^47 <= mx * my <= 2^48, and half a unit of y is 1/2 of my:
    |mx * my - 2^k| <= mx / 2, no equality as 1/x is no midpoint unless mx is a power of two.
    """
    mx, my = (x & 0x7FFFFF | 0x800000).astype(np.int64), (y & 0x7FFFFF | 0x800000).astype(np.int64)
    k = 300 - (x >> 23).astype(np.int64) - (y >> 23).astype(np.int64)  # 2^(127+23) of each: k = 46, 47 or 48
    assert ((k >= 45) & (k <= 49)).all()
    one = np.int64(1) << k
    # At a power of two the unit below y is half as large.
    lower = np.where(my == 0x800000, 4, 2)
    difference = one - mx * my
    result: npt.NDArray[np.bool_] = (2 * difference < mx) & (-lower * difference < mx)
    return result


def check_rsqrt(x: Bits, y: Bits) -> npt.NDArray[np.bool_]:
    """Whether y is 1/sqrt(x) rounded to nearest: (2my - 1)^2 * mx < 2^(k+2) < (2my + 1)^2 * mx in 128-bit integers."""
    mx, my = (x & 0x7FFFFF | 0x800000).astype(np.uint64), (y & 0x7FFFFF | 0x800000).astype(np.uint64)
    # x = mx * 2^(ex-150), y = my * 2^(ey-150): y^2 * x = 1 <=> my^2 * mx = 2^(450 - ex - 2 ey)
    k = 452 - (x >> 23).astype(np.int64) - 2 * (y >> 23).astype(np.int64)

    def compare(edge: npt.NDArray[np.uint64], extra: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sign of edge^2 * mx - 2^(k+extra), edge below 2^27."""
        square = edge * edge  # below 2^54
        low = (square & np.uint64(2**27 - 1)) * mx  # below 2^51
        high = (square >> np.uint64(27)) * mx + (low >> np.uint64(27))  # in units of 2^27
        low &= np.uint64(2**27 - 1)
        power = k + extra - 27
        assert ((power >= 0) & (power < 63)).all()
        target = np.uint64(1) << power.astype(np.uint64)
        return np.where(high >= target, np.where((high == target) & (low == 0), 0, 1), -1)

    bottom = my == 0x800000
    zero = np.zeros(len(mx), np.int64)
    below = np.where(bottom, 4 * my - np.uint64(1), 2 * my - np.uint64(1))
    below_sign = compare(below, np.where(bottom, 2, 0))
    above_sign = compare(2 * my + np.uint64(1), zero)
    return (below_sign < 0) & (above_sign > 0)


def scalar(function, x: Bits) -> Bits:  # type: ignore[no-untyped-def]
    results = np.fromiter(map(function, x.view(np.float32).tolist()), np.float32, len(x))
    return results.view(np.uint32)


def test_rsqrt_of_the_input_beside_a_midpoint() -> None:
    """0x403A18E3: 1/sqrt in float64, then FP32, depends on the last bit of the float64."""
    y = fp32.to_bits(fn.rsqrt(as_float(0x403A18E3)))
    x, low, high = value(0x403A18E3), value(y), value(y + 1)
    middle = (low + high) / 2
    exact_above_middle = middle * middle * x < 1
    assert not exact_above_middle
    below = (value(y - 1) + low) / 2
    assert below * below * x < 1
    assert y == 0x3F16209E
    # 1.4 float64 ulps (2^-53 here) below the midpoint: (middle * sqrt(x))^2 - 1 is twice the relative distance
    assert Fraction(14, 10) < (middle * middle * x - 1) / 2 * middle * 2**53 < Fraction(15, 10)


def test_rcp_and_rsqrt_specials() -> None:
    inf, nan = math.inf, math.nan
    for x, expected in ((0.0, INF), (-0.0, SIGN | INF), (inf, 0), (-inf, SIGN), (nan, NAN), (1.0, 0x3F800000)):
        assert fp32.to_bits(fn.rcp(x)) == expected
    for x, expected in (
        (0.0, INF),
        (-0.0, SIGN | INF),
        (inf, 0),
        (-inf, NAN),
        (nan, NAN),
        (-1.0, NAN),
        (4.0, 0x3F000000),
    ):
        assert fp32.to_bits(fn.rsqrt(x)) == expected
    assert fp32.to_bits(fn.rsqrt(-as_float(1))) == NAN
    assert fn.rcp(as_float(1)) == inf
    assert fn.rcp(2.0**-128) == inf  # exactly 2^128
    assert fp32.to_bits(fn.rcp(as_float(0x200001))) == INF - 8  # just above 2^-128: finite
    assert fp32.to_bits(fn.rcp(fp32.MAX_FINITE)) == 0x200000  # subnormal


@settings(max_examples=300)
@given(finite_bits)
def test_rcp_and_rsqrt_round_the_exact_result(bits: int) -> None:
    x = as_float(bits)
    if x == 0:
        return
    assert fp32.to_bits(fn.rcp(x)) == rne(1 / value(bits))
    if x > 0:
        y = fp32.to_bits(fn.rsqrt(x))
        low, high = (value(y - 1) + value(y)) / 2, (value(y) + value(y + 1)) / 2
        assert low * low * value(bits) < 1 < high * high * value(bits)


def samples(count: int, low_exponent: int, high_exponent: int) -> Bits:
    rng = np.random.default_rng(5)
    exponent = rng.integers(low_exponent, high_exponent + 1, count)
    mantissa = rng.integers(0, 2**23, count)
    mantissa[:64] = [*range(32), *range(2**23 - 32, 2**23)]
    return (exponent << 23 | mantissa).astype(np.uint32)


def test_samples_of_rcp_and_rsqrt_by_the_vectorised_check() -> None:
    x = samples(60_000, 2, 252)
    y = scalar(fn.rcp, x)
    power_of_two = x & 0x7FFFFF == 0
    assert (check_rcp(x, y) | power_of_two).all()
    assert (y[power_of_two] == ((254 - (x[power_of_two] >> 23)) << 23)).all()
    assert not check_rcp(x, y + np.uint32(1))[~power_of_two].any()
    assert not check_rcp(x, y - np.uint32(1))[~power_of_two].any()
    x = samples(60_000, 1, 254)
    y = scalar(fn.rsqrt, x)
    assert check_rsqrt(x, y).all()
    assert not check_rsqrt(x, y + np.uint32(1)).any()
    assert not check_rsqrt(x, y - np.uint32(1)).any()


@pytest.mark.deep
def test_every_mantissa_of_the_numpy_layer() -> None:
    for exponent in (127, 128):
        x = np.arange(2**23, dtype=np.uint32) | np.uint32(exponent << 23)
        assert check_rsqrt(x, vector_math.rsqrt(x.view(np.float32)).view(np.uint32)).all()
    y = vector_math.rcp(x.view(np.float32)).view(np.uint32)
    assert check_rcp(x, y)[1:].all()
    assert y[0] == 0x3F000000


@pytest.mark.deep
@pytest.mark.parametrize("exponent", [127, 128])
def test_every_mantissa_of_rsqrt(exponent: int) -> None:
    """1/sqrt(4x) is half of 1/sqrt(x): two exponents decide all inputs, subnormal ones included."""
    for start in range(0, 2**23, 2**20):
        x = np.arange(start, start + 2**20, dtype=np.uint32) | np.uint32(exponent << 23)
        assert check_rsqrt(x, scalar(fn.rsqrt, x)).all()


@pytest.mark.deep
def test_every_mantissa_of_rcp() -> None:
    for start in range(0, 2**23, 2**20):
        x = np.arange(start, start + 2**20, dtype=np.uint32) | np.uint32(127 << 23)
        y = scalar(fn.rcp, x)
        ok = check_rcp(x, y)
        assert ok[x & 0x7FFFFF != 0].all()
        assert start or y[0] == 0x3F800000


@pytest.mark.deep
@pytest.mark.parametrize("exponent", [252, 253, 254, 0])
def test_every_mantissa_of_rcp_where_it_or_its_input_is_subnormal(exponent: int) -> None:
    """Against float64 division rounded to FP32, and both neighbours of each in exact 64-bit integers."""
    for start in range(0, 2**23, 2**20):
        x = np.arange(start, start + 2**20, dtype=np.uint32) | np.uint32(exponent << 23)
        y = scalar(fn.rcp, x)
        with np.errstate(all="ignore"):
            expected = (1.0 / x.view(np.float32).astype(np.float64)).astype(np.float32).view(np.uint32)
        assert (y == expected).all()
        if exponent >= 253:  # y = u * 2^-149, x = m * 2^(e-150): 2 * u * m within m of 2 * 2^(299-e)
            m = (x & np.uint32(0x7FFFFF) | np.uint32(0x800000)).astype(np.int64)
            u = y.astype(np.int64)
            u = np.where(u >= 0x800000, (u & 0x7FFFFF | 0x800000) << np.maximum((u >> 23) - 1, 0), u)
            assert (abs(2 * u * m - (np.int64(1) << (300 - exponent))) <= m).all()


# The sequences.


@settings(max_examples=300)
@given(
    any_bits
    | st.builds(
        lambda e, f, s: s << 31 | e << 23 | f, st.integers(110, 134), st.integers(0, 2**23 - 1), st.integers(0, 1)
    )
)
def test_exp_sigmoid_and_silu_are_their_sequences(bits: int) -> None:
    x = as_float(bits)
    log2e = as_float(0x3FB8AA3B)
    assert fp32.to_bits(fn.exp(x)) == fp32.to_bits(fn.exp2fx(fn.fix(fp32.mul(x, log2e))))
    gate = fn.rcp(fp32.add(1.0, fn.exp2fx(fn.fix(fp32.mul(-x, log2e)))))
    assert fp32.to_bits(fn.sigmoid(x)) == fp32.to_bits(gate)
    assert fp32.to_bits(fn.silu(x)) == fp32.to_bits(fp32.mul(x, gate))


@pytest.mark.parametrize("x", [-80.0, -20.0, -3.5, -1.0, -0.001, 0.0, 0.25, 1.0, 7.0, 30.0, 80.0])
def test_exp_sigmoid_and_silu_are_near_mathematics(x: float) -> None:
    # the input of exp2 is cut to 2^-16, half of it an error of 2^-17 * ln 2 in the exponent
    slack = 2.0**-17 * math.log(2) + abs(x) * 2.0**-23 + 2.0**-22
    assert fn.exp(x) == pytest.approx(math.exp(x), rel=slack)
    assert fn.sigmoid(x) == pytest.approx(1 / (1 + math.exp(-x)), rel=slack)
    assert fn.silu(x) == pytest.approx(x / (1 + math.exp(-x)), rel=slack, abs=1e-40)


def test_limits_of_the_sequences() -> None:
    inf = math.inf
    assert fp32.to_bits(fn.exp(-inf)) == 0
    assert fn.exp(inf) == inf
    assert math.isnan(fn.exp(math.nan))
    assert [fn.sigmoid(inf), fp32.to_bits(fn.sigmoid(-inf))] == [1.0, 0]
    assert fn.silu(inf) == inf
    assert math.isnan(fn.silu(-inf))  # -inf * +0
    assert fp32.to_bits(fn.silu(-0.0)) == SIGN
