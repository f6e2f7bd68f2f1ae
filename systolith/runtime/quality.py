"""Perplexity of a compiled program, or of the plain FP32 graph, on text.

A text is cut into runs of at most context - 1 tokens; each is read after a start token, so that every token of the text
is predicted once. The start token is what the tokenizer puts before a text, else the model's first stop token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.models.reference import Interpreter
from systolith.models.tokenizer import Tokenizer
from systolith.runtime.device import Device
from systolith.runtime.job import Request
from systolith.runtime.session import compile_job, prompt_logits
from systolith.spec.chip import Chip
from systolith.spec.errors import ModelError

__all__ = ["Quality", "Window", "measure", "measure_reference", "text_windows"]

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A run of tokens with the start token before it."""

    start: int
    tokens: tuple[int, ...]

    @property
    def fed(self) -> tuple[int, ...]:
        """Tokens that the model reads: position i predicts token i."""
        return (self.start, *self.tokens[:-1])


@dataclass(frozen=True)
class Quality:
    """nats: sum over tokens of -ln p; tokens: predicted ones; windows: runs; text_bytes: of the whole text or 0."""

    nats: float
    tokens: int
    windows: int
    text_bytes: int = 0

    @property
    def perplexity(self) -> float:
        """exp of the mean nats."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that a byte of the text costs; None where only a part of it was measured."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else None


def text_windows(checkpoint: Checkpoint, tokenizer: Tokenizer, texts: Sequence[str], context: int) -> list[Window]:
    """Cut texts, each by itself. Raises ModelError where there is no start token."""
    special = tokenizer.encode("")
    start = special[0] if special else next(iter(checkpoint.graph.eos_ids), None)
    if start is None:
        raise ModelError(
            f"{checkpoint.path}: has no token that begins a text and no stop token; set eos_token_id in config.json"
        )
    result = []
    for text in texts:
        ids = tokenizer.encode(text, special=False)
        result += [Window(start, tuple(ids[i : i + context - 1])) for i in range(0, len(ids), context - 1)]
    return result


def _first(windows: Sequence[Window], most: int | None) -> Iterator[Window]:
    """The first windows, the last one shortened, so that they hold at most `most` tokens."""
    left = most
    for window in windows:
        if left is None:
            yield window
            continue
        if left <= 0:
            return
        yield Window(window.start, window.tokens[:left])
        left -= len(window.tokens)


def _nats(logits: Logits, targets: Sequence[int]) -> float:
    """Sum of -ln softmax(logits)[target], in FP64."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    norm = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return float((norm - wide[np.arange(len(targets)), list(targets)]).sum())


def _measure(
    windows: Sequence[Window],
    most: int | None,
    text_bytes: int,
    run: Callable[[Window], Logits],
    progress: Callable[[int], None] | None,
) -> Quality:
    nats, tokens, count = 0.0, 0, 0
    for window in _first(windows, most):
        nats += _nats(run(window), window.tokens)
        tokens += len(window.tokens)
        count += 1
        if progress is not None:
            progress(tokens)
    if not tokens:
        raise ModelError("the text holds no tokens; give one that does")
    whole = tokens == sum(len(w.tokens) for w in windows)
    return Quality(nats, tokens, count, text_bytes if whole else 0)


def measure(
    checkpoint: Checkpoint,
    chip: Chip,
    profile: Profile,
    device: Device,
    windows: Sequence[Window],
    *,
    most: int | None = None,
    text_bytes: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Quality:
    """Measure the compiled program: every window is one prefill whose logits are all kept.

    most : stop after so many tokens.      progress : called with the tokens done.
    """
    longest = max((w for w in windows), key=lambda w: len(w.tokens), default=None)
    if longest is None:
        raise ModelError("the text holds no tokens; give one that does")
    compiled = compile_job(checkpoint, chip, profile, [Request(longest.fed)], every_row=True)
    return _measure(windows, most, text_bytes, lambda w: prompt_logits(compiled, device, Request(w.fed))[0], progress)


def measure_reference(
    checkpoint: Checkpoint,
    windows: Sequence[Window],
    *,
    most: int | None = None,
    text_bytes: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Quality:
    """Measure the graph's FP32 interpreter on the same windows: the model before any number is quantised."""
    return _measure(windows, most, text_bytes, lambda w: Interpreter(checkpoint).step(w.fed), progress)
