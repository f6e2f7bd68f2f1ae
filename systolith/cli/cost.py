"""`systolith cost` and `systolith floorplan`: what a chip of one's own takes and costs, every figure a range."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, print_table, progress, seconds_text, write
from systolith.cli._evidence import evidence
from systolith.cli.estimate import BatchOption, ConfigArgument, ContextOption, SeedOption

if TYPE_CHECKING:
    from systolith.silicon.money import Cost
    from systolith.silicon.ranges import Array, Range

__all__ = ["register"]

VolumeOption = Annotated[int, typer.Option("--volume", min=1, help="Chips that are built.")]
SparesOption = Annotated[
    int | None, typer.Option("--spares", min=0, max=8, help="Spare slices of a die. [default: what makes it cheapest]")
]
DrawsOption = Annotated[int, typer.Option("--draws", min=100, max=1_000_000, help="Draws of the uncertain facts.")]
BuyOption = Annotated[
    float | None, typer.Option("--buy", min=0, help="USD a million tokens elsewhere; asks from how many chips on.")
]
SvgOption = Annotated[Path | None, typer.Option("--svg", help="Also write the picture to this file.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(cost)
    app.command()(floorplan)


def cost(
    ctx: typer.Context,
    model: ConfigArgument,
    chip: options.ChipOption = "server",
    context: ContextOption = 8192,
    batch: BatchOption = 1,
    volume: VolumeOption = 100_000,
    spares: SparesOption = None,
    buy: BuyOption = None,
    draws: DrawsOption = 4096,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    page_tokens: options.PageOption = 64,
    seed: SeedOption = 0,
    svg: SvgOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Work out area, yield, power and USD a million tokens of a chip that decodes a model: P10, P50, P90. Tokens a
    second are simulated; everything else follows from sourced facts, of which the weak ones are named."""
    options.check_pages(page_tokens)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)

    from systolith.report.tornado import svg as picture
    from systolith.runtime.estimate import Question, open_config
    from systolith.runtime.estimate import estimate as run
    from systolith.runtime.files import check_output, write_whole
    from systolith.silicon.load import decode_load
    from systolith.silicon.money import break_even, calendar, cost_of, tornado

    if svg is not None:
        check_output(svg)
    question = Question(context, batch, page_tokens=page_tokens, seed=seed, sensitivity=False, prefill=False)
    graph, source, sha256 = open_config(model)
    with progress(f"timing {graph.name} on {loaded.name}"):
        timed = run(graph, loaded, chosen, question, source=source, sha256=sha256)
    load = decode_load(timed)
    found = cost_of(loaded, load, volume, draws=draws, seed=seed, spares=spares)
    middle, swings = tornado(loaded, load, volume, spares=found.die.spares)
    months = calendar(loaded, draws, seed)
    even = None if buy is None else break_even(found, volume, buy)
    title = f"{graph.name} on {loaded.name}: USD a million tokens, batch {batch}, context {context}"
    if svg is not None:
        text = picture(middle, [(s.fact, s.low, s.high) for s in swings[:12]], title)
        write_whole(svg, lambda file: file.write(text.encode()))
    if as_json:
        print_json(
            _object(found, months)
            | {
                "chip": loaded.name, "model": graph.name, "volume": volume, "tpot_s": load.seconds,
                "tornado": {"middle": middle, "facts": [vars(s) for s in swings]}, "break_even_chips": even,
                "manifest": evidence(ctx, loaded, sha256, resolved=chosen.resolved(graph)),
            }
        )  # fmt: skip
        return
    write(
        f"{title}\n{load.tokens / load.seconds:,.0f} tokens/s simulated, {seconds_text(load.seconds)} a step; "
        f"{volume:,} chips; {found.die.dies} x {_ranged(found.die.area)} mm2 with {found.die.spares} spare slices\n"
    )
    _print(found, months)
    print_table(
        [[s.fact, _text(s.low), _text(s.high)] for s in swings[:12]], ("fact alone", "at P10", "at P90"),
        f"USD a million tokens, {_text(middle)} with every fact at P50",
    )  # fmt: skip
    if buy is not None:
        said = "at no number of chips" if even is None else (
            f"from {_text(even['p50'])} chips on ({_text(even['p10'])} to {_text(even['p90'])}), in "
            f"{100 * even['share']:.0f} % of the draws"
        )  # fmt: skip
        write(f"cheaper than {buy:g} USD a million tokens {said}\n")
    weak = [fact for fact in found.draw.used.values() if fact.confidence in ("uncertain", "assumption")]
    write(f"assumed or uncertain, so no conclusion rests on them alone: {', '.join(f.key for f in weak)}\n")


def floorplan(
    chip: options.ChipOption = "server",
    svg: Annotated[Path, typer.Option("--svg", help="File to write.")] = Path("floorplan.svg"),
    spares: SparesOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Draw a die to scale at the middle of its ranges: slices by block, HBM along two edges, the reticle's limit."""
    loaded = options.open_chip(chip)

    from systolith.report.floorplan import svg as picture
    from systolith.runtime.files import write_whole
    from systolith.silicon.plan import plan_die

    plan = plan_die(loaded, spares)
    text = picture(plan)
    write_whole(svg, lambda file: file.write(text.encode()))
    if as_json:
        print_json(plan.to_dict())
        return
    for line in plan.sentences():
        write(f"{line}\n")
    write(f"{svg}: {len(text)} bytes\n")


# What follows is private.


def _text(value: float) -> str:
    from systolith.silicon.ranges import text

    return text(value)


def _ranged(values: Array) -> str:
    from systolith.silicon.ranges import spread

    low, middle, high = (_text(x) for x in spread(values).values())
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def _print(found: Cost, months: dict[str, Array]) -> None:
    """All tables of P10, P50, P90."""
    from systolith.silicon.ranges import spread

    def table(title: str, rows: dict[str, Array]) -> None:
        print_table(
            [[name, *(_text(x) for x in spread(values).values())] for name, values in rows.items()],
            (title, "P10", "P50", "P90"),
        )

    power = found.power
    table("area, mm2", found.area.blocks(found.die.spares) | {"die": found.die.area})
    table("die", {"yield": found.die.yielded})
    table("USD of a chip", found.parts | {"chip": found.chip})
    table("USD once, millions", {name: x / 1e6 for name, x in found.once.items()})
    limit = "no limit stated" if power.limit is None else f"limit {power.limit:g} W"
    table(
        f"power, W ({limit})",
        power.static | power.dynamic | {"wanted": power.wanted, "drawn": power.drawn, "share of speed": power.rate},
    )
    table("energy", {"J a token, the chip alone": power.joules_per_token})
    table("USD a million tokens", found.per_token | {"all": found.million})
    table("months from start", months)


def _object(found: Cost, months: dict[str, Array]) -> dict[str, Any]:
    from systolith.silicon.ranges import spread

    def each(rows: dict[str, Array]) -> dict[str, Any]:
        return {name: spread(values) for name, values in rows.items()}

    power = found.power
    return {
        "area_mm2": each(found.area.blocks(found.die.spares) | {"die": found.die.area}),
        "dies": found.die.dies, "spare_slices": found.die.spares, "yield": spread(found.die.yielded),
        "stacks": {"count": found.stacks.count, "source": found.stacks.source},
        "chip_usd": each(found.parts | {"chip": found.chip}), "once_usd": each(found.once),
        "power_w": each(power.static | power.dynamic | {"idle": power.idle, "wanted": power.wanted,
                                                        "drawn": power.drawn}),
        "power_limit_w": power.limit, "speed_under_limit": spread(power.rate),
        "joules_per_token": spread(power.joules_per_token),
        "usd_per_million_tokens": each(found.per_token | {"all": found.million}),
        "months": each(months), "facts": [_fact(fact) for fact in found.draw.used.values()],
    }  # fmt: skip


def _fact(fact: Range) -> dict[str, Any]:
    return {"fact": fact.key} | {k: v for k, v in vars(fact).items() if k not in ("name", "item")}
