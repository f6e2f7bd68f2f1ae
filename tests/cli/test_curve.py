"""`curve`: tokens a second by batch; what does not fit says why."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.helpers import Runner

ASKED = ("tinycode", "--chip", "mini", "--context", 70)


def test_a_point_is_what_estimate_says(run: Runner, tmp_path: Path) -> None:
    picture = tmp_path / "curve.svg"
    found = run("curve", *ASKED, "--batches", "1,2,40,3000", "--svg", picture, "--json").json
    *points, last = found["points"]
    assert (found["chip"], found["model"]) == ("mini", "tinycode")
    assert [point["batch"] for point in points] == [1, 2, 40]
    for point in points:
        alone = run("estimate", *ASKED, "--batch", point["batch"], "--no-prefill", "--json").json
        assert {
            key: alone[key] for key in ("tpot_s", "bytes", "bound_s", "waterfall", "fractions")
        }.items() <= point.items()
        assert point["tokens_per_s_chip"] == pytest.approx(point["batch"] / point["tpot_s"])
        assert point["tokens_per_s_user"] == pytest.approx(1 / point["tpot_s"])
        assert point["steps"] == -(-point["batch"] // point["rows"])
    for one, more in pairwise(points):
        assert one["tokens_per_s_user"] > more["tokens_per_s_user"]
        assert one["tokens_per_s_chip"] < more["tokens_per_s_chip"]
    assert last["batch"] == 3000
    assert last["fault"].startswith("mini: scratchpad_bytes=262144 is too small for tinycode, which needs ")
    root = ElementTree.fromstring(picture.read_text())
    lines = [e.get("points", "").split() for e in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(line) for line in lines] == [3, 3]
    heights = [[float(point.split(",")[1]) for point in line] for line in lines]
    assert heights[0] == sorted(heights[0], reverse=True)  # the chip's rises, a user's falls
    assert heights[1] == sorted(heights[1])


def test_the_table_has_a_line_for_each_batch(run: Runner) -> None:
    ended = run("curve", *ASKED, "--batches", "2,3000")
    assert ended.code == 0
    assert "tinycode on mini: tokens a second, context 70" in ended.out
    assert ended.err.startswith("systolith: warning: batch 3000: mini: scratchpad_bytes=262144 is too small")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--batches", "1,x"), "batches: 'x' must be a number 1..65535; give them as in 32,64,128"),
        (("--batches", "0"), "batches: '0' must be a number 1..65535; "),
        (("--batches", ""), "batches: '' must be a number 1..65535; "),
        (("--batches", ",".join(["1"] * 33)), "batches: 33 were given, at most 32 are allowed; give fewer"),
        (("--batches", "3000"), "batch 3000: mini: scratchpad_bytes=262144 is too small for tinycode"),
        (("--context", "2"), "context=2 must be 3 or more"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(run: Runner, arguments: tuple[str, ...], sentence: str) -> None:
    ended = run("curve", *ASKED, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
