"""The NumPy layer against the scalar definition, bit for bit."""

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from systolith.numerics import blocks, formats, fp32, vector, vector_math
from systolith.numerics import functions as fn
from systolith.numerics.formats import BLOCK, E2M1, E4M3, INT8, Format
from systolith.spec.errors import SystolithError

from .oracle import SPECIALS, as_float

ELEMENTS = [E2M1, E4M3, INT8]
each_format = pytest.mark.parametrize("fmt", ELEMENTS, ids=lambda fmt: fmt.name)
Float32s = npt.NDArray[np.float32]


def mixed(rows: int, K: int, seed: int = 1) -> Float32s:
    """Rows of like values anywhere in FP32, rows of random bits, rows with zeros, NaN, infinities and subnormals."""
    rng = np.random.default_rng(seed)
    exponents = rng.integers(-150, 128, (rows, 1)) + rng.integers(-9, 1, (rows, K))
    x = np.ldexp(rng.uniform(-2, 2, (rows, K)), exponents)
    with np.errstate(all="ignore"):
        x = x.astype(np.float32)
    raw = rng.integers(0, 2**32, (rows, K), dtype=np.uint64).astype(np.uint32).view(np.float32)
    x[::5] = raw[::5]
    x[1::7, ::3] = 0
    x[2::11] = -0.0
    x[3::13, K // 2] = np.nan
    x[4::13, K // 3] = -np.inf
    x[6::17] = (raw[6::17].view(np.uint32) & np.uint32(0x807FFFFF)).view(np.float32)
    return x


def bits(x: Float32s) -> npt.NDArray[np.uint32]:
    return np.ascontiguousarray(x).view(np.uint32)


@each_format
@pytest.mark.parametrize("K", [1, 31, 32, 70])
def test_quantise_and_dequantise(fmt: Format, K: int) -> None:
    x = mixed(160, K)
    codes, scales = vector.quantise(x, fmt)
    values = vector.dequantise(codes, scales, fmt)
    assert (codes.dtype, scales.dtype, values.dtype) == (np.uint8, np.uint8, np.float32)
    for row, row_codes, row_scales, row_values in zip(x, codes, scales, values, strict=True):
        expected = blocks.quantise_row(row.tolist(), fmt)
        assert expected.codes == tuple(row_codes.tolist())
        assert expected.scales == tuple(row_scales.tolist())
        back = [blocks.dequantise(c, fmt, expected.scales[k // BLOCK]) for k, c in enumerate(expected.codes)]
        assert [fp32.to_bits(b) for b in back] == bits(row_values).tolist()


@each_format
def test_rounding_at_every_midpoint_in_every_lane_of_the_format(fmt: Format) -> None:
    values = sorted({u for u in fmt.values if u is not None and u >= 0})
    middles = np.array([(a + b) / 2 for a, b in pairwise(values)], np.float32) * np.float32(2.0**fmt.unit_exp)
    points = np.concatenate([np.nextafter(middles, np.float32(0)), middles, np.nextafter(middles, np.float32(9e9))])
    x = np.zeros((len(points), 2, BLOCK), np.float32)
    x[:, :, 0] = 2.0**fmt.emax  # fixes the scale at 2^0
    x[:, 0, 1], x[:, 1, 1] = points, -points
    codes, scales = vector.quantise(x, fmt)
    assert x.shape == codes.shape
    for point, (positive, negative), scale in zip(
        points.tolist(), codes[:, :, 1].tolist(), scales[:, 0, 0], strict=True
    ):
        e = int(scale) - 127
        assert positive == formats.encode(fmt, math.ldexp(point, -e))
        assert negative == formats.encode(fmt, math.ldexp(-point, -e))


@each_format
def test_dequantise_every_code_and_scale(fmt: Format) -> None:
    codes = np.tile(np.arange(1 << fmt.bits, dtype=np.uint8), (256, 1))
    scales = np.arange(256, dtype=np.uint8)
    rows = bits(vector.dequantise_rows(codes, scales, fmt))
    for scale in range(256):
        expected = [fp32.to_bits(blocks.dequantise(code, fmt, scale)) for code in range(1 << fmt.bits)]
        assert rows[scale].tolist() == expected
    wide = vector.dequantise(np.repeat(codes, 2, axis=1)[:, :32], scales[:, None], fmt)
    assert bits(wide)[127, 2] == rows[127, 1]


@each_format
def test_quantise_rows_has_one_scale_a_row(fmt: Format) -> None:
    x = mixed(120, 48)
    codes, scales = vector.quantise_rows(x.reshape(2, 60, 48), fmt)
    assert scales.shape == (2, 60)
    for row, c, s in zip(x, codes.reshape(120, 48), scales.reshape(120), strict=True):
        assert blocks.quantise_block(row.tolist(), fmt) == (int(s), tuple(c.tolist()))


def test_shapes_padding_and_chunks() -> None:
    x = mixed(3, 70).reshape(3, 1, 70)
    codes, scales = vector.quantise(x, INT8)
    padded, same = vector.quantise(x, INT8, pad=True)
    assert (codes.shape, scales.shape, padded.shape) == ((3, 1, 70), (3, 1, 3), (3, 1, 96))
    assert (padded[..., :70] == codes).all()
    assert not padded[..., 70:].any()
    assert (same == scales).all()
    # rows longer than a chunk, and more rows than one
    for shape in ((2, vector._CHUNK + 77), (vector._CHUNK // 32 + 5, 64)):
        x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
        codes, scales = vector.quantise(x, E4M3)
        blocked = np.pad(x, ((0, 0), (0, -shape[1] % 32))).reshape(shape[0], -1, 32)
        row_codes, row_scales = vector.quantise_rows(blocked, E4M3)
        assert (row_codes.reshape(shape[0], -1)[:, : shape[1]] == codes).all()
        assert (row_scales == scales).all()
    assert vector.quantise(np.zeros((0, 64), np.float32), INT8)[1].shape == (0, 2)


def test_a_strided_view_is_taken_as_it_reads() -> None:
    x = mixed(40, 64)
    for view in (x.T, x[::-1, ::2]):
        codes, scales = vector.quantise(view, E2M1)
        copied = vector.quantise(np.ascontiguousarray(view), E2M1)
        assert (codes == copied[0]).all()
        assert (scales == copied[1]).all()


def test_two_terms() -> None:
    x = mixed(60, 70)
    codes1, scales1, codes2, scales2 = vector.quantise_two_term(x, INT8)
    for row, *got in zip(x, codes1, scales1, codes2, scales2, strict=True):
        first, second = blocks.two_terms(row.tolist(), INT8)
        expected = (first.codes, first.scales, second.codes, second.scales)
        assert tuple(tuple(part.tolist()) for part in got) == expected
    assert vector.quantise_two_term(x, INT8, pad=True)[2].shape == (60, 96)


def test_two_terms_halve_the_error_many_times() -> None:
    x = np.random.default_rng(3).standard_normal((8, 64)).astype(np.float32)
    codes1, scales1, codes2, scales2 = vector.quantise_two_term(x, INT8)
    one = vector.dequantise(codes1, scales1, INT8)
    both = one + vector.dequantise(codes2, scales2, INT8)
    assert np.abs(both - x).max() < np.abs(one - x).max() / 100


def test_e2m1_packs_the_lower_index_into_the_low_nibble() -> None:
    codes = np.array([[1, 2, 15, 8]], np.uint8)
    assert vector.pack_e2m1(codes).tolist() == [[0x21, 0x8F]]
    many = np.random.default_rng(4).integers(0, 16, (3, 5, 64)).astype(np.uint8)
    assert (vector.unpack_e2m1(vector.pack_e2m1(many)) == many).all()
    with pytest.raises(SystolithError, match=r"^pack_e2m1: K=3 must be even; pad with zero codes$"):
        vector.pack_e2m1(codes[:, :3])


@each_format
def test_quantise_best_takes_the_least_squared_error(fmt: Format) -> None:
    x = np.random.default_rng(5).standard_normal((300, 32)).astype(np.float32)
    _, scales = vector.quantise(x, fmt)
    best_codes, best_scales = vector.quantise_best(x, fmt)
    errors = []
    for offset in (0, -1, 1):  # the scalar definition under each scale, errors in float64
        e = scales[:, 0].astype(int) + offset - 127
        codes = [
            [formats.encode(fmt, math.ldexp(v, -int(k))) for v in row] for row, k in zip(x.tolist(), e, strict=True)
        ]
        back = vector.dequantise_rows(np.array(codes, np.uint8), (e + 127).astype(np.uint8), fmt)
        errors.append(((back.astype(np.float64) - x) ** 2).sum(axis=1))
    got = ((vector.dequantise(best_codes, best_scales, fmt).astype(np.float64) - x) ** 2).sum(axis=1)
    np.testing.assert_allclose(got, np.min(errors, axis=0), rtol=1e-5)
    assert (got <= errors[0] * (1 + 1e-6)).all()
    if fmt is E2M1:
        assert (best_scales != scales).any()


@each_format
def test_quantise_best_corners(fmt: Format) -> None:
    x = mixed(200, 70)
    plain, plain_scales = vector.quantise(x, fmt)
    only, only_scales = vector.quantise_best(x, fmt, offsets=(0,))
    assert (plain == only).all()
    assert (plain_scales == only_scales).all()
    scales = vector.quantise_best(x, fmt)[1]
    assert ((scales == 255) == (plain_scales == 255)).all()
    # a block that two scales hold exactly keeps rule 4's
    power = np.zeros((1, 32), np.float32)
    power[0, 5] = 2.0**7
    assert (vector.quantise_best(power, fmt)[1] == vector.quantise(power, fmt)[1]).all()
    zero = np.zeros((1, 32), np.float32)
    assert vector.quantise_best(zero, fmt)[1].tolist() == [[0]]
    # values that some scale holds exactly come back exactly
    exact = vector.dequantise(plain, plain_scales, fmt)
    finite = np.isfinite(exact).all(axis=1) & (plain_scales < 250).all(axis=1)
    again = vector.dequantise(*vector.quantise_best(exact[finite], fmt), fmt)
    assert (again == exact[finite]).all()
    with pytest.raises(
        SystolithError, match=r"^quantise_best: offsets=\(\) must name at least one exponent; \(0,\) is rule 4's scale$"
    ):
        vector.quantise_best(x, fmt, offsets=())


@pytest.mark.parametrize("pair", list(formats.PAIRS.values()), ids=lambda pair: pair.name)
@pytest.mark.parametrize(("spans", "K"), [(1, 32), (1, 70), (3, 250)])
def test_contract(pair: formats.Pair, spans: int, K: int) -> None:
    rng = np.random.default_rng(6)
    M, N = 5, 6

    def operand(rows: int, fmt: Format) -> tuple[vector.Bytes, vector.Bytes]:
        codes = rng.integers(0, 1 << fmt.bits, (rows, K)).astype(np.uint8)
        if fmt.nan_codes:  # few NaN, else nothing is left
            spoil = rng.random((rows, K)) < 0.999
            codes[spoil & np.isin(codes, fmt.nan_codes)] = 0x80
        codes[rng.random((rows, K)) < 0.3] = 0
        scales = rng.integers(110, 140, (rows, -(-K // 32))).astype(np.uint8)
        scales[0] = rng.integers(0, 40, scales.shape[1])  # underflow
        scales[1] = rng.integers(210, 255, scales.shape[1])
        scales[-1, 0] = 255
        return codes, scales

    a, terms = operand(M, pair.a), [operand(N, pair.b), operand(N, pair.b)]
    for weights in (terms[:1], terms):
        got = bits(vector.contract(a, weights, pair.a, pair.b, spans))
        for m in range(M):
            left = blocks.BlockRow(pair.a, tuple(a[1][m].tolist()), tuple(a[0][m].tolist()))
            for n in range(N):
                right = [blocks.BlockRow(pair.b, tuple(s[n].tolist()), tuple(c[n].tolist())) for c, s in weights]
                assert int(got[m, n]) == fp32.to_bits(blocks.contract(left, right, spans))


def test_contract_of_nan_codes_alone_and_against_zero() -> None:
    scale = np.array([[127]], np.uint8)
    a = np.array([[0x7F, 0]], np.uint8), scale
    w = np.array([[0xFF, 0x38], [0x80, 0x7F], [0x38, 0]], np.uint8), np.repeat(scale, 3, axis=0)
    assert bits(vector.contract(a, [w], E4M3, E4M3)).tolist() == [[0x7FC00000, 0, 0x7FC00000]]
    assert bits(vector.contract(w, [a], E4M3, E4M3)).tolist() == [[0x7FC00000], [0], [0x7FC00000]]


def test_contract_of_cancelling_blocks_is_plus_zero() -> None:
    a = np.array([[0xFF, 1]], np.uint8), np.array([[127]], np.uint8)
    w = np.array([[1, 1], [0, 0]], np.uint8), np.array([[127], [127]], np.uint8)
    assert bits(vector.contract(a, [w], INT8, INT8)).tolist() == [[0, 0]]


def test_errors_of_shapes_and_types() -> None:
    with pytest.raises(
        SystolithError, match=r"^quantise: values of dtype float64 and 2 axes must be float32 \[\.\.\., K\];.*"
    ):
        vector.quantise(np.zeros((2, 32)), INT8)  # type: ignore[arg-type]
    codes = np.zeros((2, 64), np.uint8)
    with pytest.raises(
        SystolithError, match=r"^dequantise: scales.shape=\(2,\) must be \(2, 2\), one scale for 32 codes; .*"
    ):
        vector.dequantise(codes, codes[:, 0], INT8)
    with pytest.raises(SystolithError, match=r"^dequantise_rows: scales.shape=\(2, 2\) must be \(2,\), one a row$"):
        vector.dequantise_rows(codes, codes[:, :2], INT8)
    with pytest.raises(SystolithError, match=r"^contract: weights have K=32, the activations K=64: they must agree$"):
        vector.contract((codes, codes[:, :2]), [(codes[:, :32], codes[:, :1])], INT8, INT8)
    with pytest.raises(SystolithError, match=r"^contract: spans=0 must be 1 or more$"):
        vector.contract((codes, codes[:, :2]), [(codes, codes[:, :2])], INT8, INT8, 0)


# Vector arithmetic.


def sample_values(count: int) -> Float32s:
    rng = np.random.default_rng(8)
    corners = np.array([b | s for b in [*SPECIALS, 0x7FC00000, 0x403A18E3] for s in (0, 2**31)], np.uint32)
    raw = rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
    near = rng.standard_normal(count).astype(np.float32) * np.float32(20)
    return np.concatenate([corners.view(np.float32), raw.view(np.float32), near])


@pytest.mark.parametrize("name", ["rcp", "rsqrt", "exp", "silu"])
def test_functions(name: str) -> None:
    x = sample_values(5000)
    if name == "rsqrt":
        x = np.concatenate([x, np.array([0x3A18E3 | e << 23 for e in range(255)], np.uint32).view(np.float32)])
    got = bits(getattr(vector_math, name)(x))
    scalar = getattr(fn, name)
    assert got.tolist() == [fp32.to_bits(scalar(v)) for v in x.tolist()]


def test_fix_ceil_and_exp2fx() -> None:
    x = sample_values(4000)
    F = vector_math.fix(x)
    assert F.tolist() == [fn.fix(v) for v in x.tolist()]
    assert vector_math.ceil_fx(F).tolist() == [fn.ceil_fx(f) for f in F.tolist()]
    F = np.concatenate([F, np.arange(-155 * 65536, -120 * 65536, 997), [fn.MASKED, fn.NAN_FX]])
    for M in (-32768, -3, 0, 1, 32768):
        assert bits(vector_math.exp2fx(F, M)).tolist() == [fp32.to_bits(fn.exp2fx(f, M)) for f in F.tolist()]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 7, 8, 33, 144, 257])
def test_tree_sum(n: int) -> None:
    x = np.random.default_rng(9).standard_normal((20, n)).astype(np.float32)
    x[0] = -0.0
    x[1, : n // 2] = np.inf
    if n > 2:
        x[2, 0], x[2, 2] = np.inf, -np.inf
    assert bits(vector_math.tree_sum(x)).tolist() == [fp32.to_bits(fp32.tree_sum(row)) for row in x.tolist()]


def test_shift_add() -> None:
    rng = np.random.default_rng(10)
    a, b = sample_values(6000), rng.permutation(sample_values(6000))
    with np.errstate(all="ignore"):
        b[::3] = -a[::3] * np.float32(1.0000001)
    n = len(a)
    ea, eb = rng.integers(-60, 61, n), rng.integers(-60, 61, n)
    ea[::4], eb[1::4] = rng.integers(-32767, 32769, len(ea[::4])), rng.integers(-32767, 32769, len(eb[1::4]))
    ea[5::9], eb[8::9] = fp32.EMPTY_M, fp32.EMPTY_M
    ea[::101], eb[::101] = fp32.EMPTY_M, fp32.EMPTY_M
    values, m = vector_math.shift_add(a, ea, b, eb)
    for k in range(n):
        expected, expected_m = fp32.shift_add(float(a[k]), int(ea[k]), float(b[k]), int(eb[k]))
        assert fp32.to_bits(float(values[k])) == fp32.to_bits(expected)
        assert m[k] == expected_m


def test_shift_add_of_subnormals_near_midpoints() -> None:
    rng = np.random.default_rng(13)
    small = rng.integers(0, 2**24, 8000).astype(np.uint32).view(np.float32)
    other = (rng.integers(0, 2**31, 8000).astype(np.uint32) & np.uint32(0x7F80000F)).view(np.float32)
    with np.errstate(all="ignore"):
        finite = np.where(np.isfinite(other), other, np.float32(1)) * np.where(rng.random(8000) < 0.5, -1, 1).astype(
            np.float32
        )
    exponent = np.frexp(finite)[1]
    ea = np.zeros(8000, np.int64)
    eb = np.minimum(0, -exponent.astype(np.int64) - rng.integers(126, 153, 8000))
    values, _ = vector_math.shift_add(small, ea, finite, eb)
    for s, o, e, got in zip(small.tolist(), finite.tolist(), eb.tolist(), values.tolist(), strict=True):
        assert fp32.to_bits(got) == fp32.to_bits(fp32.shift_add(s, 0, o, e)[0])
    assert as_float(1) == 2.0**-149
