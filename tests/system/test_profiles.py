"""Every numerics profile, bit for bit, intermediates included, on one slice, three and sixty-four."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.checkpoint import read_safetensors
from reference.make_model import make_llama, write_safetensors

from systolith.runtime.job import Sampling

from .harness import Floats, Subject, chip, generate, prefill, same_bits, same_trace

CHIPS = ("nano", "three", "server")
FP8: dict[str, Any] = {"weights": "E4M3", "activations": "E4M3", "k": "E4M3", "v": "E4M3"}
FP4: dict[str, Any] = {
    "weights": "E2M1", "activations": "E2M1", "head": "E2M1", "embed": "E2M1", "k": "E2M1", "v": "E2M1", "p": "E4M3",
}  # fmt: skip
SPANS = {"q": 2, "k": 4, "v": 2, "o": 2, "gate": 4, "up": 2, "down": 4, "head": 2}

PROFILES: dict[str, dict[str, Any]] = {
    "mxint8": {},
    "mxfp8": FP8,
    "mxfp4-mxfp8": {"weights": "E2M1", "activations": "E4M3"},
    "mxfp4-mxint8": {"weights": "E2M1", "activations": "INT8"},
    "mxfp4": FP4,
    "mxfp4-int8-p": {**FP4, "p": "INT8", "activations": "INT8", "head": "INT8", "embed": "INT8"},
    "two-terms": {"weights": "INT8x2"},
    "two-terms-spans": {"weights": "INT8x2", "spans": SPANS},
    "norm-not-deferred": {"deferred_norm": False},
    "norm-not-deferred-mxfp8": {**FP8, "deferred_norm": False, "spans": {"gate": 2}},
    # Sums of E4M3 products round, so that an order of additions shows.
    "spans-mxfp8": {**FP8, "lanes": 2, "spans": SPANS},
    "five-spans-of-five-blocks": {**FP8, "spans": dict.fromkeys(SPANS, 5)},
    "more-spans-than-blocks": {**FP8, "spans": {"o": 16, "q": 7}},
}


def on_chips(cases: Iterable[str], quick_on_server: set[str]) -> list[Any]:
    """Every case on every chip; on 64 slices most of them are left to the deep suite."""
    return [
        pytest.param(case, name, marks=pytest.mark.deep if name == "server" and case not in quick_on_server else [])
        for case in cases
        for name in CHIPS
    ]


def ids(count: int, vocab: int = 1003, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, vocab, count).tolist()
    return found


def check(subject: Subject, table: dict[str, Any], prompt: list[int], name: str, **more: Any) -> None:
    """Prefill a prompt with dumps; logits and intermediates equal the reference's."""
    profile = subject.profile(table)
    want = subject.expected(profile, prompt, trace=True)
    ran = prefill(subject, chip(name), profile, prompt, dump=True, **more)
    same_trace(ran.dumped(), want.trace, len(prompt))
    same_bits(ran.logits[0], want.logits, "logits")


@pytest.mark.parametrize(("profile", "name"), on_chips(PROFILES, {"mxfp4-mxfp8", "two-terms", "spans-mxfp8"}))
def test_profiles(odd: Subject, profile: str, name: str) -> None:
    check(odd, PROFILES[profile], ids(70), name)


MASKS: dict[str, dict[str, Any]] = {
    "window": {"attention": {"window": 300}},
    "window-sink": {"attention": {"window": 300, "sink": [0.5, -1.0, 2.0]}},
    "sink": {"attention": {"sink": -1.0}},
    "window-shorter-than-a-block": {"attention": {"window": 20}},
}


@pytest.mark.parametrize(("masks", "name"), on_chips(MASKS, {"window-sink"}))
def test_windows_and_sinks(odd: Subject, masks: str, name: str) -> None:
    """Two lanes, spans 2 and 4, a prompt longer than the window and a chunk: some rows see nothing of chunk 0."""
    check(odd, {**FP8, "lanes": 2, "spans": SPANS, **MASKS[masks]}, ids(330), name)


@pytest.mark.parametrize("name", ["nano", "three"])
def test_a_window_leaves_whole_chunks_empty(odd: Subject, name: str) -> None:
    """Of three chunks in two lanes the first is out of every late row's sight, then the second."""
    profile = odd.profile({"lanes": 2, "attention": {"window": 100}})
    prompt = ids(640)
    want = odd.expected(profile, prompt).logits
    same_bits(prefill(odd, chip(name), profile, prompt).logits[0], want, "logits")
    made = generate(odd, chip(name), profile, [prompt], 3)
    more = odd.expected(profile, [*prompt, *made.tokens[0][:2]]).logits
    same_bits(made.logits[0], more[639:], "decoded")


@pytest.mark.parametrize(
    ("profile", "name"), on_chips(["mxint8", "mxfp8", "norm-not-deferred", "spans-mxfp8"], {"norm-not-deferred"})
)
def test_biases_and_a_head_of_its_own(biased: Subject, profile: str, name: str) -> None:
    check(biased, PROFILES[profile], ids(90, 300), name)


@pytest.mark.parametrize("table", [{}, {"head": "E2M1"}, {"embed": "E2M1"}], ids=["int8", "head-fp4", "embed-fp4"])
def test_head_and_table_of_two_formats(biased: Subject, table: dict[str, Any]) -> None:
    check(biased, table, ids(40, 300), "three")


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 8, "kv_heads": 8, "head_dim": 32, "hidden": 256, "intermediate": 96},
        {"heads": 5, "kv_heads": 5, "head_dim": 16, "hidden": 80, "intermediate": 40, "vocab": 97},
        {"heads": 16, "kv_heads": 2, "head_dim": 128, "hidden": 64, "intermediate": 64, "layers": 1},
        {"heads": 1, "kv_heads": 1, "head_dim": 2, "hidden": 4, "intermediate": 1, "vocab": 3, "outliers": 1},
    ],
    ids=["eight-kv-heads", "five-kv-heads", "eight-queries-a-head", "smallest"],
)
def test_other_shapes(tmp_path: Path, shape: dict[str, Any]) -> None:
    """The default number of attention lanes differs from one to the next."""
    subject = Subject.open(make_llama(tmp_path / "m", seed=3, **{"vocab": 130, **shape}))
    for name in ("nano", "three", "mini"):
        check(subject, {}, ids(45, subject.checkpoint.graph.vocab), name)


# ---- numbers that are none -------------------------------------------------------------------------------------------


def spoilt(path: Path, **changes: list[tuple[tuple[int, ...], float]]) -> Subject:
    """A small model with some weights replaced: tensor name with __ for dots, places and values."""
    make_llama(path, hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, intermediate=96, vocab=200, tied=False,
               attention_bias=True, context=512, seed=2)  # fmt: skip
    tensors = read_safetensors(path / "model.safetensors")
    for name, places in changes.items():
        for place, value in places:
            tensors[name.replace("__", ".")][place] = value
    write_safetensors(path / "model.safetensors", tensors, "float32")
    assert json.loads((path / "config.json").read_text())["num_hidden_layers"] == 2
    return Subject.open(path)


def reach(logits: Floats) -> float:
    return float(np.isnan(logits).mean())


@pytest.mark.parametrize("name", CHIPS)
def test_nan_and_infinite_weights_of_the_head_reach_their_logits_only(tmp_path: Path, name: str) -> None:
    subject = spoilt(tmp_path / "m", lm_head__weight=[((7, 3), np.nan), ((150, 40), np.inf), ((151, 0), -np.inf)])
    profile, prompt = subject.profile(), ids(40, 200)
    ran = prefill(subject, chip(name), profile, prompt)
    same_bits(ran.logits[0], subject.expected(profile, prompt).logits, "logits")
    assert np.flatnonzero(np.isnan(ran.logits[0]).any(0)).tolist() == [7, 150, 151]
    for sampling in (Sampling(), Sampling(1.0, 0, 0.9, 5)):
        made = generate(subject, chip(name), profile, [prompt], 5, sampling).tokens[0]
        assert made == subject.expected_tokens(profile, prompt, 5, sampling)


@pytest.mark.parametrize("name", CHIPS)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_nan_token_reaches_who_sees_it_and_no_other(tmp_path: Path, value: float, name: str) -> None:
    """With a window of 5 the rows after it are whole again: masking comes before everything."""
    subject = spoilt(tmp_path / "m", model__embed_tokens__weight=[((17, 40), value)])
    prompt = ids(50, 200)
    prompt = [18 if token == 17 else token for token in prompt]
    prompt[20] = 17
    table = {**FP8, "attention": {"window": 5}}
    check(subject, table, prompt, name)
    logits = prefill(subject, chip(name), subject.profile(table), prompt).logits[0]
    bad = np.flatnonzero(np.isnan(logits).any(1)).tolist()
    assert bad == list(range(20, 29)), "two layers with a window of 5 reach 4 + 4 tokens further"


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        ("model__layers__1__self_attn__q_proj__weight", (3, 5)),
        ("model__layers__1__self_attn__k_proj__weight", (3, 5)),
        ("model__layers__1__self_attn__v_proj__weight", (3, 5)),
        ("model__layers__1__self_attn__v_proj__bias", (9,)),
        ("model__layers__1__self_attn__o_proj__weight", (3, 5)),
        ("model__layers__0__mlp__gate_proj__weight", (3, 5)),
        ("model__layers__1__mlp__down_proj__weight", (63, 95)),
        ("model__layers__1__input_layernorm__weight", (33,)),
        ("model__norm__weight", (0,)),
    ],
)
def test_nan_anywhere_reaches_as_far_as_in_the_reference(tmp_path: Path, tensor: str, place: tuple[int, ...]) -> None:
    for number, value in enumerate((np.nan, np.inf, 3e38)):
        subject = spoilt(tmp_path / str(number), **{tensor: [(place, value)]})
        for table in ({}, {"deferred_norm": False, **FP8}):
            for name in ("nano", "three"):
                check(subject, table, ids(12, 200), name)


def test_a_spoilt_sink_or_scale_is_masked_where_nothing_is_visible(tmp_path: Path) -> None:
    """A NaN value of V at a token out of sight leaves no mark on a chunk that others see."""
    subject = spoilt(tmp_path / "m", model__embed_tokens__weight=[((17, 0), np.nan)])
    prompt = [17, *(18 if token == 17 else token for token in ids(299, 200))]
    profile = subject.profile({"lanes": 2, "attention": {"window": 40, "sink": 1.0}})
    want = subject.expected(profile, prompt).logits
    assert 0 < reach(want) < 0.5
    for name in CHIPS:
        same_bits(prefill(subject, chip(name), profile, prompt).logits[0], want, name)
