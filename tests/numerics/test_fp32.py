import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.numerics import fp32

from .oracle import INF, NAN, SIGN, SPECIALS, any_bits, as_float, bits_of, finite_bits, is_nan, near_bits, rne, value

PAIRS = st.tuples(any_bits, any_bits) | st.tuples(near_bits, near_bits)


@given(any_bits)
def test_bits_go_there_and_back_and_nan_is_canonical(bits: int) -> None:
    assert fp32.to_bits(fp32.from_bits(bits)) == (NAN if is_nan(bits) else bits)


@settings(max_examples=400)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_round_f32_is_the_nearest_value_ties_to_even(x: float) -> None:
    expected = rne(Fraction(x))
    if x == 0 or expected == 0:
        expected |= SIGN if math.copysign(1, x) < 0 else 0
    assert fp32.to_bits(fp32.round_f32(x)) == expected


def test_round_f32_overflows_and_keeps_nan() -> None:
    assert fp32.round_f32(2.0**128 - 2.0**103) == math.inf
    assert fp32.round_f32(math.nextafter(2.0**128 - 2.0**103, 0)) == fp32.MAX_FINITE
    assert fp32.round_f32(-1e300) == -math.inf
    assert math.isnan(fp32.round_f32(math.nan))
    assert fp32.to_bits(1e300) == INF


@settings(max_examples=600)
@given(PAIRS)
def test_add_sub_mul_round_the_exact_result_once(pair: tuple[int, int]) -> None:
    a, b = (as_float(bits) for bits in pair)
    for operation, exact in ((fp32.add, "+"), (fp32.sub, "-"), (fp32.mul, "*")):
        got = fp32.to_bits(operation(a, b))
        if not (math.isfinite(a) and math.isfinite(b)):
            with np.errstate(all="ignore"):
                x, y = np.float32(a), np.float32(b)
                expected = bits_of(float({"+": x + y, "-": x - y, "*": x * y}[exact]))
        else:
            x, y = value(pair[0]), value(pair[1])
            total = {"+": x + y, "-": x - y, "*": x * y}[exact]
            expected = rne(total)
            if total == 0:  # IEEE 754, 6.3: the sign of an exact zero
                signs = pair[0] >> 31, (pair[1] >> 31) ^ (exact == "-")
                negative = signs[0] ^ signs[1] if exact == "*" else signs[0] & signs[1]
                expected = SIGN if negative else 0
        assert got == expected


def test_add_and_mul_equal_numpy_on_many_random_pairs() -> None:
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 2**32, (2, 50_000), dtype=np.uint64).astype(np.uint32)
    bits[1, ::2] = bits[0, ::2] ^ (rng.integers(0, 2**25, 25_000).astype(np.uint32))
    x, y = bits.view(np.float32)
    with np.errstate(all="ignore"):
        added, multiplied = x + y, x * y
    for a, b, s, p in zip(x.tolist(), y.tolist(), added.tolist(), multiplied.tolist(), strict=True):
        assert fp32.to_bits(fp32.add(a, b)) == bits_of(s)
        assert fp32.to_bits(fp32.mul(a, b)) == bits_of(p)


@given(PAIRS)
def test_maximum_and_minimum(pair: tuple[int, int]) -> None:
    a, b = (as_float(bits) for bits in pair)
    high, low = fp32.to_bits(fp32.maximum(a, b)), fp32.to_bits(fp32.minimum(a, b))
    if is_nan(pair[0]) or is_nan(pair[1]):
        assert high == low == NAN
    else:
        key = [bits if bits < SIGN else SIGN - 1 - bits for bits in pair]  # IEEE totalOrder: -0 below +0
        assert high == (pair[0] if key[0] >= key[1] else pair[1])
        assert low == (pair[0] if key[0] < key[1] else pair[1])


@pytest.mark.parametrize(
    ("n", "shape"),
    [
        (1, "0"),
        (2, "(01)"),
        (3, "((01)2)"),
        (4, "((01)(23))"),
        (5, "(((01)(23))4)"),
        (6, "(((01)(23))(45))"),
        (7, "(((01)(23))((45)6))"),
        (9, "((((01)(23))((45)(67)))8)"),
    ],
)
def test_tree_has_the_shape_of_rule_5(n: int, shape: str) -> None:
    assert fp32.tree([str(i) for i in range(n)], lambda a, b: f"({a}{b})") == shape


def test_tree_sum_rounds_at_each_node_and_passes_an_odd_zero_unchanged() -> None:
    big = 2.0**24
    assert fp32.tree_sum([big, 1.0, 1.0, 1.0]) == big + 2  # a serial sum gives big
    assert fp32.to_bits(fp32.tree_sum([-0.0])) == SIGN
    assert fp32.to_bits(fp32.tree_sum([-0.0, -0.0, -0.0])) == SIGN  # padding with +0 would give +0
    assert fp32.to_bits(fp32.tree_sum([])) == 0


@given(st.lists(near_bits, min_size=1, max_size=70))
def test_tree_sum_is_the_recursive_split(bits: list[int]) -> None:
    def split(part: list[int]) -> int:
        if len(part) == 1:
            return part[0]
        left = 1 << (len(part) - 1).bit_length() - 1  # the largest power of two below the length
        total = value(split(part[:left])) + value(split(part[left:]))
        return rne(total)

    assert fp32.to_bits(fp32.tree_sum([as_float(b) for b in bits])) == split(bits)


@given(st.lists(near_bits, min_size=1, max_size=150))
def test_a_tree_of_squares_may_be_padded_and_cut_into_aligned_groups(bits: list[int]) -> None:
    squares = [fp32.mul(as_float(b), as_float(b)) for b in bits]
    whole = fp32.to_bits(fp32.tree_sum(squares))
    padded = squares + [0.0] * (-len(squares) % 32)
    assert fp32.to_bits(fp32.tree_sum(padded)) == whole
    for group in (32, 64, 128):
        parts = [fp32.tree_sum(padded[i : i + group]) for i in range(0, len(padded), group)]
        assert fp32.to_bits(fp32.tree_sum(parts)) == whole


@settings(max_examples=400)
@given(st.integers(-(2**60), 2**60), st.integers(-230, 130))
def test_round_scaled(mantissa: int, exponent: int) -> None:
    expected = rne(Fraction(mantissa) * Fraction(2) ** exponent)
    assert fp32.to_bits(fp32.round_scaled(mantissa, exponent)) == expected


@pytest.mark.parametrize(
    ("mantissa", "exponent", "bits"),
    [
        (1, -149, 1),
        (1, -150, 0),  # a tie, zero is even
        (-1, -150, SIGN),
        (3, -151, 1),
        (3, -150, 2),
        (2**24 - 1, 104, INF - 1),
        (2**25 - 1, 103, INF),  # a tie at the top
        (2**25 - 2, 103, INF - 1),
        (1, 10**9, INF),
        (-1, -(10**9), SIGN),
        (2**24 - 1, -150, 0x800000),  # a subnormal that rounds up to the smallest normal
        (0, 50, 0),
    ],
)
def test_round_scaled_at_the_edges(mantissa: int, exponent: int, bits: int) -> None:
    assert fp32.to_bits(fp32.round_scaled(mantissa, exponent)) == bits


@settings(max_examples=400)
@given(st.integers(-(2**70), 2**70), st.integers(1, 2**70), st.integers(-200, 200))
def test_round_fraction(numerator: int, denominator: int, exponent: int) -> None:
    exact = Fraction(numerator, denominator) * Fraction(2) ** exponent
    assert fp32.to_bits(fp32.round_fraction(exact)) == rne(exact)


@given(finite_bits, st.integers(1, 2**40))
def test_round_fraction_decides_next_to_a_midpoint(bits: int, far: int) -> None:
    base = bits & 0x7FFFFFFF
    if base >= INF - 1:
        return
    middle = (value(base) + value(base + 1)) / 2
    tiny = Fraction(1, 2**200 + far)
    assert fp32.to_bits(fp32.round_fraction(middle + tiny)) == base + 1
    assert fp32.to_bits(fp32.round_fraction(middle - tiny)) == base
    assert fp32.to_bits(fp32.round_fraction(middle)) == base + base % 2


EXPONENTS = st.integers(-32767, 32768) | st.integers(-60, 60)


@settings(max_examples=500)
@given(finite_bits | near_bits, EXPONENTS, finite_bits | near_bits, EXPONENTS)
def test_shift_add_rounds_the_exact_sum_once(bits_a: int, ea: int, bits_b: int, eb: int) -> None:
    got, m = fp32.shift_add(as_float(bits_a), ea, as_float(bits_b), eb)
    assert m == max(ea, eb)
    exact = value(bits_a) * Fraction(2) ** (ea - m) + value(bits_b) * Fraction(2) ** (eb - m)
    expected = rne(exact)
    if exact == 0:
        expected = SIGN if bits_a >> 31 and bits_b >> 31 else 0
    assert fp32.to_bits(got) == expected


def test_shift_add_specials() -> None:
    inf, nan = math.inf, math.nan

    def merged(a: float, ea: int, b: float, eb: int) -> int:
        return fp32.to_bits(fp32.shift_add(a, ea, b, eb)[0])

    assert merged(-1.0, -5000, 0.0, 0) == SIGN  # far below every FP32 value, yet not zero
    assert merged(1.0, -5000, -0.0, 0) == 0
    assert merged(-0.0, -3, -0.0, 0) == SIGN
    assert merged(-0.0, -3, 0.0, 0) == 0
    assert merged(inf, -5000, -1.0, 0) == INF
    assert merged(inf, -5, -inf, 0) == NAN
    assert merged(nan, -5000, 1.0, 0) == NAN
    assert merged(1.0, 0, nan, 3) == NAN
    assert merged(fp32.MAX_FINITE, 0, fp32.MAX_FINITE, 0) == INF
    # scaling to FP32 before the addition would round twice
    assert merged(1.0, 0, as_float(0x3F800001), -24) == 0x3F800001


@given(any_bits, st.integers(-32767, 32768), any_bits)
def test_shift_add_with_an_empty_partial_returns_the_other_unchanged(bits: int, e: int, junk: int) -> None:
    x = as_float(bits)
    for got, m in (
        fp32.shift_add(x, e, as_float(junk), fp32.EMPTY_M),
        fp32.shift_add(as_float(junk), fp32.EMPTY_M, x, e),
    ):
        assert bits_of(got) == bits_of(x)
        assert m == e
    assert fp32.shift_add(0.0, fp32.EMPTY_M, 0.0, fp32.EMPTY_M) == (0.0, fp32.EMPTY_M)


def test_every_pair_of_corner_values_equals_numpy() -> None:
    corners = [as_float(b | s) for b in [*SPECIALS, NAN] for s in (0, SIGN)]
    for a in corners:
        for b in corners:
            with np.errstate(all="ignore"):
                assert fp32.to_bits(fp32.add(a, b)) == bits_of(float(np.float32(a) + np.float32(b)))
                assert fp32.to_bits(fp32.mul(a, b)) == bits_of(float(np.float32(a) * np.float32(b)))


def test_maximum_and_minimum_of_zeros() -> None:
    for a, b in ((0.0, -0.0), (-0.0, 0.0)):
        assert fp32.to_bits(fp32.maximum(a, b)) == 0
        assert fp32.to_bits(fp32.minimum(a, b)) == SIGN
    assert fp32.to_bits(fp32.maximum(-0.0, -0.0)) == fp32.to_bits(fp32.minimum(-0.0, -0.0)) == SIGN
    assert fp32.to_bits(fp32.maximum(0.0, 0.0)) == fp32.to_bits(fp32.minimum(0.0, 0.0)) == 0
