"""Each operator of the chip against PyTorch, fed the chip's own intermediates, within the bound of its roundings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from reference.exact import rotary_table

from systolith.models.profile import Profile

from .harness import Floats, Subject, chip, prefill
from .test_profiles import FP4, FP8, SPANS

torch = pytest.importorskip("torch", reason="torch is not installed: make test installs it (the test extra)")
from reference import torch_emulation as emulation  # noqa: E402 - needs torch

pytestmark = pytest.mark.torch

PROFILES: dict[str, dict[str, Any]] = {
    "mxint8": {},
    "mxfp8": FP8,
    "mxfp4-mxfp8": {"weights": "E2M1", "activations": "E4M3"},
    "mxfp4": FP4,
    "two-terms-spans": {"weights": "INT8x2", "spans": SPANS},
    "not-deferred-spans-mxfp8": {**FP8, "deferred_norm": False, "spans": SPANS},
}
TOKENS = 280
"""More than a chunk of attention."""


def tensor(values: Any) -> Any:
    """Values in float64, in which the emulation's own error is nothing."""
    return torch.from_numpy(np.array(values, np.float64))


@dataclass(frozen=True)
class Case:
    """What a chip computed: intermediates by the names of the golden files, and logits."""

    subject: Subject
    profile: Profile
    trace: dict[str, Floats]
    logits: Floats

    def weight(self, name: str) -> Any:
        """A tensor of the checkpoint by the end of its name; None if it has no such tensor."""
        found = self.subject.reference.tensors.get(f"model.{name}")
        return None if found is None else tensor(found)

    def padded_heads(self, w: Any) -> Any:
        """Columns of W_o with each head padded to whole blocks: [N, H, d] to [N, H * d padded]."""
        d = self.subject.reference.head_dim
        return torch.nn.functional.pad(w.reshape(w.shape[0], -1, d), (0, -d % 32)).flatten(1)


CASES = [
    *((name, "nano", "biased") for name in PROFILES),
    *((name, "three", "biased") for name in ("mxint8", "mxfp8")),
    *((name, "three", "odd") for name in ("mxint8", "mxfp4-mxfp8")),
]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    table, name, model = request.param
    subject: Subject = request.getfixturevalue(model)
    profile = subject.profile(PROFILES[table])
    ids = np.random.default_rng(8).integers(0, subject.checkpoint.graph.vocab, TOKENS).tolist()
    ran = prefill(subject, chip(name), profile, ids, dump=True)
    return Case(subject, profile, ran.dumped(), ran.logits[0])


class Within:
    """Asserts that the chip's values are within their bounds, and at the end that the bounds are not far too wide."""

    def __init__(self, case: Case) -> None:
        self.largest = 0.0
        # Products of INT8 and E2M1 codes are so short that in models of this size a sum may never round.
        self.least = 0.02 if case.profile.activations == "E4M3" else 0.0

    def __call__(self, got: Floats, want: Any, limit: Any, what: str) -> None:
        error = (tensor(got) - want).abs()
        share = float((error / limit.clamp(min=1e-300)).max())
        assert bool((error <= limit).all()), f"{what}: {share:.3f} times the bound"
        self.largest = max(self.largest, share)


@pytest.fixture
def within(case: Case) -> Iterator[Within]:
    check = Within(case)
    yield check
    assert check.largest >= check.least, f"{check.largest:.5f} of the bound: too loose to find anything"


class Emulated:
    """The emulation's operators on what the chip had before each of them, with their bounds: (value, bound)."""

    def __init__(self, case: Case) -> None:
        self.case, self.profile = case, case.profile
        self.model = case.subject.reference
        self.eps = float(self.model.eps)
        cosines, sines = rotary_table(np.arange(TOKENS), self.model.head_dim, self.model.rope)
        self.cosines, self.sines = tensor(cosines), tensor(sines)

    def linear(self, operand: Any, w: Any, name: str, r: Any = None, bias: Any = None, kind: str = "weights") -> Any:
        """A projection: value and bound, with r and its error, and the bias."""
        spans = self.profile.spans[name]
        formats = (self.profile.activations, getattr(self.profile, kind))
        value = emulation.linear(operand, w, *formats)
        limit = emulation.linear_bound(operand, w, *formats, spans)
        if r is not None:
            scale, scale_limit = r
            limit = limit * scale + value.abs() * scale_limit + emulation.bound(value * scale, 1)
            value = value * scale
        if bias is not None:
            value = value + bias
            limit = limit + emulation.bound(value, 1)
        return value, limit

    def normed(self, x: Floats, r: Floats, gain: Any) -> tuple[Any, Any]:
        """Operand of a projection after a norm, and (r, its bound) where it is deferred. r is the chip's own, exact."""
        chip_r = tensor(r)
        if self.profile.deferred_norm:
            return tensor(np.asarray(x, np.float32) * gain.float().numpy()), (chip_r, torch.zeros_like(chip_r))
        scaled = np.asarray(x, np.float32) * np.asarray(r, np.float32)
        return tensor(scaled * gain.float().numpy()), None


def layers(case: Case) -> Iterator[int]:
    yield from range(case.subject.reference.layers)


def test_norm_scales(case: Case, within: Within) -> None:
    for number in range(2 * case.subject.reference.layers + 1):
        x, got = tensor(case.trace[f"{number:02d}-x"]), case.trace[f"{number:02d}-r"]
        eps = float(case.subject.reference.eps)
        within(got, emulation.rmsnorm_scale(x, eps), emulation.rmsnorm_scale_bound(x, eps), f"r {number}")


def test_queries_keys_and_values(case: Case, within: Within) -> None:
    emulated, model = Emulated(case), case.subject.reference
    for layer in layers(case):
        gain = case.weight(f"layers.{layer}.input_layernorm.weight")
        operand, r = emulated.normed(case.trace[f"{2 * layer:02d}-x"], case.trace[f"{2 * layer:02d}-r"], gain)
        for name in "qkv":
            at = f"layers.{layer}.self_attn.{name}_proj."
            value, limit = emulated.linear(operand, case.weight(at + "weight"), name, r, case.weight(at + "bias"))
            value, limit = (t.reshape(TOKENS, -1, model.head_dim).transpose(0, 1) for t in (value, limit))
            if name != "v":
                limit = rotated_limit(value, limit, emulated)
                value = emulation.rotary(value, emulated.cosines, emulated.sines)
            within(case.trace[f"{layer:02d}-{name}"], value, limit, f"{name} of layer {layer}")


def rotated_limit(value: Any, limit: Any, emulated: Emulated) -> Any:
    """Bound after the rotation: that of both inputs, and the rotation's own roundings."""
    l1, l2 = limit.chunk(2, -1)
    c, s = emulated.cosines.abs(), emulated.sines.abs()
    inputs = torch.cat([l1 * c + l2 * s, l2 * c + l1 * s], -1)
    return inputs * (1 + 2.0**-20) + emulation.rotary_bound(value, emulated.cosines, emulated.sines)


def test_attention(case: Case, within: Within) -> None:
    model, profile = case.subject.reference, case.profile
    for layer in layers(case):
        q, k, v = (tensor(case.trace[f"{layer:02d}-{name}"])[None] for name in "qkv")
        formats = {"fmt_k": profile.k, "fmt_v": profile.v, "fmt_p": profile.p}
        want = emulation.attention(q, k, v, **formats)[0].transpose(0, 1)
        limit = emulation.attention_bound(q, k, v, **formats)[0].transpose(0, 1)
        got = case.trace[f"{layer:02d}-attention"].reshape(TOKENS, model.heads, -1)[..., : model.head_dim]
        within(got, want, limit, f"attention of layer {layer}")


def test_projections_into_the_residual_stream(case: Case, within: Within) -> None:
    emulated = Emulated(case)
    for layer in layers(case):
        at = f"layers.{layer}."
        for number, source, name, key in (
            (2 * layer, "attention", "o", "self_attn.o_proj"),
            (2 * layer + 1, "h", "down", "mlp.down_proj"),
        ):
            x = tensor(case.trace[f"{number:02d}-x"])
            bias, w = case.weight(f"{at}{key}.bias"), case.weight(f"{at}{key}.weight")
            operand = tensor(case.trace[f"{layer:02d}-{source}"])
            value, limit = emulated.linear(operand, case.padded_heads(w) if name == "o" else w, name, None, bias)
            limit = limit + emulation.bound(x + value, 1)
            within(case.trace[f"{number + 1:02d}-x"], x + value, limit, f"{name} of layer {layer}")


def test_swiglu(case: Case, within: Within) -> None:
    """h from gate and up: errors of both enter through the slope of silu, at most 1.1, and through silu itself."""
    emulated = Emulated(case)
    for layer in layers(case):
        at = f"layers.{layer}."
        gain = case.weight(at + "post_attention_layernorm.weight")
        number = 2 * layer + 1
        operand, r = emulated.normed(case.trace[f"{number:02d}-x"], case.trace[f"{number:02d}-r"], gain)
        gate, gate_limit = emulated.linear(operand, case.weight(at + "mlp.gate_proj.weight"), "gate", r)
        up, up_limit = emulated.linear(operand, case.weight(at + "mlp.up_proj.weight"), "up", r)
        silu = torch.nn.functional.silu(gate).abs()
        limit = 1.1 * gate_limit * (up.abs() + up_limit) + silu * up_limit + emulation.swiglu_bound(gate, up)
        within(case.trace[f"{layer:02d}-h"], emulation.swiglu(gate, up), limit * (1 + 2.0**-10), f"h of layer {layer}")


def test_logits(case: Case, within: Within) -> None:
    emulated, number = Emulated(case), 2 * case.subject.reference.layers
    operand, r = emulated.normed(
        case.trace[f"{number:02d}-x"], case.trace[f"{number:02d}-r"], case.weight("norm.weight")
    )
    model = case.subject.reference
    head = tensor(model.tensors["model.embed_tokens.weight" if model.tied else "lm_head.weight"])
    value, limit = emulated.linear(operand, head, "head", r, kind="head")
    within(case.logits, value, limit, "logits")
