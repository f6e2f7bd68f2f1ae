"""Rule 8 on integers: the k best, the threshold of top-p, the random word, the prefix. Digits of 8 bits."""

from __future__ import annotations

import numpy as np

from ._functions import philox_word
from ._jit import F32, I32, I64, Array, Scalar, kernel


@kernel("int64(int64, int64)")
def share(part: Scalar, total: Scalar) -> Scalar:
    """floor(part * total / 2^32) for part <= 2^32 and 0 <= total < 2^62, without a wider product."""
    low = np.uint64(part) * np.uint64(total & 0xFFFFFFFF)
    if part == (1 << 32):
        return total
    return part * (total >> 32) + np.int64(low >> np.uint64(32))


@kernel("int64(int64, int64)")
def share_up(part: Scalar, total: Scalar) -> Scalar:
    """ceil(part * total / 2^32), likewise; more than any total for a part above 2^32, read as unsigned."""
    if part == (1 << 32):
        return total
    if part < 0 or part > (1 << 32):
        return 1 << 62
    low = np.uint64(part) * np.uint64(total & 0xFFFFFFFF)
    up = 1 if (low & np.uint64(0xFFFFFFFF)) != np.uint64(0) else 0
    return part * (total >> 32) + np.int64(low >> np.uint64(32)) + up


@kernel("int64(float32, int32)")
def order_key(x: Scalar, bits: Scalar) -> Scalar:
    """An unsigned 32-bit integer in the order of rule 8: NaN lowest, -0 as +0."""
    if x != x:
        return 0
    if x == np.float32(0.0):
        return 0x80000000
    b = np.int64(bits) & 0xFFFFFFFF
    return 0xFFFFFFFF - b if b >= 0x80000000 else b + 0x80000000


@kernel(f"int64({F32}, {I32}, int64)")
def argmax(v: Array, bits: Array, n: Scalar) -> Scalar:
    """Index of the largest value, the lowest among equals."""
    best, at = order_key(v[0], bits[0]), 0
    for i in range(n):
        key = order_key(v[i], bits[i])
        if key > best:
            best, at = key, i
    return at


@kernel(f"void({F32}, {I32}, {I32}, int64, int64, {I64})")
def keep_best(v: Array, bits: Array, w: Array, n: Scalar, k: Scalar, sums: Array) -> None:
    """Set w to 0 outside the k best by (value, lowest index); sums: scratch of 256."""
    if k >= n:
        return
    prefix = 0
    left = k
    for digit in range(3, -1, -1):
        shift = 8 * digit
        sums[:256] = 0
        for i in range(n):
            key = order_key(v[i], bits[i])
            if key >> (shift + 8) == prefix:
                sums[(key >> shift) & 255] += 1
        d = 255
        while sums[d] < left:
            left -= sums[d]
            d -= 1
        prefix = (prefix << 8) | d
    # `prefix` is the k-th best value's key, and `left` of those that equal it stay.
    for i in range(n):
        key = order_key(v[i], bits[i])
        if key < prefix:
            w[i] = 0
        elif key == prefix:
            if left > 0:
                left -= 1
            else:
                w[i] = 0


@kernel(f"int64({I32}, int64, int64, {I64})")
def threshold(w: Array, n: Scalar, need: Scalar, sums: Array) -> Scalar:
    """The largest t such that the sum of {w >= t} reaches `need`; 0 if none does."""
    prefix = 0
    left = need
    for digit in range(3, -1, -1):
        shift = 8 * digit
        sums[:256] = 0
        for i in range(n):
            x = np.int64(w[i]) & 0xFFFFFFFF
            if x >> (shift + 8) == prefix:
                sums[(x >> shift) & 255] += x
        d = 255
        while d > 0 and sums[d] < left:
            left -= sums[d]
            d -= 1
        if sums[d] < left:
            return 0
        prefix = (prefix << 8) | d
    return prefix


@kernel(f"int64({F32}, {I32}, {I32}, int64, int64, int64, int64, int64, int64, {I64})")
def choose(
    v: Array, bits: Array, w: Array, n: Scalar, k: Scalar, P: Scalar, seed_low: Scalar, seed_high: Scalar,
    position: Scalar, sums: Array,
) -> Scalar:  # fmt: skip
    """Index picked from n logits v with weights w, which it overwrites; sums: scratch of 256."""
    if k > 0:
        keep_best(v, bits, w, n, k, sums)
    total: Scalar = 0
    for i in range(n):
        total += np.int64(w[i]) & 0xFFFFFFFF
    if total == 0:
        return argmax(v, bits, n)
    t = threshold(w, n, max(1, share_up(P, total)), sums)
    total = 0
    for i in range(n):
        x = np.int64(w[i]) & 0xFFFFFFFF
        total += x if x >= t else 0
    r = share(philox_word(seed_low, seed_high, position), total)
    prefix: Scalar = 0
    for i in range(n):
        x = np.int64(w[i]) & 0xFFFFFFFF
        prefix += x if x >= t else 0
        if prefix > r:
            return i
    return 0
