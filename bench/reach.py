"""What programs reach of their chip's bounds, with both sides of each fraction: `python -m bench.reach`.

Each row is one `systolith estimate`, whose options stand beside it. Writes bench/results/reach.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from bench.__main__ import RESULTS, commit, table
from systolith.cli import command_line

FORMATS = ("--weights", "MXFP4", "--activations", "MXFP8", "--kv", "MXINT8")
NAMES = {"INT8": "MXINT8", "E4M3": "MXFP8", "E2M1": "MXFP4"}
MINI = str(Path(__file__).parent / "mini-4gib.toml")


class Case(NamedTuple):
    """A question to `estimate`; prompt: the prefill is asked for, not the step."""

    model: str
    chip: str
    batch: int
    context: int
    formats: tuple[str, ...] = ()
    prompt: bool = False


CASES = (
    Case("llama-3.1-8b", MINI, 1, 8192, FORMATS),
    Case("llama-3.1-8b", MINI, 1, 2048, FORMATS, prompt=True),
    Case("llama-3.1-8b", MINI, 64, 2048, FORMATS),
    Case("tinycode", "mini", 1, 300),
    Case("tinycode", "mini", 1, 448, prompt=True),
    Case("tinycode", "mini", 8, 300),
    Case("llama-3.1-8b", "server", 1, 8192, FORMATS),
    Case("llama-3.1-8b", "server", 1, 2048, FORMATS, prompt=True),
    Case("llama-3.1-8b", "server", 64, 2048, FORMATS),
)


def ask(case: Case) -> dict[str, Any]:
    """Run `systolith estimate` and give its object."""
    arguments = [
        "estimate", case.model, "--chip", case.chip, "--batch", str(case.batch), "--context", str(case.context),
        *case.formats, "--prefill" if case.prompt else "--no-prefill", "--no-sensitivity", "--json",
    ]  # fmt: skip
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        command_line().main(args=arguments, prog_name="systolith", standalone_mode=False)
    found: dict[str, Any] = json.loads(text.getvalue())
    return found


def time_text(seconds: float) -> str:
    """Seconds with four figures."""
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e-3, "ms")) if seconds >= s), (1e-6, "us"))
    return f"{seconds / scale:.4g} {unit}"


def share(fraction: dict[str, float]) -> str:
    """A fraction with both of its sides."""
    sides = (time_text(fraction[side]) for side in ("numerator_s", "denominator_s"))
    return f"{100 * fraction['value']:.1f} % = {' / '.join(sides)}"


def row(case: Case) -> list[str]:
    """A row of the table."""
    found = ask(case)
    fractions = found["fractions"]
    if case.prompt:
        bound = found["prefill_bound_s"]
        binds = "arithmetic" if bound["compute"] >= bound["memory"] else "memory bandwidth"
        rest = sorted(found["prefill_lines"].items(), key=lambda item: -item[1])[:2]
        where = ", ".join(f"{line} {100 * n:.0f} %" for line, n in rest)
        pins, stated = fractions["prefill_of_bound"], fractions["prefill_compute_of_peak"]
        first = [f"prompt of {case.context}", time_text(found["ttft_s"]), binds, share(pins), share(stated), where]
    else:
        whole = sum(found["waterfall"].values())
        parts = sorted(found["waterfall"].items(), key=lambda item: -item[1])[:3]
        where = ", ".join(f"{part} {100 * n / whole:.1f} %" for part, n in parts)
        first = [
            f"a step, batch {case.batch}, context {case.context}", time_text(found["tpot_s"]), found["binds"],
            share(fractions["decode_of_pin_rate"]), share(fractions["decode_of_stated_rate"]), where,
        ]  # fmt: skip
    formats = " x ".join(NAMES[found["manifest"]["resolved"]["profile"][key]] for key in ("activations", "weights"))
    return [found["model"], f"`{found['chip']}`", formats, *first]


def page(cases: list[Case]) -> str:
    """The whole page."""
    header = [
        "model", "chip", "activations x weights", "what", "time", "binds", "of the pins",
        "of the stated efficiency; of a prompt: of the peak", "critical path",
    ]  # fmt: skip
    return f"""# What programs reach of their chip's bounds

`python -m bench.reach` at {commit()}: chip time of the timing model for the program that `compile` emits,
`systolith estimate` with the options of each row; KV and P in MXINT8. A fraction is max(memory, arithmetic) over the
time, memory at the pins or at the chip's stated efficiency (`dram_efficiency`; 1 on `mini`); of a prompt the second one
is arithmetic alone over the time, at the peak of the pair each multiply-add runs in
([the bound](../../docs/cli.md#the-bound)). `mini` holds 1 GiB, too little for 8B: `mini-4gib` is the copy of
`bench/mini-4gib.toml`, the same but for 4 GiB a slice and 2 MiB of scratchpad; all rates are `mini`'s.

{table(header, [row(case) for case in cases])}
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m bench.reach", description=__doc__)
    parser.add_argument("--chip", help="print the rows of one chip (mini, mini-4gib, server) and write nothing")
    chosen = parser.parse_args().chip
    cases = [case for case in CASES if chosen in (None, Path(case.chip).stem)]
    text = page(cases)
    print(text)
    if chosen is None:
        (RESULTS / "reach.md").write_text(text)


if __name__ == "__main__":
    main()
