"""The bit reference of the tests, its quantisation taken away, means what the interpreter means, in every family.

The interpreter is compared with transformers; so the reference's graph is right, and what is left of it is rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import arith, contract, experts, latent
from reference.make_model import make_llama

from systolith.models.checkpoint import Checkpoint
from systolith.models.reference import interpret

SIZES: dict[str, Any] = {
    "hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 96, "vocab": 300, "head_dim": 32,
}  # fmt: skip
UNTIED: dict[str, Any] = {"family": "gpt_oss", "tied": False, "top_k": 3, "layers": 3}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"family": "qwen3"},
    "mixtral": {"family": "mixtral", "tied": False},
    "qwen3_moe": {"family": "qwen3_moe", "experts": 9, "top_k": 3},
    "qwen3_moe_all": {"family": "qwen3_moe", "extra": {"norm_topk_prob": False, "mlp_only_layers": [1]}},
    "gpt_oss": UNTIED,
    "gpt_oss_limits": {**UNTIED, "extra": {"swiglu_limit": 1.0, "swiglu_alpha": 1.1}},
    "gemma3": {"family": "gemma3_text", "layers": 3},
    "deepseek": {"family": "deepseek_v3", "experts": 12, "top_k": 4, "tied": False},
    "deepseek_options": {
        "family": "deepseek_v3",
        "experts": 8,
        "top_k": 3,
        "tied": False,
        "extra": {
            "q_lora_rank": None,
            "rope_interleave": False,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
        },
    },
    "gpt_oss_mxfp4": {**UNTIED, "mxfp4": True},
}
IDS = np.random.default_rng(3).integers(0, 300, 70).tolist()


def unquantised(x: Any, fmt: str, block: int = arith.BLOCK) -> arith.Blocks:
    """Blocks that hold the values themselves."""
    elements = arith.pad_last(np.asarray(x, np.float64), block)
    return arith.Blocks(elements, np.full((*elements.shape[:-1], elements.shape[-1] // block), 127, np.int64))


@pytest.mark.parametrize("name", MODELS)
def test_without_quantisation_the_reference_is_the_interpreter(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_llama(tmp_path, **{**SIZES, **MODELS[name]})
    for module in (contract, experts, latent):
        monkeypatch.setattr(module, "quantise", unquantised)
        monkeypatch.setattr(module, "quantise_weight", lambda w, fmt: (unquantised(w, fmt),))
    checkpoint = Checkpoint.open(path)
    got = contract.run(contract.load_model(path), {}, IDS).logits
    want = interpret(checkpoint.graph, checkpoint, IDS)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3)  # a score is fixed to 2^-16
