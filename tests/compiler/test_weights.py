"""Weights in DRAM: reading the slots back in the order in which the program takes them gives the quantised matrix."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from reference.arith import Blocks, quantise_weight
from reference.contract import LINEAR, load_model

from systolith.compiler import Compiled, Options, compile_model
from systolith.compiler.plan import LinearPlan
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.spec import load

from .conftest import Make

SHAPE: dict[str, Any] = {"hidden": 160, "heads": 6, "kv_heads": 2, "head_dim": 24, "intermediate": 200, "vocab": 99}
CASES: dict[str, dict[str, Any]] = {
    "int8": {},
    "e4m3-spans": {"weights": "E4M3", "activations": "E4M3", "spans": {"q": 2, "down": 3, "head": 2}},
    "e2m1": {"weights": "E2M1", "activations": "INT8"},
    "two-terms": {"weights": "INT8x2"},
}


def memory_of(compiled: Compiled, rank: int) -> np.ndarray:
    """DRAM of a slice before the program starts."""
    dram = np.zeros(compiled.memory.dram_bytes, np.uint8)
    for image in compiled.program.images:
        if image.slice in (rank, -1):
            dram[image.address : image.address + len(image.data)] = np.frombuffer(image.data, np.uint8)
    return dram


def values_of(codes: np.ndarray, fmt: str) -> np.ndarray:
    """Elements of raw bytes."""
    if fmt == "INT8":
        return codes.view(np.int8).astype(np.float64) / 64
    if fmt == "E4M3":
        return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:-1], -1)
    return nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)


def read_back(compiled: Compiled, linear: LinearPlan, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Elements [n, k * terms] and scale codes [n, k * terms / 32], terms of a block side by side."""
    plan, memory = compiled.plan, compiled.memory
    bits = {"INT8": 8, "E4M3": 8, "E2M1": 4}[linear.format]
    width = linear.kt * linear.terms
    elements = np.full((linear.n, linear.k * linear.terms), np.nan)
    scales = np.full((linear.n, linear.k * linear.terms // 32), -1)
    for rank in range(plan.slices):
        dram = memory_of(compiled, rank)
        first, count = plan.tile_share(linear, rank)
        at = layer * count * linear.tile_elements
        for tile in range(first, first + count):
            before = 0  # columns of the parts before, of all tiles
            for part in linear.parts:
                size = part.nt * width
                column = before + tile * part.nt
                rows = slice(column, column + part.nt)
                before += linear.tiles * part.nt
                for slot in range(linear.slots_per_part):
                    start = memory.dram[f"w_{linear.name}"] + at * bits // 8
                    codes = dram[start : start + size * bits // 8].reshape(part.nt, -1)
                    start = memory.dram[f"ws_{linear.name}"] + at // 32
                    codes_of_scales = dram[start : start + size // 32].reshape(part.nt, -1)
                    elements[rows, slot * width : (slot + 1) * width] = values_of(codes, linear.format)
                    scales[rows, slot * width // 32 : (slot + 1) * width // 32] = codes_of_scales
                    at += size
    return elements, scales


def expected(checkpoint: Checkpoint, linear: LinearPlan, layer: int, chosen: str, dp: int) -> tuple[Blocks, ...]:
    """Terms of the quantised matrix, heads padded one by one, padded to [n, k]."""
    model = load_model(checkpoint.path)
    if linear.name == "head":
        w = model.tensors["model.embed_tokens.weight"]
    else:
        names = "qkv" if linear.name == "qkv" else (linear.name,)
        w = np.concatenate([model.tensors[f"model.layers.{layer}.{LINEAR[name]}.weight"] for name in names])
    d = model.head_dim
    if linear.name in "qkv":
        w = np.pad(w.reshape(-1, d, w.shape[1]), ((0, 0), (0, dp - d), (0, 0))).reshape(-1, w.shape[1])
    if linear.name == "o":
        w = np.pad(w.reshape(w.shape[0], -1, d), ((0, 0), (0, 0), (0, dp - d))).reshape(w.shape[0], -1)
    w = np.pad(w, ((0, linear.n - w.shape[0]), (0, linear.k - w.shape[1])))
    return quantise_weight(w.astype(np.float32), chosen)


@pytest.mark.parametrize("name", ["nano", "three", "server"])
@pytest.mark.parametrize("case", CASES)
def test_slots_hold_the_quantised_matrix_in_order(make: Make, case: str, name: str) -> None:
    checkpoint = make(**SHAPE)
    profile = Profile.from_dict(CASES[case]).resolved(checkpoint.graph)
    chip = load("micro").vary(slices=3) if name == "three" else load(name)
    check(compile_model(checkpoint, chip, profile, Options()), checkpoint, profile)


def test_tiles_made_in_parts_lie_part_by_part(make: Make) -> None:
    checkpoint = make(**SHAPE | {"intermediate": 512})
    profile = Profile.from_dict(CASES["e2m1"]).resolved(checkpoint.graph)
    compiled = compile_model(checkpoint, load("slice64"), profile, Options(batch=8, rows=64))
    assert compiled.plan.gate.cuts == compiled.plan.up.cuts == (64, 64)
    assert compiled.plan.gate.tiles > 1
    check(compiled, checkpoint, profile)


def check(compiled: Compiled, checkpoint: Checkpoint, profile: Profile) -> None:
    """Read all matrices back, and compare them with those of the reference."""
    for linear in compiled.plan.linears:
        for layer in (0,) if linear.name == "head" else (0, 1):
            elements, scales = read_back(compiled, linear, layer)
            chosen = profile.head if linear.name == "head" else profile.weights
            terms = expected(checkpoint, linear, layer, chosen, compiled.plan.dp)
            assert len(terms) == linear.terms
            for number, blocks in enumerate(terms):
                mine = elements.reshape(linear.n, -1, linear.terms, 32)[:, :, number].reshape(linear.n, -1)
                mine_scales = scales[:, number :: linear.terms]
                assert np.array_equal(mine_scales, blocks.scales), f"scales of {linear.name}, layer {layer}"
                assert np.array_equal(mine, blocks.elements), f"codes of {linear.name}, layer {layer}"
