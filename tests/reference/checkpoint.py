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
import numpy.typing as npt

from .arith import PAIRS
from .exact import F32

FORMATS = ("E2M1", "E4M3", "INT8")
SPANS = ("q", "k", "v", "o", "gate", "up", "down", "head", "router", "expert_gate", "expert_up", "expert_down")


@dataclass(frozen=True)
class Profile:
    """A numerics profile; the fields are the contract's. `lanes` 0 is rule 7's default for the model, and "" stands for
    the defaults of experts (the weights' format) and router (INT8x2 with INT8 activations, else theirs)."""

    weights: str = "INT8"
    activations: str = "INT8"
    k: str = "INT8"
    v: str = "INT8"
    p: str = "INT8"
    head: str = "INT8"
    embed: str = "INT8"
    experts: str = ""
    router: str = ""
    lanes: int = 0
    deferred_norm: bool = True
    spans: tuple[tuple[str, int], ...] = tuple((name, 1) for name in SPANS)

    @property
    def experts_format(self) -> str:
        """Format of the experts' matrices."""
        return self.experts or self.weights

    @property
    def router_format(self) -> str:
        """Format of the router's matrix."""
        return self.router or ("INT8x2" if self.activations == "INT8" else self.activations)

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
        for name in ("activations", "k", "v", "p", "head", "embed"):
            if getattr(profile, name) not in FORMATS:
                raise ValueError(f"{name}={getattr(profile, name)!r} is not one of {FORMATS}")
        matrices = (profile.weights, profile.experts_format, profile.router_format)
        for left, right in (
            *((profile.activations, "INT8" if fmt == "INT8x2" else fmt) for fmt in matrices),
            (profile.activations, profile.head),
            (profile.k, profile.k),
            (profile.p, profile.v),
        ):
            if (left, right) not in PAIRS:
                raise ValueError(f"{left} x {right} is not a pair of rule 1")
        if profile.lanes and profile.lanes & (profile.lanes - 1):
            raise ValueError(f"lanes={profile.lanes} is no power of two")
        return profile


def default_lanes(kv_heads: int) -> int:
    """R of rule 7: 8 for 8 or more KV heads, else 64 / KV heads rounded down to a power of two."""
    return 8 if kv_heads >= 8 else 1 << int(math.log2(64 // kv_heads))


@dataclass
class Model:
    """A checkpoint in FP32 under its Hugging Face names, what it stores as codes, and its config.json."""

    config: dict[str, Any]
    tensors: dict[str, F32]
    codes: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    prepared: dict[Profile, Any] = field(default_factory=dict, repr=False)  # quantised weights by profile

    hidden = property(lambda self: int(self.config["hidden_size"]))
    layers = property(lambda self: int(self.config["num_hidden_layers"]))
    heads = property(lambda self: int(self.config["num_attention_heads"]))
    vocab = property(lambda self: int(self.config["vocab_size"]))

    @property
    def latent(self) -> bool:
        """Whether attention is latent: all heads read one row."""
        return self.config.get("model_type") == "deepseek_v3"

    @property
    def rope_dim(self) -> int:
        """Elements that are turned."""
        return int(self.config["qk_rope_head_dim"]) if self.latent else self.head_dim

    @property
    def value_dim(self) -> int:
        """Elements of a head that the output projection takes."""
        return int(self.config["v_head_dim"]) if self.latent else self.head_dim

    @property
    def kv_heads(self) -> int:
        """Heads of the KV cache; as many as query heads where the config has no number."""
        return 1 if self.latent else int(self.config.get("num_key_value_heads") or self.heads)

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

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer in tokens, or None."""
        kind, size = self.config.get("model_type"), self.config.get("sliding_window")
        if kind in ("llama", "deepseek_v3"):
            return None
        if kind in ("mistral", "mixtral"):
            return self.config.get("sliding_window", 4096 if kind == "mistral" else None)
        if kind in ("gpt_oss", "gemma3_text"):
            every = 2 if kind == "gpt_oss" else self.config.get("sliding_window_pattern", 6)
            usual = "sliding_attention" if (layer + 1) % every else "full_attention"
            types = self.config.get("layer_types")
            return size if (types[layer] if types else usual) == "sliding_attention" else None
        if not self.config.get("use_sliding_window"):
            return None
        if kind == "qwen3_moe":
            return size
        types = self.config.get("layer_types")
        sliding = types[layer] == "sliding_attention" if types else layer >= self.config.get("max_window_layers", 28)
        return size if sliding else None

    @property
    def ropes(self) -> dict[str, dict[str, Any]]:
        """Rotary parameters with rope_theta in them, wherever the config keeps them, by `rope_key`."""
        given = self.config.get("rope_parameters") or {}
        out = {}
        for key in ("full_attention", "sliding_attention") if self.gemma else ("",):
            parameters = dict(given.get(key) or {} if self.gemma else given)
            theta = self.config.get("rope_theta", 1e6 if self.gemma else 10000.0)
            if key == "sliding_attention":
                theta = self.config.get("rope_local_base_freq", 10000.0)
            elif not parameters:
                parameters = dict(self.config.get("rope_scaling") or {})
            parameters.setdefault("rope_theta", theta)
            parameters.setdefault("original_max_position_embeddings", self.config.get("max_position_embeddings"))
            out[key] = parameters
        return out

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary parameters of a model that has one kind."""
        (parameters,) = self.ropes.values()
        return parameters

    def rope_key(self, layer: int) -> str:
        """Which of `ropes` a layer has."""
        if not self.gemma:
            return ""
        return "full_attention" if self.window(layer) is None else "sliding_attention"

    @property
    def gemma(self) -> bool:
        """Whether it is a Gemma 3: gains 1 + g, norms after branches, scaled embeddings, GELU, two kinds of rotary."""
        return self.config.get("model_type") == "gemma3_text"

    def gain(self, name: str) -> F32:
        """The gain of a norm: the tensor, of a Gemma RNE(1 + g)."""
        return np.float32(1) + self.tensors[name] if self.gemma else self.tensors[name]

    @property
    def embed_scale(self) -> np.float32 | None:
        """What multiplies the rows of the embedding: sqrt(hidden) in the type of the model, of a Gemma only."""
        if not self.gemma:
            return None
        root = np.float32(math.sqrt(self.hidden))
        if self.config.get("dtype", self.config.get("torch_dtype")) != "bfloat16":
            return root
        bits = int(np.float32(root).view(np.uint32))
        return np.uint32((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)

    @property
    def score_scale(self) -> float | None:
        """What multiplies the scores, binary64; None is 1 / sqrt(head_dim)."""
        scalar = self.config.get("query_pre_attn_scalar", 256) if self.gemma else self.head_dim
        return None if scalar == self.head_dim else float(scalar) ** -0.5


def load_model(path: str | Path) -> Model:
    """Read config.json and model.safetensors, or the shards that model.safetensors.index.json names."""
    root = Path(path)
    config = json.loads((root / "config.json").read_text())
    index = root / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    tensors: dict[str, F32] = {}
    codes: dict[str, npt.NDArray[np.uint8]] = {}
    for name in files:
        for key, value in read_safetensors(root / name).items():
            (codes if value.dtype == np.uint8 else tensors)[key] = value
    return Model(config, tensors, codes)


def read_safetensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a file, exactly widened to FP32; bytes stay bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    out: dict[str, npt.NDArray[Any]] = {}
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
        elif entry["dtype"] == "U8":
            values = np.frombuffer(raw, np.uint8)
        else:
            raise ValueError(f"{path.name}: {name} has dtype {entry['dtype']}, not one of F32, F16, BF16, U8")
        out[name] = values.reshape(entry["shape"])
    return out
