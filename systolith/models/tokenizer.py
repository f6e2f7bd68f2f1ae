"""tokenizer.json: text to token ids and back, and a decoder for text that arrives token by token.

What stands before and after a prompt (a first token, say) is what the post-processor in tokenizer.json says, as in
transformers 5, which looks at `add_bos_token` of tokenizer_config.json only where there is no tokenizer.json.
Truncation and padding that a file may carry from training are switched off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import tokenizers

from systolith.models._text import read_bytes, show
from systolith.spec.errors import ModelError

__all__ = ["StreamDecoder", "Tokenizer"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model.

    path : the file.     vocab : vocabulary of the model, if known; ids at or above it are refused.
    backend : the `tokenizers.Tokenizer`.
    """

    path: Path
    vocab: int | None
    backend: tokenizers.Tokenizer = field(repr=False)

    @staticmethod
    def open(path: str | Path, vocab: int | None = None) -> Tokenizer:
        """Read tokenizer.json of a model directory, or a tokenizer file. Raises ModelError in one sentence."""
        path = Path(path)
        if path.is_dir():
            path = path / "tokenizer.json"
        data = read_bytes(path, "tokenizer.json")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"{path}: byte {error.start} is not UTF-8; fetch the file again") from None

        def build() -> tokenizers.Tokenizer:
            backend = tokenizers.Tokenizer.from_str(text)
            backend.no_truncation()
            backend.no_padding()
            return backend

        return Tokenizer(path, vocab, _guarded(build, f"{path}: is no tokenizer", "fetch the file again"))

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens the post-processor puts around it unless `special` is false.

        Raises ModelError for text that is not Unicode and for an id that the model does not have.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ModelError(
                f"the prompt's character {error.start} is half a surrogate pair; give UTF-8 text"
            ) from None
        ids: list[int] = _guarded(
            # Unlike `encode` it lets other threads run meanwhile, and it leaves out offsets that nobody reads.
            lambda: self.backend.encode_batch_fast([text], add_special_tokens=special)[0].ids,
            f"{self.path}: cannot encode the prompt {show(text, 40)}",
            "use the tokenizer.json that belongs to this model",
        )
        above = max(ids, default=0)
        if self.vocab is not None and above >= self.vocab:
            raise ModelError(
                f"{self.path}: encodes the prompt with token {above}, the model has tokens 0..{self.vocab - 1}; "
                "use the tokenizer.json that belongs to this model"
            )
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Text of token ids; ids without a token are skipped. Raises ModelError for ids outside of 0..2^32-1."""
        bad = next((i for i in ids if not 0 <= i < 1 << 32), None)
        if bad is not None:
            raise ModelError(f"token id {bad} must be within 0..4294967295")
        return _guarded(
            lambda: str(self.backend.decode(list(ids), skip_special_tokens=skip_special)),
            f"{self.path}: cannot decode {len(ids)} tokens",
            "use the tokenizer.json that belongs to this model",
        )

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder for tokens that arrive one by one."""
        return StreamDecoder(self, skip_special)

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))


class StreamDecoder:
    """Text as soon as it is certain: what `push` and `finish` return adds up to `decode` of all ids.

    Text that ends in U+FFFD is held back, as it may be the first bytes of a character, and so is a run of single-byte
    tokens of a byte-fallback vocabulary, which decodes as a whole. A token is decoded together with the tokens that
    made the last text, because a decoder may treat the first token of a sequence in its own way (strip its space).
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        added = tokenizer.backend.get_added_tokens_decoder() if skip_special else {}
        self._skipped = {number for number, token in added.items() if token.special}
        self._ids: list[int] = []
        self._context = 0  # first id that is decoded
        self._done = 0  # ids before this one have been returned as text
        self._done_text = ""  # decode(ids[context:done])
        self._byte_runs = _decodes_byte_runs(tokenizer.backend)

    def push(self, token: int) -> str:
        """Add a token; return the text that has become certain, possibly none."""
        name = self._tokenizer.backend.id_to_token(token) if 0 <= token < 1 << 32 else None
        if name is None or token in self._skipped:  # no part of the text, not even the end of a run of bytes
            return ""
        self._ids.append(token)
        if self._byte_runs and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return ""
        text = self._decode(self._context)
        if text.endswith(_REPLACEMENT) or not text.startswith(self._done_text) or text == self._done_text:
            return ""
        new = text[len(self._done_text) :]
        self._context, self._done = self._done, len(self._ids)
        self._done_text = self._decode(self._context)
        return new

    def finish(self) -> str:
        """Return what was held back. Half a character comes out as U+FFFD, as in `decode`."""
        text = self._decode(self._context)
        new = text[len(self._done_text) :] if text.startswith(self._done_text) else ""
        self._context, self._done, self._ids, self._done_text = 0, 0, [], ""
        return new

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self._ids[start:], skip_special=self._skip_special)


def _decodes_byte_runs(backend: tokenizers.Tokenizer) -> bool:
    """Whether the decoder turns runs of tokens <0xNN> into text."""
    return backend.decoder is not None and b'"ByteFallback"' in backend.decoder.__getstate__()


def _guarded(call: Callable[[], _Result], what: str, remedy: str) -> _Result:
    """Run a call into the tokenizers library; whatever it raises becomes one sentence.

    The library raises bare Exception, and PanicException (a BaseException) where its Rust code gives up.
    """
    try:
        return call()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = json.dumps(str(error)[:100])[1:-1]
        raise ModelError(f"{what} ({reason}); {remedy}") from None
