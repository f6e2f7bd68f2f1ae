"""Hugging Face directories (config.json, safetensors) and numerics profiles, read without any library of theirs.

Source: the safetensors format (8 bytes of little-endian header length, a JSON header, raw data).
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .arith import PAIRS
from .exact import F32

FORMATS = ("E2M1", "E4M3", "INT8")
SPANS = ("q", "k", "v", "o", "gate", "up", "down", "head")


@dataclass(frozen=True)
class Profile:
    """A numerics profile; the fields are the contract's. `lanes` 0 is rule 7's default for the model."""

    weights: str = "INT8"
    activations: str = "INT8"
    k: str = "INT8"
    v: str = "INT8"
    p: str = "INT8"
    head: str = "INT8"
    embed: str = "INT8"
    lanes: int = 0
    deferred_norm: bool = True
    spans: tuple[tuple[str, int], ...] = tuple((name, 1) for name in SPANS)

    @staticmethod
    def of(source: Profile | dict[str, Any] | str | Path) -> Profile:
        """Check a profile given as a record, a dict, or the path of a TOML file."""
        if isinstance(source, Profile):
            return source
        record = dict(source) if isinstance(source, dict) else tomllib.loads(Path(source).read_text())
        defaults = Profile()
        unknown = set(record) - set(vars(defaults))
        spans = {**dict(defaults.spans), **record.pop("spans", {})}
        unknown |= {f"spans.{name}" for name in set(spans) - set(dict(defaults.spans))}
        if unknown:
            raise ValueError(f"unknown profile keys {sorted(unknown)}; known are {sorted(vars(defaults))}")
        profile = Profile(**record, spans=tuple(spans.items()))
        weights = "INT8" if profile.weights == "INT8x2" else profile.weights
        for name in ("activations", "k", "v", "p", "head", "embed"):
            if getattr(profile, name) not in FORMATS:
                raise ValueError(f"{name}={getattr(profile, name)!r} is not one of {FORMATS}")
        for left, right in (
            (profile.activations, weights),
            (profile.activations, profile.head),
            (profile.k, profile.k),
            (profile.p, profile.v),
        ):
            if (left, right) not in PAIRS:
                raise ValueError(f"{left} x {right} is not a pair of rule 1")
        if profile.weights == "INT8x2" and profile.activations != "INT8":
            raise ValueError("INT8x2 weights want INT8 activations")
        if profile.lanes and profile.lanes & (profile.lanes - 1):
            raise ValueError(f"lanes={profile.lanes} is no power of two")
        return profile


def default_lanes(kv_heads: int) -> int:
    """R of rule 7: 8 for 8 or more KV heads, else 64 / KV heads rounded down to a power of two."""
    return 8 if kv_heads >= 8 else 1 << int(math.log2(64 // kv_heads))


@dataclass
class Model:
    """A checkpoint in FP32 under its Hugging Face names, and the numbers of its config.json."""

    config: dict[str, Any]
    tensors: dict[str, F32]
    prepared: dict[Profile, Any] = field(default_factory=dict, repr=False)  # quantised weights by profile

    hidden = property(lambda self: int(self.config["hidden_size"]))
    layers = property(lambda self: int(self.config["num_hidden_layers"]))
    heads = property(lambda self: int(self.config["num_attention_heads"]))
    vocab = property(lambda self: int(self.config["vocab_size"]))

    @property
    def kv_heads(self) -> int:
        """Heads of the KV cache; as many as query heads where the config has no number."""
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_dim(self) -> int:
        """Unpadded size of a head."""
        return int(self.config.get("head_dim") or self.hidden // self.heads)

    @property
    def eps(self) -> np.float32:
        """rms_norm_eps, a binary64 number rounded to FP32."""
        return np.float32(self.config["rms_norm_eps"])

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding table."""
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def rope(self) -> dict[str, Any]:
        """Rotary parameters with rope_theta in them, wherever the config keeps them."""
        parameters = dict(self.config.get("rope_parameters") or self.config.get("rope_scaling") or {})
        parameters.setdefault("rope_theta", self.config.get("rope_theta", 10000.0))
        parameters.setdefault("original_max_position_embeddings", self.config.get("max_position_embeddings"))
        return parameters


def load_model(path: str | Path) -> Model:
    """Read config.json and model.safetensors, or the shards that model.safetensors.index.json names."""
    root = Path(path)
    config = json.loads((root / "config.json").read_text())
    index = root / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, F32] = {}
    for name in files:
        tensors.update(read_safetensors(root / name))
    return Model(config, tensors)


def read_safetensors(path: Path) -> dict[str, F32]:
    """All tensors of a file, exactly widened to FP32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    out: dict[str, F32] = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[start + begin : start + end]
        if entry["dtype"] == "F32":
            values = np.frombuffer(raw, "<f4").astype(np.float32)
        elif entry["dtype"] == "F16":
            values = np.frombuffer(raw, "<f2").astype(np.float32)
        elif entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            raise ValueError(f"{path.name}: {name} has dtype {entry['dtype']}, not one of F32, F16, BF16")
        out[name] = values.reshape(entry["shape"])
    return out
