"""Fields of a request body: one table says which there are, what each may hold, and what it means when left out.

A field that is not in the table is refused with the nearest name that is, so that a misspelt setting never runs as the
default. `null` counts as left out, as OpenAI has it. docs/serve.md lists the table.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from systolith.serve.errors import bad_request

__all__ = ["FIELDS", "MAX_STOPS", "Field", "parse_body", "read_fields", "show"]

Reader = Callable[[Any], Any]
"""Takes a JSON value and gives what it means; raises ValueError with what it must be."""

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_CHOICES = 128
MAX_LOGPROBS = 20


@dataclass(frozen=True)
class Field:
    """A field. apis: "chat", "text" or both; default: what it is when left out; about: a phrase for the manual."""

    name: str
    read: Reader
    default: Any
    about: str
    apis: tuple[str, ...] = ("chat", "text")


def show(value: object, limit: int = 60) -> str:
    """A JSON value on one line of ASCII, shortened."""
    text = json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(low: int, high: int, note: str = "") -> Reader:
    def read(value: Any) -> int:
        if not _is_integer(value) or not low <= value <= high:
            raise ValueError(f"must be a whole number {low}..{high}{note}")
        return int(value)

    return read


def _number(low: float, high: float = math.inf) -> Reader:
    allowed = f"a number, {low:g} or more" if high == math.inf else f"a number {low:g}..{high:g}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be {allowed}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not low <= number <= high or not math.isfinite(number):
            raise ValueError(f"must be {allowed}")
        return number

    return read


def _top_k(value: Any) -> int:
    if not _is_integer(value) or not -1 <= value < 1 << 31:
        raise ValueError("must be a whole number: 0 or -1 for all tokens, or how many of the best")
    return max(0, int(value))


def _seed(value: Any) -> int:
    if not _is_integer(value) or not -(1 << 63) <= value < 1 << 64:
        raise ValueError("must be a whole number of 64 bits")
    return int(value) % (1 << 64)


def _stops(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if (
        not isinstance(texts, list)
        or len(texts) > MAX_STOPS
        or not all(isinstance(t, str) and 0 < len(t) <= MAX_STOP_CHARACTERS for t in texts)
    ):
        raise ValueError(
            f"must be a string or at most {MAX_STOPS} strings, each of 1..{MAX_STOP_CHARACTERS} characters"
        )
    return tuple(texts)


def _ids(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 8 or not all(_is_integer(i) and 0 <= i < 1 << 32 for i in value):
        raise ValueError("must be a list of at most 8 token ids")
    return tuple(value)


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """Prompts of /v1/completions: each a text, or token ids."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(_is_integer(item) for item in value):
            return (tuple(value),)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, list) and all(_is_integer(i) for i in item) for item in value):
            return tuple(tuple(item) for item in value)
    raise ValueError("must be a string, a list of token ids, a list of strings or a list of such lists")


def _stream_options(value: Any) -> Mapping[str, bool]:
    known = ("include_usage", "continuous_usage_stats", "include_obfuscation")
    if not isinstance(value, dict) or any(k not in known or not isinstance(v, bool | None) for k, v in value.items()):
        raise ValueError(f"must be an object of {', '.join(known)}, each true or false")
    return value


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    return value


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of at least one message")
    return tuple(_message(number, item) for number, item in enumerate(value))


ROLES = ("system", "developer", "user", "assistant", "tool")


def _message(number: int, value: Any) -> dict[str, Any]:
    """A message with its content as one text."""
    if not isinstance(value, dict) or value.get("role") not in ROLES:
        raise ValueError(f"must hold objects with a role of {', '.join(ROLES)}; message {number} does not")
    content = value.get("content")
    if isinstance(content, list):
        texts = [p["text"] for p in content if isinstance(p, dict) and p.get("type") == "text" and "text" in p]
        if len(texts) < len(content) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"may hold parts of type text alone, as models here read nothing else; message {number}")
        content = "".join(texts)
    if not isinstance(content, str):
        raise ValueError(f"must hold messages whose content is a text or a list of text parts; message {number}")
    if value.get("tool_calls") or value.get("function_call"):
        raise ValueError(f"may hold no tool calls, which this server does not offer; message {number}")
    # Further fields (a name, say) are the template's: it knows what it reads.
    return {**value, "content": content}


def _only(*values: Any) -> Reader:
    """A setting of OpenAI's or vLLM's that has one meaning here: clients that send it anyway are not turned away."""

    def read(value: Any) -> Any:
        if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in values):
            raise ValueError(f"must be {' or '.join(show(v) for v in values)}, nothing else is offered here")
        return value

    return read


def _anything(value: Any) -> None:
    """Takes note of nothing: the field says who asks, not what."""


_CHAT, _TEXT = ("chat",), ("text",)

FIELDS = (
    Field("model", _text, None, "name of the model, as /v1/models has it; must be given"),
    Field("messages", _messages, None, "the conversation; content is a text or a list of text parts", _CHAT),
    Field("prompt", _prompts, None, "a text, token ids, or a list of either", _TEXT),
    Field("max_tokens", _integer(1, 1 << 31), None, "most tokens to make: 16 for completions, what fits for chat"),
    Field("max_completion_tokens", _integer(1, 1 << 31), None, "the newer name of max_tokens", _CHAT),
    Field("temperature", _number(0.0), 1.0, "0 takes the best token"),
    Field("top_p", _number(0.0, 1.0), 1.0, "sample from the best tokens with this much weight"),
    Field("top_k", _top_k, 0, "sample from so many best tokens; 0 or -1 for all"),
    Field("seed", _seed, None, "64 bits; choice i takes seed + i; left out, one is drawn and told in the answer"),
    Field("n", _integer(1, MAX_CHOICES), 1, "choices for each prompt"),
    Field("stop", _stops, (), f"up to {MAX_STOPS} texts that end an answer and are not part of it"),
    Field("stop_token_ids", _ids, (), "up to 8 tokens that end an answer, beside the model's own"),
    Field("ignore_eos", _boolean, False, "do not end at the model's own stop tokens"),
    Field("logprobs", _boolean, False, "true: the logarithm of each token's probability", _CHAT),
    Field("top_logprobs", _integer(0, MAX_LOGPROBS), 0, f"0..{MAX_LOGPROBS} best alternatives of each token", _CHAT),
    Field("logprobs", _integer(0, MAX_LOGPROBS), None, f"0..{MAX_LOGPROBS} best alternatives of each token", _TEXT),
    Field("echo", _boolean, False, "put the prompt in front of the text", _TEXT),
    Field("stream", _boolean, False, "server-sent events, a chunk as soon as its text is certain"),
    Field("stream_options", _stream_options, {}, "include_usage: a last chunk with the usage"),
    Field("return_token_ids", _boolean, False, "also give the ids of prompt and answer"),
    Field("chat_template_kwargs", _object, {}, "further variables of the chat template", _CHAT),
    # What has one meaning here.
    Field("best_of", _only(1), None, "1 only", _TEXT),
    Field("suffix", _only(""), None, "empty only", _TEXT),
    Field("presence_penalty", _only(0), None, "0 only"),
    Field("frequency_penalty", _only(0), None, "0 only"),
    Field("repetition_penalty", _only(1), None, "1 only"),
    Field("min_p", _only(0), None, "0 only"),
    Field("min_tokens", _only(0), None, "0 only"),
    Field("logit_bias", _only({}), None, "empty only"),
    Field("response_format", _only({"type": "text"}), None, "text only", _CHAT),
    Field("modalities", _only(["text"]), None, "text only", _CHAT),
    Field("tools", _only([]), None, "none only", _CHAT),
    Field("tool_choice", _only("none"), None, "none only", _CHAT),
    # What says who asks, or where OpenAI should keep it.
    Field("user", _anything, None, "no effect"),
    Field("metadata", _anything, None, "no effect", _CHAT),
    Field("store", _only(False), None, "false only", _CHAT),
    Field("service_tier", _anything, None, "no effect", _CHAT),
    Field("safety_identifier", _anything, None, "no effect", _CHAT),
    Field("prompt_cache_key", _anything, None, "no effect: equal prefixes are always shared", _CHAT),
)


def parse_body(data: bytes) -> dict[str, Any]:
    """Parse a body that must be one strict JSON object. Raises ApiError."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8 at byte {error.start}; send JSON in UTF-8") from None
    except RecursionError:
        raise bad_request("the body is nested too deeply; send the object that the API describes") from None
    except ValueError as error:
        raise bad_request(f"the body is not JSON ({error}); send one JSON object") from None
    if not isinstance(value, dict):
        raise bad_request(f"the body is {show(value)}; send one JSON object")
    if b"\\u" in data:  # only an escape can bring half a surrogate pair, which no answer could quote
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise bad_request("the body holds half a surrogate pair; send whole characters") from None
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {show(twice)} stands twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def read_fields(body: Mapping[str, Any], api: str) -> dict[str, Any]:
    """Read every field of a body by the table. Raises ApiError for the first that is unknown or wrong."""
    table = {field.name: field for field in FIELDS if api in field.apis}
    found = {name: field.default for name, field in table.items()}
    for name, value in body.items():
        field = table.get(name)
        if field is None:
            near = difflib.get_close_matches(name[:100], table, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise bad_request(f"{show(name)} is no field of this request{hint}; leave it out", show(name)[1:-1])
        if value is None:
            continue
        try:
            found[name] = field.read(value)
        except ValueError as error:
            raise bad_request(f"{name}={show(value)} {error}; correct the request", name) from None
    return found
