"""Requests from a file, played against an engine as they arrive; what became of each.

A bad request is refused alone: the others run as if it were not there.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from systolith.runtime.engine import Engine, EngineRequest, FinishEvent, RequestError, TokenEvent
from systolith.runtime.job import Sampling
from systolith.spec.errors import ConfigError, ModelError

__all__ = ["Arrival", "Outcome", "fitting_context", "play", "quantiles", "read_requests"]

Encode = Callable[[str], Sequence[int]]

KEYS = (
    "id", "arrival_s", "arrival", "cancel_s", "prompt", "prompt_ids", "prompt_tokens", "max_tokens", "temperature",
    "top_k", "top_p", "seed", "stop", "ignore_eos",
)  # fmt: skip
MAX_SECONDS = 1e6
"""Latest arrival or cancellation, seconds: 11 days."""
MAX_PROMPT = 1 << 24
MAX_TOKENS = 64
"""Tokens made where a request does not say."""


@dataclass
class Outcome:
    """What became of a request. reason: stop, length, cancelled, refused, or error; times are the chip's, seconds."""

    id: str
    line: int
    arrival_s: float = 0.0
    prompt_tokens: int = 0
    reason: str = ""
    message: str = ""
    tokens: list[int] = field(default_factory=list)
    ttft_s: float | None = None
    tpot_s: float | None = None
    finish_s: float | None = None


@dataclass(frozen=True)
class Arrival:
    """A request with its times, on one clock, seconds."""

    id: str
    line: int
    arrival_s: float
    cancel_s: float | None
    request: EngineRequest


def read_requests(data: bytes, source: str, encode: Encode | None, vocab: int) -> tuple[list[Arrival], list[Outcome]]:
    """Read one JSON object a line; blank lines are skipped. Gives the requests, and those refused with a sentence.

    encode : text to token ids, None where the model has no tokenizer     vocab : of ids made up for `prompt_tokens`.
    Raises ConfigError where no line holds a request at all.
    """
    arrivals: list[Arrival] = []
    refused: list[Outcome] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        table: Any = None
        try:
            table = _table(_text(raw))
            name = _name(table, number, seen)
            seen[name] = number
            arrivals.append(_arrival(table, name, number, encode, vocab))
        except (RequestError, ModelError) as error:
            given = table.get("id") if isinstance(table, dict) else None
            name = f"line {number}" if not isinstance(given, str) or _broken(given) else given[:200]
            refused.append(Outcome(name, number, reason="refused", message=f"{source}:{number}: {error}"))
    if not arrivals and not refused:
        raise ConfigError(f"{source}: holds no request; give one JSON object a line")
    return arrivals, refused


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"byte {error.start} of the line is not UTF-8; give UTF-8 text") from None


def _broken(text: str) -> bool:
    """Whether a text holds half a surrogate pair, which JSON can say and nobody can print."""
    return any("\ud800" <= c <= "\udfff" for c in text)


def _table(line: str) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [key for key, _ in items if sum(k == key for k, _ in items) > 1]
        if twice:
            raise RequestError(f"{_short(twice[0])} is given twice; give it once")
        return dict(items)

    try:
        table = json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"is no JSON ({error}); give one object a line") from None
    if not isinstance(table, dict):
        raise RequestError(f"{_short(table)} must be a JSON object; give one object a line")
    unknown = [key for key in table if key not in KEYS]
    if unknown:
        raise RequestError(f"{_short(unknown[0])} is no key of a request; known are {', '.join(KEYS)}")
    return table


def _name(table: Mapping[str, Any], number: int, seen: Mapping[str, int]) -> str:
    value = table.get("id", f"line {number}")
    if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value)) > 200 or _broken(str(value)):
        raise RequestError(f"id={_short(value)} must be a text of at most 200 characters, or a whole number")
    if str(value) in seen:
        raise RequestError(f"id={_short(value)} is that of line {seen[str(value)]} too; give each request its own")
    return str(value)


def _arrival(table: Mapping[str, Any], name: str, line: int, encode: Encode | None, vocab: int) -> Arrival:
    if "arrival" in table and "arrival_s" in table:
        raise RequestError("arrival and arrival_s say the same thing twice; give one of them")
    arrival = _seconds(table, "arrival" if "arrival" in table else "arrival_s", 0.0)
    assert arrival is not None
    cancel = _seconds(table, "cancel_s", None)
    if cancel is not None and cancel < arrival:
        raise RequestError(f"cancel_s={cancel} must not be before the arrival at {arrival}; both are on one clock")
    sampling = Sampling(
        _number(table, "temperature", 0.0), _integer(table, "top_k", 0), _number(table, "top_p", 1.0),
        _integer(table, "seed", 0),
    )  # fmt: skip
    ignore = table.get("ignore_eos", False)
    if not isinstance(ignore, bool):
        raise RequestError(f"ignore_eos={_short(ignore)} must be true or false")
    request = EngineRequest(
        _prompt(table, name, encode, vocab), _integer(table, "max_tokens", MAX_TOKENS), sampling, _ids(table, "stop"),
        ignore_eos=ignore,
    )  # fmt: skip
    return Arrival(name, line, arrival, cancel, request)


def _prompt(table: Mapping[str, Any], name: str, encode: Encode | None, vocab: int) -> tuple[int, ...]:
    if sum(key in table for key in ("prompt", "prompt_ids", "prompt_tokens")) != 1:
        raise RequestError("give one of prompt (a text), prompt_ids (token ids) and prompt_tokens (a number of them)")
    if "prompt_ids" in table:
        return _ids(table, "prompt_ids")
    if "prompt_tokens" in table:
        count = _integer(table, "prompt_tokens", 0)
        if not 1 <= count <= MAX_PROMPT:
            raise RequestError(f"prompt_tokens={count} must be 1..{MAX_PROMPT}")
        return tuple(np.random.default_rng(zlib.crc32(name.encode())).integers(0, vocab, count).tolist())
    text = table["prompt"]
    if not isinstance(text, str):
        raise RequestError(f"prompt={_short(text)} must be a text; give token ids as prompt_ids")
    if encode is None:
        raise RequestError("prompt is a text and the model has no tokenizer.json; give prompt_ids")
    if _broken(text):
        raise RequestError("prompt holds half a surrogate pair, which is no character; give whole characters")
    return tuple(encode(text))


def _ids(table: Mapping[str, Any], key: str) -> tuple[int, ...]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise RequestError(f"{key}={_short(value)} must be a list of token ids")
    wrong = next((x for x in value if isinstance(x, bool) or not isinstance(x, int)), None)
    if wrong is not None:
        raise RequestError(f"{key}: {_short(wrong)} must be a token id, a whole number")
    return tuple(value)


def _number(table: Mapping[str, Any], key: str, default: float) -> float:
    value = table.get(key, default)
    if not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < 1e300:
        return float(value)
    raise RequestError(f"{key}={_short(value)} must be a number")


def _integer(table: Mapping[str, Any], key: str, default: int) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RequestError(f"{key}={_short(value)} must be a whole number")
    return value


def _seconds(table: Mapping[str, Any], key: str, default: float | None) -> float | None:
    if key not in table:
        return default
    value = _number(table, key, 0.0)
    if not 0 <= value <= MAX_SECONDS:
        raise RequestError(f"{key}={value} must be 0..{MAX_SECONDS:g} seconds")
    return value


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 60 else text[:57] + "..."


def play(
    engine: Engine, arrivals: Sequence[Arrival], on_event: Callable[[TokenEvent | FinishEvent], None] | None = None
) -> list[Outcome]:
    """Play arrivals and cancellations against an engine to their end; outcomes in the order of `arrivals`.

    A request joins at the first step that begins after its arrival. The engine's queue must hold them all.
    """
    clock = engine.chip.clock_hz
    outcomes = [Outcome(a.id, a.line, a.arrival_s, len(a.request.prompt)) for a in arrivals]
    pending = sorted(range(len(arrivals)), key=lambda i: arrivals[i].arrival_s)[::-1]
    leaving = sorted(
        ((math.ceil(a.cancel_s * clock), i) for i, a in enumerate(arrivals) if a.cancel_s is not None), reverse=True
    )
    numbers: dict[int, int] = {}
    of: dict[int, int] = {}

    def due(index: int) -> int:
        return math.ceil(arrivals[index].arrival_s * clock)

    while True:
        while pending and due(pending[-1]) <= engine.cycle:
            index = pending.pop()
            try:
                number = engine.submit(arrivals[index].request, due(index))
                numbers[index], of[number] = number, index
            except RequestError as error:
                outcomes[index].reason, outcomes[index].message = "refused", str(error)
        while leaving and leaving[-1][0] <= engine.cycle:
            _, index = leaving.pop()
            if index in numbers:
                engine.cancel(numbers[index])
        if engine.idle:
            if not pending:
                return outcomes
            engine.wait_until(due(pending[-1]))
            continue
        for event in engine.step():
            if on_event is not None:
                on_event(event)
            outcome = outcomes[of[event.request]]
            if isinstance(event, TokenEvent):
                outcome.tokens.append(event.token)
                if event.cycle is not None:
                    outcome.finish_s = event.cycle / clock
            else:
                outcome.reason, outcome.message = event.reason, event.message
                outcome.ttft_s, outcome.tpot_s = event.ttft_s, event.tpot_s


def fitting_context(arrivals: Sequence[Arrival], most: int, step: int) -> int:
    """The smallest multiple of `step`, or `most`, that holds each request that fits into `most` tokens at all."""
    needs = [len(a.request.prompt) + a.request.max_tokens for a in arrivals]
    need = max((n for n in needs if n <= most), default=1)
    return min(most, -(-need // step) * step)


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median, 90th and 99th of a hundred (the next value up), and largest; None where there is none."""
    if not values:
        return None
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    return {"mean": sum(ordered) / len(ordered), "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": ordered[-1]}
