"""Cases for `correlate`: the compiler's kernels at random sizes, and random instructions that run alone.

A case of kernels is one step of a small random model of a family: M rows, the last of which sees `context` tokens. Its
words remember the kernel that wrote them. Weights are noise without a checkpoint: times do not depend on them, routes
of experts do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from systolith.compiler import Options
from systolith.compiler.compile import compile_graph
from systolith.isa import (
    Copy,
    Desc,
    Descriptor,
    Format,
    Halt,
    Image,
    Instruction,
    Program,
    Put,
    Queue,
    Readx,
    Requires,
    Space,
)
from systolith.isa.program import EVERY_SLICE
from systolith.models.family import build_graph, parse_config
from systolith.models.graph import ModelGraph
from systolith.models.profile import Profile
from systolith.sim._generate import memory_at_start
from systolith.sim._operators import ACC, DRAM_END, SLOT_END, SPAD_END, Maker
from systolith.spec import PAIRS, SEMAPHORES, CapacityError, Chip
from systolith.spec.limits import CHUNK_TOKENS

from .job import Layout, Request, Step, decode_steps, write_job

__all__ = ["FAMILIES", "Case", "alone", "kernels", "step"]

_NOISE: Final = 0x3C
"""Bytes of the noise lie from here on: FP32 near 1, codes and scales that are in range."""
_WORDS: Final = 45
"""Descriptors of a program of instructions that run alone."""


@dataclass(frozen=True)
class Case:
    """A program to run on both sides."""

    name: str
    program: Program
    setup: Callable[[Any], None] = lambda machine: None
    conditions: dict[str, Any] = field(default_factory=dict)


_MOE: Final = {"num_experts_per_tok": 2}
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "mixtral": {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_local_experts": 5, **_MOE},
    "qwen3_moe": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 6, **_MOE,
        "moe_intermediate_size": 64, "norm_topk_prob": True,
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_local_experts": 6, **_MOE,
        "attention_bias": True, "sliding_window": 40, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "truncate": False,
        },
    },
    "gemma3_text": {
        "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "query_pre_attn_scalar": 24,
        "sliding_window": 40, "sliding_window_pattern": 2, "hidden_activation": "gelu_pytorch_tanh",
        "rope_local_base_freq": 100.0,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "qk_nope_head_dim": 24,
        "v_head_dim": 20, "kv_lora_rank": 40, "q_lora_rank": 56, "n_routed_experts": 6, "n_group": 3, "topk_group": 2,
        "moe_intermediate_size": 64, "n_shared_experts": 1, "first_k_dense_replace": 1, "rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.8, "mscale_all_dim": 1.0,
        }, **_MOE,
    },
}  # fmt: skip
"""A config of each kind of model that has kernels of its own, but for its sizes."""
_PROFILES: Final[tuple[dict[str, Any], ...]] = (
    {"weights": "INT8", "activations": "INT8", "k": "INT8", "v": "INT8"},
    {"weights": "E2M1", "activations": "E4M3", "k": "E4M3", "v": "E4M3"},
    {"weights": "E4M3", "activations": "E4M3", "k": "INT8", "v": "INT8"},
    {"weights": "E2M1", "activations": "INT8", "k": "INT8", "v": "INT8"},
    {"weights": "INT8x2", "activations": "INT8", "k": "INT8", "v": "INT8"},
)
_TWO_LAYERS: Final = ("gemma3_text", "deepseek_v3")
_LARGE_M: Final = 0.3
"""Share of cases with more than 8 rows."""


def kernels(chip: Chip, number: int, seed: int) -> Case:
    """Case `number` of a run with a seed: families take turns. Raises ModelError where the draw does not compile."""
    rng = random.Random((seed << 20) + number)
    while True:
        try:
            return _kernels(chip, number, rng)
        except CapacityError:
            continue  # too large for the chip: another draw


def _kernels(chip: Chip, number: int, rng: random.Random) -> Case:
    family = list(FAMILIES)[number % len(FAMILIES)]
    rows = rng.randint(9, 64) if rng.random() < _LARGE_M else rng.choice((1, 1, 2, 3, 4, 7, 8))
    most = 300 if rows > 8 else 1000
    context = max(rows, rng.choice((rng.randint(1, 40), rng.randint(40, 300), rng.randint(300, 1000))))
    context = max(rows, min(context, most))
    # Many rows go with a small model, so that a case stays short.
    widths, inner = ((32, 40, 64), (32, 48, 56)) if rows > 8 else ((32, 64, 72, 96, 104, 144), (48, 64, 96, 136, 160))
    kv = 1 if rows > 8 else rng.choice((1, 2))
    head_dim = rng.choice((16, 24, 32) if rows > 8 else (16, 32, 40, 48, 64))
    vocab = rng.randrange(70, 130 if rows > 8 else 300)
    config = {
        "hidden_act": "silu", "hidden_size": rng.choice(widths),
        "intermediate_size": rng.choice(inner), "num_hidden_layers": 1 + (family in _TWO_LAYERS),
        "num_attention_heads": kv * rng.choice((1, 2, 3)), "num_key_value_heads": kv, "head_dim": head_dim,
        "vocab_size": vocab, "max_position_embeddings": 1024, "rope_theta": 10000.0, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": rng.random() < 0.5,
    } | FAMILIES[family]  # fmt: skip
    if family == "deepseek_v3":
        config |= {"num_key_value_heads": config["num_attention_heads"], "qk_rope_head_dim": head_dim}
    if family == "gemma3_text":
        del config["hidden_act"]
    if family in ("gpt_oss", "deepseek_v3") and head_dim in (24, 40):
        config |= {"head_dim": 32} | ({"qk_rope_head_dim": 32} if family == "deepseek_v3" else {})
    graph = build_graph(parse_config(config, f"case {number}"))
    table = dict(rng.choice(_PROFILES))
    profile = Profile.from_dict(table).resolved(graph)
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    case = step(graph, chip, profile, rows, context, seed=number, name=f"{family}, {rows} rows at context {context}")
    return replace(case, conditions=case.conditions | {"family": family} | {name: config[name] for name in sizes})


def step(
    graph: ModelGraph, chip: Chip, profile: Profile, rows: int, context: int, *, seed: int = 0, name: str = ""
) -> Case:
    """A step of a model whose `rows` rows are the last tokens of a context. Raises as the compiler does."""
    options = Options(context=-(-context // 64) * 64, steps=rows + 2, grid=False)
    program = compile_graph(graph, chip, profile, options).program
    noise = np.random.default_rng((seed, context)).integers(_NOISE, _NOISE + 4, program.requires.dram_bytes)
    program = replace(program, images=(Image(EVERY_SLICE, 0, noise.astype(np.uint8).tobytes()), *program.images))
    prompt = tuple(int(x) for x in np.random.default_rng(seed).integers(0, graph.vocab, context))
    requests = [Request(prompt, 1)]
    plan = Layout(tuple(_steps(context, rows, program.meta["rows"])), decode_steps([context], program.meta["rows"]))
    return Case(
        name,
        program,
        lambda machine: write_job(machine, program, requests, plan),
        {"rows": rows, "context": context, "profile": profile.to_dict()},
    )


def _steps(context: int, rows: int, most: int) -> list[Step]:
    """Steps of the last `rows` tokens of a context: `most` rows each, inside one chunk of attention."""
    steps: list[Step] = []
    for position in range(context - rows, context):
        if not steps or len(steps[-1].rows) == most or position % CHUNK_TOKENS == 0:
            steps.append(Step())
        steps[-1].rows.append((0, position))
    steps[-1].outputs.append((len(steps[-1].rows) - 1, 0))
    return steps


def _ruled(chip: Chip, operands: dict[str, Descriptor], made: Instruction) -> bool:
    """Whether a rule can know its time. PUT to memory waits for its receiver's; pages that are no whole bursts lie in
    them as the index list says, which no rule sees."""
    if isinstance(made, Put) and operands["D"].space is not Space.SPAD:
        return False
    return all(
        d.space is not Space.DRAM or not d.via or (d.stride[0] * d.bits // 8 << d.unit) % chip.dram_burst_bytes == 0
        for d in operands.values()
    )


def alone(chip: Chip, seed: int) -> Case:
    """About fifteen random instructions of queues on one slice, each after the end of the one before it."""
    rng = random.Random(seed)
    memory = memory_at_start(seed, 0)
    dram = memory[Space.DRAM].copy()
    dram[:SPAD_END] = np.where(dram[:SPAD_END] == 0, memory[Space.SPAD][:SPAD_END], dram[:SPAD_END])

    def flat(space: Space, size: int) -> Descriptor:
        return Descriptor(space=space, format=Format.INT8, ext=(1, 1, size), stride=(0, 0, 1))

    maker = Maker(rng, chip, 1)
    body: list[Instruction] = [
        Copy(on=Queue.L, d=maker.take(flat(Space.SPAD, SPAD_END)), a=maker.take(flat(Space.DRAM, SPAD_END))),
        Copy(on=Queue.W, d=maker.take(flat(Space.SLOT, SLOT_END)), a=maker.take(flat(Space.DRAM, SLOT_END))),
        maker.late_cells(),
    ]
    makers: tuple[Callable[[], Instruction], ...] = (
        lambda: maker.copy(Queue.L), lambda: maker.copy(Queue.W), lambda: maker.copy(Queue.S), maker.matmul, maker.vec,
        maker.pick, maker.topk, maker.group, maker.put,
    )  # fmt: skip
    while maker.free < _WORDS:
        made = rng.choices(makers, (4, 4, 4, 4, 5, 1, 1, 1, 3))[0]()
        if not _ruled(chip, {x: maker.constants[register - 2] for x, register in made.operands().items()}, made):
            continue
        body.append(made)
    turn, code = 1 << 20, [Desc(d=1, k=len(maker.constants)), *maker.loads]
    for instruction in body:
        code.append(replace(instruction, post=instruction.posts | turn))  # type: ignore[call-arg]
        code.append(Readx(r=30, x=0, wait=turn))
    table = Descriptor(space=Space.SPAD, format=Format.INT32, base=0, ext=(1, 1, 128), stride=(0, 0, 1))
    program = Program(
        name=f"alone {seed}",
        words=tuple(i.encode() for i in (*code, Halt())),
        constants=(*maker.constants, table),
        sem_init=(0,) * SEMAPHORES,
        requires=Requires(
            slices=1, dram_bytes=DRAM_END, spad_bytes=SPAD_END, slot_bytes=SLOT_END, acc_bytes=4 * ACC.elements,
            pairs=PAIRS,
        ),
        images=(Image(0, 0, dram.tobytes()),),
    )  # fmt: skip
    return Case(f"alone, seed {seed}", program)
