"""Mixtures of experts by the numerics contract ("Experts"): router, choice, weights, activations, the sum over slots.

T tokens, E experts, k slots (the experts of a token, best first), D hidden size, I inner size of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .arith import (
    LOG2_E,
    NAN,
    NAN_F,
    Blocks,
    ceil_fixed,
    contraction,
    exp2fx,
    fix,
    quantise,
    quantise_weight,
    rcp,
    sigmoid,
    silu,
    tree,
)
from .checkpoint import Model, Profile
from .exact import F32, I64, gelu_constants, round_fp32_of

Terms = tuple[Blocks, ...]
ROLES = ("gate", "up", "down")


@dataclass(frozen=True)
class Router:
    """How experts are chosen. score : "softmax", "softmax_all" or "sigmoid"; the rest but top_k goes with sigmoid."""

    top_k: int
    score: str
    normalise: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True)
class Mixture:
    """A layer's mixture: the router's matrix, bias [E] and correction [E], and the experts' matrices and biases."""

    router: Router
    matrix: Terms
    bias: F32 | None
    correction: F32 | None
    experts: list[dict[str, Terms]]
    biases: list[dict[str, F32]]
    activation: Callable[[F32, F32], F32]
    shared: dict[str, Terms] = field(default_factory=dict)


# -- activations -----------------------------------------------------------------------------------------------------


def silu_mul(gate: F32, up: F32) -> F32:
    """RNE(silu(gate) * up)."""
    with np.errstate(all="ignore"):
        return silu(gate) * up


def gelu_mul(gate: F32, up: F32) -> F32:
    """RNE(gelu_tanh(gate) * up), gelu_tanh(x) = RNE(x * sigmoid(u)), u = RNE(x * RNE(RNE(RNE(x * x) * c3) + c1))."""
    c1, c3 = gelu_constants()
    with np.errstate(all="ignore"):
        return (gate * sigmoid(gate * (gate * gate * c3 + c1))) * up


def swiglu_clamped(alpha: float, limit: float) -> Callable[[F32, F32], F32]:
    """RNE(RNE(u + 1) * RNE(g * s)) of the clamped g and u, s = sigmoid(RNE(g * RNE(alpha)))."""
    top, gain = np.float32(limit), np.float32(alpha)

    def function(gate: F32, up: F32) -> F32:
        with np.errstate(all="ignore"):
            g, u = np.minimum(gate, top), np.maximum(np.minimum(up, top), -top)
            out: F32 = (u + np.float32(1)) * (g * sigmoid(g * gain))
            return out

    return function


# -- choice and weights ------------------------------------------------------------------------------------------------


def best(values: F32, count: int) -> I64:
    """Rule 8 along the last axis: indices of the largest values, best first; NaN last, the lower index among equals."""
    flat = values.reshape(-1, values.shape[-1])
    rows = [sorted(range(flat.shape[1]), key=lambda i: (np.isnan(row[i]), -row[i], i))[:count] for row in flat]
    return np.array(rows, np.int64).reshape(*values.shape[:-1], count)


def softmax_parts(logits: F32) -> F32:
    """p along the last axis: exp2fx(F - M * 2^16) relative to the integer maximum M."""
    with np.errstate(all="ignore"):
        f = fix(logits * LOG2_E)
    m = ceil_fixed(f.max(-1, keepdims=True))
    return np.where(f == NAN_F, NAN, exp2fx(f - (m << 16))).astype(np.float32)


def route(router: Router, logits: F32, correction: F32 | None) -> tuple[I64, F32]:
    """Chosen experts int64 [T, k] and their weights FP32 [T, k], from the router's logits [T, E]."""
    with np.errstate(all="ignore"):
        if router.score != "sigmoid":
            chosen = best(logits, router.top_k)
            if router.score == "softmax":
                p = taken = softmax_parts(np.take_along_axis(logits, chosen, -1))
            else:
                p = softmax_parts(logits)
                taken = np.take_along_axis(p, chosen, -1)
            weights = taken * rcp(tree(p))[:, None]
        else:
            g = sigmoid(logits)
            value = g if correction is None else g + correction
            if router.groups > 1:
                value = _best_groups(value, router)
            chosen = best(value, router.top_k)
            weights = np.take_along_axis(g, chosen, -1)
            if router.normalise:
                weights = weights * rcp(tree(weights) + np.float32(1e-20))[:, None]
        if router.scale != 1:
            weights = weights * round_fp32_of(router.scale)
    return chosen, weights.astype(np.float32)


def _best_groups(value: F32, router: Router) -> F32:
    """The choice values with those of all but the best groups at -inf."""
    parts = value.reshape(len(value), router.groups, -1)
    two = np.take_along_axis(parts, best(parts, 2), -1)
    stay = best((two[..., 0] + two[..., 1]).astype(np.float32), router.top_groups)
    mask = np.zeros(parts.shape[:2], bool)
    np.put_along_axis(mask, stay, True, -1)
    return np.where(mask[..., None], parts, np.float32(-np.inf)).astype(np.float32).reshape(value.shape)


# -- a layer -----------------------------------------------------------------------------------------------------------

Note = Callable[[str, F32], None]


def feed_forward(mixture: Mixture, profile: Profile, operand: Blocks, r: F32 | None, note: Note) -> F32:
    """What a mixture adds to the residual stream, FP32 [T, D], from the quantised operand of the second norm and r."""
    spans = dict(profile.spans)

    def project(terms: Terms, span: str, rows: Blocks, scale: F32 | None, bias: F32 | None) -> F32:
        out = contraction(rows, terms, spans[span])
        with np.errstate(all="ignore"):
            out = out if scale is None else out * scale
            return out if bias is None else out + bias

    logits = project(mixture.matrix, "router", operand, r, mixture.bias)
    note("router", logits)
    chosen, weights = route(mixture.router, logits, mixture.correction)
    note("choice", chosen.astype(np.float32))
    note("route", weights)
    tokens, slots = chosen.shape
    inner = mixture.experts[0]["gate"][0].elements.shape[0]
    h = np.zeros((slots, tokens, inner), np.float32)
    y = np.zeros((tokens, mixture.experts[0]["down"][0].elements.shape[0], slots), np.float32)
    for expert in np.unique(chosen):
        terms, biases = mixture.experts[expert], mixture.biases[expert]
        at, slot = np.nonzero(chosen == expert)
        scale = None if r is None else r[at]
        gate, up = (project(terms[n], f"expert_{n}", operand[at], scale, biases.get(n)) for n in ("gate", "up"))
        h[slot, at] = mixture.activation(gate, up)
        rows = quantise(h[slot, at], profile.activations)
        out = project(terms["down"], "expert_down", rows, None, biases.get("down"))
        with np.errstate(all="ignore"):
            y[at, :, slot] = weights[at, slot][:, None] * out
    note("h", h)
    with np.errstate(all="ignore"):
        total = tree(y)
        if mixture.shared:
            gate, up = (project(mixture.shared[n], n, operand, r, None) for n in ("gate", "up"))
            shared = silu_mul(gate, up)
            note("h", shared)
            total = total + project(mixture.shared["down"], "down", quantise(shared, profile.activations), None, None)
    note("y", total)
    return total


def prepare(model: Model, profile: Profile, layer: int) -> Mixture | None:
    """The mixture of a layer, quantised by a profile; None where the layer is dense."""
    kind, config, at = model.config["model_type"], model.config, f"model.layers.{layer}."
    activation: Callable[[F32, F32], F32] = silu_mul
    names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    prefix, key = at + "mlp.experts.", at + "mlp.gate"
    if kind == "mixtral":
        router = Router(config["num_experts_per_tok"], "softmax")
        prefix, key, names = at + "block_sparse_moe.experts.", at + "block_sparse_moe.gate", ("w1", "w3", "w2")
    elif kind == "qwen3_moe":
        router = Router(config["num_experts_per_tok"], "softmax" if config.get("norm_topk_prob") else "softmax_all")
    elif kind == "gpt_oss":
        router = Router(config["num_experts_per_tok"], "softmax")
        key = at + "mlp.router"
        activation = swiglu_clamped(config.get("swiglu_alpha", 1.702), config.get("swiglu_limit", 7.0))
    elif kind == "deepseek_v3":
        router = Router(
            config["num_experts_per_tok"], "sigmoid", config.get("norm_topk_prob", True),
            config.get("routed_scaling_factor", 2.5), config.get("n_group", 8), config.get("topk_group", 4),
        )  # fmt: skip
    else:
        return None
    if key + ".weight" not in model.tensors:
        return None
    matrix = model.tensors[key + ".weight"]
    fmt = profile.experts_format
    experts, biases = [], []
    for expert in range(len(matrix)):
        if kind == "gpt_oss":
            terms, bias = _gpt_oss(model, prefix, expert, fmt)
        else:
            keys = (f"{prefix}{expert}.{name}.weight" for name in names)
            terms = {role: quantise_weight(model.tensors[k], fmt) for role, k in zip(ROLES, keys, strict=True)}
            bias = {}
        experts.append(terms)
        biases.append(bias)
    shared = {}
    if at + "mlp.shared_experts.gate_proj.weight" in model.tensors:
        for role in ROLES:
            w = model.tensors[f"{at}mlp.shared_experts.{role}_proj.weight"]
            shared[role] = quantise_weight(w, profile.weights)
    return Mixture(
        router, quantise_weight(matrix, profile.router_format), model.tensors.get(key + ".bias"),
        model.tensors.get(key + ".e_score_correction_bias"), experts, biases, activation, shared,
    )  # fmt: skip


def _gpt_oss(model: Model, prefix: str, expert: int, fmt: str) -> tuple[dict[str, Terms], dict[str, F32]]:
    """Matrices and biases of an expert of gpt-oss. MXFP4 blocks are taken code for code where the format is E2M1."""
    terms, biases = {}, {}
    for role, stack, rows in (
        ("gate", "gate_up_proj", slice(0, None, 2)),
        ("up", "gate_up_proj", slice(1, None, 2)),
        ("down", "down_proj", slice(None)),
    ):
        biases[role] = model.tensors[f"{prefix}{stack}_bias"][expert, rows]
        if prefix + stack in model.tensors:  # [K, N]
            terms[role] = quantise_weight(np.ascontiguousarray(model.tensors[prefix + stack][expert].T[rows]), fmt)
            continue
        packed, scales = (model.codes[f"{prefix}{stack}_{part}"][expert, rows] for part in ("blocks", "scales"))
        blocks = mxfp4(packed, scales)
        terms[role] = (blocks,) if fmt == "E2M1" else quantise_weight(blocks.dequantise(), fmt)
    return terms, biases


def mxfp4(packed: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> Blocks:
    """Blocks of stored MXFP4: packed [N, K / 32, 16], the even index in the low nibble, scales [N, K / 32] E8M0."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    return Blocks(magnitudes[codes & 7] * np.where(codes & 8, -1.0, 1.0) + 0.0, scales.astype(np.int64))
