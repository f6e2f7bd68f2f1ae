"""Rotary scaling at full size: the exact frequencies against transformers' formulas in FP32."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from systolith.models.family import packaged_configs, parse_config
from systolith.models.rope import frequencies, read_rope, tables

LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SCALED: dict[str, tuple[int, dict[str, Any]]] = {
    "llama-3.1": (128, {**LLAMA3, "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 8192}),
    "llama-3.2": (64, {**LLAMA3, "rope_theta": 5e5, "factor": 32.0, "original_max_position_embeddings": 8192}),
    "qwen3-yarn": (128, {**YARN, "rope_theta": 1e6}),
    "yarn-no-truncation": (
        64,
        {
            "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": False, "original_max_position_embeddings": 4096,
        },
    ),
    "linear": (80, {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}),
}  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", SCALED)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    dim, table = SCALED[name]
    config = transformers.LlamaConfig(
        hidden_size=4 * dim, num_attention_heads=4, head_dim=dim, max_position_embeddings=131072, rope_parameters=table
    )
    theirs, attention = ROPE_INIT_FUNCTIONS[table["rope_type"]](config, "cpu")
    theta, scaling, faults = read_rope({"rope_parameters": table}, 1e4, 131072)
    assert faults == []
    assert scaling is not None
    ours, factor = frequencies(dim, theta, scaling.text)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6)
    assert factor == pytest.approx(attention, rel=1e-15)


def test_an_original_context_that_is_not_given_is_the_models_own() -> None:
    raw = {"rope_scaling": {"type": "yarn", "factor": 2.0}}
    given = {"rope_scaling": {**raw["rope_scaling"], "original_max_position_embeddings": 4096}}
    assert read_rope(raw, 1e4, 4096) == read_rope(given, 1e4, 4096)
    assert read_rope(raw, 1e4, 2048) != read_rope(given, 1e4, 4096)


def test_both_names_of_the_table_mean_the_same() -> None:
    dim, table = SCALED["llama-3.1"]
    old = {"rope_theta": 5e5, "rope_scaling": {key: table[key] for key in table if key != "rope_theta"}}
    assert read_rope(old, 1e4, 1) == read_rope({"rope_parameters": table}, 1e4, 1)
    assert read_rope({**old, "rope_parameters": table}, 1e4, 1) == read_rope(old, 1e4, 1)
    plain = tables(dim, 5e5, None, 4)
    scaled = tables(dim, 5e5, read_rope(old, 1e4, 1)[1].text, 4)  # type: ignore[union-attr]
    np.testing.assert_array_equal(plain[0][:, :8], scaled[0][:, :8])  # short wavelengths stay
    assert (plain[1][1:, -1] > scaled[1][1:, -1]).all()


def test_a_scaling_changes_the_values_of_a_config_and_none_leaves_them() -> None:
    raw = json.loads(packaged_configs()["llama-3.1-8b"].read_text())
    plain = {key: value for key, value in raw.items() if key != "rope_scaling"}
    assert "rope_scaling" in parse_config(raw, "c").values
    assert "rope_scaling" not in parse_config(plain, "c").values
