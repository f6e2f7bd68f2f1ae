"""From a row of measurements to a case that the device model can answer, or the reason why it cannot.

Every metric here is a x (time of a prompt's step) + b x (time of a decode step), or a number of tokens over such a sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from systolith.peers.catalogue import Device, find_device
from systolith.peers.engines import Engine, engine_of
from systolith.peers.formats import Precision, group_bits, precision_of
from systolith.peers.model import Layout, Step, capacity
from systolith.peers.names import canonical, find, unknown_configs
from systolith.peers.rows import Measurement
from systolith.peers.work import Work, work_of
from systolith.spec.errors import SystolithError

__all__ = ["REGIMES", "Case", "Refused", "case_of"]

REGIMES = ("single stream", "static batch", "prefill", "saturated")
PROMPT_TOKENS = 8192
"""Tokens of prompts in one step of a saturated engine: TensorRT-LLM's default max_num_tokens."""
_QUEUE = re.compile(
    r"\bqps\b|\brps\b|req(uest)?s?\s*/\s*s|requests? per s|request rate|poisson|arrival|open[ -]loop|goodput|\bslo\b"
    r"|\binteractive\b|\bserver\b",
    re.IGNORECASE,
)
_CLOSED_LOOP = re.compile(r"conc|user|stream|client", re.IGNORECASE)
_GOODPUT = re.compile(r"goodput|\bslo\b|queue|waiting", re.IGNORECASE)
_TAIL = re.compile(r"\bp ?(7[05]|8\d|9\d(\.\d+)?|99\d)\b|percentile|\bmax\b.*(latency|ttft|tpot|itl)", re.IGNORECASE)
_SATURATED = re.compile(r"max(imum)? throughput|all requests queued|\boffline\b|saturat|\bmax\b", re.IGNORECASE)
_BATCH = re.compile(
    r"^(?:static |max )?(?:batch(?: size)?|bs|b|concurrency|conc|c|users|streams)?\s*[:=]?\s*(\d[\d,]*)\s*"
    r"(?:users?|concurrent(?: requests| users)?|streams?|requests?|\(?static\)?|sequences)?$",
    re.IGNORECASE,
)
_SPECULATIVE = re.compile(r"eagle|speculat|medusa|\bmtp|draft|lookahead|n-?gram", re.IGNORECASE)
_NOT_SPECULATIVE = re.compile(
    r"(no|without|non|not|w/o)[ -]*(eagle|speculati\w*|spec\w*|mtp|draft\w*)[ \w-]{0,12}"
    r"|(mtp|speculati\w+)\W*(off|disabled|=?0)",
    re.IGNORECASE,
)
_DISAGGREGATED = re.compile(r"disagg", re.IGNORECASE)


class Refused(Exception):
    """A row that cannot be evaluated, with the reason."""


@dataclass(frozen=True)
class Case:
    """What a row asks of the model.

    a, b : of the times of `prompt` and `decode`.      tokens : what the sum divides; 0 where the sum is the answer.
    unit : seconds of the row's unit, for a latency.      assumed : what the row leaves blank and was taken to be.
    uncertain : fields of the device that the prediction needs and that are uncertain.
    """

    regime: str
    metric: str
    device: Device
    work: Work
    precision: Precision
    layout: Layout
    prompt: Step
    decode: Step
    a: float
    b: float
    tokens: float
    unit: float
    sequences: float
    assumed: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()
    formats: tuple[str, str] = ("", "")

    def value(self, prompt_s: float, decode_s: float) -> float:
        """The metric in the row's unit from the times of both steps."""
        total = self.a * prompt_s + self.b * decode_s
        return self.tokens / total if self.tokens else total / self.unit


@dataclass
class _Asked:
    """Notes on the way from a row to a case."""

    assumed: list[str] = field(default_factory=list)

    def take(self, sentence: str) -> None:
        self.assumed.append(sentence)


def case_of(row: Measurement) -> Case:
    """The case of a row. Raises Refused with the reason."""
    try:
        return _case(row)
    except SystolithError as error:
        raise Refused(str(error)) from None


def _case(row: Measurement) -> Case:
    asked = _Asked()
    _refuse_other_machinery(row)
    metric, unit = _metric(row)
    batch = _batch(row)
    if metric == "ttft" and batch is not None and batch > 1 and _CLOSED_LOOP.search(row.batch):
        raise Refused(
            f"{_show(row.batch)}: the first tokens of requests that come one after another need a queueing model"
        )
    device = find_device(_name("device", row.chip, "chip"))
    work = work_of(_model(row.model))
    engine = engine_of(row.framework)
    layout = _layout(row, work, engine, asked)
    precision, names = _precision(row, work, device, engine, asked)
    prompt_len = _length(row.input_len)
    output_len = _length(row.output_len)
    if prompt_len is None:
        raise Refused(f"input_len={_show(row.input_len)} is no number of tokens")
    if output_len is None:
        if metric in ("e2e", "rate") or batch is None:
            raise Refused(f"output_len={_show(row.output_len)} is no number of tokens, and {row.metric} depends on it")
        output_len = 1
        if metric != "ttft":
            asked.take("output_len: decoding right behind the prompt")
    if row.value is None:
        raise Refused("value is blank: nothing to compare with")
    used = ["bandwidth", "memory", *{precision.linear[1], precision.expert[1], "bf16"}]
    used += ["link"] if layout.devices > layout.replicas else []
    scale = layout.devices if _per_device(row.scope) else 1
    if batch is None:
        case = _saturated(metric, device, work, precision, layout, engine, prompt_len, output_len, scale)
    else:
        case = _batched(metric, unit, device, work, precision, layout, batch, prompt_len, output_len, scale)
    hosted = 0.0 if engine.fixed_batch else 1.0
    return replace(
        case,
        prompt=replace(case.prompt, hosted=hosted),
        decode=replace(case.decode, shared=engine.reads_groups_once, hosted=hosted),
        assumed=tuple(asked.assumed),
        uncertain=tuple(device.uncertain(sorted(set(used)))),
        formats=names,
    )


def _saturated(
    metric: str, device: Device, work: Work, precision: Precision, layout: Layout, engine: Engine, prompt_len: int,
    output_len: int, scale: int,
) -> Case:  # fmt: skip
    if metric != "rate":
        raise Refused("at full load all but the output tokens a second of all requests needs a queueing model")
    room = capacity(work, precision, device, layout, prompt_len + output_len, engine.kv_share)
    most = float(min(room, engine.most_sequences))
    requests = engine.requests(prompt_len, output_len)
    if requests is not None:
        requests = max(1.0, requests / (layout.data * layout.replicas))
    steps, prompts, sequences = saturation(prompt_len, output_len, most, requests)
    together = max(1, PROMPT_TOKENS // prompt_len)
    stages = min(layout.pipeline, sequences)
    tokens = prompts * output_len * layout.data * layout.replicas / scale
    return Case(
        "saturated", "output tokens/s", device, work, precision, layout,
        Step(together, prompt_len, prompt_len, True, launched=1.0),
        Step(sequences / stages, 1, prompt_len + (output_len + 1) / 2, False, launched=1.0),
        prompts / together / stages, steps, tokens, 1.0, sequences,
    )  # fmt: skip


def saturation(prompt_len: int, output_len: int, most: float, requests: float | None) -> tuple[float, float, float]:
    """(decode steps, prompts, sequences of a mean step) of an engine that is full, or that `requests` go through.

    most : sequences that run at once.      requests : None: so many that beginning and end do not count.

    Requests of equal lengths run in waves of `most`. Prompts enter as fast as a step's tokens allow, within the share
    `f` of a wave. The last wave is on average half full, and it ends a share f later: W + (1 + f) / 2 waves for
    W = requests / most, W + f where one wave holds nearly all. A step's time is close to linear in its sequences, so
    the mean step stands for all.
    """
    tokens = min(max(most * (1 + prompt_len / output_len), 2048.0), 32768.0)
    spread = min(1.0, most * prompt_len / tokens / output_len)
    if requests is None:
        return float(output_len), most, most
    waves = requests / most
    total = 1 + spread * waves if waves <= 1 else waves + spread + (1 - spread) / 2 * min(1.0, 2 * (waves - 1))
    return total * output_len, requests, requests / total


def _batched(
    metric: str, unit: float, device: Device, work: Work, precision: Precision, layout: Layout, batch: int,
    prompt_len: int, output_len: int, scale: int,
) -> Case:  # fmt: skip
    groups = layout.data * layout.replicas
    sequences = max(1.0, batch / groups)
    room = capacity(work, precision, device, layout, prompt_len + output_len, reserved=0.0)
    if sequences > room:
        raise Refused(
            f"{sequences:g} sequences of {prompt_len + output_len} tokens do not fit beside the weights: {room} do"
        )
    stages = min(float(layout.pipeline), sequences)
    middle = prompt_len + (output_len + 1) / 2
    prompt, decode = (
        Step(sequences, prompt_len, prompt_len, True, launched=1.0),
        Step(sequences / stages, 1, middle, False),
    )
    regime = "static batch" if batch > 1 else "prefill" if metric == "ttft" else "single stream"
    a, b = {"ttft": (1.0, 0.0), "tpot": (0.0, 1.0), "user": (0.0, 1.0)}.get(metric, (1.0, float(output_len - 1)))
    tokens = {"user": 1.0, "rate": batch * output_len / scale}.get(metric, 0.0)
    names = {"ttft": "TTFT", "tpot": "TPOT", "user": "tokens/s/user", "rate": "output tokens/s", "e2e": "latency"}
    return Case(
        regime, names[metric], device, work, precision, layout, prompt, decode, a, b, tokens, unit, sequences
    )  # fmt: skip


def _refuse_other_machinery(row: Measurement) -> None:
    """Refuse what needs a model that is not this one."""
    if _TAIL.search(row.metric):
        raise Refused(f"metric={_show(row.metric)}: a tail of latencies needs a queueing model")
    if found := _QUEUE.search(row.batch) or _GOODPUT.search(row.metric):
        raise Refused(f"{_show(found[0])}: requests that arrive by a rate need a queueing model")
    more = " ".join((row.framework, row.parallelism, row.precision, row.model, row.notes, row.batch, row.metric))
    if found := _SPECULATIVE.search(_NOT_SPECULATIVE.sub("", more)):
        raise Refused(f"{_show(found[0])}: speculative decoding depends on an acceptance length that the row lacks")
    if _DISAGGREGATED.search(more):
        raise Refused("prefill and decoding on different devices need a queueing model")


def _metric(row: Measurement) -> tuple[str, float]:
    """(kind, seconds of the unit)."""
    text = row.metric.lower()
    if re.search(r"ttft|first[ -]token", text):
        return "ttft", _seconds(row)
    if re.search(r"tpot|\bitl\b|inter[ -]?token|per[ -]output[ -]token|token latency|\btbt\b", text):
        return "tpot", _seconds(row)
    if re.search(r"(tok(en)?s?/s(ec)?(ond)?|tps)\s*(/|per )\s*(user|request|stream|seq\w*)", text):
        return "user", 1.0
    if re.search(r"\b(total|input|prompt|prefill)\b", text) and re.search(r"tok", text):
        raise Refused(f"metric={_show(row.metric)}: counts other tokens than those that are made")
    if re.search(r"tok(en)?s?\s*(/|per )\s*s|\btps\b|tok/s|throughput", text) and not re.search(r"req", text):
        return ("user" if re.search(r"per (user|stream)", row.scope.lower()) else "rate"), 1.0
    if re.search(r"end[ -]to[ -]end|e2e|batch latency|\blatency\b", text):
        return "e2e", _seconds(row)
    raise Refused(f"metric={_show(row.metric)} is none of output tokens/s, tokens/s/user, TTFT, TPOT, ITL, latency")


def _seconds(row: Measurement) -> float:
    units = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "s": 1.0, "sec": 1.0, "seconds": 1.0, "second": 1.0}
    units |= {"milliseconds": 1e-3, "msec": 1e-3}
    for text in (row.metric, row.scope):
        for word in reversed(re.findall(r"[a-zµ]+", text.lower())):
            if word in units:
                return units[word]
    raise Refused(f"metric={_show(row.metric)} has no unit of time; write ms or s behind it")


def _batch(row: Measurement) -> int | None:
    """Sequences of a batch; None at full load."""
    text = row.batch.strip()
    if found := _BATCH.match(text):
        size = int(found[1].replace(",", ""))
        if 1 <= size <= 1_000_000:
            return size
    if _SATURATED.search(text):
        return None
    raise Refused(f"batch_or_concurrency={_show(text)} is neither a number of sequences nor the maximum throughput")


def _name(kind: str, text: str, column: str) -> str:
    found = find(kind, text) if text else None
    if found is None:
        raise Refused(f"{column}={_show(text)} is no {kind} of the catalogue")
    return found


def _model(text: str) -> str:
    if canonical(text) in unknown_configs():
        raise Refused(f"model={_show(text)}: {unknown_configs()[canonical(text)]}")
    return _name("model", text, "model")


def _precision(
    row: Measurement, work: Work, device: Device, engine: Engine, asked: _Asked
) -> tuple[Precision, tuple[str, str]]:
    name = find("format", row.precision) if row.precision else "bf16"
    if name is None:
        raise Refused(f"precision={_show(row.precision)} is no known format")
    if not row.precision:
        asked.take("precision: bf16")
    if row.kv_precision and canonical(row.kv_precision) not in ("auto", "default", "same"):
        kv = find("format", row.kv_precision)
        if kv is None:
            raise Refused(f"kv_precision={_show(row.kv_precision)} is no known format")
    else:  # TensorRT-LLM's published FP8 and FP4 engines keep their cache in FP8; others do so only when told
        kv = "fp8" if name in ("fp8", "fp4") and engine.name == "tensorrt-llm" else "bf16"
        asked.take(f"kv_precision: {kv}")
    return precision_of(name, kv, work, device, group_bits(row.precision)), (name, kv)


def _layout(row: Measurement, work: Work, engine: Engine, asked: _Asked) -> Layout:
    """The layout of `parallelism`: TP, PP, DP, EP with numbers; DEP: attention by data, experts dealt out."""
    text = re.sub(r"\([^)]*\)", " ", row.parallelism).upper()
    if re.search(r"\bCORES?\b", text) and row.devices:  # cores of a device share its memory: devices count here
        text = re.sub(r"\b(TP|DP|PP)\s*=?-?\s*\d+\s*CORES?", rf"\g<1>{row.devices}", text)
    found: dict[str, int] = {}
    for name, size in re.findall(r"(DEP|TEP|TP|PP|DP|EP|CP)[\s=_:-]*(\d+)", text):
        if name in found:
            raise Refused(f"parallelism={_show(row.parallelism)} names {name} twice")
        found[name] = int(size)
    if "CP" in found and found["CP"] > 1:
        raise Refused("context parallelism is not modelled")
    left = re.sub(r"(DEP|TEP|TP|PP|DP|EP|CP)[\s=_:-]*\d+|[\s,+x*/&;_-]|ATTENTION", "", text)
    if left and not found and left not in ("NONE", "SINGLE"):
        raise Refused(f"parallelism={_show(row.parallelism)} is none of TP, PP, DP, EP, DEP with their numbers")
    if any(not 1 <= size <= 4096 for size in found.values()):
        raise Refused(f"parallelism={_show(row.parallelism)} must have numbers 1..4096")
    tensor = found.get("TP", found.get("TEP", 1))
    data, replicas, pipeline = 1, 1, found.get("PP", 1)
    if "DEP" in found:
        data = found["DEP"]
    elif "DP" in found:
        if found.get("EP", 1) > 1 and work.exchanges:
            data = found["DP"]
        else:
            replicas = found["DP"]
    elif found.get("EP", 1) > tensor:
        if tensor > 1:
            raise Refused(f"parallelism={_show(row.parallelism)} says not how attention lies on the devices of EP")
        data = found["EP"]
    if not found:
        tensor = row.devices or 1
        if tensor > 1:
            asked.take(f"parallelism: TP{tensor}")
    layout = Layout(tensor, data, pipeline, replicas)
    if row.devices is not None and row.devices != layout.devices:
        raise Refused(
            f"n_chips={row.devices} and parallelism={_show(row.parallelism)}, {layout.devices} devices, disagree"
        )
    layout.check(work)
    if engine.attention_by_data and work.exchanges and data == 1:
        tensor, data = 1, tensor
        layout = Layout(tensor, data, pipeline, replicas)
    if data > 1 and not work.exchanges:
        layout = Layout(tensor, 1, pipeline, replicas * data)
    return layout


def _per_device(scope: str) -> bool:
    if re.search(r"per\s+(core|node|rack|system|kw|watt|dollar)", scope.lower()):
        raise Refused(f"unit_scope={_show(scope)} is neither of all devices nor of one")
    return bool(re.search(r"(per|/)\s*(gpu|chip|device|accelerator|card|npu|tpu|xpu|hpu)\b", scope.lower()))


def _length(text: str) -> int | None:
    """A number of tokens; "~200" is 200."""
    found = re.fullmatch(r"~?\s*(\d[\d,]{0,9})\s*(?:tokens)?", text.strip())
    size = int(found[1].replace(",", "")) if found else 0
    return size if size >= 1 else None


def _show(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
