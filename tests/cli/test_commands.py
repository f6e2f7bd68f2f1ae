"""`chips`, `fuzz`, `trace`, `quality`, help, and how light the start is."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from systolith import spec
from tests.cli.helpers import Runner
from tests.reference import checkpoint as reference_checkpoint
from tests.reference import contract

COMMANDS = (
    "generate",
    "logits",
    "quality",
    "estimate",
    "waterfall",
    "curve",
    "cost",
    "floorplan",
    "compile",
    "asm",
    "disasm",
    "trace",
    "chips",
    "fuzz",
)


def test_help_names_every_command_and_option(run: Runner) -> None:
    ended = run("--help")
    assert ended.code == 0
    assert all(name in ended.out for name in COMMANDS)
    for name in COMMANDS:
        assert run(name, "--help").code == 0


def test_no_command_prints_the_help(run: Runner) -> None:
    ended = run()
    assert (ended.code, ended.err) == (2, "")
    assert "generate" in ended.out


def test_the_version_is_the_packages(run: Runner) -> None:
    from systolith import __version__

    ended = run("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"systolith {__version__}\n", "")


def test_chips_lists_and_describes(run: Runner, tmp_path: Path) -> None:
    assert list(run("chips", "--json").json) == list(spec.NAMES)
    listed = run("chips").out
    assert all(name in listed for name in spec.NAMES)
    file = tmp_path / "mine.toml"
    file.write_text('base = "server"\nslices = 63\n')
    found = run("chips", file, "--json").json
    assert found["slices"] == {"value": 63, "unit": ""}
    text = run("chips", "nano").out
    assert "scratchpad_bytes" in text
    assert "64 KiB" in text
    assert "peak_flops.E2M1xE2M1" in text


def test_chip_warnings_go_to_stderr(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "server"\ndram_bytes_per_s = "900 GB/s"\n')
    warned = spec.load(file).warnings
    assert warned
    ended = run("chips", file, "--json")
    assert ended.json["dram_bytes_per_s"]["value"] == 900_000_000_000
    assert ended.err.splitlines() == [f"systolith: warning: {w}" for w in warned]


def test_fuzz_counts_and_finds_nothing(run: Runner) -> None:
    found = run("fuzz", "--chip", "micro", "--count", 100, "--seed", 5, "--json").json
    assert found["mismatches"] == []
    assert found["instructions"] >= 100
    assert sum(found["by_class"].values()) == found["instructions"]
    assert "0 mismatches" in run("fuzz", "--count", 1).out


def test_fuzz_ends_with_1_where_something_differs(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    from systolith.sim import fuzz

    report = fuzz.Report(instructions=3, programs=1)
    report.mismatches.append(fuzz.Mismatch(7, "slice 0, word 2", "D[0]", "1", "2"))
    monkeypatch.setattr(fuzz, "fuzz", lambda *_: report)
    ended = run("fuzz")
    assert ended.code == 1
    assert ended.out.endswith("seed 7: slice 0, word 2: D[0]: execute has 1, sim has 2\n")


def test_trace_is_what_generate_timed(run: Runner, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.pftrace"
    found = run("trace", tiny, "--prompt", "def f(x):", "--max-tokens", 3, "-o", file, "--json").json
    timed = run("generate", tiny, "--prompt", "def f(x):", "--max-tokens", 3, "--json").json
    assert (found["cycles"], found["waterfall"]) == (timed["cycles"], timed["waterfall"])
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace

    packets = Trace.FromString(file.read_bytes()).packet
    names = {p.track_descriptor.name for p in packets if p.HasField("track_descriptor")}
    assert {"slice 0", "M", "M stalls", "critical path"} <= names
    refused = run("trace", tiny, "-o", tmp_path / "x", "--device", "null")
    assert refused.err == "systolith: device null runs nothing, so there is nothing to trace; take sim or execute\n"


def test_quality_is_the_perplexity_of_the_reference(run: Runner, tiny: Path, tmp_path: Path) -> None:
    texts = ["def f(x):\n    return x + 1\n" * 4, "import os  # \u00e9\n"]
    files = []
    for number, text in enumerate(texts):
        files.append(tmp_path / f"{number}.py")
        files[-1].write_text(text, encoding="utf-8")
    found = run("quality", tiny, "--text", *files, "--context", 40, "--json", "--reference").json
    nats, count = 0.0, 0
    model = reference_checkpoint.load_model(tiny)
    for text in texts:
        ids = list(text.encode())
        for i in range(0, len(ids), 39):
            window = ids[i : i + 39]
            logits = contract.run(model, reference_checkpoint.Profile(), [256, *window[:-1]]).logits.astype(np.float64)
            for row, token in zip(logits, window, strict=True):
                nats += math.log(np.exp(row - row.max()).sum()) + row.max() - row[token]
            count += len(window)
    assert found["tokens"] == count
    assert found["windows"] == sum(-(-len(t.encode()) // 39) for t in texts)
    assert found["nats"] == pytest.approx(nats, rel=1e-12)
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-12)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / count, rel=1e-12)
    assert abs(found["increase"]) < 0.05
    part = run("quality", tiny, "--text", *files, "--context", 40, "--json", "--max-tokens", 50).json
    assert (part["tokens"], part["bits_per_byte"]) == (50, None)


def test_the_start_is_light() -> None:
    code = (
        "import sys; from systolith.cli import main; main(['chips']);"
        "print(sorted({'numpy', 'numba', 'tokenizers', 'safetensors', 'systolith.sim', 'systolith.timing'} "
        "& set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"
