"""`estimate` and `waterfall`: keys, pictures, and one sentence for what cannot be asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from systolith.models.family import packaged_configs
from tests.cli.helpers import Runner

SMALL = ("--chip", "mini", "--context", 70)


def test_estimate_answers_in_json_and_for_people(run: Runner) -> None:
    found = run("estimate", "tinycode", *SMALL, "--batch", 2, "--json").json
    assert (found["chip"], found["model"], found["sensitivity"]) == ("mini", "tinycode", {})
    assert found["tpot_s"] > found["bound_s"]["memory"] > 0
    assert found["ttft_s"] > found["prefill_bound_s"]["compute"] > 0
    assert found["manifest"]["options"]["context"] == 70
    again = run("estimate", "tinycode", *SMALL, "--batch", 2, "--no-prefill", "--json").json
    assert again["ttft_s"] is None
    assert again["tpot_s"] == found["tpot_s"]
    text = run("estimate", "tinycode", *SMALL).out
    assert "time to first token of 70" in text
    assert "weights are loaded into a second register of each PE" in text


def test_a_config_alone_is_enough(run: Runner, tmp_path: Path) -> None:
    """A directory with nothing but config.json, and the file itself."""
    shutil.copy(Path(packaged_configs()["qwen3-8b"]), tmp_path / "config.json")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    asked = ("--chip", "server", "--context", 300, "--weights", "MXFP4", "--no-prefill", "--no-sensitivity", "--json")
    by_folder, by_file = (run("estimate", path, *asked).json for path in (tmp_path, tmp_path / "config.json"))
    asked_for = [result["manifest"].pop("options") for result in (by_folder, by_file)]
    for result in (by_folder, by_file):
        result["manifest"].pop("inputs")
    assert by_folder == by_file
    assert asked_for[0] != asked_for[1]  # they name different paths
    assert by_folder["fractions"]["decode_of_stated_rate"]["value"] <= 1


def test_waterfall_draws(run: Runner, tmp_path: Path) -> None:
    picture = tmp_path / "step.svg"
    text = run("waterfall", "tinycode", *SMALL, "--svg", picture).out
    assert all(part in text for part in ("weights", "kv", "compute", "vector", "collectives", "kernel line: why"))
    root = ElementTree.fromstring(picture.read_text())
    bars = [e for e in root.iter("{http://www.w3.org/2000/svg}rect") if e.get("height") != root.get("height")]
    assert len(bars) == 9
    assert sum(float(bar.get("width", "0")) for bar in bars) == pytest.approx(480, abs=5)


def test_waterfall_by_slice(run: Runner) -> None:
    asked = ("waterfall", "tinycode", *SMALL)
    found = run(*asked, "--json").json
    step_s = found["decode_steps"][0]["seconds"]
    assert [one["slice"] for one in found["slices"]] == [0, 1, 2, 3]
    for one in found["slices"]:
        assert one["seconds"] == pytest.approx(step_s)
        assert list(one["queues"]) == ["W", "L", "M", "V", "S", "C"]
        for parts in one["queues"].values():
            assert sum(parts.values()) == pytest.approx(step_s)
    # Nothing is read twice: all slices together read what the step must (an embedding row by queue L) and what pads it.
    weights, loads = (sum(one["bytes"][kind] for one in found["slices"]) for kind in ("weights", "load"))
    assert 0.99 < weights / found["bytes"]["weights"] < 1.1
    assert weights + loads >= sum(found["bytes"].values())
    table = run(*asked, "--slices").out
    assert all(word in table for word in ("slices", "memory", "busiest against mean", "kernel line: why"))
    one = run(*asked, "--slice", 2).out
    assert all(word in one for word in ("slice 2: queue", "waits: semaphore", "no instruction", "stood still"))
    assert "slice 2: queue" not in table
    ended = run(*asked, "--slice", 4)
    assert (ended.code, ended.out) == (2, "")
    assert "--slice=4 must be in 0..3, the slices of mini" in ended.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "nowhere: not found; give a model directory, a config.json, or one of "),
        (("tinycode", "--context", "1"), "context=1 must be 3 or more"),
        (("tinycode", "--batch", "0"), "batch=0 must be 1 or more"),
        (("tinycode", "--output-len", "1"), "output-len=1 must be 2 or more"),
        (("tinycode", "--context", "100000"), "a context of 100001 is more than max_position_embeddings, "),
        (("tinycode", "--page-tokens", "48"), "--page-tokens=48 must be 32, 64, 128 or 256"),
        (("llama-3.1-405b", "--chip", "nano"), "is too small for llama-3.1-405b"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(run: Runner, arguments: tuple[str, ...], sentence: str) -> None:
    for command in ("estimate", "waterfall"):
        ended = run(command, *arguments)
        assert ended.code == 2
        assert ended.out == ""
        assert sentence in ended.err
        assert ended.err.count("\n") == 1
