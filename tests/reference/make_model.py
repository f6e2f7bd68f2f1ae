"""Small random models of Llama's type in Hugging Face layout, the same bytes for the same arguments on every machine.

Random numbers are sums of four uniform integers from a frozen generator, so no libm call can change a bit. Scales
are those of a trained model: unit q and k, scores with a spread of a few units, a residual stream that grows slowly,
norm gains near 1, and a few outlier channels, which are what makes quantisation hard.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .exact import F32

OUTLIERS = 8.0  # how much larger an outlier channel is
SCORE_SPREAD = 1.5  # standard deviation of q . k / sqrt(d), about


class _Random:
    """A stream of nearly normal FP32 arrays."""

    def __init__(self, seed: int) -> None:
        self.state = np.random.RandomState(seed)

    def normal(self, shape: tuple[int, ...], deviation: float) -> F32:
        """Mean 0 and the given deviation, bounded by 3.5 deviations."""
        total = self.state.randint(0, 1 << 22, size=(4, *shape)).sum(0) - 2 * (1 << 22)
        out: F32 = (total * (np.sqrt(3.0) * deviation / (1 << 22))).astype(np.float32)
        return out


def make_llama(
    path: str | Path,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 128,
    vocab: int = 512,
    context: int = 1024,
    tied: bool = True,
    theta: float = 10000.0,
    eps: float = 1e-5,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    attention_bias: bool = False,
    qk_norm: bool = False,
    outliers: int = 2,
    family: str = "llama",
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write config.json, the weights and tokenizer.json into a directory, made if missing, and return it.

    dtype : "float32", "bfloat16" or "float16"      shards : files; more than one adds an index
    outliers : channels of the residual stream that are OUTLIERS times larger, and as many that the norms stress
    attention_bias, qk_norm : add the biases of q, k and v (and o), the per-head norms of q and k
    family : "llama", "qwen2" (biases of q, k and v only) or "qwen3" (norms of q and k); the config says so
    extra : entries added to config.json, or put in place of those there (model_type, rope_parameters, ...)
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"dtype={dtype!r} is not one of float32, bfloat16, float16")
    root = Path(path)
    root.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab,
        "max_position_embeddings": context, "rope_theta": theta, "rms_norm_eps": eps, "tie_word_embeddings": tied,
        "attention_bias": attention_bias, "mlp_bias": False, "dtype": dtype,
        "bos_token_id": None, "eos_token_id": min(256, vocab - 1),
    }  # fmt: skip
    if family != "llama":
        config |= {"architectures": [f"{family.capitalize()}ForCausalLM"], "model_type": family}
        for name in ("mlp_bias", *(["attention_bias"] if family == "qwen2" else [])):
            del config[name]
    (root / "config.json").write_text(json.dumps({**config, **(extra or {})}, indent=1) + "\n")
    tensors = _tensors(
        _Random(seed), hidden, layers, heads * head_dim, kv_heads * head_dim, head_dim, intermediate, vocab, tied,
        attention_bias or family == "qwen2", qk_norm or family == "qwen3", outliers,
    )  # fmt: skip
    if family == "qwen2":
        tensors = {name: value for name, value in tensors.items() if not name.endswith("o_proj.bias")}
    _write_shards(root, tensors, dtype, shards)
    (root / "tokenizer.json").write_text(json.dumps(byte_tokenizer(vocab), ensure_ascii=False) + "\n")
    return root


def _tensors(
    random: _Random, hidden: int, layers: int, q_size: int, kv_size: int, head_dim: int, intermediate: int,
    vocab: int, tied: bool, bias: bool, qk_norm: bool, outliers: int,
) -> dict[str, F32]:  # fmt: skip
    """Weights by their Hugging Face names, in the order of the file."""
    shuffled = random.state.permutation(hidden)
    large, sharpened = shuffled[:outliers], shuffled[outliers : 2 * outliers]

    def gains(size: int, at_large: float = 0.5) -> F32:
        """Near 1; a trained norm damps the channels that are large in the residual stream, and stresses others."""
        out = np.float32(1) + random.normal((size,), 0.1)
        if size == hidden:
            out[large] *= np.float32(at_large)
            out[sharpened] *= np.float32(OUTLIERS / 2)
        return out

    embed_deviation = 2 / np.sqrt(hidden)
    table = random.normal((vocab, hidden), embed_deviation)
    table[:, large] *= np.float32(OUTLIERS)
    branch = embed_deviation / np.sqrt(2 * layers)
    unit = 1 / np.sqrt(hidden)
    sharp = unit * np.sqrt(SCORE_SPREAD)
    out = {"model.embed_tokens.weight": table}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (q_size, hidden, sharp),
            "self_attn.k_proj": (kv_size, hidden, sharp),
            "self_attn.v_proj": (kv_size, hidden, unit),
            "self_attn.o_proj": (hidden, q_size, 6 * branch / np.sqrt(q_size)),
            "mlp.gate_proj": (intermediate, hidden, unit),
            "mlp.up_proj": (intermediate, hidden, unit),
            "mlp.down_proj": (hidden, intermediate, 6 * branch / np.sqrt(intermediate)),
        }
        out[at + "input_layernorm.weight"] = gains(hidden)
        out[at + "post_attention_layernorm.weight"] = gains(hidden)
        for name, (rows, columns, deviation) in shapes.items():
            out[at + name + ".weight"] = random.normal((rows, columns), float(deviation))
            if bias and name.startswith("self_attn"):
                out[at + name + ".bias"] = random.normal((rows,), float(branch) if "o_proj" in name else 0.3)
        if qk_norm:
            out[at + "self_attn.q_norm.weight"] = gains(head_dim)
            out[at + "self_attn.k_norm.weight"] = gains(head_dim)
    out["model.norm.weight"] = gains(hidden, 1 / OUTLIERS)
    if tied:  # signs at random, or every token would predict itself: layers of a trained model take care of that
        out["model.norm.weight"] *= (2 * random.state.randint(0, 2, size=hidden) - 1).astype(np.float32)
    else:
        out["lm_head.weight"] = random.normal((vocab, hidden), 2 * float(unit))
    return out


def _write_shards(root: Path, tensors: dict[str, F32], dtype: str, shards: int) -> None:
    """One file, or `shards` files of runs of tensors in order and the index that names them."""
    names = list(tensors)
    if shards == 1:
        write_safetensors(root / "model.safetensors", tensors, dtype)
        return
    weight_map, total = {}, 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        total += write_safetensors(root / file, {name: tensors[name] for name in part}, dtype)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_safetensors(path: Path, tensors: dict[str, F32], dtype: str) -> int:
    """Write tensors, rounded (RNE) to the dtype, and return the bytes of their data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, offset = [], 0
    for name, value in tensors.items():
        if dtype == "bfloat16":
            bits = np.ascontiguousarray(value).view(np.uint32)
            raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            raw = value.astype("<f4" if dtype == "float32" else "<f2").tobytes()
        kind = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [offset, offset + len(raw)]}
        chunks.append(raw)
        offset += len(raw)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(chunks))
    return offset


def byte_tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer.json: ids 0..255 are the bytes, 256 is <|endoftext|>, the rest pairs of printables.

    A vocabulary of up to 256 holds the first bytes only. Pairs have merges, so that every id decodes to text.
    """
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    symbols = {b: chr(b) for b in printable}  # GPT-2's table: the others move to 256 and above, in order
    for b in range(256):
        symbols.setdefault(b, chr(256 + len(symbols) - len(printable)))
    tokens = {symbols[b]: b for b in range(min(vocab, 256))}
    letters = [symbols[b] for b in range(33, 127)]
    merges = []
    for n in range(max(0, min(vocab - 257, len(letters) ** 2))):
        left, right = letters[n // len(letters)], letters[n % len(letters)]
        merges.append([left, right])
        tokens[left + right] = 257 + n
    special = {"id": 256, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if vocab > 256:
        tokens["<|endoftext|>"] = 256
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [special] if vocab > 256 else [],
        "normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": dict(sorted(tokens.items(), key=lambda item: item[1])), "merges": merges},
    }  # fmt: skip
