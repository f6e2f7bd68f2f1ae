"""`systolith estimate` and `systolith waterfall`: a chip's time for a model from its config alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from systolith.cli import _options as options
from systolith.cli._console import bytes_text, print_json, print_table, progress, seconds_text, write
from systolith.cli._evidence import evidence
from systolith.spec import Chip, ConfigError, load

if TYPE_CHECKING:
    from systolith.runtime.estimate import Estimate
    from systolith.runtime.fields import Trial

__all__ = ["register"]

ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_CONFIG", help="Model directory, config.json, or a packaged config such as llama-3.1-8b."
    ),
]
ContextOption = Annotated[int, typer.Option("--context", help="Tokens that the timed decode step sees.")]
BatchOption = Annotated[int, typer.Option("--batch", help="Requests that decode together.")]
InputOption = Annotated[
    int | None, typer.Option("--input-len", help="Tokens of the prompt; default: as many as --context.")
]
OutputOption = Annotated[
    int | None,
    typer.Option("--output-len", help="Tokens made: the time per token is their mean, from the prompt's length on."),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the experts that stand in for a router's choice.")]
SensitivityOption = Annotated[
    bool, typer.Option("--sensitivity/--no-sensitivity", help="Time it at memory efficiencies of 0.90 and 0.95, too.")
]

FieldsOption = Annotated[
    bool, typer.Option("--fields", help="Time the step again with one field of the chip changed at a time.")
]
SlicesOption = Annotated[bool, typer.Option("--slices", help="Also print what each slice of the chip did in the step.")]
SliceOption = Annotated[
    int | None, typer.Option("--slice", help="Also print what the queues of this slice did in the step.", min=0)
]
PrefillOption = Annotated[
    bool, typer.Option("--prefill/--no-prefill", help="Time the prompt, too; without it there is no ttft_s.")
]


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("estimate")(estimate)
    app.command("waterfall")(waterfall)


def estimate(
    ctx: typer.Context,
    model: ConfigArgument,
    chip: options.ChipOption = "server",
    context: ContextOption = 8192,
    batch: BatchOption = 1,
    input_len: InputOption = None,
    output_len: OutputOption = None,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    page_tokens: options.PageOption = 64,
    seed: SeedOption = 0,
    prefill: PrefillOption = True,
    sensitivity: SensitivityOption = True,
    as_json: options.JsonOption = False,
) -> None:
    """Time a model on a chip without its weights: the compiled program on the timing simulator."""
    found = _run(
        model, chip, context, batch, input_len, output_len, profile, weights, activations, kv, page_tokens, seed,
        prefill, sensitivity,
    )  # fmt: skip
    if as_json:
        print_json(found.to_dict(_made_of(ctx, found)))
        return
    _print(found)


def waterfall(
    ctx: typer.Context,
    model: ConfigArgument,
    chip: options.ChipOption = "server",
    context: ContextOption = 8192,
    batch: BatchOption = 1,
    input_len: InputOption = None,
    output_len: OutputOption = None,
    profile: options.ProfileOption = None,
    weights: options.WeightsOption = None,
    activations: options.ActivationsOption = None,
    kv: options.KvOption = None,
    page_tokens: options.PageOption = 64,
    seed: SeedOption = 0,
    fields: FieldsOption = False,
    slices: SlicesOption = False,
    slice_: SliceOption = None,
    svg: Annotated[Path | None, typer.Option("--svg", help="Also write the picture to this file.")] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Draw where the time of a decode step goes, along its critical path."""
    from systolith.cli._slices import print_all, print_one
    from systolith.report.waterfall import bars
    from systolith.report.waterfall import svg as picture
    from systolith.runtime.files import check_output, write_whole

    if svg is not None:
        check_output(svg)
    _check_slice(slice_, load(chip))
    timed = _run(
        model, chip, context, batch, input_len, output_len, profile, weights, activations, kv, page_tokens, seed, False,
        False,
    )  # fmt: skip
    found = timed.to_dict()
    title = _title(found)
    if svg is not None:
        notes = [f"{name}: {_percent(found, key)}" for name, key in _FRACTIONS if key in found["fractions"]]
        text = picture(found["waterfall"], title, notes)
        write_whole(svg, lambda file: file.write(text.encode()))
    trials = _try_fields(timed, model) if fields else []
    each = [one.to_dict(timed.chip.clock_hz) for one in timed.middle.slices]
    if as_json:
        tried = {"fields": [trial.to_dict() for trial in trials]} if fields else {}
        print_json(
            found | tried | {"slices": each} | {"manifest": _made_of(ctx, timed)}
        )  # knows the picture, which is written by now
        return
    write(f"{title}\n\n{bars(found['waterfall'])}\n\n")
    print_table(
        [(line, seconds_text(seconds)) for line, seconds in found["lines"].items()],
        header=("kernel line: why", "on the path"),
    )
    if slices:
        write("\n")
        print_all(each)
    if slice_ is not None:
        write("\n")
        print_one(each[slice_])
    if fields:
        write("\n")
        print_table([_trial_row(trial) for trial in trials], header=("field", "step", "of what memory allows"))


def _try_fields(timed: Estimate, model: str) -> list[Trial]:
    """Time the step with one field changed at a time."""
    from systolith.runtime.estimate import open_config
    from systolith.runtime.fields import try_fields

    graph, source, sha256 = open_config(model)
    plan = timed.compiled.plan
    with progress(f"timing {graph.name} with other fields"):
        return list(try_fields(graph, plan.chip, plan.profile, timed.question, source=source, sha256=sha256))


def _check_slice(number: int | None, chip: Chip) -> None:
    if number is not None and number >= chip.slices:
        raise ConfigError(f"--slice={number} must be in 0..{chip.slices - 1}, the slices of {chip.name}")


def _trial_row(trial: Trial) -> tuple[str, str, str]:
    name = f"{trial.field}: {trial.was} -> {trial.value}" if trial.field else "as it is"
    if trial.seconds is None or trial.of_stated is None:
        return name, "cannot be", trial.reason
    return name, seconds_text(trial.seconds), f"{trial.of_stated * 100:.1f} %"


def _made_of(ctx: typer.Context, found: Estimate) -> dict[str, Any]:
    plan = found.compiled.plan
    return evidence(ctx, plan.chip, found.model_sha256, found.compiled.program.sha256, resolved=plan)


def _run(
    model: str, chip: str, context: int, batch: int, input_len: int | None, output_len: int | None,
    profile: Path | None, weights: str | None, activations: str | None, kv: str | None, page_tokens: int, seed: int,
    prefill: bool, sensitivity: bool,
) -> Estimate:  # fmt: skip
    """Read the arguments and time."""
    options.check_pages(page_tokens)
    loaded = options.open_chip(chip)
    chosen = options.open_profile(profile, weights, activations, kv)

    from systolith.runtime.estimate import Question, open_config
    from systolith.runtime.estimate import estimate as run

    question = Question(context, batch, input_len, output_len, page_tokens, seed, sensitivity, prefill)
    graph, source, sha256 = open_config(model)
    with progress(f"timing {graph.name} on {loaded.name}"):
        return run(graph, loaded, chosen, question, source=source, sha256=sha256)


_FRACTIONS = (
    ("decode, of what the pins allow", "decode_of_pin_rate"),
    ("decode, of what the stated efficiency allows", "decode_of_stated_rate"),
    ("the same, with the experts of a uniform router", "decode_of_stated_rate_uniform_router"),
    ("prefill, of the arrays' peak", "prefill_compute_of_peak"),
    ("prefill, of its bound", "prefill_of_bound"),
)


def _percent(found: dict[str, Any], key: str) -> str:
    fraction = found["fractions"][key]
    return (
        f"{fraction['value'] * 100:.1f} % = {seconds_text(fraction['numerator_s'])} / "
        f"{seconds_text(fraction['denominator_s'])}"
    )


def _title(found: dict[str, Any]) -> str:
    asked = found["manifest"]["options"]
    step = found["decode_steps"][len(found["decode_steps"]) // 2]
    return (
        f"{found['model']} on {found['chip']}: a decode step, batch {asked['batch']}, context {step['context']}: "
        f"{seconds_text(step['seconds'])}"
    )


def _grid(grid: dict[str, Any]) -> str:
    if "none" in grid:
        return f"none: {grid['none']}"
    return f"{grid['members']} row x {grid['groups']} column groups, {grid['rows']} rows, {grid['width']} columns"


def _print(estimated: Estimate) -> None:
    """Print the table for people."""
    from systolith.cli._report import formats

    found = estimated.to_dict()
    asked, plan = found["manifest"]["options"], estimated.compiled.plan
    write(f"{_title(found)}\n{formats(plan.profile)}; up to {plan.rows} rows a step; {found['weights_enter']}\n")
    rows = [
        ("time per token", seconds_text(found["tpot_s"])),
        ("tokens per second", f"{found['tokens_per_s']:,.1f}"),
        *(
            [(f"time to first token of {estimated.question.prompt}", seconds_text(estimated.ttft_s))]
            if estimated.ttft_s is not None
            else []
        ),
        ("grid of a prefill", _grid(found["grid"])),
        ("bytes a step must read: weights", bytes_text(found["bytes"]["weights"])),
        ("bytes a step must read: keys, values", bytes_text(found["bytes"]["kv"])),
        ("bound of a step: memory, at the pins", seconds_text(found["bound_s"]["memory"])),
        ("bound of a step: arithmetic", seconds_text(found["bound_s"]["compute"])),
        ("what binds a step", found["binds"]),
        *((name, _percent(found, key)) for name, key in _FRACTIONS if key in found["fractions"]),
        *(
            (f"step at memory efficiency {share}", seconds_text(seconds))
            for share, seconds in found["sensitivity"].items()
        ),
        *((name.replace("_", " "), str(value)) for name, value in found["simulated"].items()),
    ]
    print_table(rows)
    path = found["layer_path"]
    write("\n")
    print_table(
        [
            *((name, f"{us:.3f}", f"{path['all_layers_us'][name]:.1f}") for name, us in path["per_layer_us"].items()),
            ("all of a layer", f"{path['layer_us']:.3f}", f"{path['layer_us'] * path['layers']:.1f}"),
            ("outside of layers", "", f"{path['outside_us']:.1f}"),
        ],
        header=("critical path of a decode step", "us a layer", f"us, {path['layers']} layers"),
    )
    write(
        f"chip {found['manifest']['chip_sha256'][:12]}, model {found['manifest']['model_sha256'][:12]}, program "
        f"{found['manifest']['program_sha256'][:12]}, version {found['manifest']['version']}, seed {asked['seed']}\n"
    )
