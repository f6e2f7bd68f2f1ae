"""The package against `tests/reference`, which was written from the contract's text by somebody else."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from systolith.numerics import choose, constants, formats, vector, vector_math
from systolith.numerics.philox import sample_word


@pytest.fixture(scope="module")
def reference() -> SimpleNamespace:
    from reference import arith, exact, sampling

    return SimpleNamespace(arith=arith, exact=exact, sampling=sampling)


def values(rows: int, K: int) -> vector.Float32s:
    rng = np.random.default_rng(21)
    x = rng.standard_normal((rows, K)).astype(np.float32) * np.float32(2.0) ** rng.integers(-120, 100, (rows, 1))
    x[0, 0], x[1, 1], x[2] = np.nan, np.inf, -0.0
    return x.astype(np.float32)


@pytest.mark.parametrize(("d", "theta"), [(48, 1e4), (64, 5e5), (128, 1e6)])
def test_rotary_tables(reference: SimpleNamespace, d: int, theta: float) -> None:
    where = np.concatenate([np.arange(300), np.arange(4000, 4100), [131071, 2**24 - 1]])
    expected = reference.exact.rotary_table(where, d, {"rope_theta": theta})
    for got, want in zip(constants.rotary_tables(d, theta, where), expected, strict=True):
        assert got.tobytes() == want.astype(np.float32).tobytes()


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 32.0}


@pytest.mark.parametrize(
    ("d", "theta", "rope"),
    [
        (48, 1e4, {"rope_type": "linear", "factor": 2.5}),
        (128, 5e5, {**LLAMA3, "original_max_position_embeddings": 8192}),
        (64, 1e4, {**LLAMA3, "factor": 3.7, "original_max_position_embeddings": 64}),
        (64, 150000.0, {**YARN, "original_max_position_embeddings": 4096, "truncate": False}),
        (128, 1e6, {**YARN, "factor": 4.0, "original_max_position_embeddings": 32768}),
        (48, 1e4, {**YARN, "factor": 1.0, "original_max_position_embeddings": 40}),
        (32, 1e4, {**YARN, "beta_fast": 3.5, "beta_slow": 0.3, "original_max_position_embeddings": 100}),
        (32, 1e4, {**YARN, "beta_fast": 2.0, "beta_slow": 2.0, "original_max_position_embeddings": 100,
                   "truncate": False, "attention_factor": 0.7}),
        (16, 1.5, {**YARN, "original_max_position_embeddings": 7, "attention_factor": 1.25}),
    ],
)  # fmt: skip
def test_scaled_rotary_tables(reference: SimpleNamespace, d: int, theta: float, rope: dict[str, Any]) -> None:
    where = np.concatenate([np.arange(130), np.arange(4000, 4020), [131071, 2**24 - 1]])
    expected = reference.exact.rotary_table(where, d, {"rope_theta": theta, **rope})
    own = {key: value for key, value in rope.items() if key not in ("rope_type", "original_max_position_embeddings")}
    attention = own.pop("attention_factor", None)
    context, factor = rope.get("original_max_position_embeddings", 0), None
    if rope["rope_type"] == "yarn":
        scaling = constants.yarn_scaling(d, theta, original_context=context, **own)
        factor = constants.yarn_attention_factor(own["factor"], attention)
    elif rope["rope_type"] == "llama3":
        scaling = constants.llama3_scaling(original_context=context, **own)
    else:
        scaling = constants.linear_scaling(**own)
    frequencies = reference.exact.inverse_frequencies(d, {"rope_theta": theta, **rope})[0]
    assert constants.inverse_frequencies(d, theta, scaling).tobytes() == frequencies.tobytes()
    for got, want in zip(constants.rotary_tables(d, theta, where, scaling, factor), expected, strict=True):
        assert got.tobytes() == want.astype(np.float32).tobytes()


@pytest.mark.parametrize("pair", list(formats.PAIRS.values()), ids=lambda pair: pair.name)
@pytest.mark.parametrize("spans", [1, 3])
def test_quantise_and_contract(reference: SimpleNamespace, pair: formats.Pair, spans: int) -> None:
    x, w = values(9, 150), np.roll(values(11, 150), 3, axis=0)
    a, b = vector.quantise(x, pair.a), vector.quantise(w, pair.b)
    theirs = [reference.arith.quantise(v, fmt.name) for v, fmt in ((x, pair.a), (w, pair.b))]
    for (codes, scales), fmt, want in zip((a, b), (pair.a, pair.b), theirs, strict=True):
        assert (scales == want.scales).all()
        mine = vector.dequantise(codes, scales, fmt)
        assert mine.tobytes() == reference.arith.canonical(want.dequantise()[:, :150]).tobytes()
    got = vector.contract(a, [b], pair.a, pair.b, spans)
    want = reference.arith.canonical(reference.arith.contraction(*theirs, spans=spans))
    assert got.tobytes() == want.tobytes()


def test_functions_and_trees(reference: SimpleNamespace) -> None:
    x = np.random.default_rng(22).integers(0, 2**32, 40_000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    canonical = reference.arith.canonical
    for name in ("rcp", "rsqrt", "exp", "silu"):
        assert getattr(vector_math, name)(x).tobytes() == canonical(getattr(reference.arith, name)(x)).tobytes(), name
    F = vector_math.fix(x)
    assert np.array_equal(F, reference.arith.fix(x))
    small = np.random.default_rng(23).standard_normal((50, 77)).astype(np.float32)
    assert vector_math.tree_sum(small).tobytes() == reference.arith.tree(small).tobytes()


def test_merging(reference: SimpleNamespace) -> None:
    rng = np.random.default_rng(24)
    a, b = rng.integers(0, 2**32, (2, 40_000), dtype=np.uint64).astype(np.uint32).view(np.float32)
    ea, eb = rng.integers(-200, 201, (2, 40_000))
    got, m = vector_math.shift_add(a, ea, b, eb)
    want = reference.arith.add_shifted(a, ea - m, b, eb - m)
    assert got.tobytes() == reference.arith.canonical(want).tobytes()


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (12, 0.9), (0, 0.0), (1, 0.3)])
def test_sampling(reference: SimpleNamespace, top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(25)
    for position in range(60):
        logits = np.round(rng.standard_normal(40) * 3, 1).astype(np.float32)  # with ties
        logits[rng.random(40) < 0.1] = np.nan
        logits[rng.random(40) < 0.05] = -np.inf
        temperature, seed = float(rng.uniform(0.1, 2)), int(rng.integers(0, 2**63))
        got = choose.sample(
            logits.tolist(),
            constants.temperature_scale(temperature),
            top_k,
            choose.top_p_fixed(top_p),
            sample_word(seed, position),
        )
        want = reference.sampling.sample(
            logits, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, position=position
        )
        assert got == want
        assert choose.argmax(logits.tolist()) == reference.sampling.argmax(logits)
