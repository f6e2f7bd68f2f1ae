"""docs/peers.md: what is known of other people's chips, how well the model holds, and where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from systolith.peers.catalogue import Device, devices
from systolith.peers.facts_file import Facts
from systolith.peers.rows import Measurement
from systolith.peers.validation import AIM, Judged, judge, summary

__all__ = ["render"]

WORST = 12
"""Models that are listed with their errors, the worst of them."""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def render(facts: Facts, rows: Sequence[Measurement]) -> str:
    """The whole page, from fitted scalars and the rows they were fitted on."""
    own, device, model = (judge(rows, facts, leave_out) for leave_out in (None, "device", "model"))
    files = "\n".join(f"- `{name}`, SHA-256 `{sha256[:16]}`" for name, sha256 in facts.inputs.items())
    refused = [one for one in own if one.reason is not None]
    return f"""# Peers

What other people's chips do on the models people serve, by a device model of six scalars a generation
([decision 0011](decisions/0011-peers.md)), beside what was measured of them. This page is written by
`systolith fit --data DIR -o FILE --page docs/peers.md` and held by a test. Fitted with seed {facts.seed} on these
files and nothing else:

{files}

{len(rows)} rows, {len(own) - len(refused)} evaluated, {len(refused)} refused. Errors are |predicted / measured - 1|.

## Errors on rows left out

*Device left out*: its rows are not fitted on, and it takes the median of each scalar over the other measured devices,
even where a sibling of its generation is among them. *Model left out*: no row of it is fitted on. *Fit*: the rows that
the scalars were fitted on, which says little by itself.

{errors(own, device, model)}

### By device

{by_device(own, device, model)}

### By model

Median error of a model's rows with the model left out, the {WORST} worst, and its sign. Of tokens a second, + is too
many; of a time, too long.

{by_model(model)}

## What is missed, and why

- *Inferentia2 and MI300X left out.* The medians by regime hide them: with no row of Inferentia2, nothing says that its
  engine takes 0.4 ms for each sequence of a step and that its collectives go round a ring of 24 cores; from the scalars
  of GPUs its steps come out half as long as they are. MI300X's kernels are shorter than the other devices' median, and
  its engine takes 0.08 ms for a sequence. Both are properties of an engine on a host as much as of a device.
- *gpt-oss on Hopper* is two to three times slower than bandwidth and arithmetic allow. The source runs its experts
  there by Triton kernels in 16 bits; no scalar that Hopper's other models share can say so.
- *Mixtures of experts on Hopper* come out too fast by a quarter, dense models too slow by a tenth: what uneven choice
  of experts costs is not modelled.
- *One generation, one engine.* Blackwell was measured at full load only, A100 in single streams and prompts only. What
  no row of a generation touches is held near the value of all generations together, and is no measurement.
- *At full load* the order in which an engine admits prompts decides some percent; the closed form of waves in
  `peers.cases.saturation` stands for it.

Aims were looked at while the model's terms were chosen, so the errors above are those of a model that has seen them;
other files of measurements say more.

## Scalars

{scalars(facts)}

`compute`, `memory`: shares of the data sheet's rates that products, and weights and KV cache, get. `vector`: share of
the last cache's speed that norms, activations and experts' sums get. Times in microseconds: of a kernel, of launching
it by itself, and of a sequence in a step.

## Catalogue

Figures of `systolith peers DEVICE` in short; `~` marks one that its source calls uncertain, or all of a device whose
entry is: it carries no conclusion. Every field's source and date stand in `systolith/peers/facts/devices.csv`.
Measurements: *none* means that predictions take the median scalars of the measured devices.

{catalogue(facts)}
"""


def percent(value: float) -> str:
    """A share as people read it."""
    return f"{100 * value:.1f} %"


def errors(own: Sequence[Judged], device: Sequence[Judged], model: Sequence[Judged]) -> str:
    """Median errors by regime."""
    found = [summary(some) for some in (device, model, own)]
    rows = []
    for regime, aim in AIM.items():
        cells = [some[regime].get("all") for some in found]
        rows.append([
            regime, str(cells[2]["rows"]) if cells[2] else "0", f"{100 * aim:.0f} %",
            *(_met(cell["median"], aim) if cell else "-" for cell in cells[:2]),
            percent(cells[2]["median"]) if cells[2] else "-",
        ])  # fmt: skip
    return table(("regime", "rows", "aim", "median, device left out", "median, model left out", "median, fit"), rows)


def _met(value: float, aim: float) -> str:
    return percent(value) + ("" if value <= aim else " (missed)")


def by_device(own: Sequence[Judged], device: Sequence[Judged], model: Sequence[Judged]) -> str:
    """The same for each device."""
    found = [summary(some) for some in (device, model, own)]
    rows = []
    for regime in AIM:
        for key, cell in found[2][regime].items():
            if key != "all":
                medians = [percent(some[regime][key]["median"]) if key in some[regime] else "-" for some in found]
                rows.append([regime, key, str(cell["rows"]), *medians])
    return table(("regime", "device", "rows", "device left out", "model left out", "fit"), rows)


def by_model(model: Sequence[Judged]) -> str:
    """Errors of models left out, the worst first."""
    groups: dict[tuple[str, str], list[float]] = {}
    for one in model:
        if one.counts and one.case is not None and one.error is not None:
            groups.setdefault((one.case.work.name, one.case.device.generation), []).append(one.error)

    def middle(values: list[float]) -> float:
        ordered = sorted(values)
        return ordered[len(ordered) // 2]

    ranked = sorted(groups.items(), key=lambda pair: -middle([abs(e) for e in pair[1]]))[:WORST]
    rows = [
        [name, generation, str(len(some)), percent(middle([abs(e) for e in some])), f"{100 * middle(some):+.0f} %"]
        for (name, generation), some in ranked
    ]
    return table(("model", "generation", "rows", "median error", "its sign"), rows)


def scalars(facts: Facts) -> str:
    """The scalars of each generation."""
    rows = []
    for name, found in (*facts.generations.items(), ("median of the devices", facts.middle)):
        of = ", ".join(key for key, generation in facts.devices.items() if generation == name)
        cells = [f"{v * 1e6:.2f}" if key.endswith("_s") else f"{v:.3f}" for key, v in asdict(found).items()]
        rows.append([name, of, *cells])
    return table(("generation", "measured devices", *asdict(facts.middle)), rows)


def catalogue(facts: Facts) -> str:
    """A line for each device."""
    header = ("device", "vendor", "memory GB", "TB/s", "SRAM MB", "bf16", "fp8", "fp4 TFLOP/s", "link GB/s", "W", "USD")
    fields = ("memory", "bandwidth", "sram", "bf16", "fp8", "fp4", "link", "power", "price")

    def known(device: Device) -> str:
        if device.key in facts.devices:
            return "of itself"
        return f"of {device.generation}" if device.generation in facts.generations else "none"

    rows = [
        [key, device.text("vendor"), *(_figure(device, name) for name in fields), known(device)]
        for key, device in devices().items()
    ]
    return table((*header, "measurements"), rows)


def _figure(device: Device, name: str) -> str:
    fact = device.facts.get(name)
    if fact is None or fact.low is None or fact.high is None:
        return "-"
    mark = "~" if fact.confidence == "uncertain" else ""
    return mark + (f"{fact.low:,.10g}" if fact.low == fact.high else f"{fact.low:,.10g}-{fact.high:,.10g}")
