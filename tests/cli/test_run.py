"""`systolith run`: requests from a file."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.models.tokenizer import Tokenizer
from systolith.runtime.engine import Engine
from systolith.runtime.replay import play, read_requests
from systolith.spec import load
from tests.cli.helpers import Runner
from tests.reference.make_model import make_llama

GOOD: list[dict[str, Any]] = [
    {"id": "a", "prompt": "def f", "max_tokens": 6},
    {"id": "b", "arrival_s": 1e-5, "prompt_ids": [1, 2, 3], "max_tokens": 4, "temperature": 0.8, "seed": 5},
    {"id": 7, "arrival": 2e-5, "prompt_tokens": 40, "max_tokens": 3, "stop": [9], "ignore_eos": True},
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As small as a model gets."""
    return make_llama(
        tmp_path_factory.mktemp("run") / "small", hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16,
        intermediate=32, vocab=280, context=64,
    )  # fmt: skip


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_tokens_are_those_of_generate(run: Runner, small: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "r.jsonl", *GOOD)
    found = run("run", file, "--model", small, "--chip", "micro", "--json", "-o", tmp_path / "out.json").json
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert [r["id"] for r in found["requests"]] == ["a", "b", "7"]
    for request, *options in (
        (found["requests"][0], "--prompt", "def f", "--max-tokens", 6),
        (found["requests"][1], "--prompt-ids", "1,2,3", "--max-tokens", 4, "--temperature", 0.8, "--seed", 5),
    ):
        alone = run("generate", small, "--json", *options).json
        assert request["tokens"] == alone["tokens"]
        assert request["text"] == alone["text"]
        assert request["ttft_s"] > 0
    assert found["pages"]["held"] == 0
    summary = found["summary"]
    assert summary["generated"] == sum(len(r["tokens"]) for r in found["requests"])
    assert summary["requests"] == 3
    assert summary["seconds"] == pytest.approx(summary["cycles"] / 5e8)


def test_times_without_weights_are_those_with_them(run: Runner, small: Path, tmp_path: Path) -> None:
    lines = [{**line, "ignore_eos": True, "stop": []} for line in GOOD]
    file = write(tmp_path / "r.jsonl", *lines)
    both, timing, functional = (
        run("run", file, "--model", small, "--chip", "micro", "--mode", mode, "--json").json
        for mode in ("both", "timing", "functional")
    )
    for a, b, c in zip(both["requests"], timing["requests"], functional["requests"], strict=True):
        assert (a["ttft_s"], a["tpot_s"], a["generated"]) == (b["ttft_s"], b["tpot_s"], b["generated"])
        assert (b["tokens"], b["text"], c["ttft_s"], c["tpot_s"]) == (None, None, None, None)
        assert a["tokens"] == c["tokens"]
    assert both["summary"]["cycles"] == timing["summary"]["cycles"]
    assert functional["summary"]["cycles"] is None


BAD = {
    "not json": "is no JSON",
    "[1]": "[1] must be a JSON object",
    '{"prompt": "x", "tempreture": 1}': '"tempreture" is no key of a request',
    '{"prompt": "x", "prompt": "y"}': '"prompt" is given twice',
    '{"prompt": "x", "prompt_ids": [1]}': "give one of prompt",
    '{"max_tokens": 3}': "give one of prompt",
    '{"prompt": 3}': "prompt=3 must be a text",
    '{"prompt": "\\ud800"}': "half a surrogate pair",
    '{"prompt_ids": []}': "the prompt is empty",
    '{"prompt_ids": [1, 280]}': "token 280 of the prompt must be 0..279",
    '{"prompt_ids": [1.5]}': "1.5 must be a token id",
    '{"prompt_ids": [1], "max_tokens": 0}': "max_tokens=0 must be at least 1",
    '{"prompt_ids": [1], "max_tokens": 64}': "more than the context of",
    '{"prompt_ids": [1], "max_tokens": "2"}': 'max_tokens="2" must be a whole number',
    '{"prompt_ids": [1], "temperature": -1}': "temperature=-1.0 must be 0 or a positive number",
    '{"prompt_ids": [1], "temperature": 1e999}': "temperature=Infinity must be a number",
    '{"prompt_ids": [1], "top_p": 2}': "top_p=2.0 must be 0..1",
    '{"prompt_ids": [1], "seed": -1}': "seed=-1 must be 0..2^64-1",
    '{"prompt_ids": [1], "max_tokens": 1, "stop": [1, 2, 3, 4, 5, 6, 7, 8, 9]}': "stop tokens, the model",
    '{"prompt_ids": [1], "max_tokens": 1, "stop": [-1]}': "stop token -1 must be 0..279",
    '{"prompt_ids": [1], "arrival_s": -1}': "arrival_s=-1.0 must be 0..1e+06 seconds",
    '{"prompt_ids": [1], "arrival_s": 1, "arrival": 1}': "say the same thing twice",
    '{"prompt_ids": [1], "arrival_s": 2, "cancel_s": 1}': "cancel_s=1.0 must not be before the arrival at 2.0",
    '{"id": "a", "prompt_ids": [1]}': 'id="a" is that of line 1 too',
    '{"id": [], "prompt_ids": [1]}': "id=[] must be a text",
    '{"prompt_ids": [1], "ignore_eos": 1}': "ignore_eos=1 must be true or false",
    '{"prompt_tokens": 0}': "prompt_tokens=0 must be 1..",
}


def test_a_bad_request_is_refused_alone(run: Runner, small: Path, tmp_path: Path) -> None:
    good = [{**line, "max_tokens": 3} for line in GOOD]
    lines: list[object] = [good[0], *BAD, good[1], good[2]]
    want = run("run", write(tmp_path / "good.jsonl", *good), "--model", small, "--json").json
    file = write(tmp_path / "r.jsonl", *lines)
    ended = run("run", file, "--model", small, "--json")
    refused = [r for r in ended.json["requests"] if r["reason"] == "refused"]
    for number, ((line, sentence), request) in enumerate(zip(BAD.items(), refused, strict=True), 2):
        assert request["line"] == number, line
        assert sentence in request["message"], line
        assert "\n" not in request["message"]
    assert f"systolith: warning: {file}:2: is no JSON" in ended.err
    others = [r for r in ended.json["requests"] if r["reason"] != "refused"]
    for a, b in zip(others, want["requests"], strict=True):
        assert (a["tokens"], a["ttft_s"], a["tpot_s"]) == (b["tokens"], b["ttft_s"], b["tpot_s"])


@pytest.mark.parametrize(
    ("lines", "options", "sentence"),
    [
        ([], [], "holds no request; give one JSON object a line"),
        (["x"], [], ":1: is no JSON (Expecting value: line 1 column 1 (char 0)); give one object a line"),
        (GOOD, ["--device", "null"], "device null runs nothing"),
        (GOOD, ["--context", "65"], "--context=65 must be 2..64"),
        (GOOD, ["--page-tokens", "31"], "--page-tokens=31 must be"),
        (GOOD, ["--mode", "timing", "--device", "execute"], "--device=execute goes with --mode functional or both"),
        (GOOD, ["-o", "/"], "/: is a directory"),
    ],
)
def test_what_cannot_be_played(
    run: Runner, small: Path, tmp_path: Path, lines: list[object], options: list[str], sentence: str
) -> None:
    ended = run("run", write(tmp_path / "r.jsonl", *lines), "--model", small, *options)
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err


def changes(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        yield bytes(changed)


def test_random_changes_of_the_file(small: Path, tmp_path: Path) -> None:
    """500 changed bytes: the requests that are still there run, the others are refused, and nothing else happens."""
    data = write(tmp_path / "r.jsonl", *GOOD).read_bytes()
    engine = Engine(Checkpoint.open(small), load("nano"), Profile.default(), context=64, timing=False)
    encode = Tokenizer.open(small, 280).encode
    broken = 0
    for changed in changes(data, 500, 4):
        arrivals, refused = read_requests(changed, "r.jsonl", encode, 280)
        outcomes = play(engine, arrivals)
        assert len(outcomes) + len(refused) >= 2
        assert all(o.reason in ("stop", "length", "cancelled", "refused") for o in [*outcomes, *refused])
        assert all(o.message and "\n" not in o.message for o in [*outcomes, *refused] if o.reason == "refused")
        assert engine.stats.pages_used == 0
        broken += bool(refused) or any(o.reason == "refused" for o in outcomes)
    assert 100 < broken < 500


def test_a_sample_of_changes_through_the_command(run: Runner, small: Path, tmp_path: Path) -> None:
    data, file = write(tmp_path / "r.jsonl", *GOOD).read_bytes(), tmp_path / "bad.jsonl"
    for changed in changes(data, 12, 5):
        file.write_bytes(changed)
        start = time.monotonic()
        ended = run("run", file, "--model", small, "--json")
        assert time.monotonic() - start < 10
        assert ended.code == 0, ended.err
        assert ended.json["pages"]["held"] == 0
        assert "Traceback" not in ended.err
