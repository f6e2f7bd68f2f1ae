"""The fidelity page: how far each rung of the ladder is from the next, measured anew: `python -m bench.fidelity`.

Writes docs/fidelity.md. Bits are counted, not averaged: a mismatch is a fault. What has no neighbour yet says so.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from importlib import resources
from pathlib import Path

import numpy as np

from bench.__main__ import commit, table
from systolith.compiler import Options, compile_model
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.models.tokenizer import Tokenizer
from systolith.runtime.device import find_device
from systolith.runtime.job import Request, layout, write_job
from systolith.runtime.quality import measure, measure_reference, text_windows
from systolith.sim import FastMachine
from systolith.sim.fuzz import fuzz
from systolith.spec import load

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "fidelity.md"
GOLDEN = ROOT / "tests" / "golden" / "llama-int8"
CHIPS = ("nano", "micro", "mini", "slice64", "server", "server-sram")
FORMATS = (("INT8", "INT8", "INT8"), ("E4M3", "E4M3", "E4M3"), ("E2M1", "E4M3", "INT8"), ("E2M1", "INT8", "INT8"))
NAMES = {"INT8": "MXINT8", "E4M3": "MXFP8", "E2M1": "MXFP4"}


def instructions(count: int, seed: int) -> str:
    """Fast simulator against `execute`, instruction by instruction."""
    rows = []
    for name in CHIPS:
        report = fuzz(load(name), count, seed)
        rows.append([f"`{name}`", f"{report.instructions:,}", str(seed), str(len(report.mismatches))])
    return table(["chip", "instructions", "seed", "mismatches"], rows)


def logits() -> str:
    """Compiled programs on the fast simulator against a reference written from the contract alone."""
    checkpoint = Checkpoint.open(GOLDEN)
    profile = Profile.from_toml(GOLDEN / "profile.toml").resolved(checkpoint.graph)
    ids = tuple(int(i) for i in (GOLDEN / "ids.txt").read_text().split(","))
    want = np.load(GOLDEN / "logits.npy").view(np.uint32)
    rows, vocab = want.shape
    width = -(-vocab // 32) * 32
    lines = []
    for name in CHIPS:
        options = Options(context=256, every_row=True, log_rows=rows, steps=rows + 2)
        compiled = compile_model(checkpoint, load(name), profile, options)
        machine = FastMachine(load(name), compiled.program)
        requests = [Request(ids[:rows])]
        write_job(machine, compiled.program, requests, layout(compiled.program, requests))
        machine.run()
        raw = machine.read_dram(0, compiled.memory.dram["logits"], 4 * rows * width)
        got = np.frombuffer(raw, np.uint32).reshape(rows, width)[:, :vocab]
        lines.append([f"`{name}`", f"{want.size:,}", str(int((got != want).sum()))])
    return table(["chip", "logits compared", "different"], lines)


def perplexity(tokens: int) -> str:
    """Formats against the same model in plain FP32, on held-out text."""
    path = Path(str(resources.files("systolith.models"))) / "tinycode"
    checkpoint = Checkpoint.open(path)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    files = [stdlib / entry["path"] for entry in json.loads((path / "heldout.json").read_text())]
    texts = [file for file in files if file.exists()]
    windows = text_windows(checkpoint, Tokenizer.open(path), [f.read_text("utf-8") for f in texts], 512)
    plain = measure_reference(checkpoint, windows, most=tokens).perplexity
    rows = []
    for weights, activations, kv in FORMATS:
        profile = Profile.default(weights, activations, kv)
        found = measure(checkpoint, load("slice64"), profile, find_device("sim"), windows, most=tokens)
        formats = " x ".join(NAMES[f] for f in (activations, weights)) + f", KV {NAMES[kv]}"
        change = 100 * (found.perplexity / plain - 1)
        rows.append([formats, f"{found.tokens:,}", f"{plain:.4f}", f"{found.perplexity:.4f}", f"{change:+.3f} %"])
    return table(["activations x weights", "tokens", "FP32", "on the chip", "change"], rows)


def page(count: int, seed: int, tokens: int) -> str:
    """The whole page."""
    return f"""# Fidelity

Four views of one chip, each checked against the next. Made by `python -m bench.fidelity` at {commit()}.

## Instructions: fast simulator against `execute`

Random legal programs; all memory, accumulators, registers, cells and semaphores are compared after each instruction.

{instructions(count, seed)}

## Models: compiled programs against a reference written from the contract alone

A random Llama with 3 heads of 48 on 1 KV head, hidden 144, MXINT8 (tests/golden); every bit of every logit. More
models, profiles, batches, chunks and pages: `tests/system`.

{logits()}

## Formats: the chip's numbers against plain FP32

tinycode, windows of 512 tokens of held-out text, `systolith quality` on `slice64` (the bits are those of every chip).

{perplexity(tokens)}

## Time

The RTL of `nano` and `micro` runs beside the timing model (`systolith cosim`, `systolith correlate`), and `tests/rtl`
holds them together: cycles by kernel are on [their own page](correlation.md), [0010](decisions/0010-rtl.md) has the
rest. Larger chips have no RTL of their own arrays yet: there the timing model is held to hand-counted cycles of single
instructions, to a burst-by-burst model of the memory channel (equal in every case), and to the bounds of arithmetic and
bandwidth (`tests/timing`). Parts of a waterfall sum to the total exactly, and so do those of every slice's queues. What
programs reach of the bounds: [reach](../bench/results/reach.md), made by `python -m bench.reach`. There is no analytic
rung yet.
"""


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000, help="fuzzed instructions a chip (default 5000)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the fuzz (default 1)")
    parser.add_argument("--tokens", type=int, default=50000, help="held-out tokens (default 50000)")
    arguments = parser.parse_args()
    PAGE.write_text(page(arguments.count, arguments.seed, arguments.tokens))
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
