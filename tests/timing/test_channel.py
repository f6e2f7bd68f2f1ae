"""The memory channel against a burst-by-burst model of it, written from docs/decisions/0004-timing.md."""

import random

import pytest

from systolith.isa import Copy, Loop, Machine, Queue, Space, Sync
from systolith.isa.alone import work_of
from systolith.isa.cycles import BURSTS, HOLD, KIND, LEAD, OWN, READ, TAIL, WRITE
from systolith.isa.resolved import OP, QUEUE
from systolith.spec import Chip, load
from systolith.timing import RECORD, TimingMachine

from .helpers import program, tensor, time

CHIPS = [load("nano"), load("micro"), load("server"), load("nano").vary(name="few", dram_outstanding=2)]
D, S, W = Space.DRAM, Space.SPAD, Space.SLOT


def channel(chip: Chip, works: dict[int, list[list[int]]], starts: dict[int, list[int]]) -> dict[int, list[int]]:
    """Cycle of the last byte of each copy of ports 0 (W), 1 (L) and 2 (S), one burst after another."""
    rate = chip.dram_sustained_bytes_per_cycle
    unit, burst = rate.numerator, chip.dram_burst_bytes * rate.denominator
    ends: dict[int, list[int]] = {port: [] for port in works}
    state = {}
    for port in works:
        # (copy, bursts left, when the next one is ready), what has been served, when the last request was made
        state[port] = {"copy": -1, "left": 0, "ready": 0, "served": 0, "total": 0, "asked": 0, "least": 0, "times": []}
    free, last = 0, 3
    while True:
        for port, st in state.items():
            if st["left"] == 0 and st["copy"] + 1 < len(works[port]):
                st["copy"] += 1
                work = works[port][st["copy"]]
                # The last request before waits for the burst `outstanding` before it, rounded up to a cycle.
                limit = st["total"] - chip.dram_outstanding
                asked = st["least"]
                if limit > 0:
                    asked = max(asked, -(-st["times"][limit - 1] // unit))
                begin = max(starts[port][st["copy"]] + work[LEAD], asked)
                st["total"] += work[BURSTS]
                st["least"] = begin + work[HOLD]
                st["left"] = work[BURSTS]
                st["ready"] = (begin + (chip.dram_latency_cycles if work[KIND] == READ else 0)) * unit
        active = [port for port in state if state[port]["left"]]
        if not active:
            return ends
        now = max(free, min(state[port]["ready"] for port in active))
        ready = [port for port in active if state[port]["ready"] <= now]
        port = min(ready, key=lambda p: (p - last - 1) % 4)
        st = state[port]
        st["times"].append(now)
        st["left"] -= 1
        st["ready"] += works[port][st["copy"]][OWN]
        free, last = now + burst, port
        if st["left"] == 0:
            ends[port].append(-(-free // unit))


@pytest.mark.parametrize("chip", CHIPS, ids=lambda c: c.name)
@pytest.mark.parametrize("seed", range(8))
def test_every_copy_ends_when_the_model_says(chip: Chip, seed: int) -> None:
    rng = random.Random(seed)
    constants, code = [], []
    for n in range(6):
        rows, width, gap = rng.randint(1, 12), 32 * rng.randint(1, 16), 32 * rng.randint(0, 3)
        ext, base = (1, rows, width), 4096 * n + 32 * rng.randint(0, 3)
        constants += [
            tensor(D, ext, base=base + 65536, stride=(0, width + gap, 1)),
            tensor((W, S, S)[n % 3], ext, stride=(0, width, 1)),
        ]
    for _ in range(rng.randint(3, 12)):
        n = rng.randrange(6)
        a, d = 2 * n + 1, 2 * n + 2
        copy = [Copy(on=Queue.W, d=d, a=a), Copy(on=Queue.L, d=d, a=a), Copy(on=Queue.S, d=a, a=d)][n % 3]
        code += rng.choice([[copy], [Loop(count=rng.randint(2, 5), len=1), copy], [copy, Sync(on=Queue.M)]])
    p = program(chip, code, constants, slices=1)
    works: dict[int, list[list[int]]] = {0: [], 1: [], 2: []}
    for row in Machine(chip, p).resolved():
        if row[OP] == Copy.OPCODE:
            works[{0: 0, 1: 1, 4: 2}[int(row[QUEUE])]].append(work_of(chip, row))
    kept: list[list[int]] = []

    def keep(machine: TimingMachine, _: object) -> None:
        kept[:] = machine.records.tolist()

    time(chip, p, on_window=keep)
    rec = [dict(zip(RECORD, row, strict=True)) for row in kept]
    mine = {
        port: [r for r in rec if r["queue"] == q and r["kind"] in (READ, WRITE)] for port, q in enumerate((0, 1, 4))
    }
    ends = channel(chip, works, {port: [r["start"] for r in rows] for port, rows in mine.items()})
    assert ends == {port: [r["data_end"] for r in rows] for port, rows in mine.items()}
    for port, rows in mine.items():
        assert all(r["own_end"] == r["data_end"] + w[TAIL] for r, w in zip(rows, works[port], strict=True))
