"""A PyTorch emulation of the contract's quantisation: the same formats and blocks, ordinary floating point between.

It is not bit-exact and not meant to be. It has two uses. Operator by operator, on identical float64 inputs, each
function is within `*_bound` of what the chip computes: the bound counts the chip's FP32 roundings, and the
emulation's own error in float64 is nothing beside it. Whole models: `EmulatedLlama.perplexity` in float32, batched.
With profile None nothing is quantised and the model is an ordinary Llama.
Dimensions: B batch, T tokens, J positions in the cache, H query heads, KV heads, d head size, K contraction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from .checkpoint import Profile, load_model
from .exact import rotary_table

U = 2.0**-24  # relative error of one FP32 rounding (RNE)
UNDERFLOW = 2.0**-150  # and its absolute error below the normal range
TABLE = 2.0**-24 + 2.0**-27  # relative error of exp2fx on its fixed-point argument: T's rounding, T1 and T2's
FIX = 2.0**-17  # absolute error of fix, in powers of two
CHUNK = 256
Windows = Tensor | npt.NDArray[np.integer[Any]] | Sequence[Sequence[int]]
EMAX = {"E2M1": 2, "E4M3": 8, "INT8": 0}
LARGEST = {"E2M1": 6.0, "E4M3": 448.0}
LOWEST, MANTISSA = {"E2M1": 0, "E4M3": -6}, {"E2M1": 1, "E4M3": 3}


# -- quantisation ----------------------------------------------------------------------------------------------------


def _floor_log2(x: Tensor) -> Tensor:
    """floor(log2 |x|) from the exponent bits; subnormals and 0 read as one below the normal range."""
    if x.dtype == torch.float64:
        return ((x.view(torch.int64) >> 52) & 0x7FF) - 1023
    return ((x.view(torch.int32) >> 23) & 0xFF) - 127


def _power2(e: Tensor, dtype: torch.dtype) -> Tensor:
    """2^e, exactly, for exponents of normal numbers of the dtype."""
    if dtype == torch.float64:
        return ((e.to(torch.int64) + 1023) << 52).view(torch.float64)
    return ((e.to(torch.int32) + 127) << 23).view(torch.float32)


def scale_exponent(x: Tensor, fmt: str) -> Tensor:
    """Exponent of the E8M0 scale of blocks that fill the last axis: [...] of x [..., block].

    In float32 it stays within -126..126, so that 2^e and 2^-e are normal: a difference below 2^-118 only.
    """
    limit = 127 if x.dtype == torch.float64 else 126
    return (_floor_log2(x.abs().amax(-1)) - EMAX[fmt]).clamp(-limit, limit)


def round_to(x: Tensor, e: Tensor, fmt: str) -> Tensor:
    """x [..., block] to the nearest (ties to even, saturating) element times 2^e, e [...]; dequantised."""
    down, up = _power2(-e, x.dtype).unsqueeze(-1), _power2(e, x.dtype).unsqueeze(-1)
    if fmt == "INT8":
        return (x * down).mul_(64).round_().clamp_(-127, 127).mul_(1 / 64).mul_(up)
    y = x * down
    step = _power2(_floor_log2(y).clamp_(min=LOWEST[fmt]) - MANTISSA[fmt], x.dtype)
    return y.div_(step).round_().mul_(step).clamp_(-LARGEST[fmt], LARGEST[fmt]).mul_(up)


def _blocks(x: Tensor, block: int) -> Tensor:
    """[..., K] to [..., blocks, block], padded with zeros."""
    extra = -x.shape[-1] % block
    x = functional.pad(x, (0, extra)) if extra else x
    return x.reshape(*x.shape[:-1], -1, block)


def quantise(x: Tensor, fmt: str | None, block: int = 32) -> Tensor:
    """Quantise along the last axis and dequantise: x [..., K] to [..., K]; None leaves x as it is.

    Chip: no FP32 rounding. In float64 the result is the chip's exactly (but for the one rounding of a value that
    FP32 cannot hold). "INT8x2" is the sum of its two terms.
    """
    if fmt is None:
        return x
    if fmt == "INT8x2":
        first = quantise(x, "INT8", block)
        rest = (x - first).float().to(x.dtype)
        return first + quantise(rest, "INT8", block)
    parts = _blocks(x, block)
    out = round_to(parts, scale_exponent(parts, fmt), fmt)
    return out.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


# -- operators and their bounds ----------------------------------------------------------------------------------------


def gamma(roundings: float) -> float:
    """Relative error of a chain of FP32 roundings: (1 + 2^-24)^n - 1."""
    return math.expm1(roundings * math.log1p(U))


def bound(magnitude: Tensor, roundings: float) -> Tensor:
    """Largest difference after `roundings` FP32 roundings in a chain of values that sum to `magnitude` in absolute."""
    return magnitude.double().abs() * gamma(roundings) + roundings * UNDERFLOW


def linear(x: Tensor, w: Tensor, fmt_a: str | None = None, fmt_w: str | None = None) -> Tensor:
    """x [..., K] times w [N, K]: [..., N], both quantised in blocks of 32 along K.

    Chip: `linear_roundings`: one per block sum, one per add in a span (the first, to +0, is exact), the tree of spans.
    """
    return quantise(x, fmt_a) @ quantise(w, fmt_w).T


def linear_roundings(k: int, spans: int = 1, terms: int = 1) -> int:
    """Longest chain of FP32 roundings of a contraction over k; `terms` is 2 for INT8x2."""
    run = math.ceil(math.ceil(k / 32) / spans) * terms
    return run + math.ceil(math.log2(spans))


def linear_bound(x: Tensor, w: Tensor, fmt_a: str, fmt_w: str, spans: int = 1) -> Tensor:
    """Bound of `linear` [..., N]: the roundings of the longest chain over the sum of absolute products."""
    terms = 2 if fmt_w == "INT8x2" else 1
    magnitude = quantise(x, fmt_a).double().abs() @ quantise(w, fmt_w).double().abs().T
    if terms == 2:  # the two terms may have opposite signs: |W1| + |W2| <= |W| + 2 |W2|, and |W2| < 2^-6 * its block
        parts = _blocks(w.double(), 32)
        largest = parts.abs().amax(-1, keepdim=True).expand_as(parts).reshape(w.shape[0], -1)[:, : w.shape[1]]
        magnitude = magnitude + quantise(x, fmt_a).double().abs() @ (largest / 32).T
    return bound(magnitude, linear_roundings(x.shape[-1], spans, terms))


def rmsnorm_scale(x: Tensor, eps: float) -> Tensor:
    """r [..., 1] of x [..., D]. Chip: `norm_scale_roundings` under the root count half, the root itself one."""
    return (x.square().mean(-1, keepdim=True) + float(np.float32(eps))).rsqrt()


def _scale_roundings(width: int) -> float:
    # square 1, tree, the constant 1/D and its product 2, eps 1, under a root; then the root
    return (1 + math.ceil(math.log2(width)) + 2 + 1) / 2 + 1


def rmsnorm_scale_bound(x: Tensor, eps: float) -> Tensor:
    """Bound of `rmsnorm_scale`: all its terms are positive, so the error is relative."""
    return bound(rmsnorm_scale(x.double(), eps), _scale_roundings(x.shape[-1]))


def rmsnorm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x * r * gain: [..., D]. Chip, not deferred: the roundings of r and two more."""
    return x * rmsnorm_scale(x, eps) * gain


def rmsnorm_bound(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Bound of `rmsnorm`."""
    return bound(rmsnorm(x.double(), gain.double(), eps), _scale_roundings(x.shape[-1]) + 2)


def rotary(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate pairs (i, i + d/2): x [..., T, d], the chip's own tables [T, d/2]. Chip: two roundings, product, sum."""
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * cosines - x2 * sines, x2 * cosines + x1 * sines], -1)


def rotary_bound(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Bound of `rotary`, over the sum of both absolute products."""
    x1, x2 = x.double().abs().chunk(2, -1)
    c, s = cosines.double().abs(), sines.double().abs()
    return bound(torch.cat([x1 * c + x2 * s, x2 * c + x1 * s], -1), 2)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Chip: exp (see `_exp_error`), then add, reciprocal and two products: four roundings."""
    return functional.silu(gate) * up


def _exp_error(log2_magnitude: Tensor) -> Tensor:
    """Relative error of the chip's exp where |y * log2 e| is given: constant, product, fix and table."""
    return torch.expm1(math.log(2) * (log2_magnitude * gamma(2) + FIX)) + TABLE


def swiglu_bound(gate: Tensor, up: Tensor) -> Tensor:
    """Bound of `swiglu`: an error of exp(-x) enters sigmoid by the factor 1 - sigmoid(x).

    Below x = -88.7 exp(-x) overflows and the chip has 0 where the truth is less than |x * up| * 2^-127.
    """
    g, u = gate.double(), up.double()
    error = _exp_error(g.abs() * math.log2(math.e)) * (1 - torch.sigmoid(g))
    value = (functional.silu(g) * u).abs()
    return value * error * (1 + 2.0**-10) + bound(value, 4) + (g * u).abs() * 2.0**-127


def _visible(tokens: int, length: int, window: int | None) -> Tensor:
    """Whether each of the last `tokens` positions sees position j: bool [T, J]."""
    i, j = torch.arange(length - tokens, length)[:, None], torch.arange(length)
    seen = j <= i
    return seen if window is None else seen & (i - j < window)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, fmt_k: str | None, fmt_v: str | None, window: int | None, sinks: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What attention and its bound share: quantised q and k, p [B, H, T, J], the sink's p, codes of V, exponents of V.

    p is relative to the integer maximum of its row: the chip takes that of a chunk, another power of two, which
    changes no quantised value.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    reads = torch.tensor([h * kv_heads // heads for h in range(heads)])
    q, k, v = quantise(q, fmt_k), quantise(k, fmt_k)[:, reads], v[:, reads]
    scale = math.log2(math.e) / math.sqrt(q.shape[-1])
    s = (q @ k.mT).mul_(scale).masked_fill_(~_visible(q.shape[2], k.shape[2], window), -torch.inf)
    m = s.amax(-1, keepdim=True)
    if sinks is not None:
        sink = (sinks.to(s.dtype) * math.log2(math.e)).reshape(1, -1, 1, 1)
        m = torch.maximum(m, sink)
    m = m.ceil_()
    if fmt_v is not None:
        s.mul_(65536).round_().div_(65536)  # fix
    p = s.sub_(m).exp2_()
    sunk = torch.zeros_like(m) if sinks is None else (sink - m).exp2()
    if fmt_v is None:
        return q, k, p, sunk, v, torch.zeros(v.shape[:-1], dtype=torch.int64)
    e = scale_exponent(v, fmt_v)
    return q, k, p, sunk, round_to(v, e, fmt_v) * _power2(-e, v.dtype).unsqueeze(-1), e


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    fmt_k: str | None = None,
    fmt_v: str | None = None,
    fmt_p: str | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Causal softmax attention: q [B, H, T, d], k and v [B, KV, J, d], the queries the last T of J: [B, H, T, d].

    V has one scale per row, which goes into P before P is quantised in blocks of 32 positions; the sum of p is of
    p as it is. Chip: see `attention_bound`. sinks : [H]
    """
    _, _, p, sunk, codes, e = _attend(q, k, v, fmt_k, fmt_v, window, sinks)
    total = p.sum(-1, keepdim=True) + sunk
    weighted = quantise(p * _power2(e, p.dtype).unsqueeze(-2), fmt_p)
    return (weighted @ codes) / total


def attention_bound(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    fmt_k: str,
    fmt_v: str,
    fmt_p: str,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Bound of `attention` in float64: [B, H, T, d].

    The score has the roundings of its contraction, of the constant and of the product; these may move `fix`, which
    the emulation does too, to a neighbour; exp2fx adds its table. So each p lies in an interval, and the chip's code
    of it between the codes of the ends, under the block scale of either end: where both agree nothing is lost, else
    one step of the format. Then 8 roundings per chunk (block sums and adds; the tree of p likewise), one per merge,
    and two for the reciprocal and the product.
    """
    q, k, v = q.double(), k.double(), v.double()
    qq, kk, p, sunk, codes, e = _attend(q, k, v, fmt_k, fmt_v, window, sinks)
    scale = math.log2(math.e) / math.sqrt(q.shape[-1])
    magnitude = (qq.abs() @ kk.abs().mT) * scale
    error = torch.expm1(math.log(2) * (magnitude * gamma(linear_roundings(q.shape[-1]) + 2) + 2 * FIX)) + TABLE
    weighted = p * _power2(e, p.dtype).unsqueeze(-2)
    low, high = _blocks(weighted * (1 - error), 32), _blocks(weighted * (1 + error), 32)
    at_low, at_high = scale_exponent(low, fmt_p), scale_exponent(high, fmt_p)
    least = torch.minimum(round_to(low, at_low, fmt_p), round_to(low, at_high, fmt_p))
    most = torch.maximum(round_to(high, at_low, fmt_p), round_to(high, at_high, fmt_p))
    middle = round_to(_blocks(weighted, 32), scale_exponent(_blocks(weighted, 32), fmt_p), fmt_p)
    columns = p.shape[-1]
    flips = torch.maximum(most - middle, middle - least).flatten(-2)[..., :columns]
    merges = math.ceil(columns / CHUNK) + 1
    out = middle.flatten(-2)[..., :columns] @ codes
    out_error = flips @ codes.abs() + bound(most.flatten(-2)[..., :columns] @ codes.abs(), 8 + merges)
    total = p.sum(-1, keepdim=True) + sunk
    sink_error = sunk * _exp_error(sinks.double().abs().reshape(1, -1, 1, 1) * 2) if sinks is not None else 0.0
    total_error = (p * error).sum(-1, keepdim=True) + sink_error + bound(total * (1 + 2.0**-10), 8 + merges)
    ratio = (out / total).abs()
    return ((out_error + ratio * total_error) / (total - total_error) + bound(ratio, 2)) * (1 + 2.0**-10)


# -- whole models ------------------------------------------------------------------------------------------------------


class EmulatedLlama:
    """A Llama checkpoint under a numerics profile, or plain with None. Biases and q and k norms where it has them."""

    def __init__(
        self,
        path: str | Path,
        profile: Profile | dict[str, Any] | str | Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = load_model(path)
        self.profile = None if profile is None else Profile.of(profile)
        self.dtype = dtype
        self.tensors = {name: torch.from_numpy(value.copy()).to(dtype) for name, value in self.model.tensors.items()}
        head = self.tensors.get("lm_head.weight")
        if self.model.tied or head is None:
            head = self.tensors["model.embed_tokens.weight"]
        self.head = quantise(head, self._format("head"))
        self.embed = quantise(self.tensors["model.embed_tokens.weight"], self._format("embed"))
        for name, value in self.tensors.items():
            if name.endswith("_proj.weight"):
                self.tensors[name] = self._quantise_projection(name, value)
        self._tables: tuple[Tensor, Tensor] | None = None

    def _format(self, operand: str) -> str | None:
        """The profile's format of an operand; None in a plain model."""
        return None if self.profile is None else str(getattr(self.profile, operand))

    def _quantise_projection(self, name: str, w: Tensor) -> Tensor:
        """Blocks along the contraction; those of the output projection never hold two heads."""
        fmt = self._format("weights")
        if "o_proj" in name:
            return quantise(w.reshape(w.shape[0], self.model.heads, -1), fmt).flatten(1)
        return quantise(w, fmt)

    def _rotary_tables(self, length: int) -> tuple[Tensor, Tensor]:
        """The correctly rounded tables of the first positions: 2 x [T, d/2]."""
        if self._tables is None or self._tables[0].shape[0] < length:
            cosines, sines = rotary_table(np.arange(length), self.model.head_dim, self.model.rope)
            self._tables = torch.from_numpy(cosines).to(self.dtype), torch.from_numpy(sines).to(self.dtype)
        return self._tables[0][:length], self._tables[1][:length]

    def _normed(self, x: Tensor, key: str) -> tuple[Tensor, Tensor | float]:
        """The quantised operand after a norm, and what the products are still to be multiplied by."""
        gain, eps = self.tensors[f"model.{key}.weight"], float(self.model.eps)
        if self.profile is None or not self.profile.deferred_norm:
            return quantise(rmsnorm(x, gain, eps), self._format("activations")), 1.0
        return quantise(x * gain, self._format("activations")), rmsnorm_scale(x, eps)

    def _project(self, operand: Tensor, key: str, r: Tensor | float = 1.0) -> Tensor:
        """operand [B, T, K] times a weight that is quantised already, times r, plus the bias."""
        out = (operand @ self.tensors[f"model.{key}.weight"].T) * r
        bias = self.tensors.get(f"model.{key}.bias")
        return out if bias is None else out + bias

    def _heads(self, operand: Tensor, key: str, r: Tensor | float, norm: str) -> Tensor:
        """A projection by heads, with its norm where the model has one: [B, heads, T, d]."""
        flat = self._project(operand, key, r)
        x = flat.reshape(*flat.shape[:2], -1, self.model.head_dim).transpose(1, 2)
        gain = self.tensors.get(f"model.{norm}.weight")
        return x if gain is None else rmsnorm(x, gain, float(self.model.eps))

    def _layer(self, layer: int, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """One decoder layer: x [B, T, D]."""
        at = f"layers.{layer}."
        activations = self._format("activations")
        operand, r = self._normed(x, at + "input_layernorm")
        q = rotary(self._heads(operand, at + "self_attn.q_proj", r, at + "self_attn.q_norm"), *tables)
        k = rotary(self._heads(operand, at + "self_attn.k_proj", r, at + "self_attn.k_norm"), *tables)
        v = self._heads(operand, at + "self_attn.v_proj", r, "")
        out = attention(q, k, v, fmt_k=self._format("k"), fmt_v=self._format("v"), fmt_p=self._format("p"))
        flat = quantise(out.transpose(1, 2), activations).flatten(-2)
        x = x + self._project(flat, at + "self_attn.o_proj")
        operand, r = self._normed(x, at + "post_attention_layernorm")
        h = swiglu(self._project(operand, at + "mlp.gate_proj", r), self._project(operand, at + "mlp.up_proj", r))
        return x + self._project(quantise(h, activations), at + "mlp.down_proj")

    @torch.inference_mode()
    def logits(self, ids: Windows) -> Tensor:
        """Logits [B, T, vocab] of windows that each start at position 0: ids [B, T]."""
        ids = torch.as_tensor(ids)
        tables = self._rotary_tables(ids.shape[1])
        x = self.embed[ids]
        for layer in range(self.model.layers):
            x = self._layer(layer, x, tables)
        operand, r = self._normed(x, "norm")
        return (operand @ self.head.T) * r

    @torch.inference_mode()
    def losses(self, token_windows: Windows, batch: int = 4) -> Tensor:
        """Negative log likelihood (nats) of every token of a window but its first: float64 [N, T - 1]."""
        windows = torch.as_tensor(token_windows)
        out = []
        for start in range(0, len(windows), batch):
            part = windows[start : start + batch]
            logits = self.logits(part)[:, :-1].double()
            out.append(functional.cross_entropy(logits.transpose(1, 2), part[:, 1:], reduction="none"))
        return torch.cat(out)

    def perplexity(self, token_windows: Windows, batch: int = 4) -> float:
        """exp of the mean loss over windows [N, T], `batch` of them at a time."""
        return math.exp(float(self.losses(token_windows, batch).mean()))
