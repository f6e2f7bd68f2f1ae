"""The hand-written programs of the decision page, against a computation in exact rationals that knows no systolith."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from systolith import spec
from systolith.isa import Machine
from systolith.isa.asm import assemble, disassemble

PROGRAMS = Path(__file__).parent / "programs"


def load(name):
    path = PROGRAMS / f"{name}.sasm"
    return assemble(path.read_text(), path.name)


# --- INT8 blocks and FP32 in exact rationals ---


def fp32(x: Fraction) -> float:
    """Round once to FP32; the inputs of this test stay far from overflow."""
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(x))) - 23, -149)
    if abs(x) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    elif abs(x) < Fraction(2) ** (exponent + 23) and exponent > -149:
        exponent -= 1
    return float(round(x / Fraction(2) ** exponent) * Fraction(2) ** exponent)


def add(x, y):
    return fp32(Fraction(x) + Fraction(y))


def times(x, y):
    return fp32(Fraction(x) * Fraction(y))


def tree(values):
    while len(values) > 1:
        values = [add(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


def quantise(row):
    """INT8 by blocks of 32: (integer codes, exponents e of the scales 2^e)."""
    codes, exponents = [], []
    for k in range(0, len(row), 32):
        largest = max(abs(x) for x in row[k : k + 32])
        e = math.frexp(largest)[1] - 1 if largest else -127
        exponents.append(e)
        codes += [max(-127, min(127, round(Fraction(x) * 64 / Fraction(2) ** e))) for x in row[k : k + 32]]
    return codes, exponents


def contract(a, ea, b, eb):
    """Blocks ascending: FP32 of codes a with exponents ea and codes b with eb."""
    acc = 0.0
    for i, (x, y) in enumerate(zip(ea, eb, strict=True)):
        exact = sum(p * q for p, q in zip(a[32 * i : 32 * i + 32], b[32 * i : 32 * i + 32], strict=True))
        acc = add(acc, fp32(Fraction(exact, 4096) * Fraction(2) ** (x + y)))
    return acc


def exp2(f):
    """The table function of rule 5; T1 and T2 by floating-point, whose error cannot move their 28-bit integers."""
    t1 = round(math.ldexp(2.0 ** ((f >> 8 & 255) / 256), 27))
    t2 = round(math.ldexp(2.0 ** ((f & 255) / 65536), 27))
    return fp32(Fraction(round(Fraction(t1 * t2, 1 << 31)), 1 << 23) * Fraction(2) ** (f >> 16))


# --- linear ---


def test_linear():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(128) * 3).astype(np.float32)
    W = rng.integers(-128, 128, (32, 128)).astype(np.int8)
    eW = rng.integers(-6, 3, (32, 4))
    r = np.float32(0.37)
    program = load("linear")
    m = Machine(spec.load("nano"), program)
    m.write_dram(0, 0, x.tobytes())
    m.write_dram(0, 512, r.tobytes())
    m.write_dram(0, 1024, W.tobytes())
    m.write_dram(0, 5120, (eW + 127).astype(np.uint8).tobytes())
    assert m.run()
    codes, ex = quantise([float(v) for v in x])
    y = [times(contract(codes, ex, [int(v) for v in W[n]], list(eW[n])), float(r)) for n in range(32)]
    wanted, (scale,) = quantise(y)
    assert list(np.frombuffer(m.read_dram(0, 8192, 32), np.int8)) == wanted
    assert m.read_dram(0, 8224, 1)[0] == scale + 127
    assert m.sems(0)[:7] == [2, 0, 0, 0, 0, 0, 0]
    assert m.counts["COPY.W"] == m.counts["MATMUL"] == 4


# --- attention ---


def attention(q, K, eK, V, eV, c, length):
    """One query head over `length` tokens: rule 7 with one lane."""
    codes, eq = quantise(q)
    M = l = o = None
    for start in range(0, length, 256):
        tokens = range(start, min(start + 256, length))
        F = [round(Fraction(times(contract(codes, eq, K[t], eK[t]), c)) * 65536) for t in tokens]
        m = -(-max(F) // 65536)
        p = [exp2(f - m * 65536) for f in F] + [0.0] * (256 - len(tokens))
        scaled = [x * 2.0 ** eV[t] for x, t in zip(p, tokens, strict=False)] + [0.0] * (256 - len(tokens))
        P, eP = quantise(scaled)
        rows = [V[t] for t in tokens] + [[0] * 64] * (256 - len(tokens))
        part = [contract(P, eP, [row[n] for row in rows], [0] * 8) for n in range(64)]
        if M is None:
            M, l, o = m, tree(p), part
            continue
        top = max(M, m)
        down, up = Fraction(2) ** (M - top), Fraction(2) ** (m - top)
        o = [fp32(Fraction(x) * down + Fraction(y) * up) for x, y in zip(o, part, strict=True)]
        l = fp32(Fraction(l) * down + Fraction(tree(p)) * up)
        M = top
    return [times(x, fp32(1 / Fraction(l))) for x in o]


@pytest.mark.parametrize("length", [1, 150, 256, 400])
def test_attention_head(length):
    rng = np.random.default_rng(length)
    q = rng.standard_normal((2, 64)).astype(np.float32)
    K = rng.integers(-128, 128, (512, 64)).astype(np.int8)
    eK = rng.integers(-3, 2, (512, 2))
    V = rng.integers(-128, 128, (512, 64)).astype(np.int8)
    eV = rng.integers(-4, 3, 512)
    c = np.float32(math.log2(math.e) / 8)
    pages = rng.permutation(16)
    place = np.array([pages[t // 32] * 32 + t % 32 for t in range(512)])  # of each token in the page memory
    m = Machine(spec.load("nano"), load("attention_head"))
    m.write_dram(0, 0, np.int32([length]).tobytes() + c.tobytes())
    m.write_dram(0, 64, pages.astype(np.int32).tobytes())
    m.write_dram(0, 1024, q.tobytes())
    m.write_dram(0, 2048, bytes(4 * 130) + np.int32([-(2**31)] * 2).tobytes())

    def paged(values):
        memory = np.zeros_like(values)
        memory[place] = values
        return memory.tobytes()

    scale_v = (eV + 127).astype(np.uint8)
    scale_k = (eK + 127).astype(np.uint8)
    scale_v[length:] = scale_k[length:] = 0xFF  # whatever lies past the context is masked, NaN too
    m.write_dram(0, 65536, paged(K))
    m.write_dram(0, 98304, paged(scale_k))
    m.write_dram(0, 131072, paged(V))
    m.write_dram(0, 163840, paged(scale_v))
    assert m.run()
    found = np.frombuffer(m.read_dram(0, 4096, 512), np.float32).reshape(2, 64)
    for head in range(2):
        wanted = attention(
            [float(x) for x in q[head]], K.tolist(), eK.tolist(), V.tolist(), eV.tolist(), float(c), length
        )
        assert [float(x) for x in found[head]] == wanted
    initial = m.program.sem_init
    assert m.sems(0) == list(initial)


@pytest.mark.parametrize("name", ["linear", "attention_head"])
def test_text_of_the_programs_round_trips(name):
    program = load(name)
    again = assemble(disassemble(program))
    assert again.sha256 == program.sha256
    assert program.lines[0].startswith(f"{name}.sasm:")


def test_disassembly_of_linear(golden):
    golden("linear.sasm", disassemble(load("linear")))


def test_a_program_with_one_field_changed_gives_another_result():
    text = (PROGRAMS / "linear.sasm").read_text()
    results = []
    for source in (text, text.replace("op1=mul", "op1=add")):
        m = Machine(spec.load("nano"), assemble(source))
        m.write_dram(0, 0, np.ones(128, np.float32).tobytes() + np.float32([2]).tobytes())
        m.write_dram(0, 1024, bytes([64]) * 4096 + bytes([127]) * 128)
        assert m.run()
        results.append(m.read_dram(0, 8192, 33))
    assert results[0] != results[1]
