"""A NumPy reference of the numerics contract for decoders with grouped attention, from the contract's text alone.

`run` gives the FP32 logits of every position and the intermediate values before they are quantised; `generate`
samples. Biases, q and k norms, sinks and experts (`experts`) are applied where the checkpoint has them. Nothing here is
fast on purpose, only vectorised: a few hundred tokens of a small model take a second.
Dimensions: T tokens, J positions in the cache, H query heads, KV heads, d head size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .arith import (
    BLOCK,
    LOG2_E,
    NAN,
    NAN_F,
    Blocks,
    Partial,
    canonical,
    ceil_fixed,
    contraction,
    exp2fx,
    fix,
    merge,
    pad_last,
    quantise,
    quantise_weight,
    rcp,
    rsqrt,
    tree,
)
from .checkpoint import Model, Profile, default_lanes, load_model
from .exact import F32, I64, reciprocal, rotary_table, score_scale
from .experts import Mixture, feed_forward, gelu_mul, prepare, silu_mul
from .latent import LATENT_EPS, heads_of, joined, score_factor, split_pairs, through_heads
from .sampling import argmax, philox4x32, sample

__all__ = [
    "Model", "Profile", "Result", "State", "argmax", "attention", "generate", "load_model", "philox4x32", "rotary",
    "run", "sample",
]  # fmt: skip

CHUNK = 256
SPAN = {"q_a": "q", "q_b": "q", "kv_a": "k"}  # classes of matrices that are not named by theirs
LINEAR = {"q_a": "self_attn.q_a_proj", "q_b": "self_attn.q_b_proj", "kv_a": "self_attn.kv_a_proj_with_mqa",
          "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
          "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}  # fmt: skip
Window = int | Sequence[int | None] | None


@dataclass(frozen=True)
class Result:
    """logits FP32 [positions, vocab]; trace by the names of the golden files, "NN-name", of all tokens of the run."""

    logits: F32
    trace: dict[str, F32]


@dataclass
class State:
    """The KV cache of a sequence: by layer, K blocks [KV, J, d padded] and V rows [KV, J, d]."""

    length: int = 0
    k: list[Blocks] = field(default_factory=list)
    v: list[Blocks] = field(default_factory=list)

    def append(self, layer: int, k: Blocks, v: Blocks) -> tuple[Blocks, Blocks]:
        """Add new tokens of a layer and return all of it."""
        for store, new in ((self.k, k), (self.v, v)):
            if layer == len(store):
                store.append(new)
            else:
                old = store[layer]
                store[layer] = Blocks(
                    np.concatenate([old.elements, new.elements], 1), np.concatenate([old.scales, new.scales], 1)
                )
        return self.k[layer], self.v[layer]


@dataclass(frozen=True)
class _Weights:
    """Quantised tensors of a model under one profile."""

    embed: F32  # dequantised rows
    head: tuple[Blocks, ...]
    layers: list[dict[str, tuple[Blocks, ...]]]
    mixtures: list[Mixture | None]
    heads: list[dict[str, list[tuple[Blocks, ...]]]]  # of latent attention


def _prepare(model: Model, profile: Profile) -> _Weights:
    """Quantise the weights along their contraction axis; columns of W_o are padded head by head."""
    if profile in model.prepared:
        return model.prepared[profile]  # type: ignore[no-any-return]
    if model.tied and profile.head != profile.embed:
        raise ValueError(f"a tied table has one format: head={profile.head!r}, embed={profile.embed!r}")
    layers = []
    for layer in range(model.layers):
        terms = {}
        for name, key in LINEAR.items():
            if f"model.layers.{layer}.{key}.weight" not in model.tensors:
                continue  # a layer with experts has no dense matrices
            w = model.tensors[f"model.layers.{layer}.{key}.weight"]
            if name == "o":
                heads = pad_last(w.reshape(model.hidden, model.heads, model.value_dim), BLOCK)
                w = heads.reshape(model.hidden, -1).astype(np.float32)
            terms[name] = quantise_weight(w, profile.weights)
        layers.append(terms)
    table = quantise(model.tensors["model.embed_tokens.weight"], profile.embed)
    head = table if model.tied else quantise(model.tensors["lm_head.weight"], profile.head)
    mixtures = [prepare(model, profile, layer) for layer in range(model.layers)]
    rows = table.dequantise()[:, : model.hidden]
    with np.errstate(all="ignore"):
        rows = rows if model.embed_scale is None else rows * model.embed_scale
    heads_ = [heads_of(model, profile, layer) for layer in range(model.layers)] if model.latent else []
    out = _Weights(rows, (head,), layers, mixtures, heads_)
    model.prepared[profile] = out
    return out


# -- rules 5, 6, 7 ---------------------------------------------------------------------------------------------------


def norm_scale(x: F32, eps: np.float32) -> F32:
    """r of rule 6: FP32 [..., 1] of x [..., D]."""
    with np.errstate(all="ignore"):
        mean = tree(x * x) * reciprocal(x.shape[-1])
        return rsqrt(mean + eps)[..., None]


def norm(x: F32, gain: F32, eps: np.float32) -> F32:
    """RNE(RNE(x * r) * g), the norm that is not deferred: FP32 [..., D]."""
    with np.errstate(all="ignore"):
        return (x * norm_scale(x, eps)) * gain


def rotary(x: F32, cosines: F32, sines: F32) -> F32:
    """Rotate pairs (i, i + d/2): x FP32 [heads, T, d], tables FP32 [T, d/2]."""
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    with np.errstate(all="ignore"):
        return np.concatenate([x1 * cosines - x2 * sines, x2 * cosines + x1 * sines], -1)


def attention(
    q: Blocks,
    k: Blocks,
    v: Blocks,
    positions: I64,
    *,
    scale: np.float32,
    p_format: str = "INT8",
    lanes: int = 8,
    window: int | None = None,
    sinks: F32 | None = None,
) -> F32:
    """Rule 7: FP32 [H, T, d], before it is quantised.

    q : blocks of 32 [H, T, d padded]      k : likewise [KV, J, d padded]      v : one scale per row [KV, J, d]
    positions : int64 [T] of the query tokens; K and V are those of positions 0..J-1
    sinks : FP32 [H], or None
    """
    heads, kv_heads = q.elements.shape[0], k.elements.shape[0]
    out = []
    for head in range(heads):
        kv = head * kv_heads // heads
        partial = _attend(q[head], k[kv], v[kv], positions, scale, p_format, lanes, window)
        if sinks is not None:
            partial = merge(partial, _sink(np.float32(sinks[head]), partial))
        with np.errstate(all="ignore"):
            out.append(partial.o * rcp(partial.l)[:, None])
    return np.stack(out)


def _attend(
    q: Blocks, k: Blocks, v: Blocks, positions: I64, scale: np.float32, p_format: str, lanes: int, window: int | None
) -> Partial:
    """The merged partial of one query head: q [T, .], k [J, .], v [J, d]."""
    length, tokens = k.elements.shape[0], positions.size
    slots: list[Partial | None] = [None] * lanes
    for chunk in range(-(-length // CHUNK)):
        at = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        visible = (at <= positions[:, None]) & (at < length)
        if window is not None:
            visible &= positions[:, None] - at < window
        rows = np.flatnonzero(visible.any(1))
        if rows.size == 0:
            continue
        keys = slice(chunk * CHUNK, min((chunk + 1) * CHUNK, length))
        part = _chunk(q[rows], k[keys], v[keys], visible[rows], scale, p_format)
        whole = Partial(
            np.full(tokens, -(1 << 31), np.int64),
            np.zeros(tokens, np.float32),
            np.zeros((tokens, part.o.shape[1]), np.float32),
            np.zeros(tokens, bool),
        )
        whole.m[rows], whole.l[rows], whole.o[rows], whole.full[rows] = part.m, part.l, part.o, True
        slots[chunk % lanes] = _join(slots[chunk % lanes], whole)
    while len(slots) > 1:
        slots = [_join(slots[i], slots[i + 1]) for i in range(0, len(slots), 2)]
    assert slots[0] is not None, "a token sees itself"
    return slots[0]


def _join(a: Partial | None, b: Partial | None) -> Partial | None:
    """Merge, where None is empty for every row."""
    if a is None or b is None:
        return b if a is None else a
    return merge(a, b)


def _chunk(q: Blocks, k: Blocks, v: Blocks, visible: npt.NDArray[np.bool_], scale: np.float32, fmt: str) -> Partial:
    """One chunk of at most 256 positions; every row sees at least one of them."""
    rows, present = visible.shape[0], k.elements.shape[0]
    f = np.zeros((rows, CHUNK), np.int64)
    with np.errstate(all="ignore"):
        f[:, :present] = fix(contraction(q, k) * scale)
    m = ceil_fixed(np.where(visible, f, -(1 << 31)).max(1))
    nan = visible & (f == NAN_F)
    p = exp2fx(f - (m << 16)[:, None])
    p = np.where(visible, np.where(nan, NAN, p), np.float32(0)).astype(np.float32)
    total = tree(p)
    scales = np.full(CHUNK, 127, np.int64)
    scales[:present] = v.scales[:, 0]
    weighted = np.ldexp(p.astype(np.float64), scales - 127)
    weighted = np.where(scales == 255, np.where(visible, np.nan, 0.0), weighted)
    codes = np.zeros((CHUNK, v.elements.shape[1]))
    codes[:present] = v.elements
    columns = Blocks(codes.T, np.full((codes.shape[1], CHUNK // BLOCK), 127, np.int64))
    return Partial(m, total, contraction(quantise(weighted, fmt), columns), np.ones(rows, bool))


def _sink(value: np.float32, like: Partial) -> Partial:
    """The sink of one head as a partial for every row."""
    with np.errstate(all="ignore"):
        f = fix(np.array([value * LOG2_E], np.float32))
    m = ceil_fixed(f)
    l = np.where(f == NAN_F, NAN, exp2fx(f - (m << 16))).astype(np.float32)
    rows = like.m.size
    return Partial(np.repeat(m, rows), np.repeat(l, rows), np.zeros_like(like.o), np.ones(rows, bool))


# -- the model -------------------------------------------------------------------------------------------------------


class _Run:
    """One pass over new tokens: the layer's steps in the contract's order, with a trace beside them."""

    def __init__(self, model: Model, profile: Profile, trace: bool) -> None:
        self.model, self.profile = model, profile
        self.weights = _prepare(model, profile)
        self.spans = dict(profile.spans)
        self.lanes = profile.lanes or default_lanes(model.kv_heads)
        self.tracing, self.trace, self.counts = trace, dict[str, F32](), dict[str, int]()

    def note(self, name: str, value: F32) -> None:
        """Record a value under "NN-name", NN counting the values of that name."""
        if self.tracing:
            count = self.counts[name] = self.counts.get(name, -1) + 1
            self.trace[f"{count:02d}-{name}"] = canonical(value)

    def normed(self, x: F32, key: str, eps: np.float32 | None = None) -> tuple[Blocks, F32 | None]:
        """RMSNorm before a matmul: the quantised operand, and r where it is still to be applied."""
        gain = self.model.gain(f"model.{key}.weight")
        r = norm_scale(x, self.model.eps if eps is None else eps)
        self.note("r", r)
        with np.errstate(all="ignore"):
            value = x * gain if self.profile.deferred_norm else (x * r) * gain
        return quantise(value, self.profile.activations), r if self.profile.deferred_norm else None

    def linear(self, layer: int, name: str, operand: Blocks, r: F32 | None = None) -> F32:
        """Contraction, then r, then the bias: FP32 [T, N]."""
        out = contraction(operand, self.weights.layers[layer][name], self.spans[SPAN.get(name, name)])
        bias = self.model.tensors.get(f"model.layers.{layer}.{LINEAR[name]}.bias")
        with np.errstate(all="ignore"):
            out = out if r is None else out * r
            return out if bias is None else out + bias

    def heads(self, layer: int, name: str, operand: Blocks, r: F32 | None) -> F32:
        """A projection by heads, with its norm where the model has one: FP32 [heads, T, d]."""
        flat = self.linear(layer, name, operand, r)
        x = flat.reshape(flat.shape[0], -1, self.model.head_dim).transpose(1, 0, 2)
        key = f"model.layers.{layer}.self_attn.{name}_norm.weight"
        return norm(x, self.model.gain(key), self.model.eps) if key in self.model.tensors else x

    def branch(self, layer: int, name: str, out: F32) -> F32:
        """What is added to the residual stream: normed by itself in a Gemma, no matmul follows."""
        if not self.model.gemma:
            return out
        return norm(out, self.model.gain(f"model.layers.{layer}.{name}.weight"), self.model.eps)

    def feed_forward(self, layer: int, operand: Blocks, r: F32 | None) -> F32:
        """The part between the second norm and the residual stream."""
        mixture = self.weights.mixtures[layer]
        if mixture is not None:
            return feed_forward(mixture, self.profile, operand, r, self.note)
        activation = gelu_mul if self.model.gemma else silu_mul
        h = activation(self.linear(layer, "gate", operand, r), self.linear(layer, "up", operand, r))
        self.note("h", h)
        return self.linear(layer, "down", quantise(h, self.profile.activations))

    def layer(
        self, layer: int, x: F32, positions: I64, tables: tuple[F32, F32], state: State, window: int | None,
        sinks: F32 | None,
    ) -> F32:  # fmt: skip
        """One decoder layer: x FP32 [T, D] to [T, D]."""
        operand, r = self.normed(x, f"layers.{layer}.input_layernorm")
        if self.model.latent:
            attended = self.latent(layer, operand, r, positions, tables, state)
        else:
            attended = self.grouped(layer, operand, r, positions, tables, state, window, sinks)
        flat = pad_last(attended.transpose(1, 0, 2), BLOCK).reshape(x.shape[0], -1).astype(np.float32)
        self.note("attention", flat)
        with np.errstate(all="ignore"):
            out = self.linear(layer, "o", quantise(flat, self.profile.activations))
            x = x + self.branch(layer, "post_attention_layernorm", out)
            self.note("x", x)
            second = "pre_feedforward_layernorm" if self.model.gemma else "post_attention_layernorm"
            operand, r = self.normed(x, f"layers.{layer}.{second}")
            x = x + self.branch(layer, "post_feedforward_layernorm", self.feed_forward(layer, operand, r))
        self.note("x", x)
        return x

    def latent(
        self, layer: int, operand: Blocks, r: F32 | None, positions: I64, tables: tuple[F32, F32], state: State
    ) -> F32:
        """Latent attention, absorbed: FP32 [H, T, value_dim]."""
        model, fmt, at = self.model, self.profile, f"layers.{layer}.self_attn."
        if fmt.k != fmt.v:
            raise ValueError(f"k={fmt.k!r} and v={fmt.v!r} must be equal: the latent is key and value")
        plain, rank, heads = model.config["qk_nope_head_dim"], model.config["kv_lora_rank"], self.weights.heads[layer]
        if "q_a" in self.weights.layers[layer]:
            low = self.linear(layer, "q_a", operand, r)
            q = self.linear(layer, "q_b", *self.normed(low, at + "q_a_layernorm", LATENT_EPS))
        else:
            q = self.linear(layer, "q", operand, r)
        q = q.reshape(len(q), model.heads, -1).transpose(1, 0, 2)
        kv = self.linear(layer, "kv_a", operand, r)
        latent = norm(kv[:, :rank], model.gain(f"model.{at}kv_a_layernorm.weight"), LATENT_EPS)[None]
        q_turned, k_turned = q[..., plain:], kv[None, :, rank:]
        if model.config.get("rope_interleave", True):
            q_turned, k_turned = split_pairs(q_turned), split_pairs(k_turned)
        q_turned, k_turned = rotary(q_turned, *tables), rotary(k_turned, *tables)
        q_latent = through_heads(q[..., :plain], heads["key"], fmt.activations, self.spans["k"])
        self.note("q", np.concatenate([q_latent, q_turned], -1))
        self.note("k", np.concatenate([latent, k_turned], -1))
        row = quantise(latent, fmt.v, block=rank)
        k_all, v_all = state.append(layer, joined(row, quantise(k_turned, fmt.k)), row)
        (rope,) = model.ropes.values()
        summed = attention(
            joined(quantise(q_latent, fmt.k), quantise(q_turned, fmt.k)), k_all, v_all, positions,
            scale=score_scale(0, score_factor(model, rope)), p_format=fmt.p, lanes=self.lanes,
        )  # fmt: skip
        self.note("latent", summed)
        return through_heads(summed, heads["value"], fmt.activations, self.spans["v"])

    def grouped(
        self, layer: int, operand: Blocks, r: F32 | None, positions: I64, tables: tuple[F32, F32], state: State,
        window: int | None, sinks: F32 | None,
    ) -> F32:  # fmt: skip
        """Grouped attention: FP32 [H, T, d]."""
        q = rotary(self.heads(layer, "q", operand, r), *tables)
        k = rotary(self.heads(layer, "k", operand, r), *tables)
        v = self.heads(layer, "v", operand, r)
        self.note("q", q)
        self.note("k", k)
        self.note("v", v)
        fmt, d = self.profile, self.model.head_dim
        k_all, v_all = state.append(layer, quantise(k, fmt.k), quantise(v, fmt.v, block=d))
        return attention(
            quantise(q, fmt.k), k_all, v_all, positions,
            scale=score_scale(d, self.model.score_scale), p_format=fmt.p, lanes=self.lanes, window=window, sinks=sinks,
        )  # fmt: skip

    def logits(self, x: F32, wanted: slice | I64) -> F32:
        """The last norm and the head of the wanted tokens: FP32 [wanted, vocab]."""
        operand, r = self.normed(x, "norm")
        out = contraction(operand[wanted], self.weights.head, self.spans["head"])
        with np.errstate(all="ignore"):
            return canonical(out if r is None else out * r[wanted])


def run(
    model: Model,
    profile: Profile | dict[str, Any] | str | Path,
    ids: Sequence[int],
    *,
    window: Window = None,
    sinks: npt.ArrayLike | None = None,
    positions: Sequence[int] | None = None,
    trace: bool = False,
    state: State | None = None,
) -> Result:
    """Run token ids through the model.

    window : the model's own, one number for all layers, or one (or None) per layer
    sinks : the model's own, FP32 [H] for all layers, or [layers, H]
    positions : indices into `ids` whose logits are wanted; all by default (the trace is always of all)
    state : a KV cache to continue from and to extend; `ids` then follow its tokens
    """
    record = Profile.of(profile)
    state = State() if state is None else state
    runner = _Run(model, record, trace)
    where = np.arange(state.length, state.length + len(ids))
    tables = {key: rotary_table(where, model.rope_dim, rope) for key, rope in model.ropes.items()}
    x = runner.weights.embed[np.asarray(ids, np.int64)]
    runner.note("x", x)
    sink_table = None if sinks is None else np.broadcast_to(np.asarray(sinks, np.float32), (model.layers, model.heads))
    for layer in range(model.layers):
        own = model.window(layer) if window is None else window
        limit = own if own is None or isinstance(own, int) else own[layer]
        sink = model.tensors.get(f"model.layers.{layer}.self_attn.sinks") if sink_table is None else sink_table[layer]
        x = runner.layer(layer, x, where, tables[model.rope_key(layer)], state, limit, sink)
    state.length += len(ids)
    wanted = slice(None) if positions is None else np.asarray(positions, np.int64)
    return Result(runner.logits(x, wanted), runner.trace)


def generate(
    model: Model,
    profile: Profile | dict[str, Any] | str | Path,
    prompt_ids: Sequence[int],
    n: int,
    *,
    window: Window = None,
    sinks: npt.ArrayLike | None = None,
    **sampling: Any,
) -> list[int]:
    """Make n tokens after the prompt; `sampling` takes temperature, top_k, top_p, seed. No token ends it early."""
    state, out, fresh = State(), list[int](), list(prompt_ids)
    for _ in range(n):
        result = run(model, profile, fresh, window=window, sinks=sinks, positions=[len(fresh) - 1], state=state)
        fresh = [sample(result.logits[0], position=state.length, **sampling)]
        out += fresh
    return out
