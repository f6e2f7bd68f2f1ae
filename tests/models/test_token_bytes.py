"""Bytes of single tokens: put together they are the text, for each kind of vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from systolith.models import tokenizer as ours
from systolith.models.token_bytes import TokenBytes

TEXTS = ["def f(x):\n    return x", "où est l'été ?", "🙂👩‍👧 日本"]


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)} | {"Ġr": 256}, [("Ġ", "r")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def pieces(last: str) -> Tokenizer:
    words = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "d", "e", "f", "▁f", "r"]
    made = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, [("▁", "f")], unk_token="<unk>", byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " ")] if last == "replace" else []
    if last == "metaspace":
        steps.append(decoders.Metaspace(prepend_scheme="never"))
    made.decoder = decoders.Sequence([*steps, decoders.ByteFallback(), decoders.Fuse()])
    return made


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["bytes", "replace", "metaspace"])
def test_bytes_of_tokens_add_up_to_the_text(tmp_path: Path, kind: str, text: str) -> None:
    backend = byte_level() if kind == "bytes" else pieces(kind)
    backend.add_special_tokens([AddedToken("<|end é|>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    opened = ours.Tokenizer.open(tmp_path)
    spell = TokenBytes(opened)
    ids = opened.encode(text)
    assert b"".join(map(spell, ids)).decode() == text == opened.decode(ids)
    end = opened.encode("<|end é|>")[-1]
    assert spell(end) == "<|end é|>".encode()
    assert spell(1 << 31) == spell(-1) == b""
