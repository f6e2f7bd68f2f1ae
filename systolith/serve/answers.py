"""The shapes of answers: chat and completions, whole and in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from systolith.serve.generation import Generation, Part
from systolith.serve.text import TokenLogprob

__all__ = ["Answer"]


class Answer:
    """Builds the JSON objects of one request's answer; docs/serve.md has an example of each."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._asked = generation.asked
        self._chat = self._asked.api == "chat"
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + secrets.token_hex(12)
        self._created = int(time.time())
        self._bytes = generation.served.token_bytes

    # Whole answers.

    def whole(self, parts: Sequence[Part]) -> dict[str, Any]:
        """The answer of a request that is not streamed, from all of its parts."""
        choices = []
        for index in range(len(self._generation.choices)):
            mine = [part for part in parts if part.index == index]
            text = self.opening(index) + "".join(part.piece.text for part in mine)
            entries = [entry for part in mine for entry in part.piece.logprobs]
            choice: dict[str, Any] = {"index": index}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = text
            choice["logprobs"] = self._logprobs(index, entries)
            choice["finish_reason"] = mine[-1].finish
            if self._asked.fields["return_token_ids"]:
                choice["prompt_token_ids"] = self._prompt(index)
                choice["token_ids"] = [token for part in mine for token in part.piece.ids]
            choices.append(choice)
        name = "chat.completion" if self._chat else "text_completion"
        every = list(range(len(self._generation.choices)))
        return self._object(name, choices) | {"usage": self._usage(), "systolith": self._times(every)}

    # Chunks.

    def first(self, index: int) -> dict[str, Any] | None:
        """The chunk that opens a choice: the role of a chat's, the prompt where it is echoed, else none."""
        if self._chat:
            opening: dict[str, Any] = {"delta": {"role": "assistant", "content": "", "refusal": None}}
        elif text := self.opening(index):
            opening = {"text": text}
        else:
            return None
        choice = {"index": index} | opening | {"logprobs": None, "finish_reason": None}
        if self._asked.fields["return_token_ids"]:
            choice["prompt_token_ids"] = self._prompt(index)
        return self._chunk([choice])

    def chunk(self, part: Part) -> dict[str, Any]:
        """The chunk of a part; the last one of a choice carries the chip's times."""
        piece = part.piece
        choice: dict[str, Any] = {"index": part.index}
        if self._chat:
            choice["delta"] = {"content": piece.text} if piece.text or part.finish is None else {}
        else:
            choice["text"] = piece.text
        choice["logprobs"] = self._logprobs(part.index, piece.logprobs) if piece.logprobs else None
        choice["finish_reason"] = part.finish
        if self._asked.fields["return_token_ids"]:
            choice["token_ids"] = piece.ids
        chunk = self._chunk([choice])
        if part.finish is not None:
            chunk["systolith"] = self._times([part.index])
        return chunk

    def last(self) -> dict[str, Any] | None:
        """The chunk with the usage, where it was asked for."""
        if not self._asked.fields["stream_options"].get("include_usage"):
            return None
        every = list(range(len(self._generation.choices)))
        return self._chunk([]) | {"usage": self._usage(), "systolith": self._times(every)}

    # Their parts.

    def opening(self, index: int) -> str:
        """The prompt of a choice, where it is echoed."""
        if not self._asked.fields.get("echo"):
            return ""
        return self._asked.texts[index // self._generation.per_prompt]

    def _prompt(self, index: int) -> list[int]:
        return list(self._asked.prompts[index // self._generation.per_prompt])

    def _object(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id, "object": name, "created": self._created, "model": self._generation.served.name,
            "choices": choices, "system_fingerprint": None,
        }  # fmt: skip

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._object("chat.completion.chunk" if self._chat else "text_completion", choices)
        options = self._asked.fields["stream_options"]
        if options.get("continuous_usage_stats"):
            chunk["usage"] = self._usage()
        elif options.get("include_usage"):
            chunk["usage"] = None
        return chunk

    def _usage(self) -> dict[str, int]:
        prompt, made = self._generation.prompt_tokens, self._generation.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _times(self, indices: list[int]) -> dict[str, Any]:
        """What the chip itself took; the two times outside `choices` are means over them."""
        choices = [
            {"index": i, "seed": self._generation.seed(i), "ttft_s": c.ttft_s, "tpot_s": c.tpot_s, "tokens": c.tokens}
            for i in indices
            for c in [self._generation.choices[i]]
        ]
        means = {}
        for key in ("ttft_s", "tpot_s"):
            known = [value for choice in choices if isinstance(value := choice[key], float)]
            means[key] = sum(known) / len(known) if known else None
        return {"chip": self._generation.served.chip, **means, "choices": choices}

    def _logprobs(self, index: int, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._asked.top is None:
            return None
        if self._chat:
            content = [
                self._token(e.token, e.logprob) | {"top_logprobs": [self._token(token, p) for token, p in e.top]}
                for e in entries
            ]
            return {"content": content, "refusal": None}
        before = len(self.opening(index))
        return {
            "tokens": [self._name(e.token) for e in entries],
            "token_logprobs": [_finite(e.logprob) for e in entries],
            "top_logprobs": [{self._name(token): _finite(p) for token, p in e.top} for e in entries],
            "text_offset": [before + e.offset for e in entries],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._bytes(token)
        return {"token": data.decode("utf-8", "backslashreplace"), "logprob": _finite(logprob), "bytes": list(data)}

    def _name(self, token: int) -> str:
        """A token's text; bytes that are no text are written out, as OpenAI has it."""
        data = self._bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI writes -9999 for what has no probability."""
    return max(logprob, -9999.0) if logprob == logprob else -9999.0
