"""What a model asks of a device, counted from its graph, against counts by hand."""

from __future__ import annotations

import json

import pytest

from systolith.peers.architectures import known_models, model_graph
from systolith.peers.work import work_of
from systolith.spec.errors import ModelError

PUBLISHED = {  # parameters in billions, as the model cards or papers say
    "llama-2-7b": 6.74, "llama-2-13b": 13.02, "llama-2-70b": 68.98, "gpt-j-6b": 6.05, "falcon-7b": 6.92,
    "falcon-40b": 41.3, "falcon-180b": 178.6, "llama-4-scout": 107.8, "llama-4-maverick": 400.7, "mistral-7b": 7.24,
    "mixtral-8x22b": 140.6, "qwen2.5-72b": 72.7, "qwen3-32b": 32.8, "kimi-k2": 1026.4, "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.213, "qwen2.5-1.5b": 1.544, "qwen2.5-3b": 3.086, "qwen3-1.7b": 1.721, "qwen3-4b": 4.022,
}  # fmt: skip


@pytest.mark.parametrize("name", known_models())
def test_products_and_the_table_are_all_weights_but_vectors(name: str) -> None:
    graph, work = model_graph(name), work_of(name)
    vectors = sum(ref.elements * max(ref.experts, 1) for ref, _ in graph.references() if len(ref.shape) == 1)
    assert work.parameters + vectors == graph.parameters
    assert work.reductions == graph.layers * (1 if graph.architecture.startswith(("Falcon", "GPTJ")) else 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_means_the_published_size(name: str) -> None:
    assert model_graph(name).parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=2e-3)


def test_every_config_of_peers_has_a_line_in_the_table_of_sources() -> None:
    folder = known_models()["gpt-j-6b"].parent
    page = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
        (line,) = (line for line in page.splitlines() if line.startswith(f"| {path.stem} |"))
        assert f"| {model_graph(path.stem).parameters:,} |" in line


def test_llama_by_hand() -> None:
    work = work_of("llama-3.1-8b")
    sizes = {p.name: (p.n, p.k, p.layers, p.split) for p in work.products}
    assert sizes == {
        "q_raw+k_raw+v": (6144, 4096, 32, "column"), "o": (4096, 4096, 32, "row"),
        "gate+up": (28672, 4096, 32, "column"), "down": (4096, 14336, 32, "row"), "logits": (128256, 4096, 1, "column"),
    }  # fmt: skip
    assert work.kernels == 32 * 10 + 3  # 4 products, 2 norms, append, attention in two, activation; table, norm, head
    assert work.kv_elements(100) == 32 * 2 * 8 * 128 * 100
    assert work.whole == 32 * 8 * 4096 + 2 * 4096 + 4 * 4096
    assert work.split == 32 * (2 * (2 * 4096 + 2048) + 3 * 14336)


def test_windows_and_latents_by_hand() -> None:
    oss = work_of("gpt-oss-20b")
    assert oss.kv_elements(1000) == 12 * 1024 * 128 + 12 * 1024 * 1000
    assert (oss.exchanges, oss.top_k, oss.native_expert_bits) == (24, 4, 4.25)
    r1 = work_of("deepseek-r1")
    assert r1.kv_elements(10) == 61 * 576 * 10
    (attend,) = r1.attends
    assert (attend.products, attend.first) == (128 * (2 * 512 + 64), 128 * (128 + 64 + 128))
    assert (r1.exchanges, r1.latent) == (58, True)
    assert {p.name: p.split for p in r1.products}["q_low+kv_low"] == "whole"


def test_a_model_without_config_facts_is_named() -> None:
    with pytest.raises(ModelError, match=r"^model llama-9: its config is not known here; known are deepseek-r1, "):
        work_of("llama-9")
