import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.numerics import blocks, formats, fp32
from systolith.numerics.formats import BLOCK, E2M1, E4M3, INT8, Format, Pair
from systolith.spec.errors import SystolithError

from .oracle import INF, NAN, SIGN, any_bits, as_float, finite_bits, rne, value

ELEMENTS = [E2M1, E4M3, INT8]
PAIRS = list(formats.PAIRS.values())

scale_codes = st.integers(0, 254) | st.integers(100, 150)


def codes_of(fmt: Format, *, nan: bool = True) -> st.SearchStrategy[int]:
    return st.sampled_from([c for c in range(1 << fmt.bits) if nan or c not in fmt.nan_codes])


@st.composite
def operands(draw: st.DrawFn, pair: Pair, nan: bool) -> tuple[list[int], list[int], int, int]:
    n = draw(st.sampled_from([1, 5, 31, 32, 32, 32]))
    a = draw(st.lists(codes_of(pair.a, nan=nan), min_size=n, max_size=n))
    b = draw(st.lists(codes_of(pair.b, nan=nan), min_size=n, max_size=n))
    return a, b, draw(scale_codes), draw(scale_codes)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@settings(max_examples=150)
@given(st.data())
def test_block_sum_is_the_exact_sum_rounded_once(pair: Pair, data: st.DataObject) -> None:
    a, b, scale_a, scale_b = data.draw(operands(pair, nan=False))
    units = [pair.a.values[x] * pair.b.values[y] for x, y in zip(a, b, strict=True)]  # type: ignore[operator]
    exact = Fraction(sum(units)) * Fraction(2) ** (pair.unit_exp + scale_a - 127 + scale_b - 127)
    assert fp32.to_bits(blocks.block_sum(a, b, pair.a, pair.b, scale_a, scale_b)) == rne(exact)
    assert -(2 ** (pair.sum_bits - 1)) <= sum(units) < 2 ** (pair.sum_bits - 1)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@settings(max_examples=60)
@given(st.data())
def test_block_sum_with_nan_codes(pair: Pair, data: st.DataObject) -> None:
    a, b, scale_a, scale_b = data.draw(operands(pair, nan=True))
    spoiled = any(
        (x in pair.a.nan_codes and pair.b.values[y] != 0) or (y in pair.b.nan_codes and pair.a.values[x] != 0)
        for x, y in zip(a, b, strict=True)
    )
    assert math.isnan(blocks.block_sum(a, b, pair.a, pair.b, scale_a, scale_b)) == spoiled


def test_a_zero_code_wins_over_a_nan_code_and_a_nan_scale_over_everything() -> None:
    nan = 0x7F
    for zero in (0, 0x80):  # -0 reads as +0
        assert fp32.to_bits(blocks.block_sum([nan, 0x38], [zero, 0x38], E4M3, E4M3, 127, 127)) == 0x3F800000
        assert fp32.to_bits(blocks.block_sum([zero], [0xFF], E4M3, E4M3, 127, 127)) == 0
    assert math.isnan(blocks.block_sum([nan], [0xFF], E4M3, E4M3, 127, 127))
    assert math.isnan(blocks.block_sum([nan], [1], E4M3, E2M1, 127, 127))
    assert fp32.to_bits(blocks.block_sum([nan], [8], E4M3, E2M1, 127, 127)) == 0
    for scales in ((0xFF, 127), (127, 0xFF), (0xFF, 0xFF)):
        assert math.isnan(blocks.block_sum([0] * 32, [0] * 32, INT8, INT8, *scales))


def test_block_sum_zero_underflow_and_overflow() -> None:
    one, minus_one = 1, 0xFF
    cancel = blocks.block_sum([one, minus_one], [one, one], INT8, INT8, 127, 127)
    assert fp32.to_bits(cancel) == 0
    assert fp32.to_bits(blocks.block_sum([minus_one], [one], INT8, INT8, 0, 0)) == SIGN
    assert fp32.to_bits(blocks.block_sum([one], [one], INT8, INT8, 0, 0)) == 0
    assert fp32.to_bits(blocks.block_sum([0x80], [0x80], INT8, INT8, 254, 254)) == INF
    assert fp32.to_bits(blocks.block_sum([0x80], [0x40], INT8, INT8, 254, 254)) == SIGN | INF
    # 2^-150 exactly: a tie to zero; three halves of it round up
    assert fp32.to_bits(blocks.block_sum([1], [1], INT8, INT8, 127 - 69, 127 - 69)) == 0
    assert fp32.to_bits(blocks.block_sum([3], [1], INT8, INT8, 127 - 70, 127 - 69)) == 1


def test_block_sum_errors() -> None:
    with pytest.raises(
        SystolithError,
        match=r"^block_sum: len\(codes_a\)=33 and len\(codes_b\)=33 must be equal and at most 32; "
        r"call it once a block$",
    ):
        blocks.block_sum([0] * 33, [0] * 33, INT8, INT8, 0, 0)
    with pytest.raises(SystolithError, match=r"^pair=INT8xE4M3 \(activations x weights\) cannot be multiplied: .*$"):
        blocks.block_sum([0], [0], INT8, E4M3, 0, 0)


def expected_scale(bits: list[int], fmt: Format) -> int:
    """Rule 4 on exact values: floor(log2) by comparing with powers of two."""
    largest = max(abs(value(b)) for b in bits)
    if largest == 0:
        return 0
    exponent = max(k for k in range(-149, 128) if Fraction(2) ** k <= largest)
    return max(-127, min(127, exponent - {"E2M1": 2, "E4M3": 8, "INT8": 0}[fmt.name])) + 127


@st.composite
def alike(draw: st.DrawFn) -> list[int]:
    """Values within some binades of each other, anywhere in FP32, subnormals included."""
    top = draw(st.integers(0, 254))
    exponents = st.integers(max(0, top - 12), top)
    element = st.builds(lambda e, f, s: s << 31 | e << 23 | f, exponents, st.integers(0, 2**23 - 1), st.integers(0, 1))
    return draw(st.lists(element | st.sampled_from([0, SIGN]), min_size=1, max_size=32))


@pytest.mark.parametrize("fmt", ELEMENTS, ids=lambda fmt: fmt.name)
@settings(max_examples=150, deadline=None)
@given(bits=alike() | st.lists(finite_bits, min_size=1, max_size=32))
def test_quantise_block_is_rule_4_on_exact_numbers(fmt: Format, bits: list[int]) -> None:
    scale, codes = blocks.quantise_block([as_float(b) for b in bits], fmt)
    assert scale == expected_scale(bits, fmt)
    unit = Fraction(2) ** (scale - 127 + fmt.unit_exp)
    legal = [(u, c) for c, u in enumerate(fmt.values) if u is not None and abs(u) <= fmt.max_units and (u or not c)]
    for b, code in zip(bits, codes, strict=True):
        scaled = value(b) / unit
        assert code == min(legal, key=lambda entry: (abs(scaled - entry[0]), entry[1] & 1))[1]


@pytest.mark.parametrize("fmt", ELEMENTS, ids=lambda fmt: fmt.name)
def test_quantise_block_corners(fmt: Format) -> None:
    zeros = (0,) * 3
    assert blocks.quantise_block([0.0, -0.0, 0.0], fmt) == (0, zeros)
    for bad in (math.nan, math.inf, -math.inf):
        assert blocks.quantise_block([1.0, bad, 3.0], fmt) == (0xFF, zeros)
    tiny = as_float(1)
    scale, codes = blocks.quantise_block([tiny, -tiny], fmt)
    assert scale == 0  # clamped to 2^-127
    assert codes == (0, 0)
    scale, codes = blocks.quantise_block([fp32.MAX_FINITE, -fp32.MAX_FINITE], fmt)
    assert (scale, codes) == (254 - fmt.emax, (fmt.max_code, fmt.min_code))
    assert len(blocks.quantise_block([1.0] * 128, fmt)[1]) == 128  # a whole row may share a scale


def test_a_product_below_the_range_of_fp32_is_quantised_exactly() -> None:
    p, scale = 1 + 2.0**-7 + 2.0**-23, 2.0**-127  # just above a midpoint of INT8, which FP32 would round to
    assert fp32.round_f32(p * scale) == (1 + 2.0**-7) * scale
    assert blocks.quantise_block([p * scale], INT8) == (0, (65,))
    assert blocks.quantise_block([fp32.round_f32(p * scale)], INT8) == (0, (64,))


@pytest.mark.parametrize("fmt", ELEMENTS, ids=lambda fmt: fmt.name)
def test_dequantise_rounds_once_for_every_code_and_scale(fmt: Format) -> None:
    for scale in (0, 1, 2, 126, 127, 200, 250, 253, 254):
        for code, units in enumerate(fmt.values):
            expected = NAN if units is None else rne(Fraction(units) * Fraction(2) ** (fmt.unit_exp + scale - 127))
            assert fp32.to_bits(blocks.dequantise(code, fmt, scale)) == expected
    assert math.isnan(blocks.dequantise(0, fmt, 0xFF))


def zero_blocks(row: blocks.BlockRow, total: int) -> blocks.BlockRow:
    """The row with blocks of zeros behind it, as rule 3 pads."""
    full = len(row.scales) * BLOCK
    codes = row.codes + (0,) * (full - len(row.codes)) + (0,) * BLOCK * (total - len(row.scales))
    return blocks.BlockRow(row.fmt, row.scales + (0,) * (total - len(row.scales)), codes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(any_bits | finite_bits, min_size=1, max_size=150),
    st.integers(1, 6),
    st.integers(1, 2),
    st.randoms(use_true_random=False),
)
def test_contract_pads_cuts_and_joins_as_rule_3_says(bits: list[int], spans: int, terms: int, random) -> None:  # type: ignore[no-untyped-def]
    x = [as_float(b) for b in bits]
    w = [fp32.round_f32(random.gauss(0, 1)) for _ in bits]
    a = blocks.quantise_row(x, INT8)
    weights = list(blocks.two_terms(w, INT8))[:terms]
    total = -(-len(a.scales) // spans) * spans
    padded = [zero_blocks(row, total) for row in (a, *weights)]
    sums = []
    for span in range(spans):
        acc = 0.0
        for index in range(span * total // spans, (span + 1) * total // spans):
            for term in padded[1:]:
                (sa, ca), (sb, cb) = padded[0].block(index), term.block(index)
                acc = fp32.add(acc, blocks.block_sum(ca, cb, INT8, INT8, sa, sb))
        sums.append(acc)
    assert fp32.to_bits(blocks.contract(a, weights, spans)) == fp32.to_bits(fp32.tree_sum(sums))


def test_contract_of_nothing_but_padding_is_plus_zero() -> None:
    row = blocks.quantise_row([-0.0] * 40, INT8)
    other = blocks.quantise_row([-1.0] * 40, INT8)
    assert fp32.to_bits(blocks.contract(row, [other], spans=8)) == 0


def test_an_accumulator_never_becomes_minus_zero() -> None:
    least = blocks.BlockRow(INT8, (0,), (0xFF,))
    assert fp32.to_bits(blocks.block_sum((0xFF,), (1,), INT8, INT8, 0, 0)) == SIGN
    assert fp32.to_bits(blocks.contract(least, [blocks.BlockRow(INT8, (0,), (1,))])) == 0  # +0 + -0


def test_two_terms_quantise_the_rest() -> None:
    first, second = blocks.two_terms([1.0, 0.3, -0.007], INT8)
    assert first == blocks.quantise_row([1.0, 0.3, -0.007], INT8)
    left = [
        x - blocks.dequantise(c, INT8, first.scales[0]) for x, c in zip([1.0, 0.3, -0.007], first.codes, strict=True)
    ]
    assert second == blocks.quantise_row([fp32.round_f32(r) for r in left], INT8)
    spoiled, rest = blocks.two_terms([1.0, math.inf], INT8)
    assert spoiled.scales == rest.scales == (0xFF,)


def test_block_row_and_contract_errors() -> None:
    with pytest.raises(
        SystolithError,
        match=r"^BlockRow.scales has 1 entries, but 33 codes are 2 blocks of 32: give one scale a block$",
    ):
        blocks.BlockRow(INT8, (0,), (0,) * 33)
    row = blocks.BlockRow(INT8, (0,), (0,) * 32)
    with pytest.raises(SystolithError, match=r"^contract: spans=0 must be 1 or more$"):
        blocks.contract(row, [row], spans=0)
    with pytest.raises(
        SystolithError, match=r"^contract: weights hold 31 codes, the activations 32: K must be the same$"
    ):
        blocks.contract(row, [blocks.BlockRow(INT8, (0,), (0,) * 31)])
