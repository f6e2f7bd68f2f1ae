"""One HTTP request on its way through the engine: prompts become token ids, tokens become pieces of each choice."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from systolith.models.token_bytes import TokenBytes
from systolith.models.tokenizer import Tokenizer
from systolith.runtime.engine import EngineRequest, FinishEvent, TokenEvent
from systolith.runtime.job import Sampling
from systolith.serve.errors import ApiError, bad_request
from systolith.serve.metrics import Metrics, RequestClock
from systolith.serve.process import EngineProcess, Group
from systolith.serve.template import ChatTemplate
from systolith.serve.text import Piece, TextStream
from systolith.spec.errors import SystolithError

__all__ = ["Asked", "Choice", "Generation", "Part", "Served"]

_LONG_TEXT = 1 << 14
"""Characters of a prompt from which it is encoded in a thread, so that other streams go on."""
_COMPLETION_TOKENS = 16
"""OpenAI's default of max_tokens in /v1/completions."""


@dataclass(frozen=True)
class Served:
    """The model that is served, as the server needs it. context: most tokens of a sequence; created: Unix time."""

    name: str
    chip: str
    clock_hz: int
    context: int
    vocab: int
    eos_ids: tuple[int, ...]
    tokenizer: Tokenizer
    token_bytes: TokenBytes
    template: ChatTemplate
    created: int


@dataclass(frozen=True)
class Asked:
    """A checked request. fields: by name (fields.py); prompts: token ids of each; texts: the prompts for `echo`."""

    api: str
    fields: Mapping[str, Any]
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    max_tokens: int
    seed: int
    top: int | None
    """Alternatives wanted of each token; None: no log-probabilities at all."""

    @staticmethod
    async def read(served: Served, api: str, fields: Mapping[str, Any]) -> Asked:
        """Check what the table cannot: sizes against the model, fields against each other. Raises ApiError."""
        if fields["model"] is None:
            raise bad_request(f"model is missing; give {served.name}", "model")
        if fields["model"] != served.name:
            raise ApiError(
                404, f"the model {fields['model'][:100]!r} does not exist here; this server has {served.name}",
                param="model", code="model_not_found",
            )  # fmt: skip
        if fields["stream_options"] and not fields["stream"]:
            raise bad_request("stream_options goes with stream=true only; leave it out", "stream_options")
        if api == "chat":
            prompts, texts = await _chat_prompt(served, fields)
            top = fields["top_logprobs"] if fields["logprobs"] else None
            if fields["top_logprobs"] and not fields["logprobs"]:
                raise bad_request("top_logprobs goes with logprobs=true only; set it", "top_logprobs")
        else:
            prompts, texts = await _text_prompts(served, fields)
            top = fields["logprobs"]
            if fields["echo"] and top is not None:
                raise bad_request("echo cannot go with logprobs, prompts have none here; leave one out", "logprobs")
        _check_sampling(fields)
        seed = fields["seed"] if fields["seed"] is not None else secrets.randbits(53)
        return Asked(api, fields, prompts, texts, _max_tokens(served, api, fields, prompts), seed, top)


async def _chat_prompt(
    served: Served, fields: Mapping[str, Any]
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    if fields["messages"] is None:
        raise bad_request("messages is missing; give a list of messages", "messages")
    text = served.template.render(fields["messages"], fields["chat_template_kwargs"])
    return (await _encode(served, text, "messages", special=served.template.special_tokens),), (text,)


async def _text_prompts(
    served: Served, fields: Mapping[str, Any]
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    if fields["prompt"] is None:
        raise bad_request("prompt is missing; give a text or token ids", "prompt")
    prompts, texts = [], []
    for prompt in fields["prompt"]:
        if isinstance(prompt, str):
            texts.append(prompt)
            prompts.append(await _encode(served, prompt, "prompt"))
            continue
        wrong = next((t for t in prompt if not 0 <= t < served.vocab), None)
        if wrong is not None:
            raise bad_request(f"prompt: token {wrong} must be 0..{served.vocab - 1}; give ids of this model", "prompt")
        texts.append(served.tokenizer.decode(prompt) if fields["echo"] else "")
        prompts.append(prompt)
    return tuple(prompts), tuple(texts)


async def _encode(served: Served, text: str, param: str, *, special: bool = True) -> tuple[int, ...]:
    try:
        if len(text) < _LONG_TEXT:
            return tuple(served.tokenizer.encode(text, special=special))
        return tuple(await asyncio.to_thread(served.tokenizer.encode, text, special=special))
    except SystolithError as error:
        raise bad_request(str(error), param) from None


def _max_tokens(served: Served, api: str, fields: Mapping[str, Any], prompts: tuple[tuple[int, ...], ...]) -> int:
    """How many tokens to make: what was asked for, which must fit, or the default, cut to what fits."""
    param = "messages" if api == "chat" else "prompt"
    longest = max(map(len, prompts))
    if not min(map(len, prompts)):
        raise bad_request(f"{param} holds no token; give some text", param)
    newer, older = fields.get("max_completion_tokens"), fields["max_tokens"]
    if newer is not None and older is not None and newer != older:
        raise bad_request("max_tokens and max_completion_tokens differ; give one of them", "max_completion_tokens")
    asked = newer if newer is not None else older
    room = served.context - longest
    if room < (asked or 1):
        wanted = f"{asked} are" if asked else "at least 1 is"
        raise bad_request(
            f"{param} has {longest} tokens and {wanted} to be made, more than this server's context of "
            f"{served.context}; shorten it or ask for fewer", param, "context_length_exceeded",
        )  # fmt: skip
    return asked or (room if api == "chat" else min(room, _COMPLETION_TOKENS))


def _check_sampling(fields: Mapping[str, Any]) -> None:
    """Refuse here what the chip's sampling record cannot say."""
    try:
        Sampling(fields["temperature"], fields["top_k"], fields["top_p"]).words(1)
    except SystolithError as error:
        raise bad_request(str(error), "temperature") from None


@dataclass
class Choice:
    """One answer in the making. tokens: made by the chip; times are the chip's own, seconds."""

    stream: TextStream
    clock: RequestClock
    tokens: int = 0
    finish: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    cycles: list[int] = field(default_factory=list)
    """Of the first and the last token."""


@dataclass(frozen=True, slots=True)
class Part:
    """What is new of a choice; finish: why it ended, with its last part."""

    index: int
    piece: Piece
    finish: str | None


class Generation:
    """Runs a request; choice i belongs to prompt i // n. A context manager: leaving it cancels what still runs."""

    def __init__(self, served: Served, engine: EngineProcess, metrics: Metrics, asked: Asked) -> None:
        self.served, self.asked = served, asked
        self._engine, self._metrics = engine, metrics
        self.per_prompt: int = asked.fields["n"]
        """Choices of each prompt."""
        self._group: Group | None = None
        hidden = frozenset(asked.fields["stop_token_ids"])
        if not asked.fields["ignore_eos"]:
            hidden |= frozenset(served.eos_ids)
        self.choices = [
            Choice(TextStream(served.tokenizer.stream(), asked.fields["stop"], hidden), metrics.begin())
            for _ in range(len(asked.prompts) * self.per_prompt)
        ]

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            self._group.close()
            for choice in self.choices:
                if choice.finish is None:
                    self._metrics.finished("abort", None, None)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; a prompt with several choices counts once."""
        return sum(map(len, self.asked.prompts))

    @property
    def completion_tokens(self) -> int:
        """Tokens that the chip has made for all choices, the one that ended each included."""
        return sum(choice.tokens for choice in self.choices)

    def seed(self, index: int) -> int:
        """Seed of a choice."""
        return (self.asked.seed + index % self.per_prompt) % (1 << 64)

    async def start(self) -> None:
        """Hand the requests to the engine. Raises ApiError where it does not take them."""
        f = self.asked.fields
        self._group = await self._engine.submit([
            EngineRequest(
                prompt=self.asked.prompts[i // self.per_prompt],
                max_tokens=self.asked.max_tokens,
                sampling=Sampling(f["temperature"], f["top_k"], f["top_p"], self.seed(i)),
                stops=f["stop_token_ids"],
                logprobs=self.asked.top,
                ignore_eos=f["ignore_eos"],
            )
            for i in range(len(self.choices))
        ])  # fmt: skip

    async def parts(self) -> AsyncIterator[Part]:
        """Everything that is new, until every choice has ended. Raises ApiError where the engine fails."""
        assert self._group is not None
        left = len(self.choices)
        while left:
            index, event = await self._group.next()
            choice = self.choices[index]
            if choice.finish is not None:
                continue  # ended by a stop string; this was on its way
            if isinstance(event, FinishEvent):
                part: Part | None = self._ended(index, choice, event)
            else:
                part = self._token(index, choice, event)
            if part is not None:
                left -= part.finish is not None
                yield part

    def _token(self, index: int, choice: Choice, event: TokenEvent) -> Part | None:
        choice.tokens += 1
        choice.clock.token()
        if event.cycle is not None:
            choice.cycles = [*choice.cycles[:1], event.cycle]
        piece = choice.stream.push(event.token, event.logprob, event.top)
        if choice.stream.stopped:
            assert self._group is not None
            self._group.cancel(index)
            self._times(choice)
            return self._finish(index, choice, "stop", piece)
        return Part(index, piece, None) if piece else None

    def _ended(self, index: int, choice: Choice, event: FinishEvent) -> Part:
        if event.reason not in ("stop", "length"):
            raise ApiError(500, f"the engine ended the request ({event.message or event.reason})", "server_error")
        choice.ttft_s, choice.tpot_s = event.ttft_s, event.tpot_s
        return self._finish(index, choice, event.reason, None)

    def _finish(self, index: int, choice: Choice, reason: str, piece: Piece | None) -> Part:
        last = choice.stream.finish()
        if piece is not None:
            last = Piece(piece.text + last.text, piece.ids + last.ids, piece.logprobs + last.logprobs)
        choice.finish = "stop" if choice.stream.stopped else reason
        choice.clock.finished()
        self._metrics.finished(choice.finish, choice.ttft_s, choice.tpot_s)
        return Part(index, last, choice.finish)

    def _times(self, choice: Choice) -> None:
        """Chip times of a choice that a stop string ends, from the cycles of its tokens."""
        assert self._group is not None
        if choice.cycles:
            choice.ttft_s = (choice.cycles[0] - self._group.arrival_cycle) / self.served.clock_hz
            if choice.tokens > 1:
                choice.tpot_s = (choice.cycles[-1] - choice.cycles[0]) / (choice.tokens - 1) / self.served.clock_hz
