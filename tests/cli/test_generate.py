"""`generate`: keys, streaming, batches, sampling, logits, devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from systolith.models.tokenizer import Tokenizer
from tests.cli.helpers import Runner
from tests.reference import checkpoint as reference_checkpoint
from tests.reference import contract

KEYS = [
    "chip", "model", "prompt_tokens", "tokens", "text", "ttft_s", "tpot_s", "cycles", "utilisation", "bytes",
    "bound_tpot_s", "waterfall", "program_sha256", "manifest",
]  # fmt: skip
PROMPTS = ["def f(x):", "import os", "class A(B):\tpass  # a longer line, so that lengths differ", "x"]


def reference_tokens(model: Path, prompt: list[int], count: int, **sampling: object) -> list[int]:
    loaded = reference_checkpoint.load_model(model)
    return contract.generate(loaded, reference_checkpoint.Profile(), prompt, count, **sampling)


def test_json_is_one_object_with_the_keys_in_order(run: Runner, tiny: Path) -> None:
    ended = run("generate", tiny, "--prompt", "def f(x):", "--max-tokens", 5, "--json")
    found = ended.json
    assert ended.out.count("\n") == 1
    assert ended.err == ""
    assert list(found) == KEYS
    assert (found["chip"], found["model"]) == ("nano", "tiny")
    assert found["prompt_tokens"] == Tokenizer.open(tiny).encode("def f(x):")
    assert len(found["tokens"]) == 5
    assert found["text"] == Tokenizer.open(tiny).decode(found["tokens"])
    assert sum(found["waterfall"].values()) == found["cycles"]
    assert set(found["utilisation"]) == {"memory", "matrix", "vector", "collective", "sequencer"}
    assert 0 < found["bound_tpot_s"] < found["tpot_s"]
    assert found["ttft_s"] + 4 * found["tpot_s"] <= found["cycles"] / 500e6
    assert len(found["program_sha256"]) == 64


def test_a_batch_has_lists_and_the_tokens_of_each_prompt_alone(run: Runner, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(PROMPTS) + "\n", encoding="utf-8")
    found = run("generate", tiny, "--batch", file, "--max-tokens", 6, "--json", "--logits", tmp_path / "all.npy").json
    assert list(found) == KEYS
    assert all(isinstance(found[key], list) and len(found[key]) == 4 for key in KEYS[:7])
    logits = np.load(tmp_path / "all.npy")
    assert logits.dtype == np.float32
    assert logits.shape == (4, 6, 300)
    for slot, prompt in enumerate(PROMPTS):
        alone = run(
            "generate", tiny, "--prompt", prompt, "--max-tokens", 6, "--json", "--logits", tmp_path / "one.npy"
        ).json
        assert alone["tokens"] == found["tokens"][slot]
        assert alone["prompt_tokens"] == found["prompt_tokens"][slot]
        one = np.load(tmp_path / "one.npy")
        assert one.tobytes() == logits[slot, : len(one)].tobytes()


def test_text_streams_as_utf8_and_is_the_text_of_json(run: Runner, tiny: Path) -> None:
    arguments = ("generate", tiny, "--prompt", "h\u00e9 \u4e16", "--max-tokens", 12)
    text = run(*arguments, "--json").json["text"]
    ended = run(*arguments)
    assert ended.code == 0
    assert ended.out.startswith("h\u00e9 \u4e16" + text + "\n")
    assert "time to first token" in ended.out
    assert "the chip's bound" in ended.out
    assert "tiny on nano (1 slice at 500 MHz), device sim; weights MXINT8, activations MXINT8" in ended.out


def test_tokens_arrive_one_by_one(tiny: Path) -> None:
    from systolith.models.checkpoint import Checkpoint
    from systolith.models.profile import Profile
    from systolith.runtime.device import find_device
    from systolith.runtime.job import Request
    from systolith.runtime.session import Token, compile_job, run_job
    from systolith.spec import load

    requests = [Request((1, 2, 3), 4), Request((4, 5), 2)]
    compiled = compile_job(Checkpoint.open(tiny), load("nano"), Profile.default(), requests)
    seen: list[Token] = []
    done = run_job(compiled, find_device("sim"), requests, on_token=seen.append)
    assert [t.token for t in seen if t.slot == 0] == done.tokens[0]
    assert [len(t) for t in done.tokens] == [4, 2]
    assert [t.index for t in seen if t.slot == 1] == [0, 1]
    assert [t.position for t in seen if t.slot == 0] == [3, 4, 5, 6]
    cycles = [t.cycle for t in seen]
    assert cycles == sorted(cycles)
    assert None not in cycles


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.8, "seed": 7}, {"temperature": 1.3, "top_k": 40, "seed": 1 << 63},
     {"temperature": 1.0, "top_p": 0.7, "seed": 3}],
)  # fmt: skip
def test_tokens_are_those_of_the_reference(run: Runner, tiny: Path, sampling: dict[str, float]) -> None:
    options = [text for key, value in sampling.items() for text in (f"--{key.replace('_', '-')}", value)]
    prompt = [10, 200, 30, 40, 5]
    found = run("generate", tiny, "--prompt-ids", "10,200,30,40,5", "--max-tokens", 8, "--json", *options).json
    expected = reference_tokens(tiny, prompt, 8, **sampling)
    end = expected.index(256) + 1 if 256 in expected else 8
    assert found["tokens"] == expected[:end]


def test_logits_are_those_of_the_reference(run: Runner, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "logits.npy"
    prompt = [(37 * i) % 256 for i in range(40)]
    (tmp_path / "ids.txt").write_text(", ".join(map(str, prompt)))
    found = run(
        "generate", tiny, "--prompt-ids", tmp_path / "ids.txt", "--max-tokens", 4, "--json", "--logits", file,
        "--prefill-chunk", 16, "--page-tokens", 32, "--chip", "micro",
    ).json  # fmt: skip
    ids = prompt + found["tokens"][:-1]
    model = reference_checkpoint.load_model(tiny)
    expected = contract.run(
        model, reference_checkpoint.Profile(), ids, positions=list(range(39, 39 + len(found["tokens"])))
    )
    assert np.load(file).tobytes() == expected.logits.astype("<f4").tobytes()


def test_null_runs_nothing_and_says_so(run: Runner, tiny: Path) -> None:
    found = run("generate", tiny, "--prompt", "x", "--device", "null", "--json").json
    assert list(found) == KEYS
    assert (found["tokens"], found["text"], found["cycles"], found["tpot_s"]) == ([], "", None, None)
    assert found["bound_tpot_s"] > 0
    ended = run("generate", tiny, "--prompt", "x", "--device", "null")
    assert "device null runs nothing: the program of" in ended.out


def test_execute_is_the_same(run: Runner, tmp_path: Path) -> None:
    from tests.reference.make_model import make_llama

    model = make_llama(
        tmp_path / "small", hidden=32, layers=1, heads=2, kv_heads=1, head_dim=16, intermediate=32, vocab=64, context=64
    )
    found = [
        run("generate", model, "--prompt-ids", "1,2", "--max-tokens", 2, "--json", "--device", device).json
        for device in ("execute", "sim")
    ]
    assert [each.pop("manifest")["options"]["device"] for each in found] == ["execute", "sim"]
    assert found[0] == found[1]


def test_white_space_at_the_end_of_a_prompt_is_dropped(run: Runner, tiny: Path) -> None:
    texts = ["def f(x):", "def f(x):\n    ", "def f(x): \t\n"]
    found = [run("generate", tiny, "--prompt", t, "--max-tokens", 1, "--json").json["prompt_tokens"] for t in texts]
    assert found[0] == found[1] == found[2]


def test_the_default_model_is_tinycode_and_its_bound_is_the_formula(run: Runner) -> None:
    found = run("generate", "--prompt", "def fibonacci(n):", "--max-tokens", 3, "--json").json
    assert found["model"] == "tinycode"
    # One byte a weight and one for each 32: q, o, k, v, gate, up, down of 4 layers, the head, one row of the table.
    weights = 4 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256) + 2048 * 256
    codes = (weights + 256) * 33 // 32
    token = 4 * 2 * (66 + 65)  # K with two scales, V with one; 2 heads of 64 in 4 layers
    macs = [weights + 2 * 4 * 256 * (len(found["prompt_tokens"]) + i) for i in range(3)]
    times = [max((codes + token * (len(found["prompt_tokens"]) + i)) / 8e9, macs[i] / (16 * 500e6)) for i in range(3)]
    assert found["bound_tpot_s"] == pytest.approx(sum(times) / 3, rel=1e-12)
