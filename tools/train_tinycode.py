"""Train `tinycode`, the small code model that the tests, the examples and the server use.

Its text is the Python standard library of the interpreter that runs this script, tests included; its layout is Llama's,
as Hugging Face writes it. The result is a directory that `safetensors` and `tokenizers` can read: config.json,
generation_config.json, model.safetensors (BF16), tokenizer.json, tokenizer_config.json, heldout.json, MODEL_CARD.md.

Run it with torch, transformers (only for `--check`), tokenizers, safetensors and a C++ compiler (for torch.compile):

    python tools/train_tinycode.py --out systolith/models/tinycode --minutes 60
    python tools/train_tinycode.py --out systolith/models/tinycode --check

Progress, which drives the learning rate, is the larger of steps taken / `--steps` and time taken / `--minutes`. Without
`--minutes` a run is a function of seed, library and thread count; with it, a run ends on time on a busy machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

EOT = "<|endoftext|>"
HELD_OUT_SHARE = 0.04
NEAR_DUPLICATE_SHARE = 0.5  # a file with more of its long lines in the training text is not held out
LONG_LINE_CHARS = 16
STAGES = ((0.25, 128), (0.6, 256), (1.0, 512))  # (progress, context): short rows first, as attention is slow

# A newline is a piece of its own and so is the indentation after it; a word takes one space before it along. A prompt
# may end in a newline or an indentation and is still cut like training text. Python's `re` reads the pattern likewise.
PIECES = r"\n|(?<![^\n])[ \t]+| ?[^\W\d]+|\d{1,3}| ?[^\s\w]+|[ \t]+(?=[ \t])"


@dataclass(frozen=True)
class Shape:
    """The model's dimensions; names as in Hugging Face's LlamaConfig."""

    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 768
    vocab_size: int = 2048
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


# ---- text ------------------------------------------------------------------------------------------------------------


@dataclass
class SourceFile:
    """One file of the standard library; `path` is relative to the library's folder."""

    path: str
    data: bytes

    @property
    def sha256(self) -> str:
        """Hash of the content, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def long_lines(self) -> set[bytes]:
        """Distinct lines of `LONG_LINE_CHARS` bytes or more, without the space around them."""
        return {line for line in map(bytes.strip, self.data.splitlines()) if len(line) >= LONG_LINE_CHARS}


def read_library() -> list[SourceFile]:
    """List the library's UTF-8 source files by path, each content once, without packages and build settings."""
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, SourceFile] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.startswith(("site-packages/", "dist-packages/", "config-", "_sysconfigdata", "sitecustomize")):
            continue
        file = SourceFile(name, path.read_bytes())
        try:
            file.data.decode()
        except UnicodeDecodeError:
            continue
        if file.data:
            files.setdefault(file.sha256, file)
    return list(files.values())


def is_test(path: str) -> bool:
    """Whether a file of the library belongs to its tests, which some systems leave out."""
    return any(part in ("test", "tests", "idle_test") for part in path.split("/"))


def split_library(files: list[SourceFile]) -> tuple[list[SourceFile], list[SourceFile]]:
    """Divide files into training and held-out ones by a hash of the path."""

    def hashed_out(file: SourceFile) -> bool:
        digest = hashlib.sha256(b"tinycode/" + file.path.encode()).digest()
        return int.from_bytes(digest[:8]) < HELD_OUT_SHARE * 2**64

    train = [file for file in files if not hashed_out(file)]
    known = set().union(*(file.long_lines() for file in train))
    held_out = []
    for file in filter(hashed_out, files):
        lines = file.long_lines()
        if lines and len(lines & known) <= NEAR_DUPLICATE_SHARE * len(lines):
            held_out.append(file)
        else:
            train.append(file)
    return train, held_out


def train_tokenizer(files: list[SourceFile], vocab_size: int) -> Tokenizer:
    """Fit a byte-level BPE; every UTF-8 text round-trips. Token 0 ends a text and goes before each text it encodes."""
    tokenizer = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=alphabet)
    tokenizer.train_from_iterator((file.data.decode() for file in files), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{EOT} $A", pair=f"{EOT} $A {EOT} $B", special_tokens=[(EOT, 0)]
    )
    return tokenizer


def tokenize(tokenizer: Tokenizer, files: list[SourceFile]) -> list[np.ndarray]:
    """Encode each file, without the end-of-text token."""
    encodings = tokenizer.encode_batch([file.data.decode() for file in files], add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def batches(texts: list[np.ndarray], batch: int, context: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield [batch, context + 1] tokens without end, each text once per epoch in a new order.

    Texts are joined by the end-of-text token and cut into rows. Seven rows of eight begin with it too, as
    prompts and runs of held-out text do.
    """
    while True:
        order = rng.permutation(len(texts))
        stream = np.concatenate([np.append(texts[i], 0) for i in order])[rng.integers(context) :]
        rows = len(stream) // (context + 1)
        rows_of_epoch = stream[: rows * (context + 1)].reshape(rows, context + 1)[rng.permutation(rows)]
        for start in range(0, rows - batch + 1, batch):
            chosen = rows_of_epoch[start : start + batch].copy()
            chosen[rng.random(batch) < 7 / 8, 0] = 0
            yield torch.from_numpy(chosen)


# ---- model -----------------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + d/2) of x [B, H, T, d] by the angles of their positions [T, d/2]."""
    low, high = x.float().chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1).to(x.dtype)


class Attention(nn.Module):
    """Causal attention; consecutive query heads share a KV head."""

    def __init__(self, shape: Shape):
        super().__init__()
        queries, keys = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
        self.head_dim = shape.head_dim
        self.q_proj = nn.Linear(shape.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Mix x [B, T, C] over time."""
        B, T, _ = x.shape
        q, k, v = (p(x).view(B, T, -1, self.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """Gated feed-forward layer with SiLU."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map each token of x [B, T, C]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward layer, each on the norm of the residual stream and added to it."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Advance the residual stream x [B, T, C]."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Decoder with Hugging Face's names of parameters, but for the prefix `model.`; the embedding is also the head."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        half = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
        angles = torch.outer(torch.arange(shape.max_position_embeddings).double(), shape.rope_theta**-half)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02 if name.startswith("embed") else 0.5 * parameter.shape[1] ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, vocabulary] of tokens [B, T]."""
        T = tokens.shape[1]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return F.linear(self.norm(x), self.embed_tokens.weight)


def loss_of(model: Llama, rows: Tensor) -> Tensor:
    """Mean nats per token over rows [batch, context + 1]."""
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def nats_of(model: Llama, text: np.ndarray, context: int, batch: int = 16) -> float:
    """Sum of nats over one text, cut into runs of context - 1 tokens that are read after the end-of-text token."""
    count = -(-len(text) // (context - 1))
    targets = np.pad(text, (0, count * (context - 1) - len(text)), constant_values=-100).reshape(count, -1)
    total = 0.0
    for goal in torch.from_numpy(targets).split(batch):
        rows = F.pad(goal[:, :-1].clamp(min=0), (1, 0))
        total += F.cross_entropy(model(rows).float().flatten(0, 1), goal.flatten(), reduction="sum").item()
    return total


# ---- the directory ---------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Write JSON that a person can read."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_settings(out: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    """Write everything that is known before training."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    ends = {"bos_token": EOT, "eos_token": EOT}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **ends, "model_max_length": shape.max_position_embeddings}
    write_json(out / "tokenizer_config.json", settings | {"clean_up_tokenization_spaces": False})
    end_ids = {"bos_token_id": 0, "eos_token_id": 0}
    write_json(out / "generation_config.json", end_ids)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **asdict(shape), "hidden_act": "silu"}
    config |= {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    write_json(out / "config.json", config | end_ids)


def write_weights(out: Path, model: Llama) -> None:
    """Write the parameters in BF16, replacing an older file in one step."""
    tensors = {f"model.{name}": p.detach().bfloat16().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, out / "model.safetensors.part", metadata={"format": "pt"})
    (out / "model.safetensors.part").replace(out / "model.safetensors")


def read_weights(out: Path, shape: Shape) -> Llama:
    """Read a model back, its BF16 parameters held in float32."""
    model = Llama(shape)
    tensors = load_file(out / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
    return model.eval()


def evaluate(model: Llama, files: list[SourceFile], texts: list[np.ndarray], context: int) -> list[dict[str, Any]]:
    """Measure every held-out file: the list that heldout.json holds."""
    entries = []
    for file, text in zip(files, texts, strict=True):
        entry = {"path": file.path, "sha256": file.sha256, "bytes": len(file.data), "tokens": len(text)}
        entries.append(entry | {"nats": round(nats_of(model, text, context), 3)})
    return entries


def result_row(name: str, entries: list[dict[str, Any]]) -> str:
    """Sum up held-out files in a row of the model card's table."""
    tokens, size, nats = (sum(entry[key] for entry in entries) for key in ("tokens", "bytes", "nats"))
    loss, bits = nats / tokens, nats / math.log(2) / size
    return f"| {name} | {len(entries)} | {size:,} | {tokens:,} | {loss:.4f} | {math.exp(loss):.3f} | {bits:.4f} |"


def write_card(out: Path, held_out: list[dict[str, Any]], run: dict[str, Any]) -> None:
    """Write MODEL_CARD.md from the figures of a run."""
    library = [entry for entry in held_out if not is_test(entry["path"])]
    results = [result_row("all files", held_out), result_row("without tests", library)]
    names = [f"| `{e['path']}` | {e['bytes']:,} | {e['tokens']:,} | `{e['sha256']}` |" for e in held_out]
    (out / "MODEL_CARD.md").write_text(CARD.format(results="\n".join(results), names="\n".join(names), **run))


CARD = """# tinycode

A language model of Python source code: small enough to ship with the repository and to run on a simulated chip, good
enough that a change of its perplexity means something. It completes code; it follows no instructions, knows no facts.

## Architecture
Llama: {parameters:,} parameters in BF16, hidden size 256, 4 layers, 4 query heads and 2 KV heads of 64, feed-forward
size 768, SiLU, RMSNorm (eps 1e-5), rotary embedding (theta 10,000, pairs (i, i + 32)), context 512, tied embedding and
head, no biases.

Tokenizer: byte-level BPE, 2,048 tokens, {bytes_per_token:.2f} bytes per token of the training text; any UTF-8 text
round-trips. Token 0, `<|endoftext|>`, is both BOS and EOS, and the tokenizer puts it before a text. A newline is a
token of its own, and so is the indentation after it: a prompt may end in either. It should not end in a space inside a
line, since a word takes the space before it along.

## Training data and licences
The source of the standard library of CPython {python}, with its tests: {train_files:,} files, {train_bytes:,} bytes,
{train_tokens:,} tokens. Left out: files that are not UTF-8, copies of another file, installed packages. The data is
under the PSF License Version 2 (Copyright (c) 2001 Python Software Foundation; all rights reserved) and the notices in
Python's list of incorporated software. Weights and tokenizer: Apache-2.0. The model can repeat short passages of its
training data; those keep the data's licence.

## Training
`tools/train_tinycode.py`, seed {seed}: {steps:,} steps of {step_tokens:,} tokens, in all {seen:,} tokens or
{epochs:.2f} epochs, in {minutes:.0f} minutes on {threads} shared CPU cores ({speed:,.0f} tokens per second). Rows of
128 tokens for the first quarter of the run, of 256 until 60 %, then of 512. Muon for matrices (learning rate {muon_lr},
weight decay {muon_decay}), AdamW for embedding and gains ({adam_lr}), {warmup} steps of warm-up, linear decay to zero,
BF16 autocast on float32 parameters, which are rounded to BF16 at the end. No dropout.

## Results on held-out text
BF16 weights, float32 arithmetic. Each file is cut into runs of 511 tokens, each read after `<|endoftext|>`. The loss is
in nats per token; bits per byte counts the bytes of the files.

| files | number | bytes | tokens | loss | perplexity | bits per byte |
|---|---|---|---|---|---|---|
{results}

## Held-out files
A file is held out if the first 64 bits of SHA-256 of `tinycode/` and its path, as a fraction, are below 0.04, unless
more than half of its distinct lines of 16 or more bytes occur in the training text. `heldout.json` has this list with
the nats of each file.

| file | bytes | tokens | SHA-256 |
|---|---|---|---|
{names}
"""


def check(out: Path, shape: Shape, context: int) -> None:
    """Compare with transformers and print two completions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    reference = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokens = torch.randint(shape.vocab_size, (2, context), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (read_weights(out, shape)(tokens) - reference(tokens).logits).abs().max().item()
    print(f"largest difference of a logit from transformers: {difference:.2e}")
    assert difference < 1e-3
    for prompt in ("def fibonacci(n):\n", "class Stack:\n", "import os\nimport sys\n\n\ndef main():\n    parser ="):
        ids = tokenizer(prompt, return_tensors="pt")
        assert tokenizer.decode(ids["input_ids"][0], skip_special_tokens=True) == prompt
        made = reference.generate(**ids, max_new_tokens=120, do_sample=False)
        print("-" * 80, tokenizer.decode(made[0], skip_special_tokens=True), sep="\n")


def main() -> None:
    """Train, or check what was trained."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory of the model")
    parser.add_argument("--steps", type=int, default=4500, help="optimiser steps")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the schedule after this wall time")
    parser.add_argument("--batch", type=int, default=16, help="rows of 512 tokens per step")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--muon-decay", type=float, default=0.1, help="weight decay of matrices")
    parser.add_argument("--adam-lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps of rising learning rate")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the weights in --out, in rows of 512 tokens")
    parser.add_argument("--check", action="store_true", help="do not train: compare --out with transformers")
    args = parser.parse_args()
    shape = Shape()
    context = shape.max_position_embeddings
    if args.check:
        check(args.out, shape, context)
        return

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # each thread takes its own rows: on a busy machine, two that share an operator wait a lot
    train, held_out = split_library(read_library())
    tokenizer = train_tokenizer(train, shape.vocab_size)
    write_settings(args.out, shape, tokenizer)
    train_texts, texts = tokenize(tokenizer, train), tokenize(tokenizer, held_out)
    train_tokens = sum(map(len, train_texts))
    print(f"{train_tokens} training tokens, {sum(map(len, texts))} held out", flush=True)

    model = read_weights(args.out, shape).train() if args.resume else Llama(shape)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not name.startswith("embed")]
    gains = [p for p in model.parameters() if p.ndim == 1]
    adam_groups = [{"params": [model.embed_tokens.weight], "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizers = [(torch.optim.AdamW(adam_groups, betas=(0.9, 0.95), fused=True), args.adam_lr)]
    for i in range(args.threads):
        muon = torch.optim.Muon(matrices[i :: args.threads], weight_decay=args.muon_decay, momentum=0.95)
        optimizers.append((muon, args.muon_lr))
    probe = [text[:2044] for text in texts]  # four rows of each file
    step_loss, parameters = torch.compile(loss_of, dynamic=False), list(model.parameters())

    def gradients(rows: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        with torch.autocast("cpu", torch.bfloat16):
            loss = step_loss(model, rows)
        return loss.item(), torch.autograd.grad(loss, parameters)

    pool, compiled = ThreadPoolExecutor(args.threads), set()
    rng = np.random.default_rng(args.seed)
    plan = STAGES[-1:] if args.resume else STAGES
    stages = [(end, batches(train_texts, args.batch * context // short, short, rng)) for end, short in plan]
    start, step, progress, recent = time.monotonic(), 0, 0.0, []
    while progress < 1:
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * min((step + 1) / args.warmup, 1 - progress)
        rows = next(next(stage for end, stage in stages if progress < end))
        parts = rows.chunk(args.threads)
        if rows.shape not in compiled:  # by one thread alone
            compiled.add(rows.shape)
            gradients(parts[0])
        losses, grads = zip(*pool.map(gradients, parts), strict=True)
        for parameter, *shares in zip(parameters, *grads, strict=True):
            parameter.grad = torch.stack(shares).mean(0)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        list(pool.map(lambda pair: pair[0].step(), optimizers))
        step += 1
        recent.append(sum(losses) / len(losses))
        minutes = (time.monotonic() - start) / 60
        progress = max(step / args.steps, minutes / args.minutes)
        if step % 25 == 0:
            print(f"step {step}, {progress:.1%}, {minutes:.1f} min, loss {np.mean(recent[-25:]):.3f}", flush=True)
        if step % args.every == 0:
            with torch.autocast("cpu", torch.bfloat16):
                held = sum(nats_of(model, text, context) for text in probe) / sum(map(len, probe))
            print(f"step {step}, held-out loss {held:.4f}", flush=True)
            write_weights(args.out, model)
    write_weights(args.out, model)
    results = evaluate(read_weights(args.out, shape), held_out, texts, context)
    write_json(args.out / "heldout.json", results)
    seen, train_bytes = step * args.batch * context, sum(len(f.data) for f in train)
    run = vars(args) | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes_per_token": train_bytes / train_tokens,
        "python": platform.python_version(),
        "train_files": len(train),
        "train_bytes": train_bytes,
        "train_tokens": train_tokens,
        "minutes": minutes,
        "steps": step,
        "seen": seen,
        "step_tokens": args.batch * context,
        "epochs": seen / train_tokens,
        "speed": seen / (60 * minutes),
    }
    write_card(args.out, results, run)
    print(json.dumps(run, default=str), result_row("all files", results), sep="\n")


if __name__ == "__main__":
    main()
