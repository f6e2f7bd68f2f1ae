"""Results carry what they were made of; `systolith repro` makes them again and says what differs."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from systolith import __version__
from systolith.spec import load
from tests.cli.helpers import Runner
from tests.cli.test_damage import TIMES, changed
from tests.reference.make_model import make_llama

KEYS = [
    "version", "command", "chip_sha256", "model_sha256", "program_sha256", "seed", "options", "resolved", "inputs",
    "outputs",
]  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(
        tmp_path_factory.mktemp("repro") / "small", hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16,
        intermediate=32, vocab=280, context=64,
    )  # fmt: skip


def keep(run: Runner, path: Path, *arguments: object) -> Any:
    """Run a command with --json and write what it prints, as `> file` does."""
    ended = run(*arguments, "--json")
    assert ended.code == 0, ended.err
    path.write_text(ended.out)
    return json.loads(ended.out)


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """Change values of a result, at keys with dots."""
    values = json.loads(path.read_text())
    for key, value in change.items():
        *way, last = key.split(".")
        place = values
        for name in way:
            place = place[name]
        place[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "command", ["generate", "batch", "logits", "quality", "run", "timing", "estimate", "waterfall", "curve", "cost"]
)
def test_every_result_is_made_again(run: Runner, small: Path, tmp_path: Path, command: str) -> None:
    lines, requests = tmp_path / "lines.txt", tmp_path / "requests.jsonl"
    lines.write_text("def f\nimport os\n")
    requests.write_text('{"prompt_ids": [1, 2], "max_tokens": 3}\n{"prompt_ids": [5], "max_tokens": 2, "seed": 4}\n')
    die = tmp_path / "die.toml"
    die.write_text('base = "mini"\nprocess = "TSMC N5"\n')
    arguments: dict[str, list[object]] = {
        "generate": ["generate", small, "--prompt", "-x", "--max-tokens", 3, "--temperature", 0.7, "--seed", 5],
        "batch": ["generate", small, "--batch", lines, "--max-tokens", 2, "--logits", tmp_path / "l.npy"],
        "logits": ["logits", small, "--prompt-ids", "1,2", "-o", tmp_path / "o.npy", "--dump", tmp_path / "d.npz"],
        "quality": ["quality", small, "--text", lines, "--context", 16, "--max-tokens", 8, "--weights", "MXFP4"],
        "run": ["run", requests, "--model", small, "-o", tmp_path / "again.json", "--no-prefix-cache"],
        "timing": ["run", requests, "--model", small, "--mode", "timing"],
        "estimate": ["estimate", small, "--chip", "mini", "--context", 32, "--no-sensitivity"],
        "waterfall": ["waterfall", small, "--chip", "mini", "--context", 32, "--svg", tmp_path / "w.svg"],
        "curve": ["curve", small, "--chip", "mini", "--batches", "1,3", "--context", 32, "--svg", tmp_path / "c.svg"],
        "cost": ["cost", small, "--chip", die, "--context", 32, "--svg", tmp_path / "t.svg"],
    }
    file = tmp_path / "result.json"
    found = keep(run, file, *arguments[command])
    made_of = found["manifest"]
    assert list(made_of) == KEYS
    assert made_of["version"] == __version__
    assert made_of["chip_sha256"] == load({"batch": "nano", "cost": die}.get(command) or found["chip"]).sha256
    assert made_of["seed"] == {"generate": 5, "batch": 0, "estimate": 0, "waterfall": 0, "curve": 0, "cost": 0}.get(
        command
    )
    assert len(made_of["inputs"]) == {"batch": 1, "quality": 1, "run": 1, "timing": 1}.get(command, 0)
    assert len(made_of["outputs"]) == {"batch": 1, "logits": 2, "waterfall": 1, "curve": 1, "cost": 1}.get(command, 0)
    if command == "run":
        assert json.loads((tmp_path / "again.json").read_text()) == found
    for name in (*made_of["outputs"], "again"):
        for written in tmp_path.glob(f"{name[0]}*.np*"):
            written.unlink()
    before = sorted(p.name for p in tmp_path.iterdir())
    ended = run("repro", file)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith(": equal\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == before, "it writes nothing"


def test_what_differs_is_told(run: Runner, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    found = keep(run, file, "generate", small, "--prompt", "x", "--max-tokens", 3)
    rewrite(file, {"tokens": [279, *found["tokens"][1:]], "cycles": found["cycles"] + 1, "ttft_s": None})
    ended = run("repro", file)
    assert ended.code == 1
    assert ended.out == (
        f"tokens[0]: was 279, is {found['tokens'][0]} now\n"
        f"ttft_s: was null, is {found['ttft_s']} now\n"
        f"cycles: was {found['cycles'] + 1}, is {found['cycles']} now\n"
        f"{file}: generate on nano: 3 differences\n"
    )
    told = run("repro", file, "--json")
    assert told.code == 1
    assert [d["key"] for d in json.loads(told.out)["differences"]] == ["tokens[0]", "ttft_s", "cycles"]
    rewrite(file, {"tokens": found["tokens"], "cycles": found["cycles"], "ttft_s": found["ttft_s"], "more": 1})
    assert run("repro", file).out.startswith("more: was 1, is not there now\n")


def test_a_changed_output_is_told(run: Runner, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    keep(run, file, "logits", small, "--prompt-ids", "1,2", "-o", tmp_path / "o.npy")
    rewrite(file, {"manifest.outputs.output": "0" * 64})
    ended = run("repro", file)
    assert (ended.code, ended.out.splitlines()[0][:40]) == (1, 'manifest.outputs.output: was "0000000000')
    keep(run, file, "logits", small, "--prompt-ids", "1,2", "-o", "/dev/null")
    assert run("repro", file).code == 0, "what went into a pipe has no hash to compare"


def test_another_version_is_warned_of(run: Runner, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    keep(run, file, "generate", small, "--prompt", "x", "--max-tokens", 1)
    rewrite(file, {"manifest.version": "0.0.9"})
    ended = run("repro", file)
    assert (ended.code, ended.err) == (
        0,
        f"systolith: warning: {file} was made by version 0.0.9, this is {__version__}\n",
    )


def test_what_has_changed_is_refused(run: Runner, small: Path, tmp_path: Path) -> None:
    chip, model, lines, file = (tmp_path / name for name in ("my.toml", "model", "lines.txt", "result.json"))
    shutil.copytree(small, model)
    chip.write_text('base = "nano"\n')
    lines.write_text("def f\n")
    keep(run, file, "generate", model, "--chip", chip, "--batch", lines, "--max-tokens", 1)
    assert run("repro", file).code == 0
    chip.write_text('base = "nano"\nlanes = 8\n')
    ended = run("repro", file)
    assert (ended.code, ended.out) == (2, "")
    assert f"{file}: the chip {chip} has changed since (SHA-256 " in ended.err
    chip.write_text('base = "nano"\n')
    lines.write_text("def g\n")
    assert f"{file}: the input {lines} has changed since (SHA-256 " in run("repro", file).err
    lines.write_text("def f\n")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    ended = run("repro", file)
    assert (ended.code, ended.out) == (2, "")
    assert f"{file}: the model model has changed since (SHA-256 " in ended.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no JSON (Expecting value: line 1 column 1 (char 0)); give a result that --json has printed"),
        (
            "[1]",
            "has no manifest; give a result that --json of generate, logits, quality, run, estimate, waterfall, curve, "
            "cost has printed",
        ),
        ('{"a": 1, "a": 2}', "is no JSON (a key is given twice in one object); give a result"),
        ('{"manifest": {}}', "manifest.version is missing; manifest.command is missing; "),
        ("[" * 100000, "is no JSON (maximum recursion depth exceeded"),
    ],
)
def test_what_is_no_result_is_refused(run: Runner, tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "result.json"
    file.write_text(text)
    ended = run("repro", file)
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.startswith(f"systolith: {file}: {sentence}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"manifest.command": "fuzz"}, 'manifest.command="fuzz" must be one of generate, logits'),
        ({"manifest.options.as_json": True}, "manifest.options.as_json is no option of generate"),
        ({"manifest.options.logits": "/dev/sda"}, "manifest.options.logits=/dev/sda must be true or false"),
        ({"manifest.options.prompt": "a\0b"}, 'manifest.options.prompt="a\\u0000b" holds what no command line can'),
        ({"manifest.options.prompt": {"a": 1}}, 'manifest.options.prompt={"a": 1} must be a text or number'),
        ({"manifest.options.chip": 3}, "manifest.options.chip must be a text"),
        ({"manifest.inputs": {"x": 1}}, 'manifest.inputs={"x": 1} must be an object of SHA-256 by path'),
        ({"manifest.options.max_tokens": "many"}, None),
    ],
)
def test_options_that_no_command_line_holds_are_refused(
    run: Runner, small: Path, tmp_path: Path, change: dict[str, Any], sentence: str | None
) -> None:
    file = tmp_path / "result.json"
    keep(run, file, "generate", small, "--prompt", "x", "--max-tokens", 1)
    rewrite(file, change)
    ended = run("repro", file)
    assert (ended.code, ended.out) == (2, "")
    assert "Invalid value for '--max-tokens'" in ended.err if sentence is None else f"{file}: {sentence}" in ended.err


@pytest.mark.parametrize(("command", "times"), [("generate", TIMES), ("estimate", TIMES // 2)])
def test_changed_bytes_are_told_or_refused(run: Runner, small: Path, tmp_path: Path, command: str, times: int) -> None:
    file = tmp_path / "result.json"
    if command == "generate":
        keep(run, file, "generate", small, "--prompt-ids", "1", "--max-tokens", 1)
    else:
        keep(run, file, "estimate", small, "--chip", "nano", "--context", 8, "--no-sensitivity", "--no-prefill")
    data, rng = file.read_bytes(), random.Random(7)
    codes = []
    for _ in range(times):
        file.write_bytes(changed(data, rng))
        ended = run("repro", file)
        assert ended.code in (0, 1, 2), ended.err
        assert (ended.out == "") == (ended.code == 2), ended
        assert ended.code != 2 or ended.err.startswith("systolith: ")
        assert "Traceback" not in ended.err
        codes.append(ended.code)
    assert min(codes.count(1), codes.count(2)) > times // 20
    assert codes.count(0) < times // 20, "a byte that changes no result: of the version, or of a blank"
