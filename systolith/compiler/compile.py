"""From a model to a program: match, plan, lay out, write, fill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from systolith.compiler.builder import LOOP_WORDS, SEMAPHORE
from systolith.compiler.candidates import candidates
from systolith.compiler.context import Context
from systolith.compiler.grid import HELD, Grid, lay_out_grid, plan_grid
from systolith.compiler.kernels.activation import activations
from systolith.compiler.kernels.grid.step import write_grid
from systolith.compiler.kernels.step import write_program
from systolith.compiler.memory import Memory, dump_widths, lay_out
from systolith.compiler.model import match
from systolith.compiler.options import Options
from systolith.compiler.plan import Plan
from systolith.compiler.team import MOST_MEMBERS
from systolith.compiler.weights import control_images, images
from systolith.isa.program import Program, Requires
from systolith.models.checkpoint import Checkpoint
from systolith.models.graph import ModelGraph
from systolith.models.profile import Profile
from systolith.numerics.formats import FORMATS
from systolith.spec.chip import Chip
from systolith.spec.errors import CapacityError, ModelError
from systolith.spec.limits import BLOCK, SEMAPHORES

__all__ = ["Compiled", "compile_graph", "compile_model", "plan_graph", "plan_model"]


@dataclass(frozen=True)
class Compiled:
    """A program with the plan and the memory map that it was written for."""

    program: Program
    plan: Plan
    memory: Memory
    grid: Grid | None = None
    """Of steps of a prefill, where the model and the chip allow it."""
    no_grid: str = ""
    """Why there is none, in few words."""


def plan_graph(
    graph: ModelGraph, chip: Chip, profile: Profile, options: Options, *, source: str = "", rounds: bool = True,
    team: int = MOST_MEMBERS, norms: bool = True,
) -> tuple[Plan, Memory]:  # fmt: skip
    """Choose the plan with most rows a step that fits. `source` names the model's file in messages. For fewer words:
    without `rounds` decode rows of a batch are attended chunk by chunk; team, norms: as in `compiler.team.teams_of`.

    Raises CapacityError in one sentence, ModelError for a graph that has no kernels.
    """
    profile = profile.resolved(graph)
    model = match(profile.apply(graph), activations())
    if not 1 <= options.context <= model.context:
        raise ModelError(
            f"{source or graph.name}: context={options.context} must be 1..{model.context} (max_position_embeddings); "
            "ask for fewer tokens"
        )
    reason: CapacityError | None = None
    for plan in candidates(model, profile, chip, options, rounds=rounds, team=team, norms=norms):
        # The host of a server lays down all decode rows as one step.
        if options.batch > plan.rows and (options.serve or plan.rows % plan.slot_groups):
            continue
        try:
            return plan, lay_out(plan)
        except CapacityError as error:
            reason = error
    if reason is None:
        reason = CapacityError(
            f"{chip.name}: a batch of {options.batch} has more rows than a step of {model.name} on this chip can hold; "
            "take a smaller batch or a larger chip"
        )
    raise reason


def plan_model(checkpoint: Checkpoint, chip: Chip, profile: Profile, options: Options) -> tuple[Plan, Memory]:
    """The plan of a checkpoint. Raises as `plan_graph`."""
    return plan_graph(checkpoint.graph, chip, profile, options, source=str(checkpoint.path))


def compile_graph(
    graph: ModelGraph, chip: Chip, profile: Profile, options: Options, *, source: str = "", sha256: str = ""
) -> Compiled:
    """Compile without weights: all of the program but the images of what a checkpoint holds.

    It has the control tables, so that it runs for its times; for tokens it needs `compile_model`.
    source : names the model's file in messages.    sha256 : identity of the model for the program's meta.
    Raises CapacityError, ModelError, ConfigError, each one sentence.
    """
    plan, memory = plan_graph(graph, chip, profile, options, source=source)
    ctx, found, memory, spad_bytes = _write(plan, memory, plan_grid(plan, memory) if options.grid else "grid=false")
    room = f"program_bytes={chip.program_bytes} hold no words of steps of two kinds"
    for fewer, with_grid in _fewer_words(plan, isinstance(found, Grid)):
        if ctx.b.fits(chip.program_bytes):
            break
        plan, memory = plan_graph(graph, chip, profile, options, source=source, **fewer)
        there = found if isinstance(found, str) else plan_grid(plan, memory) if with_grid else room
        ctx, found, memory, spad_bytes = _write(plan, memory, there)
    grid, no_grid = (None, found) if isinstance(found, str) else (found, "")
    b = ctx.b
    if b.longest_loop > LOOP_WORDS:
        raise CapacityError(
            f"{graph.name}: the loop over its layers has {b.longest_loop} words and LOOP repeats {LOOP_WORDS} at most; "
            "take a smaller batch"
        )
    tokens = dict.fromkeys(SEMAPHORE, 0) | {
        "slot_free": plan.slots, "acc_free": 2, "stage_free": 2, "kv_free": plan.kv_entries,
        "load_free": plan.load_entries, "p_free": 2, "released": 1, "residual": int(not plan.x_resident),
    }  # fmt: skip
    counts = [tokens[name] for name in SEMAPHORE if name not in ("columns", "team")]
    program = Program(
        name=graph.name,
        words=tuple(i.encode() for i in b.instructions),
        constants=tuple(b.constants),
        sem_init=tuple(counts + [0] * (SEMAPHORES - len(counts))),
        requires=Requires(
            slices=chip.slices, dram_bytes=memory.dram_bytes,
            spad_bytes=spad_bytes,
            slot_bytes=_slot_bytes(plan), acc_bytes=8 * plan.acc_half_words, pairs=_pairs(plan),
        ),
        lines=tuple(b.lines),
        meta=_meta(plan, memory, graph, sha256, grid),
        images=tuple(control_images(plan, memory, grid)),
    )  # fmt: skip
    return Compiled(program, plan, memory, grid, no_grid)


def _fewer_words(plan: Plan, grid: bool) -> Iterator[tuple[dict[str, Any], bool]]:
    """Arguments of `plan_graph` for plans that take fewer words, in the order of what they cost, and whether they may
    have the grid that there is."""
    sizes = [plan.team >> i for i in range(1, plan.team.bit_length())]
    if plan.team_norms:
        yield from (({"team": team}, grid) for team in sizes[:-1])
        yield {"team": plan.team, "norms": False}, grid
    yield from (({"team": team, "norms": False}, grid) for team in sizes)
    if grid:
        yield {"team": 1, "norms": False}, False
    if plan.round_chunks:
        yield {"team": 1, "norms": False, "rounds": False}, False


def _write(plan: Plan, memory: Memory, grid: Grid | str) -> tuple[Context, Grid | str, Memory, int]:
    """The words of a plan with its grid, if it has one, the grid again, the memory map, which a grid makes wider, and
    bytes of scratchpad that steps of both kinds use."""
    if isinstance(grid, str):
        ctx = Context(plan, memory)
        write_program(ctx)
        return ctx, grid, memory, memory.spad_bytes
    memory = lay_out(plan, grid.control, HELD)
    body = lay_out_grid(grid, memory)
    ctx = Context(plan, memory)
    write_program(ctx, lambda: write_grid(ctx, grid, body))
    return ctx, grid, memory, max(memory.spad_bytes, body.spad_bytes)


def compile_model(checkpoint: Checkpoint, chip: Chip, profile: Profile, options: Options) -> Compiled:
    """Compile a checkpoint for a chip, weights and all. Raises as `compile_graph`."""
    compiled = compile_graph(
        checkpoint.graph, chip, profile, options, source=str(checkpoint.path), sha256=checkpoint.sha256
    )
    filled = tuple(images(compiled.plan, compiled.memory, checkpoint, compiled.grid))
    return replace(compiled, program=replace(compiled.program, images=filled))


def _slot_bytes(plan: Plan) -> int:
    """Bytes of codes and scales of all slots."""
    widths = {FORMATS[p.format].bits for p in plan.linears}
    return plan.slots * (plan.slot_bytes + sum(plan.slot_bytes * 8 // w // BLOCK for w in widths))


def _pairs(plan: Plan) -> tuple[str, ...]:
    p = plan.profile
    pairs = {f"{p.activations}x{linear.format}" for linear in plan.linears} | {f"{p.k}x{p.k}", f"{p.p}x{p.v}"}
    return tuple(sorted(pairs))


def _meta(plan: Plan, memory: Memory, graph: ModelGraph, sha256: str, grid: Grid | None) -> dict[str, object]:
    """What the host must know to use the program: model, profile, addresses."""
    m = plan.model
    return {
        "model": {"name": m.name, "sha256": sha256, "vocab": m.vocab, "layers": m.layers,
                  "eos": list(graph.eos_ids), "context": m.context},
        "profile": plan.profile.to_dict(),
        "options": asdict(plan.options),
        "rows": plan.rows,
        "decode_steps": plan.decode_steps,
        "lanes_local": plan.lanes_local,
        "group": plan.group,
        "slot_groups": plan.slot_groups,
        "pages": {"tokens": plan.page_tokens, "chunks": plan.chunks, "pool": plan.pool_pages},
        "dram": memory.dram,
        "record": asdict(memory.record),
        "grid": None if grid is None else {
            "members": grid.members, "tokens": grid.tokens, "chunks": grid.chunks, "rows": grid.plan.rows,
            "words": grid.step_words, "steps": grid.steps, "owners": grid.owner_words,
        },
        "dump": dump_widths(plan) if plan.options.dump else {},
    }  # fmt: skip
