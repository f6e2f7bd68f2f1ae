"""The correlation page: cycles of the RTL beside the timing model's, by kernel: `python -m bench.correlation`.

Writes docs/correlation.md and its numbers, docs/correlation.json. `--chips nano` measures that chip anew and keeps the
others. The RTL needs the extra `rtl` and a C++ compiler; `tests/rtl/test_correlation_page.py` holds the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.__main__ import table
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.correlate import correlate_case
from systolith.runtime.cosim import reference
from systolith.runtime.kernel_cases import FAMILIES, Case, kernels, step
from systolith.spec import QUEUES, Chip, load

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "correlation.md"
DATA = ROOT / "docs" / "correlation.json"
CHIPS = ("nano", "micro", "mini")
SEED = 7
STEPS = ((1, 64, "decode step"), (1, 300, "decode step"), (32, 32, "prefill step"))
"""Rows, context, name: steps of tinycode."""


def cases(chip: Chip) -> Iterator[Case]:
    """The page's cases: each family once, then whole steps of tinycode (its sizes; times do not see its weights)."""
    for number in range(len(FAMILIES)):
        yield kernels(chip, number, SEED)
    import systolith.models

    graph = Checkpoint.open(Path(systolith.models.__file__).parent / "tinycode").graph
    profile = Profile.default("INT8", "INT8", "INT8").resolved(graph)
    for rows, context, name in STEPS:
        yield step(graph, chip, profile, rows, context, name=f"tinycode, {name}, {rows} rows at context {context}")


def model_cycles(chip: Chip) -> list[int]:
    """Cycles of each case by the timing model alone."""
    return [reference(chip, case.program, case.setup)[1].cycles for case in cases(chip)]


def measure(chip: Chip, folder: Path | None = None) -> dict[str, Any]:
    """Run the cases of a chip on both sides."""
    rows: list[dict[str, Any]] = []
    sums: dict[str, dict[str, Any]] = {}
    sha = verilator = ""
    for case in cases(chip):
        expected = reference(chip, case.program, case.setup)
        r = correlate_case(chip, case, folder=folder, expected=expected)
        sha, verilator = r.found.verilog_sha256, r.found.verilator
        rows.append(
            {
                "name": case.name, "profile": case.conditions["profile"], "rtl": r.found.cycles,
                "model": r.found.expected_cycles, "instructions": r.found.instructions, "moved": r.found.moved,
                "differences": len(r.found.differences), "utilisation": r.utilisation, "stalls": r.stalls,
            }
        )  # fmt: skip
        for name, kernel in r.kernels.items():
            to = sums.setdefault(name, {"instructions": 0, "other": 0, "rtl": {}, "model": {}})
            to["instructions"] += kernel.instructions
            to["other"] += kernel.other
            for side in ("rtl", "model"):
                one, all_ = getattr(kernel, side), to[side]
                all_["cycles"] = all_.get("cycles", 0) + one.cycles
                for what in ("busy", "semaphore", "unit"):
                    for queue, value in getattr(one, what).items():
                        all_[f"{what} {queue}"] = all_.get(f"{what} {queue}", 0) + value
        print(f"{chip.name}: {case.name}: rtl {r.found.cycles}, model {r.found.expected_cycles}", flush=True)
    return {
        "cases": rows, "kernels": sums, "verilog_sha256": sha, "verilator": verilator,
        "dram_latency_cycles": chip.dram_latency_cycles,
    }  # fmt: skip


def page(data: dict[str, Any]) -> str:
    """The page of what was measured."""
    parts = [
        "# Correlation",
        "Cycles of the RTL beside the timing model's, on Verilator, made by `python -m bench.correlation`. A case is a "
        "step of a small random model of a family (sizes and formats in `docs/correlation.json`), or of tinycode in "
        "MXINT8; the RTL's memories and tokens are compared with the functional simulator's bit for bit. A kernel's "
        "cycles are those by which its instructions moved the latest end of their slice: they sum to the case, over "
        "slices. Busy is the share of those cycles in which its instructions of a queue were under way (they overlap: "
        "it may pass 100 %). Stalls are cycles at the head of a queue, for a token or for the unit. Seed "
        f"{SEED}; `systolith correlate` draws others.",
    ]
    for name in CHIPS:
        found = data.get(name)
        parts.append(f"## {name}")
        if found is None:
            parts.append("Not measured on this build of the RTL.")
            continue
        parts.append(
            f"Memory latency {found['dram_latency_cycles']} cycles; Verilog SHA-256 `{found['verilog_sha256'][:16]}`, "
            f"{found['verilator']}."
        )
        parts.append(table(_CASE, [_case_row(row) for row in found["cases"]]))
        parts.append(table(_KERNEL, [_kernel_row(name, k) for name, k in sorted(found["kernels"].items())]))
    return "\n\n".join(parts) + "\n"


_CASE = ["case", "RTL", "model", "error", "moved", "bits", "memory", "M", "V", "stalls of the RTL", "of the model"]
_KERNEL = ["kernel", "instructions", "RTL", "model", "error", "other duration", "busy, RTL", "busy, model",
           "stalls of the RTL", "of the model"]  # fmt: skip


def _error(rtl: int, model: int) -> str:
    return f"{100 * (rtl / model - 1):+.3f} %" if model else "-"


def _most(stalls: dict[str, int]) -> str:
    """The two largest."""
    largest = sorted(stalls.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{why} {cycles:,}" for why, cycles in largest if cycles) or "none"


def _case_row(row: dict[str, Any]) -> list[str]:
    used = row["utilisation"]["rtl"]
    return [
        row["name"], f"{row['rtl']:,}", f"{row['model']:,}", _error(row["rtl"], row["model"]),
        f"{row['moved']} of {row['instructions']:,}", "equal" if not row["differences"] else "differ",
        *(f"{100 * used[unit]:.0f} %" for unit in ("memory", "M", "V")),
        _most(row["stalls"]["rtl"]), _most(row["stalls"]["model"]),
    ]  # fmt: skip


def _kernel_row(name: str, k: dict[str, Any]) -> list[str]:
    cells = [f"`{name}`", f"{k['instructions']:,}", f"{k['rtl']['cycles']:,}", f"{k['model']['cycles']:,}"]
    cells += [_error(k["rtl"]["cycles"], k["model"]["cycles"]), str(k["other"])]
    for side in ("rtl", "model"):
        cycles = max(1, k[side]["cycles"])
        busy = {queue: k[side][f"busy {queue}"] / cycles for queue in QUEUES}
        queue = max(busy, key=lambda q: busy[q])
        cells.append(f"{queue} {100 * busy[queue]:.0f} %")
    for side in ("rtl", "model"):
        cells.append(_most({key: v for key, v in k[side].items() if key.split(" ")[0] in ("semaphore", "unit")}))
    return cells


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chips", nargs="*", default=list(CHIPS), help="chips to measure anew (default: all)")
    parser.add_argument("--rtl", type=Path, help="run the Verilog of this folder, for one chip")
    arguments = parser.parse_args()
    data: dict[str, Any] = json.loads(DATA.read_text()) if DATA.exists() else {}
    for name in arguments.chips:
        data[name] = measure(load(name), arguments.rtl)
        DATA.write_text(json.dumps(data, indent=1) + "\n")
    PAGE.write_text(page(data))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
