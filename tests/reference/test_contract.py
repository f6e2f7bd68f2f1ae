"""The NumPy reference against the golden facts, and its pieces against exact rational arithmetic."""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from . import contract, exact
from .arith import (
    LOG2_E,
    PAIRS,
    Blocks,
    Partial,
    add_shifted,
    canonical,
    contraction,
    exp2fx,
    fix,
    merge,
    quantise,
    quantise_weight,
    rcp,
    rsqrt,
    tree,
)
from .checkpoint import Profile, default_lanes
from .exact import F32, round_fp32
from .make_model import make_llama
from .sampling import order, philox4x32, sample

GOLDEN = Path(__file__).parent.parent / "golden" / "llama-int8"
TINY: dict[str, Any] = {"hidden": 48, "heads": 3, "kv_heads": 1, "head_dim": 16, "intermediate": 160, "vocab": 130}
E4M3 = dict.fromkeys(("weights", "activations", "k", "v", "p", "head", "embed"), "E4M3")


def f32(values: Any) -> F32:
    return np.array(values, np.float32)


def bits(x: Any) -> Any:
    """FP32 as integers, so that a comparison sees signs of zero and NaN."""
    return np.ascontiguousarray(x).view(np.uint32)


@pytest.fixture(scope="module")
def golden_run() -> tuple[contract.Model, list[int], contract.Result]:
    ids = [int(token) for token in (GOLDEN / "ids.txt").read_text().split(",")]
    model = contract.load_model(GOLDEN)
    return model, ids, contract.run(model, GOLDEN / "profile.toml", ids, trace=True)


# -- golden facts ----------------------------------------------------------------------------------------------------


def test_golden_constants() -> None:
    facts = json.loads((GOLDEN / "constants.json").read_text())
    table = exact.exp2_table()
    key = "T: 65,536 uint32 in units of 2^-23, sha256"
    assert hashlib.sha256(table.astype("<u4").tobytes()).hexdigest() == facts[key]
    assert [int(table[i]) for i in (1, 32768, 65535)] == facts["T[1], T[32768], T[65535]"]
    assert hex(LOG2_E.view(np.uint32)) == facts["RNE(log2 e)"]
    assert hex(exact.score_scale(48).view(np.uint32)) == facts["score scale, d = 48"]
    tables = exact.rotary_table(np.arange(600), 48, {"rope_theta": 1e4})
    digest = hashlib.sha256(b"".join(part.astype("<f4").tobytes() for part in tables)).hexdigest()
    assert digest == facts["cosines then sines, FP32 [600, 24], d = 48, theta = 1e4, sha256"]


def test_golden_logits(golden_run: tuple[contract.Model, list[int], contract.Result]) -> None:
    logits = golden_run[2].logits
    want = np.load(GOLDEN / "logits.npy")
    assert np.array_equal(bits(logits[: len(want)]), bits(want))
    hashes = [hashlib.sha256(row.astype("<f4").tobytes()).hexdigest() for row in logits]
    assert hashes == (GOLDEN / "logits_sha256.txt").read_text().split()


def test_golden_trace(golden_run: tuple[contract.Model, list[int], contract.Result]) -> None:
    trace = golden_run[2].trace
    with np.load(GOLDEN / "trace.npz") as want:
        assert set(trace) == set(want.files)
        for name in want.files:
            tokens = trace[name][:, :160] if trace[name].ndim == 3 else trace[name][:160]
            assert np.array_equal(bits(tokens), bits(want[name])), name


# -- properties of the whole ------------------------------------------------------------------------------------------


def test_decode_and_prefill_in_pieces_give_equal_bits(
    golden_run: tuple[contract.Model, list[int], contract.Result],
) -> None:
    model, ids, whole = golden_run
    state = contract.State()
    for low, high in [(0, 1), (1, 7), (7, 300), (300, 555), (555, 599), (599, 600)]:
        part = contract.run(model, GOLDEN / "profile.toml", ids[low:high], state=state)
        assert np.array_equal(bits(part.logits), bits(whole.logits[low:high]))


@pytest.mark.parametrize("changes", [{"attention_bias": True, "qk_norm": True}, {"tied": False, "theta": 5e5}])
def test_every_profile_runs_on_random_models(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = contract.load_model(make_llama(tmp_path, **{**TINY, **changes}, layers=1, dtype="bfloat16", shards=2))
    ids = [(7 * i * i + i) % 130 for i in range(520)]
    seen = set()
    for profile in (
        {},
        {"weights": "INT8x2"},
        {"deferred_norm": False},
        {"lanes": 2},
        E4M3,
        {**E4M3, "spans": {"down": 3}},  # INT8 in five blocks hardly ever rounds
        {**E4M3, "weights": "E2M1", "v": "E2M1"},
    ):
        for window in (None, 300):
            result = contract.run(
                model, profile, ids, window=window, sinks=[0.5, -2.0, 3.0], positions=[0, 519], trace=True
            )
            assert result.logits.shape == (2, 130)
            assert np.isfinite(result.logits).all()
            # not the logits: a later quantisation hides most of what the order of sums changes
            seen.add(b"".join(value.tobytes() for value in result.trace.values()))
    assert len(seen) == 14, "a setting had no effect"


def test_a_window_per_layer_and_a_sink_that_takes_all(tmp_path: Path) -> None:
    model = contract.load_model(make_llama(tmp_path, **TINY))
    ids = list(range(100))
    whole = contract.run(model, {}, ids, trace=True)
    first = contract.run(model, {}, ids, window=[10, None], trace=True)
    assert np.array_equal(bits(first.trace["00-attention"][:10]), bits(whole.trace["00-attention"][:10]))
    assert not np.array_equal(first.trace["00-attention"][10], whole.trace["00-attention"][10])
    sunk = contract.run(model, {}, ids, sinks=[1e4, 0, -1e4], trace=True)
    assert not sunk.trace["00-attention"][:, :16].any()
    assert np.array_equal(bits(sunk.trace["00-attention"][:, 64:]), bits(whole.trace["00-attention"][:, 64:]))


def test_a_nan_reaches_only_rows_that_see_it(tmp_path: Path) -> None:
    model = contract.load_model(make_llama(tmp_path, **TINY))
    clean = contract.run(model, {}, [1, 2, 3, 4, 5])
    model.tensors["model.embed_tokens.weight"] = model.tensors["model.embed_tokens.weight"].copy()
    model.tensors["model.embed_tokens.weight"][77] = np.nan
    model.prepared.clear()
    logits = contract.run(model, {}, [1, 2, 77, 4, 5]).logits
    assert np.array_equal(bits(logits[:2, :77]), bits(clean.logits[:2, :77]))
    assert (bits(logits[2:]) == 0x7FC00000).all()
    assert (bits(logits[:, 77]) == 0x7FC00000).all()


def test_lanes_profiles_and_their_errors() -> None:
    assert [default_lanes(n) for n in (1, 2, 3, 4, 5, 8, 64)] == [64, 32, 16, 16, 8, 8, 8]
    with pytest.raises(ValueError, match=r"^unknown profile keys \['spans\.z', 'wieghts'\]; known are"):
        Profile.of({"wieghts": "INT8", "spans": {"z": 1}})
    with pytest.raises(ValueError, match=r"^E2M1 x INT8 is not a pair of rule 1$"):
        Profile.of({"activations": "E2M1"})


def test_generate_is_the_argmax_of_run(golden_run: tuple[contract.Model, list[int], contract.Result]) -> None:
    model, ids, _ = golden_run
    profile = GOLDEN / "profile.toml"
    made = contract.generate(model, profile, ids[:9], 4)
    whole = contract.run(model, profile, ids[:9] + made)
    assert made == [contract.argmax(row) for row in whole.logits[8:12]]
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 100, "top_p": 0.9, "seed": 5}
    drawn = contract.generate(model, profile, ids[:9], 4, **options)
    whole = contract.run(model, profile, ids[:9] + drawn)
    assert drawn == [sample(whole.logits[8 + i], position=9 + i, **options) for i in range(4)]


# -- pieces against rational arithmetic -------------------------------------------------------------------------------


def hard_floats(seed: int, n: int, low: int = -149, high: int = 127) -> F32:
    """FP32 with exponents over the whole range, few or many mantissa bits, both signs, some zeros."""
    random = np.random.default_rng(seed)
    mantissa = random.integers(0, 1 << 23, n) & ~((1 << random.integers(0, 24, n)) - 1)
    values = np.ldexp(1 + mantissa / 2**23, random.integers(low, high, n)) * random.choice([-1, 1], n)
    values[random.random(n) < 0.05] = 0.0
    return f32(values)


def fraction(x: Any) -> Fraction:
    return Fraction(float(x))


@pytest.mark.parametrize("fmt", ["E2M1", "E4M3", "INT8"])
def test_quantise_is_the_nearest_element_with_ties_to_even(fmt: str) -> None:
    magnitudes = {
        "E2M1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
        "E4M3": [*(m / 512 for m in range(8)), *((8 + m) * 2.0 ** (e - 3) for e in range(-6, 9) for m in range(8))],
        "INT8": [m / 64 for m in range(128)],
    }[fmt]
    grid = [Fraction(m) for m in magnitudes if m <= 448]
    grid = grid[: 127 if fmt == "E4M3" else None]  # 0x7F is NaN, not 480
    x = np.stack([hard_floats(1, 32, b, b + 14) for b in range(-149, 114, 4)] + [np.zeros(32, np.float32)])
    got = quantise(x, fmt)
    for row, elements, code in zip(x, got.elements, got.scales[:, 0], strict=True):
        top = max(abs(fraction(v)) for v in row)
        power = max(math.frexp(float(top))[1] - 1 - {"E2M1": 2, "E4M3": 8, "INT8": 0}[fmt], -127) if top else -127
        assert code == power + 127
        for value, element in zip(row, elements, strict=True):
            want = abs(fraction(value)) / Fraction(2) ** power
            near = min(range(len(grid)), key=lambda i: (abs(grid[i] - want), i & 1))
            assert abs(fraction(element)) == grid[near]
            assert element == 0 or (element < 0) == (value < 0)
            assert not np.signbit(element) or element != 0
    assert quantise(f32([1, np.inf]), fmt).scales.tolist() == [255]


@pytest.mark.parametrize("pair", sorted(PAIRS))
@pytest.mark.parametrize("spans", [1, 2, 3])
def test_contraction_is_the_serial_sum_of_rounded_exact_blocks(pair: tuple[str, str], spans: int) -> None:
    a = quantise(hard_floats(2, 200).reshape(2, 100), pair[0])
    w = quantise(hard_floats(3, 300).reshape(3, 100), pair[1])
    got = contraction(a, w, spans)
    for m in range(2):
        for n in range(3):
            runs, run = [], math.ceil(4 / spans)
            for span in range(spans):
                acc = np.float32(0)
                for b in range(span * run, min(4, span * run + run)):
                    at = slice(32 * b, 32 * b + 32)
                    terms = zip(a.elements[m, at], w.elements[n, at], strict=True)
                    total = sum((fraction(x) * fraction(y) for x, y in terms), Fraction(0))
                    with np.errstate(all="ignore"):
                        acc += round_fp32(total * Fraction(2) ** int(a.scales[m, b] + w.scales[n, b] - 254))
                runs.append(acc)
            with np.errstate(all="ignore"):
                want = runs[0] if spans == 1 else runs[0] + runs[1] if spans == 2 else (runs[0] + runs[1]) + runs[2]
            assert bits(canonical(np.array([got[m, n]]))) == bits(canonical(np.array([want])))


def test_block_corners() -> None:
    one, zero = np.ones((1, 32)), np.zeros((1, 32))
    middle, top = np.full((1, 1), 127), np.full((1, 1), 255)
    with_nan = one.copy()
    with_nan[0, 3] = np.nan
    against = one.copy()
    against[0, 3] = 0
    assert np.isnan(contraction(Blocks(zero, top), Blocks(zero, middle)))
    assert np.isnan(contraction(Blocks(with_nan, middle), Blocks(one, middle)))
    assert contraction(Blocks(with_nan, middle), Blocks(against, middle)) == 31
    assert bits(contraction(Blocks(-one, middle), Blocks(zero, middle))) == 0
    first, second = quantise_weight(f32([[1.0, 0.7] + [0.0] * 30]), "INT8x2")
    both = first.dequantise() + second.dequantise()
    assert abs(both[0, 1] - 0.7) < 2.0**-13 < abs(first.dequantise()[0, 1] - 0.7)


def test_merge_rounds_once() -> None:
    a, b = hard_floats(4, 6000, -149, 120), hard_floats(5, 6000, -149, 120)
    random = np.random.default_rng(6)
    # put the larger term so that the smaller one lands near the last bit, where double rounding would show
    near = np.frexp(b)[1] - np.frexp(a)[1] + random.integers(20, 60, a.size)
    shift = -np.where(random.random(a.size) < 0.8, np.clip(near, 0, 300), random.integers(0, 5000, a.size))
    got = add_shifted(b, shift, a, np.zeros_like(shift))
    for x, y, s, z in zip(a, b, shift, got, strict=True):
        want = round_fp32(fraction(x) + fraction(y) * Fraction(2) ** int(s))
        assert want == z or (np.isnan(want) and np.isnan(z)), (x, y, s)


def test_merge_with_an_empty_partial_returns_the_other() -> None:
    full = Partial(np.array([3]), f32([1e-45]), f32([[-0.0, np.nan]]), np.array([True]))
    empty = Partial(np.array([-(1 << 31)]), f32([0]), f32([[0, 0]]), np.array([False]))
    for got in (merge(full, empty), merge(empty, full)):
        assert got.m[0] == 3
        assert bits(got.o).tolist() == bits(full.o).tolist()
        assert got.l[0] == full.l[0]


def test_functions_are_correctly_rounded() -> None:
    x = np.abs(
        np.concatenate([hard_floats(7, 4000), np.array([0x403A18E3, 1, 0x7F7FFFFF], np.uint32).view(np.float32)])
    )
    x = x[x > 0]
    for value, inverse, root in zip(x, rcp(x), rsqrt(x), strict=True):
        assert inverse == round_fp32(1 / fraction(value))
        low, high = (np.nextafter(root, np.float32(to), dtype=np.float32) for to in (0, np.inf))
        below, above = (fraction(root) + fraction(low)) / 2, (fraction(root) + fraction(high)) / 2
        assert below**2 * fraction(value) < 1 < above**2 * fraction(value)
    corners = f32([0.0, -0.0, -1, np.inf, np.nan])
    assert bits(canonical(rsqrt(corners))).tolist() == [0x7F800000, 0xFF800000, 0x7FC00000, 0, 0x7FC00000]
    assert bits(rcp(f32([0.0, -0.0, np.inf, -np.inf]))).tolist() == [0x7F800000, 0xFF800000, 0, 0x80000000]


def test_fix_and_exp2fx_corners() -> None:
    y = f32([np.nan, np.inf, -np.inf, 1e30, -32768, 0.5 / 65536, 1.5 / 65536, -0.5 / 65536])
    assert fix(y).tolist() == [2**31 - 1, 2**31 - 2, 1 - 2**31, 2**31 - 2, 1 - 2**31, 0, 2, 0]
    f = np.array([0, -1, 127 << 16, 128 << 16, -149 << 16, (-149 << 16) - 1, -150 << 16, (-150 << 16) + 1, -(1 << 40)])
    tiny = 2.0**-149
    want = [1, 16777039 / 2**24, 2.0**127, np.inf, tiny, tiny, 0, tiny, 0]
    assert exp2fx(f).tolist() == want


def test_tree_passes_an_odd_last_element_up() -> None:
    x = hard_floats(8, 7, 0, 20)
    assert tree(x) == ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + x[6])


def one_row_of_attention(
    q: Blocks, k: Blocks, v: Blocks, i: int, lanes: int, window: int | None, sink: float | None
) -> list[np.float32]:
    """Rule 7 for token i of one head, value by value: q, k [T, 32] and v [T, d]."""
    Merged = tuple[int, Fraction, list[Fraction]] | None

    def merge_exactly(a: Merged, b: Merged) -> Merged:
        if a is None or b is None:
            return b if a is None else a
        m = max(a[0], b[0])
        left, right = Fraction(2) ** (a[0] - m), Fraction(2) ** (b[0] - m)
        pairs = zip([a[1], *a[2]], [b[1], *b[2]], strict=True)
        total, *out = [fraction(round_fp32(x * left + y * right)) for x, y in pairs]
        return m, total, out

    def chunk(c: int) -> Merged:
        seen = [j for j in range(256 * c, 256 * c + 256) if j <= i and (window is None or i - j < window)]
        if not seen:
            return None
        f = {}
        for j in seen:
            pairs = zip(q.values[i], k.values[j], strict=True)
            dot = sum((fraction(x) * fraction(y) for x, y in pairs), Fraction(0))
            f[j] = int(fix(f32([round_fp32(dot) * exact.score_scale(16)]))[0])
        m = max(-(-value // 65536) for value in f.values())
        p = [
            exp2fx(np.array([f[j] - 65536 * m]))[0] if j in f else np.float32(0) for j in range(256 * c, 256 * c + 256)
        ]
        level = p
        while len(level) > 1:
            level = [level[n] + level[n + 1] for n in range(0, len(level), 2)]
        scales = [int(v.scales[j, 0]) - 127 if j in f else 0 for j in range(256 * c, 256 * c + 256)]
        codes = quantise(np.ldexp(np.array(p, np.float64), scales), "INT8").values
        out = []
        for column in range(v.elements.shape[1]):
            acc = np.float32(0)
            for b in range(8):
                places = [n for n in range(32 * b, 32 * b + 32) if 256 * c + n in f]
                acc += round_fp32(
                    sum((fraction(codes[n]) * fraction(v.elements[256 * c + n, column]) for n in places), Fraction(0))
                )
            out.append(fraction(acc))
        return m, fraction(level[0]), out

    def node(low: int, high: int) -> Merged:
        if high - low > 1:
            return merge_exactly(node(low, (low + high) // 2), node((low + high) // 2, high))
        whole = None
        for c in range(low, i // 256 + 1, lanes):
            whole = merge_exactly(whole, chunk(c))
        return whole

    whole = node(0, lanes)
    if sink is not None:
        f_sink = int(fix(f32([np.float32(sink) * LOG2_E]))[0])
        m_sink = -(-f_sink // 65536)
        height = fraction(exp2fx(np.array([f_sink - 65536 * m_sink]))[0])
        whole = merge_exactly(whole, (m_sink, height, [Fraction(0)] * v.elements.shape[1]))
    assert whole is not None
    return [round_fp32(x * fraction(round_fp32(1 / whole[1]))) for x in whole[2]]


@pytest.mark.parametrize(("lanes", "window", "sink"), [(2, None, None), (4, 700, 1.5), (1, None, -1.0), (8, 300, None)])
def test_attention_is_rule_7_value_by_value(lanes: int, window: int | None, sink: float | None) -> None:
    random = np.random.default_rng(11)
    q, k, v = (f32(random.standard_normal((2, 1200, 16)) * 2) for _ in range(3))
    v *= np.exp2(random.integers(-6, 6, (2, 1200, 1))).astype(np.float32)
    blocks = quantise(q, "INT8"), quantise(k[:1], "INT8"), quantise(v[:1], "INT8", block=16)
    got = contract.attention(
        *blocks, np.arange(1200), scale=exact.score_scale(16), lanes=lanes, window=window,
        sinks=None if sink is None else f32([9.0, sink]),
    )  # fmt: skip
    for i in (0, 255, 256, 700, 1199):
        want = one_row_of_attention(blocks[0][1], blocks[1][0], blocks[2][0], i, lanes, window, sink)
        assert bits(got[1, i]).tolist() == bits(f32(want)).tolist()


# -- rule 8 and the generator -----------------------------------------------------------------------------------------


def test_philox_known_answers() -> None:
    # Source: kat_vectors of Random123
    ones, pi = 0xFFFFFFFF, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox4x32((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox4x32(pi, (0xA4093822, 0x299F31D0)) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def test_choices() -> None:
    row = f32([np.nan, -0.0, 0.0, 2.0, -np.inf, 2.0])
    assert order(row).tolist() == [3, 5, 1, 2, 4, 0]
    assert sample(row) == 3
    assert sample(np.full(4, np.nan, np.float32)) == 0
    spread = f32([0, 1, 2, 3, np.nan, -np.inf])
    drawn = [sample(spread, temperature=1.0, seed=9, position=i) for i in range(4000)]
    share = np.bincount(drawn, minlength=6) / 4000
    assert np.abs(share[:4] - np.exp(spread[:4]) / np.exp(spread[:4]).sum()).max() < 0.025
    assert not share[4:].any()
    assert {sample(spread, temperature=1.0, top_k=2, position=i) for i in range(200)} == {2, 3}
    assert {sample(spread, temperature=1.0, top_p=0.6, position=i) for i in range(50)} == {3}
    assert {sample(f32([1, 1, 1, 0]), temperature=1.0, top_p=0.1, position=i) for i in range(99)} == {0, 1, 2}


def test_make_llama_is_deterministic_and_its_tokenizer_round_trips(tmp_path: Path) -> None:
    one, two = (make_llama(tmp_path / name, **TINY, seed=3) for name in "ab")
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
    digest = hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    assert digest.startswith("23117f9f"), "the bytes must not depend on the machine or the version of NumPy"
    model, cut = contract.load_model(one), contract.load_model(make_llama(tmp_path / "c", **TINY, seed=3, shards=3))
    assert all(np.array_equal(model.tensors[name], cut.tensors[name]) for name in model.tensors)
    tokenizer = Tokenizer.from_file(str(make_llama(tmp_path / "d", vocab=512) / "tokenizer.json"))
    text = "def f(x):\n    return x != 'é☃'"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < 512
