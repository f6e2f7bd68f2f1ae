"""`logits`: the golden run, its intermediates included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.helpers import Runner

GOLDEN = Path(__file__).parent.parent / "golden" / "llama-int8"
TOKENS = 100


@pytest.mark.parametrize("chip", ["nano", "micro"])
def test_logits_and_dump_are_golden(run: Runner, tmp_path: Path, chip: str) -> None:
    ids = (GOLDEN / "ids.txt").read_text().split(",")[:TOKENS]
    ended = run(
        "logits", GOLDEN, "--chip", chip, "--profile", GOLDEN / "profile.toml", "--prompt-ids", ",".join(ids),
        "-o", tmp_path / "logits.npy", "--dump", tmp_path / "dump.npz",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    found, expected = np.load(tmp_path / "logits.npy"), np.load(GOLDEN / "logits.npy")[:TOKENS]
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()
    dump, trace = np.load(tmp_path / "dump.npz"), np.load(GOLDEN / "trace.npz")
    assert sorted(dump.files) == sorted(trace.files)
    for name in trace.files:
        golden = trace[name][:, :TOKENS] if trace[name].ndim == 3 else trace[name][:TOKENS]
        assert dump[name].tobytes() == np.ascontiguousarray(golden).tobytes(), name


def test_chunks_pages_and_the_dump_change_no_bit(run: Runner, tmp_path: Path) -> None:
    ids = ",".join((GOLDEN / "ids.txt").read_text().split(",")[:70])
    files = []
    for number, options in enumerate([(), ("--prefill-chunk", 32), ("--page-tokens", 256, "--prefill-chunk", 1)]):
        file = tmp_path / f"{number}.npy"
        ended = run("logits", GOLDEN, "--prompt-ids", ids, "-o", file, *options, "--json")
        assert ended.json["positions"] == 70
        files.append(file.read_bytes())
    assert files[0] == files[1] == files[2]
