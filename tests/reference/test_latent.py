"""The reference of latent attention: what the absorbed form rests on, and properties of the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import contract
from .arith import contraction, quantise
from .exact import rotary_table
from .latent import joined, score_factor, split_pairs
from .make_model import make_llama

MODEL: dict[str, Any] = {
    "family": "deepseek_v3", "hidden": 64, "heads": 3, "head_dim": 16, "intermediate": 64, "vocab": 130, "layers": 2,
    "experts": 9, "top_k": 3, "tied": False,
}  # fmt: skip
E4M3 = dict.fromkeys(("weights", "activations", "k", "v", "p", "head", "embed"), "E4M3")
IDS = [(7 * i * i + i) % 130 for i in range(300)]


def bits(x: Any) -> Any:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def test_a_row_with_one_scale_is_an_operand_in_blocks_of_that_scale() -> None:
    generator = np.random.default_rng(1)
    latent, turned = (generator.normal(0, 1, (5, size)).astype(np.float32) for size in (40, 16))
    row, blocks = quantise(latent, "INT8", block=40), quantise(turned, "INT8")
    both = joined(row, blocks)
    assert both.scales.shape == (5, 3)
    assert (both.scales[:, :2] == row.scales).all()
    query = quantise(generator.normal(0, 1, (4, 96)).astype(np.float32), "INT8")
    want = query.values[:, :40] @ row.values.T + query.values[:, 64:80] @ blocks.values[:, :16].T
    np.testing.assert_allclose(contraction(query, both), want, rtol=1e-5, atol=1e-5)


def test_turning_pairs_that_lie_side_by_side() -> None:
    x = np.random.default_rng(2).normal(0, 1, (1, 7, 8)).astype(np.float32)
    tables = rotary_table(np.arange(7), 8, {"rope_theta": 1e4})
    got = contract.rotary(split_pairs(x), *tables)[0]
    complex_rows = (x[0, :, 0::2] + 1j * x[0, :, 1::2]) * (tables[0] + 1j * tables[1])
    np.testing.assert_allclose(got, np.concatenate([complex_rows.real, complex_rows.imag], -1), atol=1e-6)


def test_the_factor_of_the_scores() -> None:
    sizes = contract.Model({"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}, {})
    got = score_factor(sizes, {"factor": 40, "mscale_all_dim": 1.0})
    assert got == pytest.approx(192**-0.5 * (0.1 * np.log(40) + 1) ** 2, rel=1e-15)
    assert score_factor(sizes, {}) == pytest.approx(192**-0.5, rel=1e-15)


def test_pieces_give_the_bits_of_the_whole(tmp_path: Path) -> None:
    """Two chunks of attention; the latent of a whole row is its key and its value, so k and v have one format."""
    model = contract.load_model(make_llama(tmp_path, **MODEL))
    seen = set()
    for profile in ({}, {"lanes": 2, "deferred_norm": False, "spans": {"k": 2, "v": 2}}, E4M3):
        whole = contract.run(model, profile, IDS, trace=True)
        assert whole.trace["00-q"].shape == (3, 300, 56)
        assert whole.trace["00-k"].shape == (1, 300, 56)
        assert whole.trace["00-latent"].shape == (3, 300, 40)
        state = contract.State()
        for low, high in [(0, 1), (1, 250), (250, 299), (299, 300)]:
            part = contract.run(model, profile, IDS[low:high], state=state)
            assert np.array_equal(bits(part.logits), bits(whole.logits[low:high]))
        seen.add(whole.logits.tobytes())
    assert len(seen) == 3
    with pytest.raises(ValueError, match=r"^k='INT8' and v='E2M1' must be equal: the latent is key and value$"):
        contract.run(model, {"v": "E2M1", "p": "E4M3"}, IDS[:3])
