"""Small random models in Hugging Face layout, dense and with experts, the same bytes for the same arguments everywhere.

Random numbers are sums of four uniform integers from a frozen generator, so no libm call can change a bit. Scales
are those of a trained model: unit q and k, scores with a spread of a few units, a residual stream that grows slowly,
norm gains near 1, and a few outlier channels, which are what makes quantisation hard.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .exact import F32

Array = npt.NDArray[Any]
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
    experts: int = 6,
    top_k: int = 2,
    mxfp4: bool = False,
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write config.json, the weights and tokenizer.json into a directory, made if missing, and return it.

    dtype : "float32", "bfloat16" or "float16"      shards : files; more than one adds an index
    outliers : channels of the residual stream that are OUTLIERS times larger, and as many that the norms stress
    attention_bias, qk_norm : add the biases of q, k and v (and o), the per-head norms of q and k
    family : "llama", "qwen2" (biases of q, k and v only), "qwen3" (norms of q and k), "mixtral", "qwen3_moe", "gpt_oss"
    or "gemma3_text"; the config says so.      experts, top_k : of a mixture; intermediate is the size of an expert
    mxfp4 : store the experts of gpt-oss as MXFP4 blocks
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
        config |= {"architectures": [ARCHITECTURES[family]], "model_type": family}
        for name in ("mlp_bias", *(["attention_bias"] if family in ("qwen2", "mixtral") else [])):
            del config[name]
    if family == "deepseek_v3":
        config |= {
            "head_dim": head_dim, "qk_rope_head_dim": head_dim, "qk_nope_head_dim": 24, "v_head_dim": 20,
            "kv_lora_rank": 40, "q_lora_rank": 56, "n_routed_experts": experts, "num_experts_per_tok": top_k,
            "n_group": 3, "topk_group": 2, "moe_intermediate_size": intermediate, "n_shared_experts": 1,
            "first_k_dense_replace": 1, "num_key_value_heads": heads,
            "rope_scaling": {
                "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.8,
                "mscale_all_dim": 1.0,
            },
        }  # fmt: skip
    if family in ("mixtral", "qwen3_moe", "gpt_oss"):
        count = "num_experts" if family == "qwen3_moe" else "num_local_experts"
        config |= {count: experts, "num_experts_per_tok": top_k}
    if family == "qwen3_moe":
        config |= {"moe_intermediate_size": intermediate, "norm_topk_prob": True}
    if family == "gpt_oss":
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False}
        config |= {"attention_bias": True, "sliding_window": 40, "rope_scaling": yarn}
        config |= {"quantization_config": {"quant_method": "mxfp4"}} if mxfp4 else {}
    if family == "gemma3_text":
        del config["hidden_act"]
        config |= {"query_pre_attn_scalar": 24, "sliding_window": 40, "sliding_window_pattern": 2}
        config |= {"hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 100.0}
    config |= extra or {}
    (root / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    bias = attention_bias or family in ("qwen2", "gpt_oss")
    tensors = _tensors(
        _Random(seed), hidden, layers, heads * head_dim, kv_heads * head_dim, head_dim, intermediate, vocab, tied,
        bias, qk_norm or family in ("qwen3", "qwen3_moe", "gemma3_text"), outliers, config, mxfp4,
    )  # fmt: skip
    if family == "qwen2":
        tensors = {name: value for name, value in tensors.items() if not name.endswith("o_proj.bias")}
    _write_shards(root, tensors, dtype, shards)
    (root / "tokenizer.json").write_text(json.dumps(byte_tokenizer(vocab), ensure_ascii=False) + "\n")
    return root


ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM", "gpt_oss": "GptOssForCausalLM", "gemma3_text": "Gemma3ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}  # fmt: skip


def _tensors(
    random: _Random, hidden: int, layers: int, q_size: int, kv_size: int, head_dim: int, intermediate: int,
    vocab: int, tied: bool, bias: bool, qk_norm: bool, outliers: int, config: dict[str, Any], mxfp4: bool,
) -> dict[str, Array]:  # fmt: skip
    """Weights by their Hugging Face names, in the order of the file."""
    family, gemma = config["model_type"], config["model_type"] == "gemma3_text"
    shuffled = random.state.permutation(hidden)
    large, sharpened = shuffled[:outliers], shuffled[outliers : 2 * outliers]

    def gains(size: int, at_large: float = 0.5) -> F32:
        """Near 1; a trained norm damps the channels that are large in the residual stream, and stresses others."""
        out = np.float32(1) + random.normal((size,), 0.1)
        if size == hidden:
            out[large] *= np.float32(at_large)
            out[sharpened] *= np.float32(OUTLIERS / 2)
        return out - np.float32(1) if gemma else out

    embed_deviation = 2 / np.sqrt(hidden)
    table = random.normal((vocab, hidden), embed_deviation)
    table[:, large] *= np.float32(OUTLIERS)
    branch = embed_deviation / np.sqrt(2 * layers)
    unit = 1 / np.sqrt(hidden)
    sharp = unit * np.sqrt(SCORE_SPREAD)
    out = {"model.embed_tokens.weight": table}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        inner = {
            "gate": (intermediate, hidden, unit),
            "up": (intermediate, hidden, unit),
            "down": (hidden, intermediate, 6 * branch / np.sqrt(intermediate)),
        }
        attention = {
            "self_attn.q_proj": (q_size, hidden, sharp),
            "self_attn.k_proj": (kv_size, hidden, sharp),
            "self_attn.v_proj": (kv_size, hidden, unit),
            "self_attn.o_proj": (hidden, q_size, 6 * branch / np.sqrt(q_size)),
        }
        shapes = {
            **(_latent(config, unit, branch) if family == "deepseek_v3" else attention),
            **_feed_forward_names(config, layer, inner, 3 * unit),
        }
        out[at + "input_layernorm.weight"] = gains(hidden)
        out[at + "post_attention_layernorm.weight"] = gains(hidden)
        for name, (rows, columns, deviation) in shapes.items():
            out[at + name + ".weight"] = random.normal((rows, columns), float(deviation))
            if bias and name.startswith("self_attn") and not name.endswith("_b_proj"):
                out[at + name + ".bias"] = random.normal((rows,), float(branch) if "o_proj" in name else 0.3)
        if family == "deepseek_v3":
            for name, size in (("q_a", config["q_lora_rank"]), ("kv_a", config["kv_lora_rank"])):
                if size:
                    out[f"{at}self_attn.{name}_layernorm.weight"] = np.float32(1) + random.normal((size,), 0.1)
            if layer >= config["first_k_dense_replace"]:
                correction = random.normal((config["n_routed_experts"],), 0.2)
                out[at + "mlp.gate.e_score_correction_bias"] = correction
        if family == "gpt_oss":
            out |= _stacks(random, at + "mlp.experts.", config["num_local_experts"], inner, float(branch), mxfp4)
            out[at + "self_attn.sinks"] = random.normal((config["num_attention_heads"],), 1.5)
            out[at + "mlp.router.bias"] = random.normal((config["num_local_experts"],), 0.3)
        if gemma:
            out[at + "pre_feedforward_layernorm.weight"] = gains(hidden)
            for name in ("post_attention_layernorm", "post_feedforward_layernorm"):
                out[f"{at}{name}.weight"] = random.normal((hidden,), 0.1) - np.float32(0.5)
        if qk_norm:
            out[at + "self_attn.q_norm.weight"] = gains(head_dim)
            out[at + "self_attn.k_norm.weight"] = gains(head_dim)
    out["model.norm.weight"] = gains(hidden, 1 / OUTLIERS)
    if (
        tied and not gemma
    ):  # signs at random, or every token would predict itself: layers of a trained model take care of that
        out["model.norm.weight"] *= (2 * random.state.randint(0, 2, size=hidden) - 1).astype(np.float32)
    elif not tied:
        out["lm_head.weight"] = random.normal((vocab, hidden), 2 * float(unit))
    return out


Shape = tuple[int, int, float]


def _feed_forward_names(config: dict[str, Any], layer: int, inner: dict[str, Shape], sharp: float) -> dict[str, Shape]:
    """Matrices of the part after the second norm: rows, columns, deviation. gpt-oss has its experts in `_stacks`."""
    family, hidden = config["model_type"], config["hidden_size"]
    experts = config.get("num_experts" if family == "qwen3_moe" else "num_local_experts", 0)
    if family == "gpt_oss":
        return {"mlp.router": (experts, hidden, sharp)}
    if family == "mixtral":
        names = {"gate": "w1", "down": "w2", "up": "w3"}
        at, router = "block_sparse_moe.experts", "block_sparse_moe.gate"
    else:
        names = {role: f"{role}_proj" for role in inner}
        at, router = "mlp.experts", "mlp.gate"
    if family == "deepseek_v3" and layer >= config["first_k_dense_replace"]:
        shared = {f"mlp.shared_experts.{role}_proj": shape for role, shape in inner.items()}
        routed = {"mlp.gate": (config["n_routed_experts"], hidden, sharp), **shared}
        for expert in range(config["n_routed_experts"]):
            routed |= {f"mlp.experts.{expert}.{role}_proj": shape for role, shape in inner.items()}
        return routed
    only, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step", 1)
    if not experts or layer in only or (layer + 1) % step:
        size = config["intermediate_size"]  # another than an expert's, where the config says so
        inner = {role: (n, size, d) if role == "down" else (size, k, d) for role, (n, k, d) in inner.items()}
        return {f"mlp.{names[role]}": shape for role, shape in inner.items()}
    out = {router: (experts, hidden, sharp)}
    for expert in range(experts):
        out |= {f"{at}.{expert}.{names[role]}": shape for role, shape in inner.items()}
    return out


def _latent(config: dict[str, Any], unit: float, branch: float) -> dict[str, Shape]:
    """Matrices of latent attention."""
    hidden, heads, rank, q_rank = (
        config[n] for n in ("hidden_size", "num_attention_heads", "kv_lora_rank", "q_lora_rank")
    )
    plain, turned, value = (config[n] for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    q = heads * (plain + turned)
    queries = {"self_attn.q_proj": (q, hidden, unit)}
    if q_rank:
        queries = {"self_attn.q_a_proj": (q_rank, hidden, unit), "self_attn.q_b_proj": (q, q_rank, q_rank**-0.5)}
    return {
        **queries,
        "self_attn.kv_a_proj_with_mqa": (rank + turned, hidden, unit),
        "self_attn.kv_b_proj": (heads * (plain + value), rank, rank**-0.5),
        "self_attn.o_proj": (hidden, heads * value, 6 * branch / np.sqrt(heads * value)),
    }


def _stacks(
    random: _Random, at: str, experts: int, inner: dict[str, Shape], branch: float, mxfp4: bool
) -> dict[str, Array]:
    """The experts of gpt-oss: gate and up row by row in one stack; MXFP4 blocks [E, N, K / 32, 16], or [E, K, N]."""
    out: dict[str, Array] = {}
    rows, columns, deviation = inner["gate"]
    both = (2 * rows, columns, deviation)
    for name, (n, k, size), small in (("gate_up_proj", both, 0.3), ("down_proj", inner["down"], branch)):
        if mxfp4:
            exponent = 127 + round(float(np.log2(size / 3)))  # codes at random have a deviation of about 3
            out[f"{at}{name}_blocks"] = random.state.randint(0, 256, (experts, n, k // 32, 16)).astype(np.uint8)
            scales = random.state.randint(exponent - 1, exponent + 2, (experts, n, k // 32))
            out[f"{at}{name}_scales"] = scales.astype(np.uint8)
        else:
            out[at + name] = random.normal((experts, k, n), float(size))
        out[f"{at}{name}_bias"] = random.normal((experts, n), small)
    return out


def _write_shards(root: Path, tensors: dict[str, Array], dtype: str, shards: int) -> None:
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


def write_safetensors(path: Path, tensors: dict[str, Array], dtype: str) -> int:
    """Write tensors, rounded (RNE) to the dtype, bytes as they are, and return the bytes of their data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    chunks, offset = [], 0
    for name, value in tensors.items():
        if value.dtype == np.uint8:
            raw = value.tobytes()
        elif dtype == "bfloat16":
            bits = np.ascontiguousarray(value).view(np.uint32)
            raw = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
        else:
            raw = value.astype("<f4" if dtype == "float32" else "<f2").tobytes()
        kind = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype] if value.dtype != np.uint8 else "U8"
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
