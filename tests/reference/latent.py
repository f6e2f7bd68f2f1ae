"""Multi-head latent attention by the numerics contract ("MLA"), in its absorbed form.

T tokens, H heads, R latent rank, t turned size, n plain size, d value size. A cached row is the latent, which has one
scale and serves as key and as value, and the turned row, in blocks of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from .arith import BLOCK, Blocks, contraction, pad_last, quantise, quantise_weight
from .checkpoint import Model, Profile
from .exact import CONTEXT, F32, yarn_mscale

Terms = tuple[Blocks, ...]
LATENT_EPS = np.float32(1e-6)


def heads_of(model: Model, profile: Profile, layer: int) -> dict[str, list[Terms]]:
    """The matrices of each head: "key" [R, n], contracted over n, and "value" [d, R], contracted over R."""
    plain, value = model.config["qk_nope_head_dim"], model.config["v_head_dim"]
    w = model.tensors[f"model.layers.{layer}.self_attn.kv_b_proj.weight"]
    parts = w.reshape(model.heads, plain + value, -1)
    return {
        "key": [quantise_weight(np.ascontiguousarray(part[:plain].T), profile.weights) for part in parts],
        "value": [quantise_weight(part[plain:], profile.weights) for part in parts],
    }


def through_heads(x: F32, matrices: Sequence[Terms], fmt: str, spans: int) -> F32:
    """Each head times its matrix: x FP32 [H, T, K] to [H, T, N]."""
    return np.stack([contraction(quantise(rows, fmt), w, spans) for rows, w in zip(x, matrices, strict=True)])


def split_pairs(x: F32) -> F32:
    """Columns 0, 2, 4, ... and then 1, 3, 5, ...: pairs (2i, 2i + 1) become pairs (i, i + half)."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def joined(latent: Blocks, turned: Blocks) -> Blocks:
    """Latent and turned part as one operand in blocks of 32; a scale of a whole row stands at each of its blocks."""
    elements = pad_last(latent.elements, BLOCK)
    blocks = elements.shape[-1] // BLOCK
    scales = latent.scales
    if scales.shape[-1] == 1:
        scales = np.repeat(scales, blocks, -1)
    return Blocks(
        np.concatenate([elements, turned.elements], -1), np.concatenate([scales, turned.scales], -1)
    )  # fmt: skip


def score_factor(model: Model, rope: dict[str, Any]) -> float:
    """What multiplies the scores, binary64: 1 / sqrt(n + t), times the square of YaRN's factor if the model has one."""
    size = model.config["qk_nope_head_dim"] + model.config["qk_rope_head_dim"]
    mscale = yarn_mscale(rope.get("factor"), rope.get("mscale_all_dim"))
    return float(CONTEXT.divide(CONTEXT.multiply(mscale, mscale), CONTEXT.sqrt(Decimal(size))))
