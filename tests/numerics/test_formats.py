import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.numerics import formats
from systolith.numerics.formats import E2M1, E4M3, INT8, Format
from systolith.spec.errors import SystolithError

OTHERS = [(E2M1, ml_dtypes.float4_e2m1fn), (E4M3, ml_dtypes.float8_e4m3fn)]
ELEMENTS = [E2M1, E4M3, INT8]


def nearest(fmt: Format, x: Fraction) -> int:
    """Brute force over the codes `encode` may give: nearest value, ties to the even code, saturation by distance."""
    legal = [
        (units, code)
        for code, units in enumerate(fmt.values)
        if units is not None and not (fmt is INT8 and units == -128) and not (units == 0 and code)
    ]
    scaled = x / Fraction(2) ** fmt.unit_exp
    return min(legal, key=lambda entry: (abs(scaled - entry[0]), entry[1] & 1))[1]


@pytest.mark.parametrize(("fmt", "dtype"), OTHERS)
def test_every_code_equals_ml_dtypes(fmt: Format, dtype: type) -> None:
    values = np.arange(1 << fmt.bits, dtype=np.uint8).view(dtype).astype(np.float64)
    for code, expected in enumerate(values.tolist()):
        units = formats.decode_int(fmt, code)
        if math.isnan(expected):
            assert units is None
        else:
            assert units == expected * 2.0**-fmt.unit_exp


def test_int8_is_twos_complement_in_units_of_one_64th() -> None:
    assert [formats.decode_int(INT8, code) for code in range(256)] == np.arange(256, dtype=np.uint8).view(
        np.int8
    ).tolist()
    assert INT8.unit_exp == -6
    assert formats.decode_int(INT8, 0x80) == -128


def test_the_facts_of_rule_4() -> None:
    assert [(f.emax, f.unit_exp, f.max_units, f.max_code, f.min_code) for f in ELEMENTS] == [
        (2, -1, 12, 7, 0xF),
        (8, -9, 448 * 512, 0x7E, 0xFE),
        (0, -6, 127, 0x7F, 0x81),
    ]
    assert [f.nan_codes for f in ELEMENTS] == [(), (0x7F, 0xFF), ()]
    assert E2M1.values[8] == E4M3.values[0x80] == 0  # a code of -0 in a checkpoint reads as +0


@pytest.mark.parametrize("fmt", ELEMENTS)
def test_encode_at_every_value_midpoint_and_just_beside(fmt: Format) -> None:
    values = sorted({units for units in fmt.values if units is not None})
    for low, high in itertools.pairwise(values):
        middle = (low + high) * 2.0 ** (fmt.unit_exp - 1)
        for x in (middle, math.nextafter(middle, math.inf), math.nextafter(middle, -math.inf), low * 2.0**fmt.unit_exp):
            assert formats.encode(fmt, x) == nearest(fmt, Fraction(x)), x


@settings(max_examples=500)
@given(st.sampled_from(ELEMENTS), st.floats(-1100, 1100) | st.floats(-8, 8) | st.floats(-0.05, 0.05))
def test_encode_is_the_nearest_code(fmt: Format, x: float) -> None:
    assert formats.encode(fmt, x) == nearest(fmt, Fraction(x))


@pytest.mark.parametrize(("fmt", "dtype"), OTHERS)
def test_encode_equals_the_cast_of_ml_dtypes_inside_its_range(fmt: Format, dtype: type) -> None:
    limit = fmt.max_units * 2.0**fmt.unit_exp
    x = (np.random.default_rng(3).uniform(-1, 1, 4000) ** 5 * limit).astype(np.float32)
    casted = x.astype(dtype).view(np.uint8)
    for value, code in zip(x.tolist(), casted.tolist(), strict=True):
        assert formats.encode(fmt, value) == (0 if fmt.values[code] == 0 else code)


@pytest.mark.parametrize("fmt", ELEMENTS)
def test_encode_saturates_and_never_gives_minus_zero(fmt: Format) -> None:
    assert formats.encode(fmt, 1e30) == fmt.max_code
    assert formats.encode(fmt, -1e30) == fmt.min_code
    assert formats.encode(fmt, -1e-30) == formats.encode(fmt, -0.0) == 0


def test_pairs_are_those_of_rule_1_with_the_widths_of_the_design() -> None:
    assert {pair.name: pair.sum_bits for pair in formats.PAIRS.values()} == {
        "E2M1xE2M1": 14,
        "E4M3xE2M1": 28,
        "INT8xE2M1": 17,
        "E4M3xE4M3": 42,
        "INT8xINT8": 21,
    }


def test_errors_name_what_is_allowed() -> None:
    with pytest.raises(SystolithError, match=r"^format='E5M2' is not known: use one of E2M1, E4M3, INT8, FP32, INT32$"):
        formats.format_named("E5M2")
    with pytest.raises(SystolithError, match=r"^format='FP32' is not an element format: use one of E2M1, E4M3, INT8$"):
        formats.element_format("FP32")
    with pytest.raises(
        SystolithError,
        match=r"^pair=E2M1xE4M3 \(activations x weights\) cannot be multiplied: "
        r"use one of E2M1xE2M1, E4M3xE2M1, INT8xE2M1, E4M3xE4M3, INT8xINT8$",
    ):
        formats.pair_of(E2M1, E4M3)
    with pytest.raises(
        SystolithError, match=r"^encode: x_scaled=nan has no INT8 code; give the block scale 0xFF and zero codes$"
    ):
        formats.encode(INT8, math.nan)


def test_formats_compare_and_hash_by_name() -> None:
    assert {formats.format_named("INT8"): 1}[INT8] == 1
    assert E2M1 != E4M3
