"""`systolith peers`, `fit` and `validate`: what they print, what they write, and what they refuse."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.cli.helpers import Runner
from tests.peers.helpers import GOLDEN, text_of

FIELDS = "op,framework,version,device,kernel,dtype,kv_dtype,m,n,k,batch,isl,past_kv,heads,kv_heads,head_dim,window"
OPS = """gemm,VLLM,0,H200,x,fp8,,4096,4096,4096,,,,,,,,0.15
generation_attention,VLLM,0,H200,x,bfloat16,fp8,,,,8,1,4095,32,8,128,0,0.04
context_attention,VLLM,0,H200,x,bfloat16,fp8,,,,1,2048,0,32,8,128,0,0.1
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few rows of three devices."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = (GOLDEN / "calibrate.csv").read_text().splitlines(keepends=True)
    keep = [line for line in lines[1:] if line.split(",")[0] in {"172", "173", "168", "171", "178", "192"}]
    (folder / "calibrate.csv").write_text("".join(lines[:1] + keep))
    (folder / "a100_matmul_fp16.csv").write_bytes((GOLDEN / "a100_matmul_fp16.csv").read_bytes())
    (folder / "h200_ops.csv").write_text(f"{FIELDS},latency_ms\n{OPS}")
    return folder


def test_validate_lists_every_row_with_its_prediction_or_its_reason(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text_of({}, {"chip": "Foo"}, {"batch_or_concurrency": "QPS 3"}, {"confidence": "claimed"}))
    found = run("validate", path, "--json").json
    first, *others = found["rows"]
    assert first["predicted"] > 0
    assert first["error"] == pytest.approx(first["predicted"] / first["measured"] - 1)
    assert (first["regime"], first["used_in_fit"], first["kind"]) == ("static batch", False, "measured")
    assert [row["reason"] for row in others] == [
        "chip='Foo' is no device of the catalogue",
        "'QPS': requests that arrive by a rate need a queueing model",
        None,
    ]
    assert others[2]["kind"] == "claimed"
    assert found["counts"] == {"rows": 4, "evaluated": 2, "refused": 2, "used_in_fit": 0, "without_conclusion": 1}
    assert sum(found["refused"].values()) == 2
    assert found["summary"]["static batch"]["all"]["rows"] == 1
    ended = run("validate", path, "-o", tmp_path / "out.json")
    assert "claimed by a" in ended.out
    assert "4 rows: 2 evaluated, 2 refused, 1 without a conclusion, 0 fitted on" in ended.out
    assert json.loads((tmp_path / "out.json").read_text()) == found


def test_leave_out_takes_other_scalars(run: Runner) -> None:
    own, device, model = (
        run("validate", GOLDEN / "calibrate.csv", "--json", *more).json
        for more in ((), ("--leave-out", "device"), ("--leave-out", "model"))
    )
    assert own["rows"][0]["scalars"] == "fitted on blackwell"
    assert device["rows"][0]["scalars"] == "median of the measured devices without b200"
    assert model["rows"][0]["scalars"] == "fitted on blackwell without llama-4-scout"
    assert len({found["rows"][0]["predicted"] for found in (own, device, model)}) == 3


def test_a_bad_file_is_refused_with_all_its_faults_and_nothing_is_written(run: Runner, tmp_path: Path) -> None:
    path, out = tmp_path / "a.csv", tmp_path / "out.json"
    path.write_text(text_of({"value": "x"}, {}, {"n_chips": "-1"}))
    ended = run("validate", path, "-o", out)
    assert (ended.code, ended.out) == (2, "")
    assert f"{path}:2: value='x' must be a number above 0, or blank" in ended.err
    assert f"{path}:4: n_chips='-1' must be a whole number 1..1000000, or blank" in ended.err
    assert not out.exists()
    assert run("validate", path, "--facts", path).code == 2


def test_random_bytes_never_end_in_a_traceback(run: Runner, tmp_path: Path) -> None:
    path, rng = tmp_path / "a.csv", random.Random(2)
    data = text_of({}, {"n_chips": "2", "parallelism": "TP2"}, {"notes": "a,b"}).encode()
    for _ in range(100):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        ended = run("validate", path)
        assert ended.code in (0, 2)
        assert "fault in Systolith" not in ended.err
        assert (ended.out == "") == (ended.code == 2)


def test_fit_is_the_same_twice_and_its_file_can_be_used(run: Runner, data: Path, tmp_path: Path) -> None:
    one, two, page = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "page.md"
    assert run("fit", "--data", data, "-o", one, "--page", page).code == 0
    assert run("fit", "--data", data, "-o", two, "--json").json["facts"]["devices"] == {
        "a100": "ampere", "h100": "hopper", "h200": "hopper", "l40s": "ada",
    }  # fmt: skip
    assert one.read_bytes() == two.read_bytes()
    assert page.read_text().startswith("# Peers\n")
    found = run("validate", data / "calibrate.csv", "--facts", one, "--json").json
    assert found["counts"]["used_in_fit"] == 6
    assert all(abs(row["error"]) < 0.3 for row in found["rows"])


def test_fit_names_what_it_lacks(run: Runner, data: Path) -> None:
    (data / "h200_ops.csv").unlink()
    ended = run("fit", "--data", data)
    assert ended.code == 2
    assert ended.err == f"systolith: --data: {data} lacks h200_ops.csv; give the directory that holds them\n"
    assert run("fit", "--data", data / "x").err.endswith(
        "x is no directory; give the one that holds calibrate.csv, h200_ops.csv, a100_matmul_fp16.csv\n"
    )


def test_peers_shows_a_device_with_the_source_of_every_field(run: Runner) -> None:
    assert "h100" in run("peers").out
    found = run("peers", "NVIDIA H100", "--json").json
    assert (found["device"], found["measured"]) == ("h100", True)
    assert found["fields"]["bandwidth"]["low"] == 3.35
    assert all(fact["source"] and fact["date"] for fact in found["fields"].values())
    assert "no measurement of it" in run("peers", "LP30").out
    assert set(run("peers", "--json").json) >= {"h100", "wse-3", "tpu-v5e"}
    assert run("peers", "h1000").err.startswith("systolith: h1000: is no device of the catalogue; known are a100, ")
