import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.numerics import choose, constants, fp32
from systolith.numerics import functions as fn
from systolith.numerics.philox import sample_word
from systolith.spec.errors import SystolithError

from .oracle import any_bits, as_float, is_nan, value

few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, 3.0])


def beats(a: float, b: float) -> bool:
    """Whether a stands strictly above b: NaN below everything, -0 equal to +0."""
    return not math.isnan(a) and (math.isnan(b) or a > b)


@settings(max_examples=300)
@given(st.lists(few_values | any_bits.map(as_float), min_size=1, max_size=12), st.data())
def test_top_k_by_selecting_one_at_a_time(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    left, expected = list(range(len(values))), []
    for _ in range(k):
        best = left[0]
        for i in left:
            if beats(values[i], values[best]):
                best = i
        left.remove(best)
        expected.append(best)
    assert choose.top_k(values, k) == tuple(expected)
    if k:
        assert choose.argmax(values) == expected[0]


def test_argmax_corners() -> None:
    nan, inf = math.nan, math.inf
    assert choose.argmax([nan, nan]) == 0
    assert choose.argmax([nan, -inf]) == 1
    assert choose.argmax([-0.0, 0.0]) == 0
    assert choose.argmax([0.0, inf, inf]) == 1
    assert choose.top_k([nan, 2.0, nan, 2.0], 4) == (1, 3, 0, 2)
    with pytest.raises(SystolithError, match=r"^top_k: k=3 must be in 0\.\.2, the number of values$"):
        choose.top_k([1.0, 2.0], 3)


def test_top_p_fixed() -> None:
    assert choose.top_p_fixed(1.0) == 2**32
    assert choose.top_p_fixed(0.5) == 2**31
    assert choose.top_p_fixed(0.0) == 0
    assert choose.top_p_fixed(0.9) == round(Fraction(0.9) * 2**32) == 3865470566
    assert choose.top_p_fixed(2.0**-33) == 0  # a tie
    assert choose.top_p_fixed(3 * 2.0**-33) == 2
    with pytest.raises(SystolithError, match=r"^top_p=1.5 must be in 0\.\.1; 1 keeps all tokens$"):
        choose.top_p_fixed(1.5)
    with pytest.raises(SystolithError, match=r"^top_p=nan .*$"):
        choose.top_p_fixed(math.nan)


@settings(max_examples=300)
@given(st.integers(-(2**31) + 1, 2**31 - 2) | st.integers(-40 * 65536, 0), st.integers(-32767, 32768) | st.just(0))
def test_weight_is_rounded_from_exp2fx(F: int, M: int) -> None:
    p = fn.exp2fx(F, M)
    expected = 2**32 - 1 if math.isinf(p) else min(2**32 - 1, round(Fraction(p) * 2**31))
    assert choose.weight(F, M) == expected


def test_weight_corners() -> None:
    assert choose.weight(0, 0) == 2**31
    assert choose.weight(-65536 * 31, 0) == 1
    assert choose.weight(-65536 * 32, 0) == 0  # a half, to even
    assert choose.weight(-65536 * 32 + 1, 0) == 1
    assert choose.weight(fn.NAN_FX, 32768) == choose.weight(fn.MASKED, -32768) == 0


def test_sample_max_leaves_nan_out() -> None:
    assert choose.sample_max([5, 65537, fn.NAN_FX, fn.MASKED, -9]) == 2
    assert choose.sample_max([fn.NAN_FX, fn.NAN_FX]) == 0
    assert choose.sample_max([fn.FX_MIN]) == -32767


def brute_threshold(weights: list[int], p_fixed: int) -> int:
    need = max(1, math.ceil(Fraction(p_fixed * sum(weights), 2**32)))
    legal = [t for t in range(max(weights) + 1) if sum(w for w in weights if w >= t) >= need]
    return max(legal, default=0)


small_weights = st.lists(st.integers(0, 40), min_size=1, max_size=14)
p_values = st.integers(0, 2**32) | st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32])
words = st.integers(0, 2**32 - 1) | st.sampled_from([0, 2**32 - 1])


@settings(max_examples=400)
@given(small_weights, p_values, words)
def test_pick_is_the_rule_by_brute_force(weights: list[int], p_fixed: int, u: int) -> None:
    t = brute_threshold(weights, p_fixed)
    assert choose.nucleus_threshold(weights, p_fixed) == t
    line = [i for i, w in enumerate(weights) for _ in range(w if w >= t else 0)]  # index i owns w_i numbers
    expected = line[math.floor(Fraction(u * len(line), 2**32))] if line else 0
    assert choose.pick(weights, p_fixed, u) == expected


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=40), p_values, words)
def test_pick_takes_an_index_of_weight_at_least_the_threshold(weights: list[int], p_fixed: int, u: int) -> None:
    index = choose.pick(weights, p_fixed, u)
    t = choose.nucleus_threshold(weights, p_fixed)
    assert weights[index] >= t
    assert weights[index] > 0 or not any(weights)
    kept = sum(w for w in weights if w >= t)
    assert kept >= -(-p_fixed * sum(weights) >> 32)


def test_pick_corners() -> None:
    assert choose.pick([0, 0, 0], 2**32, 12345) == 0  # every logit a NaN
    assert choose.pick([0, 7, 0], 2**32, 2**32 - 1) == 1
    assert choose.pick([3, 9, 9], 0, 0) == 1  # top_p = 0 keeps the most likely, ties included
    assert choose.pick([3, 9, 9], 0, 2**32 - 1) == 2
    assert [choose.pick([1, 1], 2**32, u) for u in (0, 2**31 - 1, 2**31, 2**32 - 1)] == [0, 0, 1, 1]


def test_sample_follows_the_distribution_and_the_cuts() -> None:
    logits = [0.0, math.log(2), math.nan, math.log(4), -math.inf]
    scale = constants.temperature_scale(1.0)
    counts = np.bincount([choose.sample(logits, scale, 0, 2**32, sample_word(9, i)) for i in range(4000)], minlength=5)
    assert counts[2] == counts[4] == 0
    assert abs(counts[:4] / 4000 - np.array([1, 2, 0, 4]) / 7).max() < 0.03
    assert {choose.sample(logits, scale, 1, 2**32, sample_word(9, i)) for i in range(50)} == {3}
    assert {choose.sample(logits, scale, 0, choose.top_p_fixed(0.5), sample_word(9, i)) for i in range(50)} == {3}
    assert choose.sample([math.nan] * 3, scale, 0, 2**32, 77) == 0


def test_one_nan_logit_does_not_drown_the_others() -> None:
    scale = constants.temperature_scale(0.7)
    assert choose.sample([1.0, math.nan, 90.0], scale, 0, 2**32, 2**31) == 2


@given(any_bits)
def test_fix_of_a_nan_logit_has_weight_zero(bits: int) -> None:
    if is_nan(bits):
        assert choose.weight(fn.fix(as_float(bits)), 0) == 0
    else:
        assert value(bits & 0x7F7FFFFF) >= 0
        assert choose.weight(fn.fix(fp32.from_bits(bits)), 32768) <= 2**31
