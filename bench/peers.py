"""Matrix products and Llama-3-8B on `bench128`, beside what other simulators report and cost: `python -m bench.peers`.

The chip is the one that the others were measured on: one 128x128 array at 1 GHz, 16 MiB, 1,600 bytes a cycle. Their
figures are facts measured on the machine of these benches (CPU seconds; versions named); ours are measured now, in CPU
seconds of this process, the first call, which loads kernels, apart.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from systolith.compiler.builder import SEMAPHORE, Builder, tensor
from systolith.isa.descriptor import Space
from systolith.isa.instruction import Queue
from systolith.isa.program import Program, Requires
from systolith.models.profile import Profile
from systolith.runtime.estimate import Question, compile_for, decode_step, first_token, open_config, weights_enter
from systolith.sim.skeleton import Skeleton
from systolith.spec import SEMAPHORES, Chip, load
from systolith.timing import TimingResult, simulate

CHIP = Path(__file__).parent / "bench128.toml"
GEMMS = {"g512": (512, 512, 512), "g1": (1, 4096, 4096), "g2048": (2048, 4096, 4096)}
BARS = {"g512": 0.01, "g1": 0.02, "g2048": 0.25}


@dataclass(frozen=True)
class Peer:
    """What another simulator reports: cycles and CPU seconds of each product; None: not run, or not to its end."""

    name: str
    array: str
    cycles: dict[str, int | None]
    seconds: dict[str, float | None]


PEERS = (
    Peer("SCALE-Sim 3.0.0, ws", "fill, load and drain of each fold, nothing overlapped",
         {"g512": 14303, "g1": 392191, "g2048": None}, {"g512": 3.6, "g1": 122.0, "g2048": None}),
    Peer("ONNXim a1e8629, ws, simple DRAM", "weights preloaded in 128 cycles, overlapped",
         {"g512": 9020, "g1": 132105, "g2048": 2098789}, {"g512": 0.27, "g1": 3.15, "g2048": 52.7}),
    Peer("LLMCompass 2e015fd, fp16", "SCALE-Sim look-up and rules of 98-99 %",
         {"g512": 9344, "g1": 129796, "g2048": 2141932}, {"g512": 0.06, "g1": 2.4, "g2048": 2.7}),
    Peer("NeuSim 45dbdc1", "array cycles, or a vector unit for a GEMV",
         {"g512": 8448, "g1": 32768, "g2048": 2097408}, {"g512": 0.0014, "g1": 0.002, "g2048": 0.016}),
    Peer("ZigZag 3.9.1, int8", "loop nest, PE registers fed at memory bandwidth",
         {"g512": 8358, "g1": 10564, "g2048": 2102397}, {"g512": 2.1, "g1": 2.5, "g2048": 6.3}),
    Peer("GenZ 0.0.16, bf16", "roofline",
         {"g512": 8192, "g1": 19541, "g2048": 2097152}, {"g512": 0.0007, "g1": 0.0002, "g2048": 0.0003}),
)  # fmt: skip


def gemm(chip: Chip, m: int, k: int, n: int, *, near: bool = False) -> Program:
    """A [m, k] times W [k, n] in MXINT8 on one slice: A into the scratchpad once, W through the slots as it lies in
    memory, a tile of columns after another, results quantised and stored. m x k must fit in the scratchpad.

    near : W and the result in the first bytes of memory, so that the program can be run.
    """
    b, nt = Builder(), chip.columns
    kt = min(k, 1024)
    half = chip.accumulator_words // 2
    slots = min(128, chip.slots_bytes // (nt * kt * 33 // 32))
    a_at, out_at = 0, (m * k * 33 // 32 + 63) // 64 * 64
    w_at, y_at = (1 << 18, 1 << 19) if near else (1 << 28, 1 << 29)
    codes = slots * nt * kt
    stage = m * nt
    take, stream, store = b.descriptor(), b.descriptor(), b.descriptor()
    a_in = tensor(Space.DRAM, "INT8", 0, (m, 1, k), (k, 0, 1), sbase=m * k)
    a = tensor(Space.SPAD, "INT8", a_at, (m, 1, k), (k, 0, 1), sbase=a_at + m * k)
    b.load(take, a_in)
    with b.descriptors(1) as (d,):
        b.load(d, a)
        b.copy(Queue.L, d, take, post="kv_full")
    b.sync(Queue.M, wait="kv_full")
    w = tensor(Space.DRAM, "INT8", w_at, (nt, 1, kt), (kt, 0, 1), sbase=w_at + n * k, step=nt * kt)
    y = tensor(Space.DRAM, "INT8", y_at, (m, 1, nt), (n, 0, 1), sbase=y_at + m * n, step=nt)
    b.load(stream, w)
    b.load(store, y)
    ring = tensor(Space.SLOT, "INT8", 0, (nt, 1, kt), (kt, 0, 1), sbase=codes, step=nt * kt, wrap=codes)
    sums = tensor(Space.ACC, "FP32", 0, (m, 1, nt), (nt, 0, 1), step=half, wrap=2 * half)
    staged = tensor(Space.SPAD, "INT8", out_at, (m, 1, nt), (nt, 0, 1), sbase=out_at + 2 * stage, step=stage,
                    wrap=2 * stage)  # fmt: skip
    slot, acc, out = b.descriptor(), b.descriptor(), b.descriptor()
    b.load(slot, ring)
    b.load(acc, sums)
    b.load(out, staged)
    part = a.with_ext(2, kt)
    with b.loop(n // nt):
        b.sync(Queue.M, wait="acc_free")
        b.load(take, part)
        with b.loop(k // kt):
            b.copy(Queue.W, slot, stream, wait="slot_free", post="slot_full")
            b.matmul(acc, take, slot, zero=2, wait="slot_full", post="slot_free")
            b.advance(stream, 3, 1)
            b.advance(slot, 3, 1)
            b.advance(take, 2, kt)
        b.sync(Queue.M, post="acc_full")
        b.sync(Queue.V, wait="stage_free")
        b.vec(out, acc, wait="acc_full", post="acc_free stage_full")
        b.copy(Queue.S, store, out, wait="stage_full", post="stage_free")
        b.advance(acc, 3, 1)
        b.advance(out, 3, 1)
        b.advance(store, 3, 1)
    b.halt()
    tokens = {"slot_free": slots, "acc_free": 2, "stage_free": 2}
    counts = [0] * SEMAPHORES
    for name, count in tokens.items():
        counts[SEMAPHORE[name]] = count
    return Program(
        name=f"gemm {m}x{k}x{n}", words=tuple(i.encode() for i in b.instructions), constants=tuple(b.constants),
        sem_init=tuple(counts), lines=tuple(b.lines),
        meta={"w": w_at, "y": y_at},
        requires=Requires(slices=1, dram_bytes=y_at + m * n * 33 // 32, spad_bytes=out_at + 2 * stage * 33 // 32,
                          slot_bytes=codes * 33 // 32, acc_bytes=8 * half, pairs=("INT8xINT8",)),
    )  # fmt: skip


def time_gemm(chip: Chip, m: int, k: int, n: int) -> TimingResult:
    """Cycles of a product, from nothing but its sizes."""
    program = gemm(chip, m, k, n)
    return simulate(chip, program, Skeleton(chip, program, 0, []))


def bound(chip: Chip, m: int, k: int, n: int) -> float:
    """Least cycles: multiply-adds at the array's peak, or W, A and the result over the memory's bandwidth."""
    moved = (n * k + m * k + m * n) * 33 / 32
    return max(m * k * n / chip.macs_per_cycle, moved / float(chip.dram_bytes_per_cycle))


def cpu(call: Callable[[], object]) -> float:
    """CPU seconds of the second call."""
    call()
    start = time.process_time()
    call()
    return time.process_time() - start


def show(value: float | None, digits: int = 0) -> str:
    """A number in a table; a dash where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}" if digits == 0 or value >= 0.1 else f"{value:.4f}"


def products(chip: Chip) -> list[str]:
    """Table of the products."""
    lines = [
        f"| tool | how weights enter the array | {' | '.join(f'{g} cycles | CPU s' for g in GEMMS)} |",
        "|---|---|" + "---|---|" * len(GEMMS),
    ]
    ours = [
        f"{show(time_gemm(chip, *size).cycles)} | {cpu(lambda size=size: time_gemm(chip, *size)):.4f}"
        for size in GEMMS.values()
    ]
    lines.append(f"| Systolith | {weights_enter(chip)} | {' | '.join(ours)} |")
    lines.append(f"| bound | - | {' | '.join(f'{bound(chip, *size):,.0f} | -' for size in GEMMS.values())} |")
    lines += [
        f"| {p.name} | {p.array} | "
        + " | ".join(f"{show(p.cycles[g])} | {show(p.seconds[g], 2)}" for g in GEMMS)
        + " |"
        for p in PEERS
    ]
    return lines


def model(chip: Chip) -> list[str]:
    """Llama-3.1-8B in MXINT8: prefill of 2,048, decode at batch 1 and 32, context 2,048."""
    graph = open_config("llama-3.1-8b")[0]
    lines = ["| what | time | CPU s |", "|---|---|---|"]
    one = Question(context=2048)
    compiled = compile_for(graph, chip, Profile.default(), one)
    spent = cpu(lambda: first_token(compiled, one))
    first = first_token(compiled, one)
    lines.append(f"| prefill of 2,048 | {first.cycles / chip.clock_hz * 1e3:,.1f} ms | {spent:.2f} |")
    for batch in (1, 32):
        asked = Question(context=2048, batch=batch)
        made = compile_for(graph, chip, Profile.default(), asked)
        spent = cpu(lambda made=made, asked=asked: decode_step(made, 2048, asked))
        step = decode_step(made, 2048, asked)
        lines.append(
            f"| decode at batch {batch}, context 2,048, two steps | {step.cycles / chip.clock_hz * 1e3:,.2f} ms "
            f"| {spent:.2f} |"
        )
    return lines


def main(what: list[str]) -> None:
    """Print the tables, all or those that are named (gemm, model)."""
    chip = load(CHIP)
    if not what or "gemm" in what:
        print("\n".join(products(chip)))
    if not what or "model" in what:
        print("\n".join(["", *model(chip)]))
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
