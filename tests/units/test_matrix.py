"""Matrix unit: execute and sim on corner operands of MATMUL, every pair."""

import numpy as np
import pytest
from sim.helpers import NANO, dense, program, same, spad

from systolith.isa import Format, Machine, Matmul, Space, Zero
from systolith.sim import FastMachine
from systolith.spec import PAIRS, ProgramError

SHAPES = [(1, 1, 1, 32), (2, 3, 5, 64), (1, 4, 33, 96), (3, 1, 2, 256)]


def extreme(codes):
    """Memory of these codes, scales at and near the ends of their range."""

    def memory(seed, rank):
        rng = np.random.default_rng(seed)
        fill = {
            space: rng.choice(codes, size).astype(np.uint8)
            for space, size in ((Space.SPAD, 1 << 16), (Space.SLOT, 8192))
        }
        fill[Space.SPAD][32768:] = rng.choice([0, 1, 126, 127, 128, 253, 254, 255], 32768)
        fill[Space.SLOT][6144:] = rng.choice([0, 1, 60, 127, 128, 200, 254, 255], 2048)
        fill[Space.ACC] = rng.integers(0, 256, 8192).astype(np.uint8)
        return fill

    return memory


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("zero", Zero)
def test_every_pair_by_columns_and_rows(pair, zero):
    a_form, w_form = (Format[name] for name in pair.split("x"))
    corner = {
        "E2M1": [0x00, 0x80, 0x77, 0xFF, 0x18],
        "E4M3": [0, 0x80, 0x7E, 0xFE, 0x7F, 1, 0x38],
        "INT8": [0, 1, 0x7F, 0x80, 0x81, 0xFF],
    }
    for e0, e1, n, K in SHAPES:
        d = dense(Space.ACC, Format.FP32, (e0, e1, n))
        a = spad(a_form, (e0, e1, K), 0, 32768, 1)
        by_columns = (
            dense(Space.SLOT, w_form, (n, 1, K), 0, 6144, 1)
            if n * K * w_form.bits // 8 <= 6144
            else spad(w_form, (n, 1, K), 8192, 36000, 1)
        )
        by_rows = spad(w_form, (K, 1, n + n % 2), 8192)
        wide = dense(Space.ACC, Format.FP32, (e0, e1, n + 1))
        code = [Matmul(d=1, a=2, b=3, zero=zero), Matmul(d=5, a=2, b=4, zero=zero, by_rows=1)]
        if n * K <= 4096:
            code.append(Matmul(d=1, a=2, b=6, zero=zero, terms=1))
        two = spad(w_form, (n, 1, 2 * K), 8192, 36000, 1)
        operands = (d, a, by_columns, by_rows, wide, two)
        same(code, operands, memory=extreme(corner[a_form.name]), seed=n)
        same(code, operands, memory=extreme(corner[w_form.name]), seed=n)


def test_strides_zero_extents_and_an_extent_cell():
    a = spad(Format.INT8, (4, 2, 64), 0, 32768, 1, stride=(320, 96, 1), xe=3)
    b = spad(Format.INT8, (3, 5, 64), 8192, 36000, 1, stride=(640, 96, 1))
    d = dense(Space.ACC, Format.FP32, (4, 2, 20), stride=(60, 25, 1))
    nothing = spad(Format.INT8, (0, 5, 64), 8192, 36000, 1)

    def memory(seed, rank):
        return extreme([1, 2, 3, 0xFF])(seed, rank) | {Space.CELL: np.array([0, 0, 0, 3], np.uint32).view(np.uint8)}

    same(
        [Matmul(d=3, a=1, b=2), Matmul(d=3, a=1, b=4, zero=1), Matmul(d=3, a=1, b=2)], (a, b, d, nothing), memory=memory
    )


@pytest.mark.parametrize(
    ("d", "a", "b", "more"),
    [
        ((1, 1, 1), spad(Format.INT8, (1, 1, 32), scale=1), spad(Format.E4M3, (1, 1, 32), scale=1), {}),
        ((1, 1, 1), spad(Format.INT8, (1, 1, 32), scale=1), spad(Format.INT8, (2, 1, 32), scale=1), {}),
        ((1, 1, 1), spad(Format.INT8, (1, 1, 32)), spad(Format.INT8, (1, 1, 32), scale=1), {}),
        ((1, 1, 1), spad(Format.INT8, (1, 1, 40), scale=1), spad(Format.INT8, (1, 1, 40), scale=1), {}),
        ((1, 1, 1), spad(Format.INT8, (1, 1, 32), scale=1), spad(Format.INT8, (1, 1, 64), scale=1), {}),
        ((1, 1, 4), spad(Format.INT8, (1, 1, 32), scale=1), spad(Format.INT8, (32, 2, 4)), {"by_rows": 1}),
        (
            (1, 1, 4), spad(Format.INT8, (1, 1, 32), scale=1),
            spad(Format.INT8, (32, 1, 4), 8192, stride=(8, 8, 2)), {"by_rows": 1},
        ),
        ((1, 1, 1), spad(Format.INT8, (1, 1, 32), 65520, scale=1), spad(Format.INT8, (1, 1, 32), scale=1), {}),
        ((1, 1, 1), dense(Space.DRAM, Format.INT8, (1, 1, 32), scale=1), spad(Format.INT8, (1, 1, 32), scale=1), {}),
    ],
)  # fmt: skip
def test_illegal_matmuls_trap_with_the_sentence_of_execute(d, a, b, more):
    p = program([Matmul(d=1, a=2, b=3, **more)], (dense(Space.ACC, Format.FP32, d), a, b))
    sentences = []
    for machine in (Machine, FastMachine):
        with pytest.raises(ProgramError) as error:
            machine(NANO, p).run()
        sentences.append(str(error.value))
    assert sentences[0] == sentences[1]
