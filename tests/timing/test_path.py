"""Random programs: bounds, monotony, a path that explains every cycle, a trace that says the same, names erased."""

import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from systolith.isa import Copy, Format, Loop, Machine, Matmul, Op1, Program, Put, Queue, Red, Ring, Space, Vec
from systolith.spec import Chip, load
from systolith.timing import PARTS, TimingMachine, TimingResult, simulate
from systolith.timing.trace import Trace

from .helpers import NANO, Rows, program, tensor, time

D, S, W, ACC = Space.DRAM, Space.SPAD, Space.SLOT, Space.ACC
F32, I32 = Format.FP32, Format.INT32
MICRO, MINI = load("micro"), load("mini")


def layer(chip: Chip, seed: int) -> tuple[Program, int, int]:
    """A random decoder-like loop: weights run ahead, M, V and C follow. Memory bytes and multiply-adds of a slice.

    W -0-> M (free buffers 1), M -2-> V (free sums 3), V -4-> C, network 5 -> V, S stores, RING each round.
    """
    rng = random.Random(seed)
    bank = chip.bank_size_bytes
    k, n = 32 * rng.randint(1, 6), rng.randint(1, 24)
    rows, count, rounds = rng.randint(1, 4), rng.randint(2, 6), rng.randint(1, 3)
    size = n * k + n * k // 32
    room = max(1, chip.slots_bytes // size)
    assert size <= chip.slots_bytes
    constants = [
        tensor(D, (1, n, k), scale=1, sbase=1 << 18),
        tensor(W, (1, n, k), scale=1, sbase=n * k),
        tensor(S, (1, rows, k), scale=1, sbase=8192),
        tensor(ACC, (1, rows, n), F32),
        tensor(S, (1, rows, n), F32, base=bank),
        tensor(S, (1, rows, n), F32, base=2 * bank),
        tensor(D, (1, rows, n), F32, base=1 << 19),
        tensor(S, (1, 1, 4), I32, base=3 * bank),
        tensor(D, (1, 1, 512), base=1 << 17),
        tensor(S, (1, 1, 512), base=3 * bank + 256),
    ]
    code = [
        Loop(count=rounds, len=11),
        Loop(count=count, len=2),
        Copy(on=Queue.W, d=2, a=1, wait=2, post=1),
        Matmul(d=4, a=3, b=2, zero=2, wait=1, post=2),
        Copy(on=Queue.L, d=10, a=9),
        Matmul(d=4, a=3, b=2, post=4 | 256),
        Vec(d=5, a=4, wait=4, post=16, red=Red.NONE),
        Put(d=6, a=5, arrive=1, sem=5, count=0, wait=16),
        Vec(d=5, a=5, b=6, op1=Op1.ADD, wait=32, post=64),
        Copy(on=Queue.S, d=7, a=5, wait=64),
        Ring(a=8),
        Copy(on=Queue.W, d=2, a=1, wait=256),
    ]
    p = program(chip, code, constants, sems={1: rng.randint(1, min(4, room))}, slices=chip.slices)
    moved = rounds * ((count + 1) * size + 512)
    return p, moved, rounds * (count + 1) * rows * k * n


def bound(chip: Chip, moved: int, macs: int) -> Fraction:
    return max(Fraction(moved) / chip.dram_bytes_per_cycle, Fraction(macs, chip.macs_per_cycle))


SEEDS = range(12)
CHIPS = [NANO, MICRO, MINI]


@pytest.mark.parametrize("chip", CHIPS, ids=lambda c: c.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_bounds_and_path(chip: Chip, seed: int) -> None:
    p, moved, macs = layer(chip, seed)
    r = time(chip, p)
    assert r.cycles >= bound(chip, moved, macs)
    edges = np.concatenate([w.edges for w in r.windows])
    assert edges[0, 0] == 0
    assert edges[-1, 1] == r.cycles
    assert (edges[1:, 0] == edges[:-1, 1]).all()
    assert (edges[:, 1] >= edges[:, 0]).all()
    assert sum(r.waterfall.parts.values()) == sum(r.waterfall.why.values()) == r.cycles
    assert r.waterfall.parts["other"] == 0
    assert tuple(r.waterfall.parts) == PARTS


@pytest.mark.parametrize("seed", SEEDS)
def test_monotone(seed: int) -> None:
    """More bandwidth or less latency is never slower, but for the turns of a shared channel: a burst a copy."""
    p, *_ = layer(MICRO, seed)
    base = time(MICRO, p).cycles
    faster = MICRO.vary(name="faster", dram_bytes_per_s=2 * MICRO.config.dram_bytes_per_s)
    near = MICRO.vary(name="near", dram_latency_ns=0)
    slow = MICRO.vary(name="slow", semaphore_cycles=8)
    assert time(faster, p).cycles <= base
    assert time(near, p).cycles <= base
    assert time(slow, p).cycles >= base


@pytest.mark.parametrize("chip", CHIPS, ids=lambda c: c.name)
def test_buffers_do_not_count(chip: Chip) -> None:
    """How the stream is cut changes nothing; nor do names."""
    p, *_ = layer(chip, 3)
    whole = time(chip, p)
    for rows in (1, 7, 64):
        r = time(chip, p, rows=rows)
        assert (r.cycles, r.busy, r.bytes, r.rings) == (whole.cycles, whole.busy, whole.bytes, whole.rings)
    named = replace(p, name="llama", lines=tuple(f"linear.py:{i} o_proj" for i in range(len(p.words))))
    assert time(chip, named) == whole


def test_small_record_rings_close_windows_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: a run longer than the records may hold is explained in several windows, each exact."""
    import systolith.timing.machine as module

    monkeypatch.setattr(module, "_MAX_RECORDS", 1 << 15)
    constants = [tensor(S, (1, 1, 4), F32), tensor(S, (1, 1, 4), F32, NANO.bank_size_bytes)]
    p = program(NANO, [Loop(count=30000, len=2), Vec(d=2, a=1), Vec(d=2, a=1)], constants)
    r = time(NANO, p)
    assert len(r.windows) > 1
    assert sum(r.waterfall.parts.values()) == r.cycles
    assert r.waterfall.other < 0.01


def trace_of(chip: Chip, p: Program) -> tuple[Trace, TimingResult]:
    trace = Trace(chip, p)
    return trace, simulate(chip, p, Rows(Machine(chip, p)), keep_all=True, on_window=trace.add)


@pytest.mark.parametrize("chip", CHIPS, ids=lambda c: c.name)
def test_trace(chip: Chip) -> None:
    """Read with Perfetto's own classes: slices nest, gaps have reasons, the path's edges add up again."""
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace as Message

    p, *_ = layer(chip, 5)
    trace, result = trace_of(chip, p)
    message = Message()
    message.ParseFromString(trace.bytes())
    names = {k.track_descriptor.uuid: k.track_descriptor for k in message.packet if k.HasField("track_descriptor")}
    open_: dict[int, list] = {}
    spans: dict[str, list] = {}
    counters: dict[str, list[float]] = {}
    previous = 0
    for packet in message.packet:
        if not packet.HasField("track_event"):
            continue
        assert packet.timestamp >= previous
        previous = packet.timestamp
        event = packet.track_event
        track = names[event.track_uuid]
        key = names[track.parent_uuid].name + "/" + track.name
        if event.type == 1:
            open_.setdefault(event.track_uuid, []).append((packet.timestamp, event))
        elif event.type == 2:
            begun, what = open_[event.track_uuid].pop()
            spans.setdefault(key, []).append((begun, packet.timestamp, what))
        else:
            counters.setdefault(key, []).append(event.double_counter_value)
    assert not any(open_.values())
    path = spans["slice 0/critical path"]
    parts = dict.fromkeys(PARTS, 0)
    for begun, ended, what in path:
        parts[what.categories[0]] += ended - begun
    assert parts == result.waterfall.parts
    flows = [what.flow_ids[0] for _, _, what in path]
    assert sorted(flows) == list(range(1, len(flows) + 1))
    for s in range(chip.slices):
        for q in "WMVC":
            covered = sorted([(a, b) for a, b, _ in spans[f"slice {s}/{q}"] + spans.get(f"slice {s}/{q} stalls", [])])
            assert covered[0][0] == 0
            assert all(a[1] == b[0] for a, b in pairwise(covered)), "a gap without a reason"
        assert counters[f"slice {s}/queue M"][-1] == 0
        assert abs(counters[f"slice {s}/memory bytes per cycle"][-1]) < 1e-3
        assert max(counters[f"slice {s}/slots in use"]) >= 1


def test_trace_file_is_whole_or_absent(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    p, *_ = layer(NANO, 1)
    trace, _ = trace_of(NANO, p)
    trace.write(tmp_path / "a.pftrace")
    assert (tmp_path / "a.pftrace").read_bytes() == trace.bytes()
    assert [f.name for f in tmp_path.iterdir()] == ["a.pftrace"]


def test_feed_after_the_end_is_idle() -> None:
    p = program(NANO, [])
    machine = TimingMachine(NANO, p)
    buffer = np.zeros((1, 8, 83), np.int64)
    counts = Rows(Machine(NANO, p)).run_resolved(buffer)
    assert machine.feed(buffer, counts)
    assert machine.feed(buffer, counts)
    assert machine.finish().cycles == 3
