"""The numerics profile: defaults, files, and everything that is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from systolith.models.family import build_graph, parse_config
from systolith.models.profile import SPANS, Profile
from systolith.spec.errors import ConfigError

from .conftest import SMALL_LLAMA, fuzz_file
from .test_reference import DEEPSEEK

WHOLE = """
weights = "INT8x2"
activations = "INT8"
k = "INT8"
v = "E2M1"
p = "INT8"
head = "INT8"
embed = "INT8"
lanes = 2
deferred_norm = false

[spans]
q = 2
down = 4

[attention]
window = 300
sink = [-1.0, 0.5, 2]
"""


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(WHOLE)
    profile = Profile.from_toml(tmp_path / "p.toml")
    assert (profile.weights, profile.v, profile.lanes, profile.deferred_norm) == ("INT8x2", "E2M1", 2, False)
    assert profile.spans == {**dict.fromkeys(SPANS, 1), "q": 2, "down": 4}
    assert (profile.window, profile.sink) == (300, (-1.0, 0.5, 2))
    assert Profile.from_dict(json.loads(profile.to_json())) == profile
    assert Profile.from_dict(json.loads(profile.to_json())).to_json() == profile.to_json()
    assert {profile, Profile.from_dict(json.loads(profile.to_json()))} == {profile}


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text("")
    assert Profile.from_toml(tmp_path / "p.toml") == Profile() == Profile.default()
    assert Profile().to_json() == (
        '{"activations":"INT8","deferred_norm":true,"embed":"INT8","head":"INT8","k":"INT8","p":"INT8",'
        '"spans":{"down":1,"gate":1,"head":1,"k":1,"o":1,"q":1,"up":1,"v":1},"v":"INT8","weights":"INT8"}'
    )


@pytest.mark.parametrize(
    ("choice", "head", "p"),
    [
        ({"weights": "E2M1", "activations": "E4M3"}, "E4M3", "INT8"),
        ({"weights": "E2M1", "activations": "INT8"}, "INT8", "INT8"),
        ({"weights": "E2M1", "activations": "E2M1"}, "E2M1", "INT8"),
        ({"weights": "E4M3", "activations": "E4M3", "kv": "E4M3"}, "E4M3", "E4M3"),
        ({"weights": "INT8x2", "kv": "E2M1"}, "INT8", "INT8"),
    ],
)
def test_defaults_are_legal_pairs(choice: dict[str, str], head: str, p: str) -> None:
    profile = Profile.default(**choice)
    assert (profile.head, profile.embed, profile.p) == (head, head, p)


FORMATS = r"must be one of E2M1, E4M3, INT8"
PAIRS = r"must be one of the pairs E2M1xE2M1, E4M3xE2M1, INT8xE2M1, E4M3xE4M3, INT8xINT8"


@pytest.mark.parametrize(
    ("table", "faults"),
    [
        ({"weigths": "INT8"}, r'weigths="INT8" is no known key \(did you mean weights\?\), known are weights, .*'),
        ({"weights": "FP16"}, rf'weights="FP16" {FORMATS} or INT8x2'),
        ({"k": ["INT8"]}, rf'k=\["INT8"\] {FORMATS}'),
        ({"head": "INT8x2"}, rf'head="INT8x2" {FORMATS}'),
        ({"weights": "E4M3"}, rf'activations="INT8" with weights="E4M3" {PAIRS}'),
        ({"activations": "E2M1", "weights": "E4M3"}, rf'activations="E2M1" with weights="E4M3" {PAIRS}'),
        (
            {"weights": "INT8x2", "activations": "E4M3"},
            rf'activations="E4M3" with weights="INT8x2" {PAIRS}',
        ),
        ({"experts": "E4M3"}, rf'activations="INT8" with experts="E4M3" {PAIRS}'),
        ({"router": "FP32"}, rf'router="FP32" {FORMATS} or INT8x2'),
        (
            {"activations": "E4M3", "weights": "E2M1", "router": "INT8x2"},
            rf'activations="E4M3" with router="INT8x2" {PAIRS}',
        ),
        ({"p": "E4M3"}, rf'p="E4M3" with v="INT8" {PAIRS}'),
        ({"lanes": 3}, r"lanes=3 must be a power of two 1\.\.1024, or left out"),
        ({"lanes": True}, r"lanes=true must be a power of two 1\.\.1024, or left out"),
        ({"deferred_norm": 1}, r"deferred_norm=1 must be true or false"),
        ({"spans": {"q": 0}}, r"spans\.q=0 must be an integer 1\.\.1024"),
        (
            {"spans": 3},
            r"spans=3 must be a table with the keys q, k, v, o, gate, up, down, head, router, "
            r"expert_gate, expert_up, expert_down",
        ),
        ({"spans": {"gates": 2}}, r"spans\.gates is no known key \(did you mean gate\?\), known are q, .*"),
        ({"attention": {"window": 0}}, r"attention\.window=0 must be an integer 1\.\.16777216"),
        (
            {"attention": {"sink": float("inf")}},
            r"attention\.sink=Infinity must be a finite FP32 number or a list with one for each query head",
        ),
        (
            {"attention": {"sink": []}},
            r"attention\.sink=\[\] must be a finite FP32 number or a list with one for each query head",
        ),
        (
            {"lanes": 0, "v": "X", "spans": {"up": -1}},
            rf'v="X" {FORMATS}; lanes=0 must be a power of two 1\.\.1024, or left out; spans\.up=-1 must be an integer '
            r"1\.\.1024",
        ),
    ],
)
def test_a_fault_is_a_whole_sentence(table: dict[str, Any], faults: str) -> None:
    with pytest.raises(ConfigError, match=rf"^p\.toml: {faults}; correct the profile$"):
        Profile.from_dict(table, "p.toml")


def test_a_profile_made_in_python_is_checked_too() -> None:
    with pytest.raises(
        ConfigError, match=rf'^profile: activations="INT8" with head="E4M3" {PAIRS}; correct the profile$'
    ):
        Profile(head="E4M3")
    with pytest.raises(ConfigError, match=r"^profile: lanes=5 must be a power of two .*; correct the profile$"):
        replace(Profile(), lanes=5)


def test_experts_and_router_follow_the_rest_unless_they_are_given() -> None:
    assert (Profile().experts, Profile().router) == ("INT8", "INT8x2")
    mixed = Profile.default("INT8x2", "INT8")
    assert (mixed.experts, mixed.router) == ("INT8x2", "INT8x2")
    low = Profile.default("E2M1", "E4M3")
    assert (low.experts, low.router) == ("E2M1", "E4M3")
    assert {"experts", "router"}.isdisjoint(low.to_dict())
    given = Profile.from_dict({"experts": "E2M1", "router": "INT8", "spans": {"expert_down": 3}})
    assert {**given.to_dict(), "spans": {}} == {**Profile().to_dict(), "experts": "E2M1", "router": "INT8", "spans": {}}
    assert given.spans["expert_down"] == 3
    assert given.to_dict()["spans"] == {**dict.fromkeys(SPANS[:8], 1), "expert_down": 3}
    assert Profile.from_dict(given.to_dict()) == given


def test_what_depends_on_the_model_is_resolved() -> None:
    graph = build_graph(parse_config(SMALL_LLAMA, "c"))
    tied = build_graph(parse_config({**SMALL_LLAMA, "tie_word_embeddings": True}, "c"))
    assert Profile().resolved(graph).lanes == 32
    assert Profile(lanes=4).resolved(graph).lanes == 4
    latent = build_graph(parse_config({**SMALL_LLAMA, **DEEPSEEK}, "c"))
    assert Profile().resolved(latent).lanes == 64
    with pytest.raises(
        ConfigError,
        match=r'^profile: k="INT8" and v="E2M1" must be equal, deepseek_v3 keeps one latent that is key and value; '
        r"correct the profile$",
    ):
        Profile(v="E2M1").resolved(latent)
    other = Profile(embed="E4M3")
    assert other.resolved(graph).embed == "E4M3"
    with pytest.raises(
        ConfigError,
        match=r'^profile: head="INT8" and embed="E4M3" must be equal, llama ties the two tables; '
        r"attention\.sink has 2 values, must have one for each of 4 query heads; correct the profile$",
    ):
        replace(other, sink=(1.0, 2.0)).resolved(tied)


def test_the_instruments_reach_the_graph() -> None:
    graph = build_graph(parse_config(SMALL_LLAMA, "c"))
    assert Profile().apply(graph) is graph
    attention = next(node for node in Profile(window=300).apply(graph).layer if node.op == "attention")
    assert attention.attr("window", 1) == 300
    assert Profile().sinks(4) is None
    assert Profile(sink=-1.0).sinks(2) == (-1.0, -1.0)
    assert Profile(sink=(1.0, 2.0)).sinks(2) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"weights = ", r"is not valid TOML \(Invalid value \(at end of document\)\); correct the file"),
        (b"\xff", r"byte 0 is not UTF-8; correct the file"),
        (b"a=" + b"[" * 5000, r"is not valid TOML \(.*\); correct the file"),
        (b"lanes = " + b"1" * 5000, r"is not valid TOML \(.*\); correct the file"),
    ],
    ids=["cut", "latin1", "deep", "huge"],
)
def test_what_is_no_toml_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"^\S+/p\.toml: {reason}$"):
        Profile.from_toml(tmp_path / "p.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^\S+/p\.toml: cannot be read \(No such file or directory\); give a numerics profile in TOML$",
    ):
        Profile.from_toml(tmp_path / "p.toml")


def test_500_random_byte_changes_end_in_a_sentence_or_normally(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(WHOLE)
    digits = [at for at, byte in enumerate(file.read_bytes()) if chr(byte).isdigit()]
    report = fuzz_file(file, lambda: Profile.from_toml(file), seed=11, places=digits)
    assert report.normal > 50
    assert len(report.refusals) > 50
