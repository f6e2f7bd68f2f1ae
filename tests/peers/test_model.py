"""The device model: steps worked out by hand, what must not fall or rise, the vectorised path beside the scalar one."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from systolith.peers.architectures import known_models
from systolith.peers.catalogue import Device, Fact, devices, find_device
from systolith.peers.formats import FORMATS, Precision, precision_of
from systolith.peers.model import Layout, Scalars, Step, bytes_of, capacity, step_parts, step_seconds
from systolith.peers.sweep import Sweep
from systolith.peers.vector import Points, seconds
from systolith.peers.work import Work, work_of
from systolith.spec.errors import CapacityError, ConfigError
from tests.peers.helpers import PLAIN

GIB = 2**30


def test_a_decode_step_by_hand() -> None:
    """Llama-2-7B in bf16 on one A100, one sequence that sees 1,000 tokens."""
    work, device = work_of("llama-2-7b"), find_device("a100")
    precision = precision_of("bf16", "bf16", work, device)
    parts = step_parts(work, precision, device, Layout(), Step(1, 1, 1000, False), PLAIN)
    rate, bandwidth = 0.5 * 312e12, 0.8 * 2.039e12
    products = 0.0
    for n, k, layers in ((12288, 4096, 32), (4096, 4096, 32), (22016, 4096, 32), (4096, 11008, 32), (32000, 4096, 1)):
        compute = 1.5 * 2 * n * k / rate  # one row, and half of it as padding
        products += layers * math.hypot(compute, 2 * (n * k + n + k) / bandwidth)
    assert parts["products"] == pytest.approx(products, rel=1e-12)
    assert parts["attention"] == pytest.approx(32 * 1000 * 2 * 4096 * 2 / bandwidth, rel=1e-12)
    whole = 32 * 8 * 4096 + 4 * 4096 + 2 * 4096
    split = 32 * (2 * 2 * 4096 + 2 * 2 * 4096 + 3 * 11008)
    assert parts["vector"] == pytest.approx((whole + split) * 360 / (0.25 * 312e12), rel=1e-12)
    assert parts["kernels"] == pytest.approx(323 * 4e-6)
    assert parts["collectives"] == 0
    assert parts["sequences"] == 1e-5


def test_a_prompt_over_four_devices_by_hand() -> None:
    """Llama-2-70B in FP8 on four H100, a prompt of 512: attention, collectives and kernels."""
    work, device = work_of("llama-2-70b"), find_device("h100")
    precision = precision_of("fp8", "fp8", work, device)
    parts = step_parts(work, precision, device, Layout(tensor=4), Step(1, 512, 512, True, launched=1.0), PLAIN)
    pairs = 512 * 513 / 2
    assert parts["attention"] == pytest.approx(80 * pairs * (4 * 8192 + 256 * 64) / 4 / (0.5 * 989e12), rel=1e-12)
    moved = 2 * 3 / 4 * 512 * 8192 * 2
    assert parts["collectives"] == pytest.approx(160 * (2 * 4e-6 + moved / (0.8 * 450e9)), rel=1e-12)
    assert parts["kernels"] == pytest.approx((80 * 10 + 3 + 80 * 4) * 6e-6)


def test_experts_by_hand() -> None:
    """Mixtral on two H100 that deal out experts: each reads those that the rows of both meet, and sends rows away."""
    work, device = work_of("mixtral-8x7b"), find_device("h100")
    precision = precision_of("bf16", "bf16", work, device)
    few = step_parts(work, precision, device, Layout(data=2), Step(1, 1, 1, False), PLAIN)
    many = step_parts(work, precision, device, Layout(data=2), Step(64, 1, 1, False), PLAIN)
    met = 8 * (1 - (3 / 4) ** 2)
    experts = 32 * 3 * 4096 * 14336 * 2 / (0.8 * 3.35e12)
    assert few["products"] > met / 2 * experts
    assert many["products"] - few["products"] > 0.9 * (8 - met) / 2 * experts
    away = 1 / 2 * 1 * 2 * 4096 * (2 + 2) / (0.8 * 450e9)
    assert few["collectives"] == pytest.approx(32 * (2 * 2 * 4e-6 + away), rel=1e-12)


def test_capacity_by_hand_and_what_does_not_fit() -> None:
    work, device = work_of("llama-3.1-70b"), find_device("h200")
    precision = precision_of("fp8", "fp8", work, device)
    weights = bytes_of(work, precision, Layout())
    assert weights == pytest.approx(70.5526e9 + 2 * 128256 * 8192, rel=1e-4)  # head and table stay at 16 bits
    assert capacity(work, precision, device, Layout(), 1000, 0.9) == int(
        (141 * GIB - weights - 2e9) * 0.9 / (80 * 2048 * 1000)
    )
    with pytest.raises(CapacityError, match=r"^llama-3.1-70b does not fit on h100: 72\.7 GB of weights and 16\.38 GB "):
        capacity(work, precision, find_device("h100"), Layout(), 100_000)
    assert capacity(work, precision, find_device("h100"), Layout(tensor=2), 100_000) >= 1


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("fp8", "a100", "a100 has no figure for its rate in fp8, which fp8 needs"),
        ("fp4", "h100", "h100 has no figure for its rate in fp4, which fp4 needs"),
        ("bf16", "wse-3", "wse-3 has no figure for its rate in bf16, which bf16 needs"),
    ],
)
def test_a_format_that_a_device_has_no_figure_for_is_refused(name: str, device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        precision_of(name, "bf16", work_of("llama-3.1-8b"), find_device(device))


def test_a_layout_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^tensor parallelism over 64 devices needs as many heads, .* has 32$"):
        Layout(tensor=64).check(work_of("llama-3.1-8b"))
    with pytest.raises(ConfigError, match=r"^33 stages are more than the 32 layers of llama-3.1-8b$"):
        Layout(pipeline=33).check(work_of("llama-3.1-8b"))


def faster(device: Device, field: str, ratio: float) -> Device:
    fact = device.facts[field]
    assert fact.low is not None
    assert fact.high is not None
    more = Fact(fact.low * ratio, fact.high * ratio, fact.unit, fact.text, fact.source, fact.date, fact.confidence)
    return Device(device.key, {**device.facts, field: more})


MODELS = ("llama-3.1-8b", "llama-2-70b", "gpt-oss-20b", "deepseek-r1", "qwen3-235b-a22b", "falcon-180b")
LAYOUTS = (Layout(), Layout(tensor=8), Layout(data=4), Layout(tensor=2, pipeline=4))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(MODELS), st.sampled_from(LAYOUTS), st.integers(1, 2048), st.integers(1, 200_000),
    st.floats(1.01, 4), st.sampled_from(("bandwidth", "link", "bf16", "fp8")),
)  # fmt: skip
def test_a_better_device_is_never_slower_and_more_work_never_faster(
    model: str, layout: Layout, sequences: int, context: int, ratio: float, field: str
) -> None:
    work, device = work_of(model), find_device("h100")
    precision = precision_of("fp8", "fp8", work, device)
    step = Step(sequences, 1, context, False)

    def time(step: Step, device: Device = device, s: Scalars = PLAIN) -> float:
        return step_seconds(work, precision, device, layout, step, s)

    base = time(step)
    assert time(step, faster(device, field, ratio)) <= base
    assert time(replace(step, context=context * ratio)) >= base
    assert time(replace(step, sequences=sequences * ratio)) > base
    assert time(step, s=replace(PLAIN, kernel_s=PLAIN.kernel_s * ratio)) > base
    assert time(step, s=replace(PLAIN, memory=min(1.0, PLAIN.memory * ratio))) <= base
    prompt = Step(1, context, context, True)
    assert time(replace(prompt, rows=context + 1)) > time(prompt)


def points(count: int, seed: int) -> tuple[list[tuple[Work, Precision]], np.ndarray, Points, list[tuple]]:
    """Random points of all models, formats, devices, layouts and scalars, for both paths."""
    rng = np.random.default_rng(seed)
    usable = [d for d in devices().values() if d.bytes_per_s and d.link_bytes_per_s and d.rate("bf16")]
    variants: dict[tuple[str, str, str], tuple[Work, Precision]] = {}
    rows, index = [], []
    for _ in range(count):
        work = work_of(str(rng.choice(list(known_models()))))
        device = usable[rng.integers(len(usable))]
        name, kv = str(rng.choice(FORMATS)), str(rng.choice(("bf16", "fp8")))
        try:
            precision = precision_of(name, kv, work, device)
        except ConfigError:
            continue
        layout = Layout(*(int(2 ** rng.integers(0, 4)) for _ in range(3)))
        first = bool(rng.integers(2))
        rows_each = float(rng.integers(1, 5000)) if first else 1.0
        step = Step(
            float(rng.integers(1, 2000)), rows_each, float(rng.integers(1, 100_000)), first, bool(rng.integers(2)),
            float(rng.random()), float(rng.integers(2)),
        )  # fmt: skip
        scalars = Scalars(*rng.uniform(0.1, 1, 3), *rng.uniform(1e-6, 1e-4, 3))
        variants.setdefault((work.name, name + kv, device.key), (work, precision))
        index.append(list(variants).index((work.name, name + kv, device.key)))
        rows.append((work, precision, device, layout, step, scalars))
    kinds = ("linear", "expert", "head")
    arrays = {
        f"{kind}_rate": np.array([r[2].rate(getattr(r[1], kind)[1]) for r in rows], dtype=float) for kind in kinds
    }
    arrays |= {"rate": np.array([r[2].rate("bf16") for r in rows], dtype=float)}
    arrays |= {name: np.array([getattr(r[2], f"{name}_per_s") for r in rows]) for name in ("bytes", "link_bytes")}
    arrays = {{"bytes": "bandwidth", "link_bytes": "link"}.get(name, name): some for name, some in arrays.items()}
    for name in ("tensor", "data", "pipeline"):
        arrays[name] = np.array([getattr(r[3], name) for r in rows], dtype=float)
    for name in ("sequences", "rows", "context", "shared", "launched", "hosted"):
        arrays[name] = np.array([getattr(r[4], name) for r in rows], dtype=float)
    arrays["first"] = np.array([r[4].first for r in rows])
    for name in Scalars.names():
        arrays[name] = np.array([getattr(r[5], name) for r in rows])
    return list(variants.values()), np.array(index), Points(**arrays), rows


def test_the_vectorised_path_gives_what_the_scalar_path_gives() -> None:
    variants, index, some, rows = points(3000, 1)
    found = seconds(variants, index, some)
    want = np.array([step_seconds(*row) for row in rows])
    assert len(rows) > 1000
    assert {row[0].name for row in rows} == set(known_models())
    np.testing.assert_allclose(found, want, rtol=1e-9)


def test_parts_sum_to_the_step_and_none_is_negative() -> None:
    for model, layout in itertools.product(MODELS, LAYOUTS):
        work, device = work_of(model), find_device("b200")
        precision = precision_of("fp8", "fp8", work, device)
        for step in (Step(7, 1, 900, False), Step(1, 3000, 3000, True, launched=1.0)):
            parts = step_parts(work, precision, device, layout, step, PLAIN)
            assert min(parts.values()) >= 0
            assert sum(parts.values()) == step_seconds(work, precision, device, layout, step, PLAIN)


def test_a_sweep_gives_what_single_steps_give() -> None:
    work, found = work_of("gpt-oss-20b"), [find_device(key) for key in ("h100", "b200")]
    variants = [(work, precision_of(name, "fp8", work, found[0])) for name in ("bf16", "fp8")]
    sweep = Sweep(variants, [(device, PLAIN) for device in found])
    variant, device = np.array([0, 1, 1, 0]), np.array([1, 0, 1, 0])
    numbers = np.array([[10.0, 900, 5e4, 77], [1, 64, 300, 2], [1, 2, 4, 8], [1, 4, 1, 2], [1, 1, 2, 1]])
    got = sweep.decode_seconds(variant, device, *numbers)
    for i, (context, sequences, *layout) in enumerate(numbers.T):
        step = Step(sequences, 1, context, False)
        want = step_seconds(*variants[variant[i]], found[device[i]], Layout(*map(int, layout)), step, PLAIN)
        assert got[i] == pytest.approx(want, rel=1e-9)
    with pytest.raises(ConfigError, match=r"^tpu-v4 has no figure for its rate in fp8, which gpt-oss-20b needs$"):
        Sweep(variants[1:], [(find_device("tpu-v4"), PLAIN)])
