"""The bytes that a token stands for, alone: half a character is a legal token."""

from __future__ import annotations

import functools

from systolith.models.tokenizer import Tokenizer

__all__ = ["TokenBytes"]


@functools.cache
def _byte_level() -> dict[str, int]:
    """Characters of GPT-2's byte-level alphabet. Bytes that print are themselves, the others follow from U+0100."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printed]
    return {chr(b): b for b in printed} | {chr(0x100 + i): b for i, b in enumerate(others)}


class TokenBytes:
    """Bytes of tokens by id, for a vocabulary of bytes, of pieces with byte fallback, or of plain words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = tokenizer.backend.decoder
        state = decoder.__getstate__() if decoder is not None else b""
        self._byte_level = b'"ByteLevel"' in state
        self._fallback = b'"ByteFallback"' in state
        self._pieces = b'"Metaspace"' in state or b"\\u2581" in state or "\N{LOWER ONE EIGHTH BLOCK}".encode() in state
        self._added = {number: token.content for number, token in tokenizer.backend.get_added_tokens_decoder().items()}

    def __call__(self, token: int) -> bytes:
        """Bytes of a token, special ones by their name; nothing for an id without a token."""
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.backend.id_to_token(token) if 0 <= token < 1 << 32 else None
        if name is None:
            return b""
        if self._byte_level:
            table = _byte_level()
            return b"".join(bytes([table[c]]) if c in table else c.encode() for c in name)
        if self._fallback and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes([int(name[3:5], 16)])
        if self._pieces:
            name = name.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        return name.encode()
