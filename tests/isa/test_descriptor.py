import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systolith.isa.descriptor import DESCRIPTOR_BITS, DESCRIPTOR_BYTES, ZERO, Descriptor, Format, Space, pack, unpack
from systolith.spec import ProgramError

from .helpers import dense, random_descriptor


def test_sizes():
    assert DESCRIPTOR_BITS == 330
    assert DESCRIPTOR_BYTES == 48
    assert pack(ZERO) == 0


@given(st.integers(0, 2**32))
def test_pack_and_unpack_are_inverse(seed):
    d = random_descriptor(random.Random(seed))
    word = pack(d)
    assert word < 1 << DESCRIPTOR_BITS
    assert unpack(word) == d


def test_packed_places():
    # base starts after space 3, format 4, scale 1
    d = Descriptor(space=Space.SPAD, format=Format.INT8, base=5)
    assert pack(d) == 1 | 2 << 3 | 5 << 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": 1 << 40}, "descriptor: base=1099511627776 does not fit in 40 bits (0..1099511627775)."),
        ({"ext": (1, -1, 1)}, "descriptor: ext[1]=-1 does not fit in 20 bits (0..1048575)."),
        ({"space": 5}, "descriptor: space=5 must be in 0..4 and format=0 in 0..5."),
        (
            {"format": Format.FP32, "scale": 1},
            "descriptor: scale=1 needs format E2M1, E4M3 or INT8, not FP32; write scale=0.",
        ),
        ({"format": Format.FP32, "base": 2}, "descriptor: base=2 must be a multiple of 4 for FP32."),
        ({"format": Format.INT8, "scale": 1, "ext": (1, 1, 32)}, "descriptor: stride[2]=0 must be 1 with scale=1."),
        (
            {"format": Format.INT8, "scale": 1, "ext": (2, 1, 32), "stride": (33, 0, 1)},
            "descriptor: stride[0]=33 must be a multiple of 32 with scale=1.",
        ),
        ({"ext": (1, 1, 2), "stride": (3, 0, 1)}, "descriptor: stride[0]=3 must be a multiple of 2 with E2M1."),
        ({"ext": (1, 1, 3), "stride": (0, 0, 1)}, "descriptor: ext[2]=3 must be even with E2M1, two codes a byte."),
    ],
)
def test_faults_are_named(values, message):
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        Descriptor(**values)


def test_bits_above_the_last_field_are_refused():
    with pytest.raises(ProgramError, match=r"^descriptor: bits 330 and up must be zero\.$"):
        unpack(1 << 330)


def test_advance_moves_codes_and_scales():
    d = dense(Space.DRAM, Format.INT8, (4, 1, 64), base=100, sbase=7, scale=1)
    moved = d.advance(0, 3)
    assert (moved.base, moved.sbase) == (100 + 192, 7 + 6)
    assert moved.advance(0, -3) == d
    nibbles = dense(Space.DRAM, Format.E2M1, (4, 1, 64), base=100, sbase=7, scale=1)
    assert (nibbles.advance(0, 1).base, nibbles.advance(0, 1).sbase) == (132, 9)


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (-1,), (5, -7, 2), (-9, 4)])
def test_a_ring_keeps_the_position_modulo_wrap(steps):
    d = dense(Space.SPAD, Format.FP32, (1, 1, 8), base=64, wrap=24)
    ring, position = (d.base, d.sbase), 0
    for n in steps:
        d = d.advance(0, n, ring)
        position = (position + 8 * n) % 24
        assert d.base == 64 + 4 * position


def test_an_advance_that_leaves_the_address_space_is_refused():
    d = dense(Space.DRAM, Format.FP32, (1, 1, 8))
    with pytest.raises(ProgramError, match=r"^descriptor: base=-32 does not fit in 40 bits \(0\.\.1099511627775\)\.$"):
        d.advance(0, -1)
