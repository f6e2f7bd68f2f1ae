"""`systolith curve`: tokens a second by batch, for each user and for the chip, from a model's config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from systolith.cli import _options as options
from systolith.cli._console import print_json, print_table, progress, seconds_text, warn, write
from systolith.cli._evidence import evidence
from systolith.cli.estimate import ConfigArgument, ContextOption, InputOption, OutputOption, SeedOption
from systolith.spec.errors import CapacityError

__all__ = ["register"]

BatchesOption = Annotated[str, typer.Option("--batches", help="Batches to time, each on a program of its own.")]
SvgOption = Annotated[Path | None, typer.Option("--svg", help="Also write the picture to this file.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(curve)


def curve(
    ctx: typer.Context,
    model: ConfigArgument,
    chip: options.ChipOption = "server",
    batches: BatchesOption = "1,8,32,64,128,256",
    context: ContextOption = 8192,
    input_len: InputOption = None,
    output_len: OutputOption = None,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    page_tokens: options.PageOption = 64,
    seed: SeedOption = 0,
    svg: SvgOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Time a decode step for batches of several sizes; a batch that does not fit says why."""
    options.check_pages(page_tokens)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)

    from systolith.report.curve import svg as picture
    from systolith.runtime.curve import batches_of
    from systolith.runtime.curve import curve as run
    from systolith.runtime.estimate import Question, open_config
    from systolith.runtime.files import check_output, write_whole

    if svg is not None:
        check_output(svg)
    wanted = batches_of(batches)
    question = Question(context, 1, input_len, output_len, page_tokens, seed, sensitivity=False, prefill=False)
    graph, source, sha256 = open_config(model)
    points: list[dict[str, Any]] = []
    with progress(f"timing {graph.name} on {loaded.name}"):
        points += [point.to_dict() for point in run(graph, loaded, chosen, wanted, question, source=source)]
    timed = [point for point in points if "tpot_s" in point]
    if not timed:
        raise CapacityError(f"batch {points[0]['batch']}: {points[0]['fault']}")
    sizes, all_, each = ([point[key] for point in timed] for key in ("batch", "tokens_per_s_chip", "tokens_per_s_user"))
    asked = f"{question.prompt} in, {output_len} out" if output_len is not None else f"context {context}"
    title = f"{graph.name} on {loaded.name}: tokens a second, {asked}"
    if svg is not None:
        text = picture(sizes, all_, each, title)
        write_whole(svg, lambda file: file.write(text.encode()))
    if as_json:
        made_of = evidence(ctx, loaded, sha256, resolved=chosen.resolved(graph))
        print_json({"chip": loaded.name, "model": graph.name, "points": points, "manifest": made_of})
        return
    write(f"{title}\n")
    experts = (_UNIFORM_HEADER,) if any(_UNIFORM in point["fractions"] for point in timed) else ()
    print_table([_row(point) for point in timed], header=(*_HEADER, *experts))
    for point in points:
        if "fault" in point:
            warn(f"batch {point['batch']}: {point['fault']}")


_HEADER = (
    "batch",
    "rows a step",
    "time per token",
    "tokens/s, a user",
    "tokens/s, the chip",
    "of stated memory or peak",
)
_UNIFORM, _UNIFORM_HEADER = "decode_of_stated_rate_uniform_router", "with a uniform router's experts"


def _row(point: dict[str, Any]) -> tuple[str, ...]:
    shares = [
        point["fractions"][key]["value"] for key in ("decode_of_stated_rate", _UNIFORM) if key in point["fractions"]
    ]
    return (
        str(point["batch"]), str(point["rows"]), seconds_text(point["tpot_s"]), f"{point['tokens_per_s_user']:,.1f}",
        f"{point['tokens_per_s_chip']:,.0f}", *(f"{share * 100:.1f} %" for share in shares),
    )  # fmt: skip
