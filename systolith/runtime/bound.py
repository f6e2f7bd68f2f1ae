"""The least time a chip can take for a token: bytes it must read over bandwidth, products it must make over rate.

docs/cli.md has the formula. Bytes: every matrix once, in its format with its scales, one embedding row, and the cached
keys and values that are visible; of experts those of one row, as all rows may choose alike. Multiply-adds: those of the
matrices, of the scores and of the weighted values, each at the rate of its pair of formats. Nothing is padded and
nothing else is counted, so no program can be faster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from systolith.compiler.model import DecoderModel
from systolith.compiler.plan import Plan, weight_format
from systolith.models.profile import TWO_TERMS
from systolith.numerics.formats import FORMATS
from systolith.spec.limits import BLOCK

__all__ = ["Bound", "StepCost", "bound", "prefill_cost", "step_cost"]


@dataclass(frozen=True)
class StepCost:
    """What a step must do. bytes: read from memory; macs: multiply-adds by pair of formats; kv_bytes: those of the
    bytes that are cached keys and values."""

    bytes: int
    macs: Counter[str]
    kv_bytes: int = 0


@dataclass(frozen=True)
class Bound:
    """seconds: mean over generated tokens. memory, compute: means of the two sides; binds: the larger one."""

    seconds: float
    memory_s: float
    compute_s: float

    @property
    def binds(self) -> str:
        """What limits the mean token: memory or arithmetic."""
        return "memory bandwidth" if self.memory_s >= self.compute_s else "arithmetic"


def _bytes(rows: int, columns: int, fmt: str) -> int:
    """Bytes of a matrix [rows, columns] in blocks of 32 along the columns, with their scales."""
    terms = 2 if fmt == TWO_TERMS else 1
    bits = FORMATS["INT8" if fmt == TWO_TERMS else fmt].bits
    return rows * terms * (-(-columns * bits // 8) + -(-columns // BLOCK))


def _matrices(model: DecoderModel) -> list[tuple[str, int, int, int]]:
    """(class, N, K, how many a row needs) of all matrices."""
    result = []
    for name, matrix in model.matrices.items():
        n, k = matrix.weight.shape
        copies = max(1, matrix.weight.experts)  # of heads
        if model.experts is not None and name.startswith("expert_"):
            copies = model.experts.top_k
        result.append((name, n, k, 1 if name == "head" else copies * len(model.layers_of(name))))
    return result


def step_cost(plan: Plan, contexts: Sequence[int]) -> StepCost:
    """Cost of a decode step whose requests see `contexts` tokens each."""
    model, profile = plan.model, plan.profile
    macs: Counter[str] = Counter()
    total = len(contexts) * _bytes(1, model.hidden, profile.embed)
    for name, n, k, count in _matrices(model):
        fmt = weight_format(profile, name)
        total += count * _bytes(n, k, fmt)
        terms = 2 if fmt == TWO_TERMS else 1
        pair = f"{profile.activations}x{'INT8' if fmt == TWO_TERMS else fmt}"
        macs[pair] += len(contexts) * count * terms * n * k
    d, kv = model.head_dim, 0
    key = d if model.latent is None else d + model.latent.turned
    for context in contexts:
        seen = sum(context if kind.window is None else min(context, kind.window) for kind in model.kinds)
        token = -(-d * FORMATS[profile.v].bits // 8) + 1  # V has one scale a token and head
        token += _bytes(1, d if model.latent is None else model.latent.turned, profile.k)  # a latent is K and V
        kv += model.kv_heads * seen * token
        macs[f"{profile.k}x{profile.k}"] += model.heads * key * seen
        macs[f"{profile.p}x{profile.v}"] += model.heads * d * seen
    return StepCost(total + kv, macs, kv)


def prefill_cost(plan: Plan, length: int) -> StepCost:
    """Cost of a prompt of `length` tokens up to its first token: every matrix read once, every row through all of them
    but the head, which takes the last; each position meets itself and what it sees before. The prompt's own keys and
    values need not leave the chip."""
    model, profile = plan.model, plan.profile
    cost = step_cost(plan, [1])
    seen = sum(
        sum(i if kind.window is None else min(i, kind.window) for i in range(1, length + 1)) for kind in model.kinds
    )
    macs: Counter[str] = Counter()
    for name, n, k, count in _matrices(model):
        fmt = weight_format(profile, name)
        terms = 2 if fmt == TWO_TERMS else 1
        pair = f"{profile.activations}x{'INT8' if fmt == TWO_TERMS else fmt}"
        macs[pair] += (1 if name == "head" else length) * count * terms * n * k
    each = model.heads * seen
    turned = 0 if model.latent is None else model.latent.turned
    macs[f"{profile.k}x{profile.k}"] += each * (model.head_dim + turned)
    macs[f"{profile.p}x{profile.v}"] += each * model.head_dim
    rows = (length - 1) * _bytes(1, model.hidden, profile.embed)
    return StepCost(cost.bytes - cost.kv_bytes + rows, macs)


def bound(plan: Plan, steps: Iterable[Sequence[int]]) -> Bound:
    """Mean over generated tokens of max(bytes / bandwidth, sum over pairs of multiply-adds / rate).

    steps : for each step, the tokens that each request with a generated token sees. No steps: a bound of 0.
    """
    chip = plan.chip
    tokens, total, memory_sum, compute_sum = 0, Fraction(0), Fraction(0), Fraction(0)
    for contexts in steps:
        cost = step_cost(plan, contexts)
        memory = cost.bytes / chip.chip_dram_bytes_per_s
        compute = sum((n / chip.peak_macs_per_s(pair) for pair, n in cost.macs.items()), Fraction(0))
        tokens += len(contexts)
        total += len(contexts) * max(memory, compute)
        memory_sum += len(contexts) * memory
        compute_sum += len(contexts) * compute
    many = max(1, tokens)
    return Bound(float(total / many), float(memory_sum / many), float(compute_sum / many))
