"""Single values: rounding, scaling by powers of two, rcp, rsqrt, exp2fx, quantisation of one element.

Written apart from `numerics`: float64 and bit patterns here, integers and rationals there. Shared: the table T of
exp2fx.
"""

from __future__ import annotations

import numpy as np

from ._jit import F64, Array, Scalar, kernel

NAN_BITS = 0x7FC00000
MASKED = -(2**31)
NAN_FX = 2**31 - 1
_ROUND = 1.5 * 2.0**52
_MIN32 = -(2.0**31) + 1.0
_MAX32 = 2.0**31 - 2.0


@kernel("float64(int64)")
def pow2(e: Scalar) -> Scalar:
    """2^e for -1022 <= e <= 1023, by its exponent bits."""
    return np.int64((e + 1023) << 52).view(np.float64)


@kernel("float64(float64)")
def rne(x: Scalar) -> Scalar:
    """Round a float64 of magnitude below 2^51 to an integer, ties to even: the addition's own rounding does it."""
    return (x + _ROUND) - _ROUND


@kernel("float32(float32)")
def rcp(x: Scalar) -> Scalar:
    """1/x, correctly rounded.

    Rounding twice is innocent: for x no power of two and any number m of 25 bits or fewer (a midpoint of FP32,
    subnormal ones too), x*m is an integer over a power of two and differs from 1 by 2^-49 of it at least, so the
    float64 quotient, off by 2^-53 of itself, lies on the same side of m as 1/x.
    """
    return np.float32(1.0 / np.float64(x))


@kernel("float32(float32)")
def rsqrt(x: Scalar) -> Scalar:
    """1/sqrt(x), correctly rounded; never subnormal.

    Two float64 roundings err by less than 2^-51 of the value. Where that leaves two FP32 results, the midpoint m
    between them decides: m < 1/sqrt(x) exactly when m*m*x < 1. m has 25 bits, m*m is exact, and the product with x is
    taken as a sum of two float64 (Dekker 1971). The mantissa of 0x403A18E3 needs it.
    """
    if x < np.float32(0.0):
        return np.float32(np.nan)
    y = 1.0 / np.sqrt(np.float64(x))
    low = np.float32(y * (1.0 - 2.0**-51))
    high = np.float32(y * (1.0 + 2.0**-51))
    if low == high or y != y:
        return np.float32(y)
    m = (np.float64(low) + np.float64(high)) * 0.5
    q = m * m
    d = np.float64(x)
    split = q * 134217729.0
    q_high = split - (split - q)
    q_low = q - q_high  # 26 bits each, and d has 24: the partial products are exact
    p = q * d
    rest = (q_high * d - p) + q_low * d
    return high if (p - 1.0) + rest < 0.0 else low


@kernel("int32(float32)")
def fix(y: Scalar) -> Scalar:
    """RNE(y * 2^16), clamped; a bound is an integer, so clamping before rounding is the same."""
    if y != y:
        return np.int32(NAN_FX)
    x: Scalar = np.float64(y) * 65536.0
    x = _MIN32 if x < _MIN32 else x
    x = _MAX32 if x > _MAX32 else x
    return np.int32((x + _ROUND) - _ROUND)


@kernel(f"float32(int64, int64, {F64})")
def exp2fx(F: Scalar, M: Scalar, exp2_table: Array) -> Scalar:
    """T[f mod 2^16] * 2^floor(f / 2^16) of f = F - M * 2^16; the product is exact in float64 and rounds once."""
    if F == NAN_FX:
        return np.float32(np.nan)
    if F == MASKED:
        return np.float32(0.0)
    f = F - (M << 16)
    e = (f >> 16) - 23
    e = -400 if e < -400 else e
    e = 400 if e > 400 else e
    return np.float32(exp2_table[f & 0xFFFF] * pow2(e))


@kernel(f"int64(int64, int64, {F64})")
def weight(F: Scalar, M: Scalar, exp2_table: Array) -> Scalar:
    """RNE(2^31 * exp2fx) as an unsigned 32-bit integer (rule 8); NaN and masked give 0."""
    if F in (NAN_FX, MASKED):
        return 0
    p = np.float64(exp2fx(F, M, exp2_table))
    if p >= 2.0:
        return 0xFFFFFFFF
    w = np.int64(rne(p * 2147483648.0))
    return 0xFFFFFFFF if w > 0xFFFFFFFF else w


@kernel("float32(float32, int64, float32, int64)")
def shift_add(a: Scalar, ea: Scalar, b: Scalar, eb: Scalar) -> Scalar:
    """a * 2^(ea-M) + b * 2^(eb-M) with M the larger exponent (rule 7), one rounding.

    Only one term is shifted. A shift beyond 900 leaves it far below half an ulp of anything and not zero, as 900
    does; an FP32 value times 2^-900 is exact in float64. The float64 sum rounds once more to FP32: innocent for
    normal results (53 >= 2 * 24 + 2); below 2^-126 a sum near a midpoint is exact.
    """
    if ea == MASKED:
        return b
    if eb == MASKED:
        return a
    m = max(ea, eb)
    sa = ea - m
    sb = eb - m
    sa = -900 if sa < -900 else sa
    sb = -900 if sb < -900 else sb
    return np.float32(np.float64(a) * pow2(sa) + np.float64(b) * pow2(sb))


@kernel("int64(int32, int64)")
def scale_exponent(magnitude: Scalar, emax: Scalar) -> Scalar:
    """e = floor(log2 x) - emax of rule 4, clamped; magnitude: the bits of a finite FP32 x above zero."""
    x = np.float64(np.int32(magnitude).view(np.float32))  # a normal float64, even for a subnormal x
    e = (np.float64(x).view(np.int64) >> 52) - 1023 - emax
    return min(max(e, -127), 127)


@kernel("int64(float32, float64, int64)")
def encode(x: Scalar, factor: Scalar, form: Scalar) -> Scalar:
    """Code of x * factor, factor = 2^-e: one rounding, saturating, no -0 (rule 4). form: E2M1 0, E4M3 1, INT8 2."""
    y = np.float64(x) * factor
    if form == 2:
        units: Scalar = np.int64(rne(y * 64.0))
        return min(max(units, -127), 127) & 0xFF
    if form == 1:
        mantissa, least, largest, sign = 3, -6, 0x7E, 0x80
    else:
        mantissa, least, largest, sign = 1, 0, 7, 8
    q: Scalar = ((np.float64(y).view(np.int64) >> 52) & 0x7FF) - 1023
    q = max(q, least)
    # A mantissa that rounds up to the next power of two carries into the exponent field by itself.
    code: Scalar = np.int64(rne(abs(y) * pow2(mantissa - q))) + ((q - least) << mantissa)
    code = min(code, largest)
    return code | sign if y < 0.0 and code > 0 else code


@kernel("int64(int64, int64, int64)")
def philox_word(seed_low: Scalar, seed_high: Scalar, position: Scalar) -> Scalar:
    """Word 0 of Philox4x32-10, key the seed, counter (position, 0, 0, 0). Salmon et al., SC 2011, section 3.4."""
    mask = np.uint64(0xFFFFFFFF)
    s32 = np.uint64(32)
    m0, m1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
    k0, k1 = np.uint64(seed_low) & mask, np.uint64(seed_high) & mask
    c0, c1, c2, c3 = np.uint64(position) & mask, np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        p0 = m0 * c0
        p1 = m1 * c2
        c0 = (p1 >> s32) ^ c1 ^ k0
        c1 = p1 & mask
        c2 = (p0 >> s32) ^ c3 ^ k1
        c3 = p0 & mask
        k0 = (k0 + np.uint64(0x9E3779B9)) & mask
        k1 = (k1 + np.uint64(0xBB67AE85)) & mask
    return np.int64(c0)
