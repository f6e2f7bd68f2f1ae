"""The RTL's cycles beside the timing model's: random kernels, and random instructions that run alone.

A case may differ by 1 %, or by 4 cycles where that is more; an instruction alone not at all. Where one does, its unit
is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from systolith.isa import facts
from systolith.spec import QUEUES, Chip, ProgramError

from .by_kernel import Kernel, by_kernel, occupied, of_model
from .cosim import Cosim, Late, cosim, reference
from .kernel_cases import Case, alone, kernels

__all__ = ["UNITS", "Correlation", "Result", "correlate", "correlate_case", "correlation_object"]

SHARE: Final = 0.01
CYCLES: Final = 4
"""What a case may differ by: the larger of the two."""
UNITS: Final = {
    "COPY.W": "DMA of queue W", "COPY.L": "DMA of queue L", "COPY.S": "DMA of queue S", "RING": "DMA of queue S",
    "MATMUL": "matrix unit", "VEC": "vector unit", "PICK": "vector unit (PICK)", "TOPK": "vector unit (TOPK)",
    "GROUP": "vector unit (GROUP)", "PUT": "collective unit", "SYNC": "queues",
}  # fmt: skip
"""Unit of each mnemonic."""


@dataclass
class Result:
    """A case of kernels on both sides."""

    case: Case
    found: Cosim
    kernels: dict[str, Kernel]
    utilisation: dict[str, dict[str, float]]
    """Of either side: memory (bursts), and each queue's share of cycles with an instruction under way."""
    stalls: dict[str, dict[str, int]]
    """Of either side: cycles in which heads of queues waited, by queue and reason, and the sequencer for a queue."""

    @property
    def allowed(self) -> float:
        """Cycles by which the case may differ."""
        return max(CYCLES, SHARE * self.found.expected_cycles)

    @property
    def holds(self) -> bool:
        """Whether it does not differ by more, and in no bit."""
        return not self.found.differences and abs(self.found.cycles - self.found.expected_cycles) <= self.allowed


@dataclass
class Correlation:
    """What a run found."""

    chip: Chip
    seed: int
    results: list[Result] = field(default_factory=list)
    alone: int = 0
    """Instructions that ran alone."""
    late: list[Late] = field(default_factory=list)
    """Of those, the ones whose duration differs."""
    differences: list[str] = field(default_factory=list)
    """Bits."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Instructions that ran alone, by mnemonic."""

    @property
    def units(self) -> dict[str, tuple[int, int]]:
        """Units whose instructions alone take another time than their rule, most of them first: how many, of how
        many."""
        wrong = Counter(UNITS.get(late.mnemonic, late.mnemonic) for late in self.late)
        of: Counter[str] = Counter()
        for mnemonic, count in self.kinds.items():
            of[UNITS.get(mnemonic, mnemonic)] += count
        ranked = sorted(wrong, key=lambda unit: (-wrong[unit] / of[unit], unit))
        return {unit: (wrong[unit], of[unit]) for unit in ranked}

    @property
    def median(self) -> float:
        """Median of the cases' errors, a share of their cycles."""
        return median(abs(r.found.error) for r in self.results) if self.results else 0.0

    @property
    def largest(self) -> float:
        """Largest error of a case."""
        return max((abs(r.found.error) for r in self.results), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether all of it is within what is allowed."""
        cases = all(r.holds for r in self.results) and self.median == 0
        return cases and not self.late and not self.differences


def correlate_case(chip: Chip, case: Case, *, folder: Path | None = None, expected: Any = None) -> Result:
    """Run a case on both sides. Raises what the machines raise."""
    found = cosim(chip, case.program, case.setup, folder=folder, expected=expected)
    assert found.timing is not None
    rtl, model = found.events, of_model(found.records)
    f = facts.facts(chip)
    burst = int(f[facts.BURST_UNITS]) / int(f[facts.UNITS_PER_CYCLE])
    used = burst * sum(s["bus"] for s in found.status) / max(1, len(found.status) * found.cycles)
    kernels = by_kernel(case.program, rtl, model)
    stalls: dict[str, dict[str, int]] = {}
    for side in ("rtl", "model"):
        mine = [getattr(kernel, side) for kernel in kernels.values()]
        stalls[side] = {
            f"{queue} {why}": sum(getattr(s, why)[queue] for s in mine)
            for queue in QUEUES
            for why in ("semaphore", "unit")
        }
    stalls["rtl"]["sequencer queue full"] = sum(s["full"] for s in found.status)
    stalls["model"]["sequencer queue full"] = found.timing.stalls["sequencer"]["queue full"]
    shares = {
        "rtl": {"memory": used} | occupied(rtl, found.cycles),
        "model": {"memory": found.timing.utilisation["memory"]} | occupied(model, found.expected_cycles),
    }
    return Result(case, found, kernels, shares, stalls)


def correlate(
    chip: Chip,
    count: int,
    seed: int,
    *,
    folder: Path | None = None,
    most: int = 400_000,
    programs: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Correlation:
    """Compare `count` cases of kernels and `programs` (default: count) programs of instructions alone.

    most : cycles of a case by the model; draws that take longer are drawn again    folder : Verilog to run
    Raises what the machines raise.
    """
    found = Correlation(chip, seed)
    for number in range(count if programs is None else programs):
        case = alone(chip, (seed << 16) + number)
        run = cosim(chip, case.program, folder=folder)
        found.kinds.update(case.program.code[int(pc)].mnemonic for pc in run.events[:, 2])
        found.alone += run.instructions
        found.late += run.late
        found.differences += [f"{case.name}: {text}" for text in run.differences]
        progress(number)
    draws = _draws(chip, seed, most)
    for number in range(count):
        case, expected = next(draws)
        found.results.append(correlate_case(chip, case, folder=folder, expected=expected))
        progress(number)
    return found


def _draws(chip: Chip, seed: int, most: int) -> Iterator[tuple[Case, Any]]:
    """Cases that take at most `most` cycles by the model, with what it says of them."""
    turn = 0
    tried = 0
    while True:
        case = kernels(chip, turn, seed + (tried << 8))
        expected = reference(chip, case.program, case.setup)
        if expected[1].cycles <= most:
            yield case, expected
            turn, tried = turn + 1, 0
            continue
        tried += 1
        if tried > 200:
            raise ProgramError(
                f"{chip.name}: 200 draws of {case.conditions['family']} take more than {most} cycles; allow more."
            )


def correlation_object(found: Correlation) -> dict[str, Any]:
    """As JSON."""
    runs = [r.found for r in found.results]
    return {
        "chip": found.chip.name, "seed": found.seed, "holds": found.holds, "median_error": found.median,
        "largest_error": found.largest, "verilog_sha256": runs[0].verilog_sha256 if runs else "",
        "verilator": runs[0].verilator if runs else "",
        "dram_latency_cycles": found.chip.dram_latency_cycles,
        "alone": {
            "instructions": found.alone, "by_mnemonic": dict(found.kinds), "other_duration": len(found.late),
            "late": [{"where": x.where, "model": x.expected, "rtl": x.found} for x in found.late[:50]],
            "differences": found.differences,
        },
        "units": {unit: {"other_duration": n, "of": of} for unit, (n, of) in found.units.items()},
        "cases": [_case(r) for r in found.results],
    }  # fmt: skip


def _case(r: Result) -> dict[str, Any]:
    return {
        "name": r.case.name, **r.case.conditions, "rtl_cycles": r.found.cycles, "model_cycles": r.found.expected_cycles,
        "error": r.found.error, "holds": r.holds, "instructions": r.found.instructions,
        "other_duration": dict(r.found.durations), "moved": r.found.moved, "utilisation": r.utilisation,
        "stalls": r.stalls, "differences": r.found.differences,
        "kernels": {
            name: {
                "rtl_cycles": k.rtl.cycles, "model_cycles": k.model.cycles,
                "error": k.rtl.cycles / k.model.cycles - 1 if k.model.cycles else 0.0,
                "instructions": k.instructions, "other_duration": k.other,
                **{
                    side: {
                        "busy": getattr(k, side).busy, "semaphore": getattr(k, side).semaphore,
                        "unit": getattr(k, side).unit,
                    }
                    for side in ("rtl", "model")
                },
            }
            for name, k in sorted(r.kernels.items())
        },
    }  # fmt: skip
