"""The least time a chip can take for a token: bytes it must read over bandwidth, products it must make over rate.

docs/cli.md has the formula. Bytes: every matrix once, in its format with its scales, one embedding row, and the cached
keys and values that are visible; of experts those of one row, as all rows may choose alike (what a router that chooses
evenly would have them read stands beside it). Multiply-adds: those of the
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
from systolith.spec.chip import Chip
from systolith.spec.limits import BLOCK

__all__ = ["Bound", "StepCost", "bound", "prefill_cost", "step_cost"]


@dataclass(frozen=True)
class StepCost:
    """What a step must do. bytes: read from memory; macs: multiply-adds by pair of formats; kv_bytes: those of the
    bytes that are cached keys and values; uniform_bytes: the mean of the bytes where each row chooses its experts by
    itself, every set as likely; as `bytes` without experts or with one row."""

    bytes: int
    macs: Counter[str]
    kv_bytes: int = 0
    uniform_bytes: Fraction = Fraction(0)

    def seconds(self, chip: Chip) -> tuple[Fraction, Fraction]:
        """Of the memory at its pin rate, and of the arrays at the peak of each pair of formats."""
        compute = sum((n / chip.peak_macs_per_s(pair) for pair, n in self.macs.items()), Fraction(0))
        return self.bytes / chip.chip_dram_bytes_per_s, compute

    def uniform_seconds(self, chip: Chip) -> Fraction:
        """Of the memory at its pin rate, for `uniform_bytes`."""
        return self.uniform_bytes / chip.chip_dram_bytes_per_s


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


def _weight_bytes(plan: Plan) -> int:
    """Bytes of all matrices, each once."""
    return sum(count * _bytes(n, k, weight_format(plan.profile, name)) for name, n, k, count in _matrices(plan.model))


def _more_expert_bytes(plan: Plan, rows: int) -> Fraction:
    """Bytes of the experts that `rows` rows choose beyond those of one, where every set is as likely: of n experts a
    row leaves one out with (n - k) / n."""
    experts = plan.model.experts
    if experts is None:
        return Fraction(0)
    left_out = Fraction(experts.count - experts.top_k, experts.count)
    more = experts.count * (1 - left_out**rows) - experts.top_k
    of_one = sum(
        len(plan.model.layers_of(name)) * _bytes(n, k, weight_format(plan.profile, name))
        for name, n, k, _ in _matrices(plan.model)
        if name.startswith("expert_")
    )
    return more * of_one


def _macs(plan: Plan, rows: int, out_rows: int, seen: int) -> Counter[str]:
    """Multiply-adds of `rows` rows, `out_rows` of which have logits, that see `seen` positions, summed over rows and
    layers."""
    model, profile = plan.model, plan.profile
    macs: Counter[str] = Counter()
    for name, n, k, count in _matrices(model):
        fmt = weight_format(profile, name)
        terms, stored = (2, "INT8") if fmt == TWO_TERMS else (1, fmt)
        macs[f"{profile.activations}x{stored}"] += (out_rows if name == "head" else rows) * count * terms * n * k
    turned = 0 if model.latent is None else model.latent.turned
    macs[f"{profile.k}x{profile.k}"] += model.heads * seen * (model.head_dim + turned)
    macs[f"{profile.p}x{profile.v}"] += model.heads * seen * model.head_dim
    return macs


def step_cost(plan: Plan, contexts: Sequence[int]) -> StepCost:
    """Cost of a decode step whose requests see `contexts` tokens each."""
    model, profile, rows = plan.model, plan.profile, len(contexts)
    seen = sum(
        context if kind.window is None else min(context, kind.window) for context in contexts for kind in model.kinds
    )
    d = model.head_dim
    token = -(-d * FORMATS[profile.v].bits // 8) + 1  # V has one scale a token and head
    token += _bytes(1, d if model.latent is None else model.latent.turned, profile.k)  # a latent is K and V
    kv = model.kv_heads * seen * token
    embed = rows * _bytes(1, model.hidden, profile.embed)
    read = _weight_bytes(plan) + embed + kv
    return StepCost(read, _macs(plan, rows, rows, seen), kv, read + _more_expert_bytes(plan, rows))


def prefill_cost(plan: Plan, length: int) -> StepCost:
    """Cost of a prompt of `length` tokens up to its first token: every matrix read once, every row through all of them
    but the head, which takes the last; each position meets itself and what it sees before. The prompt's own keys and
    values need not leave the chip."""
    model, seen = plan.model, 0
    for kind in model.kinds:
        window = length if kind.window is None else min(length, kind.window)
        seen += window * (window + 1) // 2 + (length - window) * window
    embed = length * _bytes(1, model.hidden, plan.profile.embed)
    return StepCost(_weight_bytes(plan) + embed, _macs(plan, length, 1, seen))


def bound(plan: Plan, steps: Iterable[Sequence[int]]) -> Bound:
    """Mean over generated tokens of max(bytes / bandwidth, sum over pairs of multiply-adds / rate).

    steps : for each step, the tokens that each request with a generated token sees. No steps: a bound of 0.
    """
    tokens, total, memory_sum, compute_sum = 0, Fraction(0), Fraction(0), Fraction(0)
    for contexts in steps:
        memory, compute = step_cost(plan, contexts).seconds(plan.chip)
        tokens += len(contexts)
        total += len(contexts) * max(memory, compute)
        memory_sum += len(contexts) * memory
        compute_sum += len(contexts) * compute
    many = max(1, tokens)
    return Bound(float(total / many), float(memory_sum / many), float(compute_sum / many))
