"""What the host lays down before it starts the chip: requests, page lists, step records.

The records of the prefill say which rows a step holds; the last record is the pattern of the decode steps, in which the
device fills in tokens and positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from systolith.compiler.grid import HEAD_WORDS
from systolith.compiler.memory import HEADER_WORDS, PARAM_WORDS, SEGMENT_WORDS, STATE_WORDS, STOPS
from systolith.isa.program import Program
from systolith.numerics import constants, fp32
from systolith.numerics.choose import top_p_fixed
from systolith.spec.errors import CapacityError, ModelError
from systolith.spec.limits import CHUNK_TOKENS

__all__ = [
    "Layout", "Request", "Sampling", "Step", "check_requests", "decode_steps", "layout", "pack", "prefill", "write_job",
]  # fmt: skip

Words = NDArray[np.uint32]
NO_TOKEN = 0xFFFFFFFE
NO_STOP = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0: the best token. top_k 0: all. top_p 1: all. seed: 64 bits."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if not 0.0 <= self.temperature < float("inf"):
            faults.append(f"temperature={self.temperature} must be 0 or a positive number")
        if not 0 <= self.top_k < 1 << 31:
            faults.append(f"top_k={self.top_k} must be 0 (all tokens) or a positive number below 2^31")
        if not 0.0 <= self.top_p <= 1.0:
            faults.append(f"top_p={self.top_p} must be 0..1")
        if not 0 <= self.seed < 1 << 64:
            faults.append(f"seed={self.seed} must be 0..2^64-1")
        if faults:
            raise ModelError("; ".join(faults) + "; correct the option")

    def words(self, limit: int) -> list[int]:
        """The slot's sampling record; limit: last position that may be made."""
        p = top_p_fixed(self.top_p)
        greedy = self.temperature == 0
        scale = constants.temperature_scale(1.0 if greedy else self.temperature)
        top_k = 1 if greedy else self.top_k
        return [top_k, p & 0xFFFFFFFF, p >> 32, self.seed & 0xFFFFFFFF, self.seed >> 32, fp32.to_bits(scale), limit, 0]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how to go on. stops: tokens that end it."""

    prompt: tuple[int, ...]
    max_tokens: int = 1
    sampling: Sampling = Sampling()
    stops: tuple[int, ...] = ()


@dataclass(slots=True)
class Step:
    """Rows of one step: (request slot, position) each, and the slots whose last prompt row is among them."""

    rows: list[tuple[int, int]] = field(default_factory=list)
    outputs: list[tuple[int, int]] = field(default_factory=list)
    """(row, slot)"""
    decode: int = 0
    """Rows, the first ones, whose tokens and positions the device has."""
    picked: bool = False
    """No rows: the grid has made those that give tokens, one for each slot."""

    def segments(self) -> list[tuple[int, int, int, int]]:
        """Runs of consecutive rows of one slot inside one chunk: (slot, first row, rows, first position)."""
        runs: list[tuple[int, int, int, int]] = []
        for row, (slot, position) in enumerate(self.rows):
            if runs:
                s, r, n, p = runs[-1]
                if s == slot and p + n == position and position % CHUNK_TOKENS:
                    runs[-1] = (s, r, n + 1, p)
                    continue
            runs.append((slot, row, 1, position))
        return runs


LEFT = 32
"""Tokens of a prompt's last chunk that are too few for the grid."""
ALONE = 128
"""The same of its only one: a round of few rows takes as long as its weights to come."""


@dataclass(frozen=True, slots=True)
class GridStep:
    """A step on the grid: whole chunks of a request slot, from chunk `first` on. last: position of the row that makes
    the first token, if it has it."""

    slot: int
    first: int
    chunks: int
    last: int | None = None


@dataclass(frozen=True)
class Layout:
    """Steps of a job for one program: those on the grid, which come first, those of other rows, and those that make a
    token for every request, again and again."""

    steps: tuple[Step, ...]
    decode: tuple[Step, ...]
    grid: tuple[GridStep, ...] = ()


def check_requests(requests: Sequence[Request], vocab: int, context: int) -> None:
    """Raise ModelError, one sentence, for a prompt that is empty, foreign to the vocabulary or too long."""
    for number, request in enumerate(requests):
        what = "the prompt" if len(requests) == 1 else f"prompt {number}"
        if not request.prompt:
            raise ModelError(f"{what} is empty; give at least one token")
        wrong = next((t for t in request.prompt if not 0 <= t < vocab), None)
        if wrong is not None:
            raise ModelError(f"{what}: token {wrong} must be 0..{vocab - 1}; give ids of this model's vocabulary")
        if len(request.prompt) + request.max_tokens - 1 > context:
            raise ModelError(
                f"{what} has {len(request.prompt)} tokens and {request.max_tokens} are to be made, more than the "
                f"context of {context} in all; shorten the prompt or ask for fewer tokens"
            )
        if len(request.stops) > STOPS:
            raise ModelError(f"{len(request.stops)} stop tokens were given, at most {STOPS} are allowed; give fewer")


def on_grid(grid: Mapping[str, int] | None, requests: Sequence[Request]) -> tuple[tuple[GridStep, ...], list[int]]:
    """The steps on the grid of prompts, and how many tokens of each they do.

    grid : the program's, or None. All is done there, in whole chunks: one that the prompt fills in part too, if more
    than LEFT tokens are in it, or more than ALONE where it is the only one; what is behind the prompt is never seen.
    """
    steps: list[GridStep] = []
    done = [0] * len(requests)
    if grid is None:
        return (), done
    for slot, request in enumerate(requests):
        length = len(request.prompt)
        few = LEFT if length > CHUNK_TOKENS else ALONE
        chunks = max(0, length + CHUNK_TOKENS - 1 - few) // CHUNK_TOKENS
        done[slot] = min(length, chunks * CHUNK_TOKENS)
        # Steps alike, as few as there can be; the last one has what is left.
        each = -(-chunks // max(1, -(-chunks // grid["chunks"])))
        for first in range(0, chunks, max(1, each)):
            count = min(each, chunks - first)
            ends = first + count == chunks and done[slot] == length
            steps.append(GridStep(slot, first, count, length - 1 if ends else None))
    return tuple(steps), done


def _picked(grid: Sequence[GridStep], rows: int) -> tuple[Step, ...]:
    """The steps that make the logits of prompts that ended on the grid, at most `rows` each."""
    slots = [step.slot for step in grid if step.last is not None]
    some = (slots[first : first + rows] for first in range(0, len(slots), rows))
    return tuple(Step(outputs=[(slot, slot) for slot in each], picked=True) for each in some)


def pack(
    requests: Sequence[Request],
    rows: int,
    max_segments: int,
    *,
    prefill_chunk: int | None = None,
    every_row: bool = False,
    done: Sequence[int] = (),
) -> tuple[Step, ...]:
    """Pack prompts into steps of at most `rows` rows, `prefill_chunk` rows of a request, `max_segments` segments.

    A step holds at most one segment of a request: a run of rows inside one chunk of attention. done : tokens of each
    prompt that are in the cache already.
    """
    chunk = min(prefill_chunk or rows, rows)
    steps: list[Step] = []
    done = list(done) or [0] * len(requests)
    while any(d < len(r.prompt) for d, r in zip(done, requests, strict=True)):
        step = Step()
        for slot, request in enumerate(requests):
            # One segment of a request: attention takes older tokens from the cache, where an earlier step has put them.
            room = CHUNK_TOKENS - done[slot] % CHUNK_TOKENS
            take = min(len(request.prompt) - done[slot], chunk, rows - len(step.rows), room)
            if not take or len(step.segments()) == max_segments:
                continue
            step.rows += [(slot, done[slot] + i) for i in range(take)]
            done[slot] += take
            ended = step.rows and step.rows[-1][0] == slot and done[slot] == len(request.prompt)
            if ended and not every_row:
                step.outputs.append((len(step.rows) - 1, slot))
        if every_row:
            step.outputs = [(row, slot) for row, (slot, _) in enumerate(step.rows)]
        steps.append(step)
    return tuple(steps)


def layout(program: Program, requests: Sequence[Request], prefill_chunk: int | None = None) -> Layout:
    """Lay a job out for a program. Raises CapacityError or ModelError where the program cannot take it."""
    meta: dict[str, Any] = program.meta
    options = meta["options"]
    if len(requests) != options["batch"]:
        raise CapacityError(
            f"the program has {options['batch']} request slots and {len(requests)} prompts were given; compile it again"
        )
    check_requests(requests, meta["model"]["vocab"], options["context"])
    found = prefill(program, requests, prefill_chunk)
    steps, room = len(found.steps), options["steps"] - len(found.decode)
    if steps > room:
        raise CapacityError(f"the prompts take {steps} steps and the program holds {room}; compile it for more")
    return found


def prefill(program: Program, requests: Sequence[Request], prefill_chunk: int | None = None) -> Layout:
    """The steps of a prefill, on the grid where the program has one and no `prefill_chunk` is asked for, and the
    pattern of the decode steps behind it."""
    meta: dict[str, Any] = program.meta
    grid, done = on_grid(meta["grid"] if prefill_chunk is None else None, requests)
    steps = pack(
        requests, meta["rows"], meta["record"]["max_segments"],
        prefill_chunk=prefill_chunk, every_row=meta["options"]["every_row"], done=done,
    )  # fmt: skip
    decode = decode_steps([len(r.prompt) for r in requests], meta["rows"])
    return Layout((*_picked(grid, meta["rows"]), *steps), decode, grid)


def decode_steps(positions: Sequence[int], rows: int) -> tuple[Step, ...]:
    """The pattern of the decode steps of request slots at such positions: a row each, `rows` a step."""
    slots = range(len(positions))
    return tuple(
        Step(
            rows=[(slot, positions[slot]) for slot in some],
            outputs=list(enumerate(some)),
            decode=len(some),
        )
        for some in (slots[first : first + rows] for first in range(0, len(slots), rows))
    )


def _record(program: Program, step: Step, requests: Sequence[Request]) -> Words:
    at = program.meta["record"]
    words = np.zeros(at["words"], np.uint32)
    segments = step.segments()
    words[:4] = (len(step.rows), len(segments), len(step.outputs), step.decode)
    words[7] = step.picked
    assert at["ids"] == HEADER_WORDS
    for row, (slot, position) in enumerate(step.rows):
        prompt = requests[slot].prompt
        words[at["ids"] + row] = prompt[position] if position < len(prompt) else 0
        words[at["positions"] + row] = position
    for i, segment in enumerate(segments):
        words[at["segments"] + SEGMENT_WORDS * i :][:SEGMENT_WORDS] = segment
    for i, (row, slot) in enumerate(step.outputs):
        words[at["out_rows"] + i] = row
        words[at["out_slots"] + i] = slot
    return words


def _grid_record(grid: Mapping[str, int], number: int, step: GridStep, program: Program,
                 requests: Sequence[Request]) -> Words:  # fmt: skip
    """The words of a step on the grid: its head, then ids and positions of the rows of each row group."""
    meta = program.meta
    tokens, rows = grid["tokens"], grid["rows"]
    prompt = np.array(requests[step.slot].prompt, np.uint32)
    words = np.zeros(grid["words"], np.uint32)
    per_chunk = CHUNK_TOKENS // meta["pages"]["tokens"]
    entry = (step.slot * meta["pages"]["chunks"] + step.first) * per_chunk
    lane = step.slot % meta["slot_groups"] * grid["owners"] + step.first % meta["profile"]["lanes"]
    words[:6] = (step.chunks * tokens, step.chunks, step.first * CHUNK_TOKENS, entry, lane, number)
    if step.last is not None:
        chunk, token = divmod(step.last - step.first * CHUNK_TOKENS, CHUNK_TOKENS)
        member, within = divmod(token, tokens)
        words[6:8] = (1 + chunk * tokens + within, member | step.slot << 8)
    for member in range(grid["members"]):
        chunks = np.arange(step.first, step.first + step.chunks)[:, None] * CHUNK_TOKENS
        positions = (chunks + member * tokens + np.arange(tokens)).ravel()
        known = np.minimum(positions, len(prompt) - 1)
        at = HEAD_WORDS + 2 * member * rows
        words[at : at + len(positions)] = prompt[known]
        words[at + rows : at + rows + len(positions)] = known
    return words


def _pages(program: Program, requests: Sequence[Request]) -> Words:
    """Give every chunk of every slot its pages, from the pool of its slot and lane group, in an order that is not
    ascending."""
    meta = program.meta
    pages, chunks, pool = (meta["pages"][key] for key in ("tokens", "chunks", "pool"))
    per_chunk = CHUNK_TOKENS // pages
    lanes = meta["profile"]["lanes"]
    local, groups, slot_groups = meta["lanes_local"], meta["group"], meta["slot_groups"]
    free = [list(np.random.default_rng(group).permutation(pool)) for group in range(groups * slot_groups)]
    table = np.zeros((len(requests), chunks, per_chunk), np.uint32)
    for slot in range(len(requests)):
        for chunk in range(chunks):
            group = slot % slot_groups * groups + (chunk % lanes) // local
            table[slot, chunk] = [free[group].pop() for _ in range(per_chunk)]
    return table


def write_job(machine: Any, program: Program, requests: Sequence[Request], plan: Layout) -> None:
    """Write a job into the DRAM of every slice of a machine."""
    meta = program.meta
    dram, options = meta["dram"], meta["options"]
    state = np.zeros((len(requests), STATE_WORDS), np.uint32)
    params = np.zeros((len(requests), PARAM_WORDS), np.uint32)
    stops = np.full((len(requests), STOPS), NO_STOP, np.uint32)
    for slot, request in enumerate(requests):
        length = len(request.prompt)
        state[slot] = (NO_TOKEN, length, 1, slot)
        params[slot] = request.sampling.words(length + request.max_tokens - 1)
        stops[slot, : len(request.stops)] = request.stops
    records = [_record(program, step, requests) for step in plan.steps]
    if not options["every_row"]:
        records += [_record(program, step, requests) for step in plan.decode]
    blobs = {
        "pages": _pages(program, requests),
        "state": state,
        "params": params,
        "stops": stops,
        "steps": np.stack(records),
    }
    if plan.grid:
        blobs["grid_steps"] = np.concatenate(
            [_grid_record(meta["grid"], number, step, program, requests) for number, step in enumerate(plan.grid)]
        )
    steps = np.array([len(plan.steps)], np.uint32)
    on_the_grid = np.array([len(plan.grid)], np.uint32)
    for rank in range(program.requires.slices):
        for name, words in blobs.items():
            machine.write_dram(rank, dram[name], words.tobytes())
        machine.write_dram(rank, dram["ranks"] + 4 * 15, steps.tobytes())
        machine.write_dram(rank, dram["ranks"] + 4 * 30, on_the_grid.tobytes())
