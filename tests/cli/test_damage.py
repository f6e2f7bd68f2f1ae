"""Random byte changes: a program is always refused; a model gives a refusal or a normal end, never anything else."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.helpers import Runner
from tests.reference.make_model import make_llama

TIMES = 500
LIMIT_S = 10.0


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As small as a model gets, so that a run takes milliseconds."""
    return make_llama(
        tmp_path_factory.mktemp("damage") / "small", hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16,
        intermediate=32, vocab=280, context=64,
    )  # fmt: skip


def changed(data: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """One byte changed; half of the time within the first `head` bytes."""
    result = bytearray(data)
    at = rng.randrange(head if head and rng.random() < 0.5 else len(data))
    result[at] ^= rng.randrange(1, 256)
    return bytes(result)


def test_programs_are_always_refused(run: Runner, small: Path, tmp_path: Path) -> None:
    good, bad, out = tmp_path / "good.prog", tmp_path / "bad.prog", tmp_path / "out.sasm"
    assert run("compile", small, "-o", good).code == 0
    data, rng = good.read_bytes(), random.Random(1)
    for _ in range(TIMES):
        bad.write_bytes(changed(data, rng, 2000))
        ended = run("disasm", bad, "-o", out)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(f"systolith: {bad}: ")
        assert ended.err.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_models_are_refused_or_run(run: Runner, small: Path, tmp_path: Path, name: str) -> None:
    model, out = tmp_path / "model", tmp_path / "out.npy"
    shutil.copytree(small, model)
    data, rng = (model / name).read_bytes(), random.Random(2)
    head = 8 + int.from_bytes(data[:8], "little") if name == "model.safetensors" else None
    refused = 0
    for number in range(TIMES):
        (model / name).write_bytes(changed(data, rng, head))
        device = "sim" if number % 10 == 0 else "null"
        start = time.monotonic()
        ended = run(
            "generate", model, "--prompt", "def f", "--max-tokens", 2, "--device", device, "--json", "--logits", out
        )
        assert time.monotonic() - start < LIMIT_S
        refused += ended.code == 2
        if ended.code == 0:
            assert next(iter(ended.json)) == "chip"
            assert out.exists()
            out.unlink()
        else:
            assert ended.code == 2, ended.err
            assert ended.out == ""
            assert ended.err.startswith("systolith: ")
            assert ended.err.count("\n") == 1
            assert not out.exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert refused > TIMES // 20


@pytest.mark.slow
def test_a_sample_in_processes_of_their_own(small: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        model = tmp_path / name.split(".")[0]
        shutil.copytree(small, model)
        data = (model / name).read_bytes()
        for _ in range(3):
            (model / name).write_bytes(changed(data, rng, 400))
            ended = subprocess.run(
                [sys.executable, "-m", "systolith", "generate", model, "--prompt", "x", "--device", "null"],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert ended.returncode in (0, 2), ended.stderr
            assert "Traceback" not in ended.stderr
