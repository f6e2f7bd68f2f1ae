"""MATMULs on the matrix unit in Verilator, as fast as it takes them, beside what `isa` says of them."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np

from systolith.isa import Descriptor, Format, Halt, Matmul, Space
from systolith.isa import cycles as rules
from systolith.isa.alone import work_of
from systolith.isa.program import Program, Requires
from systolith.isa.resolved import COLS, fill_row
from systolith.isa.state import Slice
from systolith.rtl.emit import with_leaves
from systolith.rtl.matrix import MatrixUnit
from systolith.rtl.ports import command_layout
from systolith.spec import PAIRS, Chip

from .leaves import build
from .unit_bench import main_code, operand, pack

SPACES = (Space.SPAD, Space.SLOT, Space.ACC)
SLOT_CODES, SLOT_SCALES = 0, 6144
LISTS, LIST_WORDS = 8, 64


class MatrixBench:
    """A build of the matrix unit of a chip; `fault` changes its Verilog before."""

    def __init__(self, chip: Chip, folder: Path, fault: tuple[str, str] | None = None) -> None:
        self.chip, self.folder = chip, folder
        self.layout = command_layout("M")
        unit = MatrixUnit(chip)
        text = with_leaves(unit, "unit")
        if fault is not None:
            assert fault[0] in text
            text = text.replace(*fault, 1)
        main = main_code(_MAIN, unit, SPACES, self.layout, chip)
        if (folder / "bench").exists() and (folder / "unit.v").read_text() + (
            folder / "main.cpp"
        ).read_text() == text + main:
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "unit.v").write_text(text)
        (folder / "main.cpp").write_text(main)
        build(folder, "unit")

    def run(
        self, memory: dict[Space, bytes], commands: list[int], delays: list[int]
    ) -> tuple[list[int], list[int], dict[Space, bytes], bool]:
        """Start and end of each command, the memories at the end, and whether the unit found a fault.

        delays : cycles that a command waits though the unit is ready
        """
        c = self.chip
        sizes = [c.scratchpad_bytes, c.slots_bytes, c.accumulator_bytes]
        words = (self.layout.size + 31) // 32
        head = np.array([len(commands), *sizes], np.uint32).tobytes()
        images = b"".join(bytes(memory[space]) for space in SPACES)
        body = b"".join(c.to_bytes(4 * words, "little") for c in commands) + np.array(delays, np.uint32).tobytes()
        done = subprocess.run(["./bench"], cwd=self.folder, input=head + images + body, capture_output=True, check=True)
        times = np.frombuffer(done.stdout, np.uint32, 2 * len(commands))
        at, found = 8 * len(commands), {}
        for space, size in zip(SPACES, sizes, strict=True):
            found[space] = done.stdout[at : at + size]
            at += size
        return times[: len(commands)].tolist(), times[len(commands) :].tolist(), found, done.stdout[at] != 0


def fresh(chip: Chip) -> Slice:
    """A slice with zero memories."""
    needs = {
        "slices": 1, "dram_bytes": 64, "spad_bytes": chip.scratchpad_bytes, "slot_bytes": chip.slots_bytes,
        "acc_bytes": chip.accumulator_bytes,
    }  # fmt: skip
    s = Slice.fresh(0, chip, Program(name="m", words=(Halt().encode(),), constants=(), requires=Requires(**needs)), [])
    s.slices.append(s)
    return s


def fill(s: Slice, rng: np.random.Generator, wild: bool) -> None:
    """Codes and scales in every space; wild: NaN, ends of ranges, any FP32 in the accumulator."""
    for space in SPACES:
        n = len(s.memory[space])
        if wild:
            data = rng.integers(0, 256, n).astype(np.uint8)
            data = np.where(
                rng.random(n) < 0.3, rng.choice(np.array([0, 0x80, 0x7F, 0xFF, 0x7E, 1], np.uint8), n), data
            )
        else:
            data = rng.integers(0, 256, n).astype(np.uint8)
            data = np.where(data & 0x7F == 0x7F, np.uint8(0x31), data)
            if space is Space.ACC:
                data = (rng.standard_normal(n // 4) * 4).astype(np.float32).view(np.uint8)
        s.memory[space][:] = data.tobytes()
    quarter = len(s.memory[Space.SPAD]) // 4
    for n in range(LISTS):  # registers 8 and up
        table, at = rng.integers(0, 8, LIST_WORDS).astype(np.uint32), quarter + 4 * LIST_WORDS * n
        s.memory[Space.SPAD][at : at + 4 * LIST_WORDS] = table.tobytes()
        s.descriptors[8 + n] = Descriptor(
            space=Space.SPAD, format=Format.INT32, base=at, ext=(1, 1, LIST_WORDS), stride=(0, 0, 1)
        )
    # Scales: the upper part of the scratchpad and of the slots.
    for space, at in ((Space.SPAD, len(s.memory[Space.SPAD]) * 3 // 4), (Space.SLOT, SLOT_SCALES)):
        n = len(s.memory[space]) - at
        near = (
            rng.integers(118, 136, n) if not wild else rng.choice([0, 1, 60, 100, 126, 127, 128, 160, 253, 254, 255], n)
        )
        s.memory[space][at:] = near.astype(np.uint8).tobytes()


def draw(rng: random.Random, chip: Chip, s: Slice) -> Matmul:
    """A legal MATMUL whose operands lie in registers 1 to 3 of the slice."""
    a_form, b_form = (Format[name] for name in rng.choice(PAIRS).split("x"))
    by_rows = int(rng.random() < 0.4)
    terms = int(not by_rows and rng.random() < 0.2)
    columns = chip.columns
    # Of arrays of many rows, or that stand on each other: all that may be in a pass, and a rest.
    depths = [1, 1, 1, 2, 3, 4, *range(4, 3 * chip.blocks_per_pass * chip.array_stack + 2)]
    while True:
        e0, e1 = rng.choice([(1, 1), (1, rng.randint(1, 5)), (rng.randint(1, 9), rng.randint(1, 8)), (1, 33), (70, 1)])
        k = 32 * rng.choice(depths if chip.array_rows >= 32 else depths[:6])
        n = rng.choice([1, 2, 3, chip.array_cols, columns, columns + 1, rng.randint(1, 3 * columns)])
        n0, n1 = (n, 1) if rng.random() < 0.6 else (rng.randint(1, 4), rng.randint(1, columns))
        if by_rows:
            n0, n1, n = 1, 1, n + n % 2
        n = n if by_rows else n0 * n1
        slot = rng.random() < 0.6
        kw = k << terms
        codes = (n + 32 * by_rows) * kw * b_form.bits // 8  # rows may be padded
        if e0 * e1 * k <= 9000 and codes <= (6000 if slot else 12000) and 4 * e0 * e1 * (n + 5) <= 7900:
            break
    spad, quarter = len(s.memory[Space.SPAD]), len(s.memory[Space.SPAD]) // 4
    pad = 32 * rng.choice([0, 0, 1])

    def rows(space: Space, form: Format, ext: tuple[int, int, int], base: int, scale: int, via_ok: bool) -> Descriptor:
        width = ext[2] + pad + (-ext[2] % 32 if scale else 0)
        stride = (ext[1] * width, width, 1)
        via, unit = 0, 0
        if via_ok and ext[0] <= LIST_WORDS and rng.random() < 0.25 and 36 * stride[0] * form.bits // 8 < quarter:
            via, unit = rng.randrange(8, 8 + LISTS), rng.choice([0, 0, 1, 2])
        sbase = (spad * 3 // 4 if space is Space.SPAD else SLOT_SCALES) + rng.randrange(64)
        return Descriptor(
            space=space, format=form, scale=scale, base=base, sbase=sbase if scale else 0, ext=ext, stride=stride,
            via=via, unit=unit,
        )  # fmt: skip

    a = rows(Space.SPAD, a_form, (e0, e1, k), rng.randrange(64) * 2, 1, True)
    b_ext = (k, 1, n) if by_rows else (n0, n1, kw)
    if slot:
        b = rows(Space.SLOT, b_form, b_ext, SLOT_CODES + 2 * rng.randrange(32), 1 - by_rows, False)
    else:
        b = rows(Space.SPAD, b_form, b_ext, spad // 2 + 2 * rng.randrange(64), 1 - by_rows, True)
    d_base = 4 * rng.choice([0, 0, 0, columns, 3 * columns, 8, rng.randrange(64)])
    d_width = n + rng.choice([0, 0, 1, 5])
    d = Descriptor(space=Space.ACC, format=Format.FP32, base=d_base, ext=(e0, e1, n), stride=(e1 * d_width, d_width, 1))
    s.descriptors[1:4] = [d, a, b]
    return Matmul(d=1, a=2, b=3, zero=rng.choice([0, 1]), by_rows=by_rows, terms=terms)


def command(bench: MatrixBench, s: Slice, i: Matmul) -> int:
    """What the queue hands to the unit."""
    values = {"op": i.OPCODE, "fields": i.encode() & (1 << 50) - 1, "zero": i.late(s)["zero"]}
    values |= {x: operand(s, n) for x, n in (("d", i.d), ("a", i.a), ("b", i.b))}
    return pack(bench.layout, values)


Drawn = tuple[Matmul, list[Descriptor]]


def compare(bench: MatrixBench, seed: int, count: int, wild: bool) -> int:
    """Run `count` MATMULs on both; assert equal starts, ends and memories. Gives the cycles they took."""
    rng = random.Random(seed)
    s = fresh(bench.chip)
    fill(s, np.random.default_rng(seed), wild)
    drawn: list[Drawn] = []
    delays = []
    for _ in range(count):
        i = draw(rng, bench.chip, s)
        drawn.append((i, list(s.descriptors)))
        delays.append(rng.choice([0, 0, 0, 1, 3, 40]))
    return check(bench, s, drawn, delays, f"seed {seed}")


def projection(bench: MatrixBench, rows: int, pair: str, seed: int = 0) -> int:
    """An output projection of an 8B model over 64 slices: 64 columns, K = 4,096. Gives its cycles."""
    a_form, b_form = (Format[name] for name in pair.split("x"))
    s, (k, n) = fresh(bench.chip), (4096, 64)
    rng = np.random.default_rng(seed)
    for space, form, lines, at in ((Space.SPAD, a_form, rows, 2), (Space.SLOT, b_form, n, 3)):
        codes = rng.integers(0, 256, lines * k * form.bits // 8).astype(np.uint8)
        codes = np.where(codes & 0x7F == 0x7F, np.uint8(0x31), codes)
        scales = rng.integers(120, 134, lines * k // 32).astype(np.uint8)
        s.memory[space][: len(codes) + len(scales)] = codes.tobytes() + scales.tobytes()
        s.descriptors[at] = Descriptor(
            space=space, format=form, scale=1, sbase=len(codes), ext=(lines, 1, k), stride=(k, 0, 1)
        )
    s.descriptors[1] = Descriptor(space=Space.ACC, format=Format.FP32, ext=(rows, 1, n), stride=(n, 0, 1))
    return check(bench, s, [(Matmul(d=1, a=2, b=3, zero=1), list(s.descriptors))], [0], f"{pair}, {rows} rows")


def check(bench: MatrixBench, s: Slice, drawn: list[Drawn], delays: list[int], what: str) -> int:
    """Run MATMULs, each with its descriptors, on both; assert equal starts, ends and memories."""
    chip, commands, works = bench.chip, [], []
    row = np.zeros(COLS, np.int64)
    for i, descriptors in drawn:
        s.descriptors[:] = descriptors
        commands.append(command(bench, s, i))
        fill_row(row, s, i, i.encode())
        works.append(work_of(chip, row))
    image = {space: bytes(s.memory[space]) for space in SPACES}
    starts, ends, found, fault = bench.run(image, commands, delays)
    assert not fault, f"{what}: a legal MATMUL is taken for a fault"
    for i, descriptors in drawn:
        s.descriptors[:] = descriptors
        i.execute(s)
    earliest = array = 0
    for n, work in enumerate(works):
        start = earliest + delays[n]
        assert starts[n] == start, f"{what}, MATMUL {n} starts at {starts[n]}, not {start}"
        first = max(start + work[rules.LEAD], array)
        array = first + work[rules.HOLD]
        earliest = max(start + 1, array - work[rules.LAST])
        end = array + work[rules.TAIL]
        assert ends[n] == end, f"{what}, MATMUL {n} of {drawn[n]} ends at {ends[n]}, not {end}"
    for space in SPACES:
        wrong = np.nonzero(np.frombuffer(found[space], np.uint8) != np.frombuffer(bytes(s.memory[space]), np.uint8))[0]
        assert len(wrong) == 0, f"{what}: {len(wrong)} bytes of {space.name} differ, the first at {wrong[0]}"
    return ends[-1]


_MAIN = """
int main() {
  uint32_t head[4];
  if (fread(head, 4, 4, stdin) != 4) return 1;
  const uint32_t n = head[0];
  for (int i = 0; i < 3; i++) {
    mem[i].resize(head[1 + i]);
    if (fread(mem[i].data(), 1, head[1 + i], stdin) != head[1 + i]) return 1;
  }
  std::vector<uint32_t> commands(n * @WORDS@), delays(n), times(2 * n, 0);
  if (fread(commands.data(), 4, commands.size(), stdin) != commands.size()) return 1;
  if (fread(delays.data(), 4, n, stdin) != n) return 1;
  VerilatedContext context;
  Vunit& u = *new Vunit{&context};
  u.clk = 0; u.rst = 1; u.start = 0; u.eval(); u.clk = 1; u.eval(); u.clk = 0; u.rst = 0; u.eval();
  uint32_t begun = 0, ended = 0, waited = 0;
  for (uint32_t t = 0; ended < n && t < 100000000; t++) {
    u.start = 0;
    u.eval();
    if (begun < n && u.ready && waited++ >= delays[begun]) {
      u.start = 1;
      memcpy(&u.command, &commands[begun * @WORDS@], 4 * @WORDS@);
      times[begun++] = t;
      waited = 0;
    } else {
      memset(&u.command, 0xA5, 4 * @WORDS@);
    }
    u.eval();
    if (u.done) { if (ended < n) times[n + ended] = t; ended++; }
    // Reads see the memory before this cycle's writes; their data appears after the edge.
    @READS@
    @WRITES@
    u.clk = 1; u.eval();
    @LOADS@
    u.clk = 0; u.eval();
  }
  fwrite(times.data(), 4, times.size(), stdout);
  for (auto& m : mem) fwrite(m.data(), 1, m.size(), stdout);
  fputc(u.fault, stdout);
  return 0;
}
"""
