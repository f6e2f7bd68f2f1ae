"""Queues, semaphores, the shared memory channel and the network: schedules worked out by hand."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from systolith.isa import Adv, Copy, Format, Loop, Matmul, Put, Queue, Ring, Space, Sync, Vec
from systolith.isa.resolved import COLS, OP, PC, POST, QUEUE, WAIT
from systolith.spec import Chip, ProgramError, load
from systolith.timing import RECORD, TimingMachine

from .helpers import NANO, program, tensor, time

D, S, W, ACC = Space.DRAM, Space.SPAD, Space.SLOT, Space.ACC
F32, I32 = Format.FP32, Format.INT32
BANK1 = 16384
MICRO, MINI, SERVER = load("micro"), load("mini"), load("server")


def records(chip: Chip, p, **more) -> list[dict[str, int]]:
    """Run and give all records of a program, in order of their starts."""
    kept: list = []

    def keep(machine: TimingMachine, _: object) -> None:
        kept[:] = [dict(zip(RECORD, row, strict=True)) for row in machine.records.tolist()]

    time(chip, p, keep_all=True, on_window=keep, **more)
    return kept


def queue(rows: list[dict[str, int]], q: Queue) -> list[dict[str, int]]:
    return [r for r in rows if r["queue"] == q]


def test_two_queues_run_at_once() -> None:
    # V starts at 2 + 3 + 2; M does nothing but wait for it: end of V, 2 of the semaphore, 1.
    constants = [tensor(S, (1, 1, 64), F32), tensor(S, (1, 1, 64), F32, BANK1)]
    rows = records(NANO, program(NANO, [Vec(d=2, a=1, post=1), Sync(on=Queue.M, wait=1), Vec(d=2, a=1)], constants))
    first, second = queue(rows, Queue.V)
    (sync,) = queue(rows, Queue.M)
    assert (first["start"], first["end"]) == (6, 6 + 16 + 1 + 1)
    assert sync["start"] == first["end"] + NANO.semaphore_cycles
    assert second["start"] == first["end"]  # one at a time, in order


def test_a_full_queue_stalls_the_sequencer() -> None:
    # Depth 4: V takes 1 to work on and 4 to hold; the 6th waits until the second starts, two cycles more.
    constants = [tensor(S, (1, 1, 64), F32), tensor(S, (1, 1, 64), F32, BANK1)]
    p = program(NANO, [Vec(d=2, a=1) for _ in range(8)], constants)
    rows = queue(records(NANO, p), Queue.V)
    assert [r["dispatch"] for r in rows[:5]] == [6, 8, 10, 12, 14]
    assert rows[5]["dispatch"] == rows[1]["start"] + 2
    assert [b["start"] - a["start"] for a, b in pairwise(rows)] == [18] * 7
    stalls = time(NANO, p).stalls["sequencer"]["queue full"]
    assert stalls == sum(max(0, rows[i - 4]["start"] + 2 - rows[i - 1]["dispatch"] - 2) for i in range(4, 8))


@pytest.mark.parametrize("chip", [NANO, MICRO, MINI, SERVER], ids=lambda c: c.name)
def test_weights_stream_at_the_exact_bandwidth(chip: Chip) -> None:
    size, count = chip.slots_bytes // 8 // 64 * 64, 40
    constants = [tensor(D, (1, size // 32, 32)), tensor(W, (1, size // 32, 32))]
    r = time(chip, program(chip, [Loop(count=count, len=1), Copy(on=Queue.W, d=2, a=1)], constants, slices=1))
    exact = Fraction(size * count) / chip.dram_sustained_bytes_per_cycle
    fixed = 2 + 3 + 2 + chip.dma_cycles + chip.dram_latency_cycles + chip.bank_cycles  # before and after the stream
    assert 0 <= r.cycles - exact - fixed < 2
    assert r.bytes["weights"] == size * count


def test_two_dmas_share_the_channel() -> None:
    # 1,024 bytes each: 16 bursts of 4 cycles, in turn. L comes 3 cycles later and both end together, a burst apart.
    constants = [
        tensor(D, (1, 1, 1024)), tensor(W, (1, 1, 1024)), tensor(D, (1, 1, 1024), base=8192), tensor(S, (1, 1, 1024)),
    ]  # fmt: skip
    p = program(NANO, [Copy(on=Queue.W, d=2, a=1), Copy(on=Queue.L, d=4, a=3)], constants)
    rows = records(NANO, p)
    (w,), (load_,) = queue(rows, Queue.W), queue(rows, Queue.L)
    first = w["start"] + 4 + 10
    assert w["first"] == first
    assert load_["first"] == first + 4
    assert load_["data_end"] == first + 32 * 4
    assert w["data_end"] == first + 31 * 4


def test_slots_run_ahead_and_hide_the_latency() -> None:
    """With two buffers the memory streams while the array works; with one, each load waits for the array."""
    k, n = 128, 16
    constants = [
        tensor(D, (1, n, k), scale=1, sbase=65536),
        tensor(W, (1, n, k), scale=1, sbase=4096),
        tensor(S, (1, 8, k), scale=1, sbase=4096),
        tensor(ACC, (1, 8, n), F32),
    ]
    code = [Loop(count=16, len=2), Copy(on=Queue.W, d=2, a=1, wait=1, post=2), Matmul(d=4, a=3, b=2, wait=2, post=1)]
    one = time(NANO, program(NANO, code, constants, sems={0: 1})).cycles
    two = time(NANO, program(NANO, code, constants, sems={0: 2})).cycles
    load_, work = (n * k + n * k // 32) // 16, 8 * (n // 4) * (k // 4)
    assert one > 16 * (load_ + work)
    assert 16 * max(load_, work) < two < 16 * max(load_, work) + load_ + 100


def test_put_between_two_slices() -> None:
    # 256 bytes to both: read 1, 16 flits; 4 of the network; write 1. The token then takes 2.
    constants = [tensor(S, (1, 1, 256)), tensor(S, (1, 1, 256), base=BANK1)]
    code = [Put(d=2, a=1, arrive=1, sem=3, count=0), Sync(on=Queue.V, wait=8)]
    rows = records(MICRO, program(MICRO, code, constants))
    start = queue(rows, Queue.C)[0]["start"]
    assert [r["end"] for r in queue(rows, Queue.C)] == [start + 1 + 16] * 2
    assert [r["start"] for r in queue(rows, Queue.V)] == [start + 1 + 4 + 16 + 1 + 2] * 2


def test_senders_share_an_ingress() -> None:
    # Four slices to all: three messages from others, one after another, 256 bytes at 32 a cycle each.
    constants = [tensor(S, (1, 1, 256)), tensor(S, (1, 1, 256), base=32768)]
    code = [Put(d=2, a=1, arrive=1, sem=3, count=0), Sync(on=Queue.V, wait=8)]
    rows = records(MINI, program(MINI, code, constants))
    start = queue(rows, Queue.C)[0]["start"]
    latest = max(r["start"] for r in queue(rows, Queue.V))
    assert latest == start + 1 + 4 + 3 * 8 + 1 + 2


def test_an_empty_put_still_arrives() -> None:
    constants = [tensor(S, (1, 1, 0)), tensor(S, (1, 1, 0), base=BANK1)]
    code = [Put(d=2, a=1, arrive=1, sem=3, count=0), Sync(on=Queue.V, wait=8)]
    assert time(MICRO, program(MICRO, code, constants)).cycles > 0


def test_a_put_may_write_memory() -> None:
    constants = [tensor(S, (1, 1, 256)), tensor(D, (1, 1, 256))]
    code = [Put(d=2, a=1, arrive=1, sem=3, count=0), Sync(on=Queue.V, wait=8)]
    rows = records(MICRO, program(MICRO, code, constants))
    start = queue(rows, Queue.C)[0]["start"]
    assert min(r["start"] for r in queue(rows, Queue.V)) > start + 1 + 16 + MICRO.dram_latency_cycles


def test_a_deadlock_in_time_is_named() -> None:
    """The definition refuses it first; timing, fed rows of a token that nobody gives, names the queue."""
    p = program(NANO, [Sync(on=Queue.V, wait=1)])
    rows = np.zeros((1, 2, COLS), np.int64)
    rows[0, 0, [OP, QUEUE, WAIT, POST, PC]] = 14, 3, 1, 0, 0
    rows[0, 1, [OP, QUEUE, PC]] = 8, 6, 1
    with pytest.raises(
        ProgramError, match=r"^timing: slice 0 cannot go on after cycle 0: its queues wait \(V at word 0\)"
    ):
        TimingMachine(NANO, p).feed(rows, np.array([2]))


def test_rings_have_times_and_windows_between_them() -> None:
    constants = [tensor(S, (1, 1, 4), I32)]
    r = time(NANO, program(NANO, [Loop(count=3, len=2), Ring(a=1), Adv(d=2)], constants))
    assert [w.end for w in r.windows[:3]] == [ring.cycle for ring in r.rings]
    # 4 words leave in 4 cycles, but the next one's set-up and read take 5; it overlaps with nothing else.
    assert [w.cycles for w in r.windows] == [r.rings[0].cycle, 5, 5, r.cycles - r.rings[2].cycle]
    assert r.waterfall.parts["host"] > 0


def test_names_do_not_count() -> None:
    constants = [tensor(D, (1, 1, 1024)), tensor(W, (1, 1, 1024))]
    code = [Copy(on=Queue.W, d=2, a=1)]
    named = program(NANO, code, constants, lines=["linear.py:42 o_proj"] * 4)
    assert time(NANO, named).cycles == time(NANO, program(NANO, code, constants)).cycles
