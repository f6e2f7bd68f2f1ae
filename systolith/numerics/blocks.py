"""Block scaling: quantise, dequantise, the exact block sum and the contraction (docs/numerics.md rules 1 to 4).

A code is an unsigned integer of the format's bits, a scale code an E8M0 byte: 2^(code-127), 0xFF for NaN.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from systolith.numerics.formats import (
    BLOCK,
    SCALE_BIAS,
    SCALE_NAN,
    Format,
    encode,
    pair_of,
)
from systolith.numerics.fp32 import add, round_scaled, sub, tree_sum
from systolith.spec.errors import SystolithError

__all__ = ["BlockRow", "block_sum", "contract", "dequantise", "quantise_block", "quantise_row", "two_terms"]


def block_sum(
    codes_a: Sequence[int], codes_b: Sequence[int], fmt_a: Format, fmt_b: Format, scale_a: int, scale_b: int
) -> float:
    """Multiply and sum one block exactly, scale it exactly and round once to FP32 (rules 1 and 2).

    codes_a : [n] of the activations    codes_b : [n] of the weights, 1 <= n <= 32    scale_a, scale_b : E8M0 codes
    An exact zero is +0, a sum that underflows keeps its sign. NaN if a scale is 0xFF, or an E4M3 NaN meets a code that
    is not zero. Raises SystolithError for a pair that rule 1 does not list and for lengths that differ or exceed 32.
    """
    pair = pair_of(fmt_a, fmt_b)
    if len(codes_a) != len(codes_b) or len(codes_a) > BLOCK:
        raise SystolithError(
            f"block_sum: len(codes_a)={len(codes_a)} and len(codes_b)={len(codes_b)} must be equal and at most "
            f"{BLOCK}; call it once a block"
        )
    if scale_a == SCALE_NAN or scale_b == SCALE_NAN:
        return math.nan
    values_a, values_b = fmt_a.values, fmt_b.values
    total = 0
    for code_a, code_b in zip(codes_a, codes_b, strict=True):
        a, b = values_a[code_a], values_b[code_b]
        if a == 0 or b == 0:  # zero, whatever it meets
            continue
        if a is None or b is None:
            return math.nan
        total += a * b
    return round_scaled(total, pair.unit_exp + scale_a + scale_b - 2 * SCALE_BIAS)


def quantise_block(values: Sequence[float], fmt: Format) -> tuple[int, tuple[int, ...]]:
    """Quantise values that share one scale: (scale code, codes), rule 4.

    values : [n], a block of 32 or a whole row with one scale; n is free. FP32, or exact products p * 2^sv (rule 7).
    A NaN or an infinity gives scale 0xFF and zero codes, all zeros give scale code 0.
    """
    if not all(map(math.isfinite, values)):
        return SCALE_NAN, (0,) * len(values)
    largest = max(map(abs, values), default=0.0)
    if largest == 0.0:
        return 0, (0,) * len(values)
    e = math.frexp(largest)[1] - 1 - fmt.emax
    e = max(-127, min(127, e))
    return e + SCALE_BIAS, tuple(encode(fmt, math.ldexp(x, -e)) for x in values)


def dequantise(code: int, fmt: Format, scale_code: int) -> float:
    """Give the value of a code under a scale, rounded once to FP32; NaN for scale 0xFF, even if the code is zero."""
    units = fmt.values[code]
    if scale_code == SCALE_NAN or units is None:
        return math.nan
    return round_scaled(units, fmt.unit_exp + scale_code - SCALE_BIAS)


@dataclass(frozen=True)
class BlockRow:
    """One vector along the contraction axis in blocks of 32; the codes a short last block lacks are zero."""

    fmt: Format
    scales: tuple[int, ...]
    codes: tuple[int, ...]

    def __post_init__(self) -> None:
        blocks = -(-len(self.codes) // BLOCK)
        if len(self.scales) != blocks:
            raise SystolithError(
                f"BlockRow.scales has {len(self.scales)} entries, but {len(self.codes)} codes are {blocks} blocks of "
                f"{BLOCK}: give one scale a block"
            )

    def block(self, index: int) -> tuple[int, tuple[int, ...]]:
        """Give (scale code, codes) of a block."""
        return self.scales[index], self.codes[BLOCK * index : BLOCK * (index + 1)]


def quantise_row(values: Sequence[float], fmt: Format) -> BlockRow:
    """Quantise a vector [K] by blocks of 32 anchored at index 0 (rule 4)."""
    blocks = [quantise_block(values[k : k + BLOCK], fmt) for k in range(0, len(values), BLOCK)]
    return BlockRow(fmt, tuple(scale for scale, _ in blocks), tuple(code for _, codes in blocks for code in codes))


def two_terms(values: Sequence[float], fmt: Format) -> tuple[BlockRow, BlockRow]:
    """Quantise a weight vector [K] in two terms: W1 = quantise(W), W2 = quantise(RNE(W - dequantised W1)), rule 3."""
    first = quantise_row(values, fmt)
    rest = [sub(x, dequantise(first.codes[k], fmt, first.scales[k // BLOCK])) for k, x in enumerate(values)]
    return first, quantise_row(rest, fmt)


def contract(a: BlockRow, weights: Sequence[BlockRow], spans: int = 1) -> float:
    """Contract activations with weights of one term or two (rule 3).

    K is padded with zero blocks to a multiple of 32 * spans and cut into `spans` equal runs. In a run acc = +0, then
    acc = RNE(acc + block) for blocks ascending, the terms of a block in turn. Span sums join by the tree of rule 5.
    A block that only pads adds +0: acc is never -0, so it changes nothing and is left out here.
    """
    if spans < 1:
        raise SystolithError(f"contract: spans={spans} must be 1 or more")
    blocks = len(a.scales)
    for term in weights:
        if len(term.codes) != len(a.codes):
            raise SystolithError(
                f"contract: weights hold {len(term.codes)} codes, the activations {len(a.codes)}: K must be the same"
            )
    run = -(-blocks // spans)
    sums = []
    for span in range(spans):
        acc = 0.0
        for index in range(min(span * run, blocks), min((span + 1) * run, blocks)):
            scale_a, codes_a = a.block(index)
            for term in weights:
                scale_b, codes_b = term.block(index)
                acc = add(acc, block_sum(codes_a, codes_b, a.fmt, term.fmt, scale_a, scale_b))
        sums.append(acc)
    return tree_sum(sums)
