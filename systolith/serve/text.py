"""From tokens to the text that is sent: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from systolith.models.tokenizer import StreamDecoder

__all__ = ["Piece", "StopFilter", "TextStream", "TokenLogprob"]


class StopFilter:
    """Lets text through up to a stop string. What might still become one is held back.

    The stop string that is complete first counts, and among those that end together the longest: the result does not
    depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; return what has become certain."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[: min(found)[1]], ""
            return out
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(out) :]
        return out

    def finish(self) -> str:
        """Return what was held back: no more text comes."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, less than all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the text. offset: character at which its text begins; top: best tokens, id and logarithm."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclass(slots=True)
class Piece:
    """What is sent at once. ids: tokens since the last piece, those without text too."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class TextStream:
    """Turns the tokens of one choice into pieces; `stopped` is set by a stop string."""

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str], hidden: frozenset[int]) -> None:
        """hidden : token ids that end an answer and are no part of its text."""
        self._decoder = decoder
        self._filter = StopFilter(stops)
        self._hidden = hidden
        self._decoded = 0  # characters that the decoder has given
        self._sent = 0  # characters that have left in pieces
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._filter.stopped

    def push(self, token: int, logprob: float | None = None, top: tuple[tuple[int, float], ...] = ()) -> Piece | None:
        """Add a token; give a piece where text has become certain."""
        self._ids.append(token)
        if token in self._hidden:
            return None
        if logprob is not None:
            self._logprobs.append(TokenLogprob(token, logprob, top, self._decoded))
        new = self._decoder.push(token)
        self._decoded += len(new)
        text = self._filter.push(new)
        return self._piece(text) if text else None

    def finish(self) -> Piece:
        """The last piece, possibly without text."""
        text = self._filter.push(self._decoder.finish())
        text += self._filter.finish()
        piece = self._piece(text)
        if not self.stopped:  # tokens without text of their own; behind a stop string they are no part of the answer
            piece.logprobs += self._logprobs
            self._logprobs = []
        return piece

    def _piece(self, text: str) -> Piece:
        self._sent += len(text)
        count = next((i for i, e in enumerate(self._logprobs) if e.offset >= self._sent), len(self._logprobs))
        piece = Piece(text, self._ids, self._logprobs[:count])
        self._ids, self._logprobs = [], self._logprobs[count:]
        return piece
