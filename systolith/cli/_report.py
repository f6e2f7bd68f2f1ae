"""The report after a run, for people: what ran, the times beside the bound, the units, the bytes, the waterfall."""

from __future__ import annotations

from typing import TYPE_CHECKING

from systolith.cli._console import bytes_text, print_table, seconds_text, write

if TYPE_CHECKING:
    from systolith.models.profile import Profile
    from systolith.runtime.session import Run

__all__ = ["conditions", "formats", "print_batch", "print_run"]

_MX = {"INT8": "MXINT8", "E4M3": "MXFP8", "E2M1": "MXFP4", "INT8x2": "MXINT8x2"}


def formats(profile: Profile) -> str:
    """The formats of a profile in one phrase."""
    names = {key: _MX[getattr(profile, key)] for key in ("weights", "activations", "k", "v", "p", "head")}
    kv = names["k"] if names["k"] == names["v"] else f"{names['k']}/{names['v']}"
    weights, activations, p, head = (names[key] for key in ("weights", "activations", "p", "head"))
    return f"weights {weights}, activations {activations}, KV {kv}, P {p}, head {head}"


def conditions(run: Run, device: str) -> str:
    """Chip, model, formats, batch, context: what every figure depends on."""
    plan = run.plan
    chip = plan.chip
    slices = f"{chip.slices} slice{'s' if chip.slices > 1 else ''} at {chip.clock_hz / 1e6:g} MHz"
    prompt = "+".join(str(len(r.prompt)) for r in run.requests[:8]) + ("+..." if len(run.requests) > 8 else "")
    return (
        f"{plan.model.name} on {chip.name} ({slices}), device {device}; {formats(plan.profile)}; batch "
        f"{len(run.requests)}, prompt {prompt} tokens, "
        f"{sum(map(len, run.tokens))} made, program for a context of {plan.options.context}"
    )


def print_batch(prompts: list[str], texts: list[str]) -> None:
    """Print each prompt with what was made of it."""
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        write(f"--- prompt {number}\n{prompt}{text}\n")


def print_run(run: Run, device: str) -> None:
    """Print the report."""
    write(f"\n{conditions(run, device)}\n")
    if not run.ran:
        least = run.bound()
        write(
            f"device {device} runs nothing: the program of {len(run.compiled.program.words)} words fits; "
            f"the chip's bound is {seconds_text(least.seconds)} per token ({least.binds}).\n"
        )
        return
    timing = run.timing
    assert timing is not None or run.rtl is not None
    firsts = [t for i in range(len(run.requests)) if (t := run.ttft_s(i)) is not None]
    later = [t for i in range(len(run.requests)) if (t := run.tpot_s(i)) is not None]
    least = run.bound()
    which = " (the last of the batch)" if len(firsts) > 1 else ""
    rows = [["time to first token", seconds_text(max(firsts)) + which]]
    if later:
        tpot = sum(later) / len(later)
        rate = sum(1 / t for t in later)
        rows.append(["time per token", f"{seconds_text(tpot)}, {rate:,.0f} tokens/s"])
        rows.append(
            ["the chip's bound", f"{seconds_text(least.seconds)} per token, set by {least.binds}: "
             f"{100 * least.seconds / tpot:.1f} % of it reached"]
        )  # fmt: skip
    else:
        rows.append(["the chip's bound", f"{seconds_text(least.seconds)} per token, set by {least.binds}"])
    if timing is None:  # the RTL has run
        assert run.rtl is not None
        rows.append(["cycles", f"{run.rtl['cycles']:,}, counted on the RTL"])
        rows.append(["Verilog", f"{run.rtl['verilog_sha256']}, {run.rtl['verilator']}"])
        rows.append(["program", run.compiled.program.sha256])
        print_table(rows)
        return
    rows.append(["cycles", f"{timing.cycles:,}"])
    shares = ", ".join(f"{unit} {100 * share:.1f} %" for unit, share in timing.utilisation.items())
    rows.append(["units in use", shares])
    rows.append(["bytes moved", ", ".join(f"{kind} {bytes_text(n)}" for kind, n in timing.bytes.items())])
    for title, found in (("a decode token", run.decode_waterfall()), ("the whole run", timing.waterfall)):
        if found is None or not found.cycles:
            continue
        parts = sorted(found.parts.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{part} {100 * n / found.cycles:.1f} %" for part, n in parts if n)
        rows.append([f"critical path, {title}", shares])
    rows.append(["program", run.compiled.program.sha256])
    print_table(rows)
