"""Speed of Systolith on this machine, and tinycode's time on each named chip: `make bench`, or `python -m bench`.

Two tables, each with its conditions and the commit, printed and written to bench/results/. Speed is in CPU seconds of
one process, whatever else the machine does, after a first call that compiles or loads the kernels.
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path

from bench._readme import update
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.models.tokenizer import Tokenizer
from systolith.runtime.device import find_device
from systolith.runtime.job import Request, layout, write_job
from systolith.runtime.session import compile_job, run_job
from systolith.sim import FastMachine
from systolith.spec import load

PROMPT = "def fibonacci(n):"
TOKENS = 64
PREFILL = 448
CHIPS = ("nano", "micro", "mini", "slice64", "server", "server-sram")
RESULTS = Path(__file__).parent / "results"


@cache
def commit() -> str:
    """Commit of the checkout when the run began, with a mark where files differ from it."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cpu(call: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


class Bench:
    """The model, and the runs."""

    def __init__(self) -> None:
        self.checkpoint = Checkpoint.open(Path(str(resources.files("systolith.models"))) / "tinycode")
        self.tokenizer = Tokenizer.open(self.checkpoint.path)
        self.prompt = tuple(self.tokenizer.encode(PROMPT))
        self.profile = Profile.default()

    def machine(self, chip: str, requests: list[Request]) -> FastMachine:
        """A machine with the job laid down."""
        compiled = compile_job(self.checkpoint, load(chip), self.profile, requests)
        machine = FastMachine(compiled.plan.chip, compiled.program)
        write_job(machine, compiled.program, requests, layout(compiled.program, requests))
        return machine

    def decode(self) -> tuple[float, float]:
        """Tokens and words of the program per CPU second of decoding on nano, functional simulator alone."""
        machine = self.machine("nano", [Request(self.prompt, TOKENS)])
        times: list[float] = []
        words: list[int] = []

        def note(_: int, record: tuple[int, ...]) -> None:
            times.append(time.process_time())
            words.append(int(machine.executed.sum()))

        machine.run(on_ring=note)
        seconds = times[-1] - times[0]
        return (len(times) - 1) / seconds, (words[-1] - words[0]) / seconds

    def prefill(self) -> float:
        """Prompt tokens per CPU second on nano, functional simulator alone; the first token's head included."""
        ids = (self.prompt * (PREFILL // len(self.prompt) + 1))[:PREFILL]
        machine = self.machine("nano", [Request(ids, 1)])
        return PREFILL / cpu(machine.run)

    def timed(self) -> tuple[float, float]:
        """Tokens and instructions per CPU second on nano with times."""
        requests = [Request(self.prompt, TOKENS)]
        compiled = compile_job(self.checkpoint, load("nano"), self.profile, requests)
        start = time.process_time()
        run = run_job(compiled, find_device("sim"), requests)
        seconds = time.process_time() - start
        assert run.timing is not None
        return len(run.tokens[0]) / seconds, sum(run.timing.instructions.values()) / seconds

    def definition(self) -> float:
        """Words of the program per CPU second of `isa.execute`: the first 3,000 of a prefill."""
        requests = [Request(self.prompt, 1)]
        compiled = compile_job(self.checkpoint, load("nano"), self.profile, requests)
        machine = find_device("execute").open(compiled.plan.chip, compiled.program)
        write_job(machine, compiled.program, requests, layout(compiled.program, requests))
        return 3000 / cpu(lambda: machine.run(3000))

    def speed(self) -> str:
        """Table of the speed of the simulators."""
        first = cpu(lambda: run_job_once(self))
        tokens, words = self.decode()
        prefill = self.prefill()
        timed_tokens, timed_words = self.timed()
        definition = self.definition()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows = [
            ["first call: kernels compiled, or read from their cache", f"{first:.1f} CPU s"],
            ["decode, functional simulator", f"{tokens:.0f} tokens/s"],
            ["prefill, functional simulator", f"{prefill:.0f} tokens/s"],
            ["functional simulator, while decoding", f"{words:,.0f} instructions/s"],
            ["functional simulator with times, prompt and decode", f"{timed_tokens:.0f} tokens/s"],
            ["the same", f"{timed_words:,.0f} instructions/s"],
            ["`execute`, the definition", f"{definition:,.0f} instructions/s"],
            ["peak memory of this process", f"{peak:.0f} MiB"],
        ]
        conditions = (
            f"tinycode on nano, all in MXINT8, batch 1; decode: prompt of {len(self.prompt)} tokens, {TOKENS} made; "
            f"prefill: {PREFILL} tokens. Per CPU second of one process, the first call apart. Commit {commit()}, "
            f"{processor()}, Python {platform.python_version()}."
        )
        return f"# Speed of the simulators\n\n{conditions}\n\n{table(['what', 'measured'], rows)}\n"

    def chips(self) -> str:
        """Table of tinycode's time on the named chips."""
        rows = []
        for name in CHIPS:
            requests = [Request(self.prompt, TOKENS, stops=tuple(self.checkpoint.graph.eos_ids))]
            compiled = compile_job(self.checkpoint, load(name), self.profile, requests)
            run = run_job(compiled, find_device("sim"), requests)
            first, each, least = run.ttft_s(0), run.tpot_s(0), run.bound()
            parts = run.decode_waterfall()
            assert first is not None
            assert each is not None
            assert parts is not None
            ordered = sorted(parts.parts.items(), key=lambda item: -item[1])
            shares = ", ".join(f"{part} {100 * n / parts.cycles:.0f} %" for part, n in ordered[:3])
            rows.append([
                f"`{name}`", f"{1e6 * first:,.0f} us", f"{1e6 * each:,.2f} us", f"{1 / each:,.0f}",
                f"{1e6 * least.seconds:,.2f} us ({least.binds})", f"{100 * least.seconds / each:.0f} %", shares,
            ])  # fmt: skip
        header = [
            "chip", "first token", "time per token", "tokens/s", "the chip's bound", "reached",
            "critical path of a token",
        ]  # fmt: skip
        conditions = (
            f"tinycode, weights, activations, KV and P in MXINT8, batch 1, prompt of {len(self.prompt)} tokens, "
            f"{TOKENS} made; chip time of the timing model. Commit {commit()}."
        )
        return f"# tinycode on the named chips\n\n{conditions}\n\n{table(header, rows)}\n"


def run_job_once(bench: Bench) -> None:
    """A first call of everything that is measured."""
    requests = [Request(bench.prompt, 2)]
    compiled = compile_job(bench.checkpoint, load("nano"), bench.profile, requests)
    run_job(compiled, find_device("sim"), requests)
    bench.machine("nano", requests).run(on_ring=lambda *_: None)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("speed", "chips"), help="one table; both if left out")
    parser.add_argument("--readme", action="store_true", help="also put the tables into README.md")
    arguments = parser.parse_args()
    what, readme = arguments.what, arguments.readme
    commit()
    bench = Bench()
    RESULTS.mkdir(exist_ok=True)
    for name, make in (("speed", bench.speed), ("chips", bench.chips)):
        if what in (None, name):
            text = make()
            print(text)
            (RESULTS / f"{name}.md").write_text(text)
            if readme:
                update(name, text[text.index("| ") :].rstrip())


if __name__ == "__main__":
    main()
