"""Tokenizer files and text that arrives token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from systolith.models.tokenizer import Tokenizer
from systolith.spec.errors import ModelError

from .conftest import fuzz_file

SAMPLE = (
    "L'été, où l'élève naïf çà et là mange des crêpes, cœur léger. \N{PARTY POPPER}\N{WOMAN}\N{ZERO WIDTH JOINER}"
    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL} def f(x):\n    return x\n"
)


def byte_level() -> tokenizers.Tokenizer:
    """Byte-pair merges over bytes, as Llama 3, Qwen and tinycode have them; <s> before a prompt."""
    out = tokenizers.Tokenizer(tokenizers.models.BPE())
    out.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    out.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    out.train_from_iterator([SAMPLE] * 3, trainer)
    out.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return out


def byte_fallback() -> tokenizers.Tokenizer:
    """Characters with single bytes for all others, as Llama 2 and Mistral have them; the first space is stripped."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [
        *"\N{LOWER ONE EIGHTH BLOCK}abcdefghijklmnopqrstuvwxyz\xe9\xe8\xe0,.",
        "\N{LOWER ONE EIGHTH BLOCK}a",
        "es",
    ]
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    out = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=[(space, "a"), ("e", "s")],
            byte_fallback=True,
            fuse_unk=True,
            unk_token="<unk>",
        )
    )
    prepend, replace = tokenizers.normalizers.Prepend(space), tokenizers.normalizers.Replace(" ", space)
    out.normalizer = tokenizers.normalizers.Sequence([prepend, replace])
    decoders = tokenizers.decoders
    out.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    out.add_special_tokens(["<s>", "</s>"])
    return out


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {"byte_level": byte_level, "byte_fallback": byte_fallback}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Both kinds, read from files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for kind, build in KINDS.items():
        build().save(str(folder / f"{kind}.json"))
    return {kind: Tokenizer.open(folder / f"{kind}.json") for kind in KINDS}


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back(kind: str, opened: dict[str, Tokenizer]) -> None:
    ids = opened[kind].encode(SAMPLE)
    assert opened[kind].decode(ids) == SAMPLE
    assert "".join(streamed(opened[kind], ids)) == SAMPLE


def test_the_post_processor_puts_the_first_token(opened: dict[str, Tokenizer]) -> None:
    tokenizer = opened["byte_level"]
    assert tokenizer.encode("a")[0] == 0
    assert tokenizer.encode("a", special=False) == tokenizer.encode("a")[1:]
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    assert tokenizer.decode(tokenizer.encode("a"), skip_special=False) == "<s>a"
    assert tokenizer.encode("") == [0]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(SAMPLE))))
@example(text=SAMPLE)
def test_a_stream_never_shows_half_a_character(kind: str, opened: dict[str, Tokenizer], text: str) -> None:
    parts = streamed(opened[kind], opened[kind].encode(text))
    assert "".join(parts) == opened[kind].decode(opened[kind].encode(text))
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in part for part in parts)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_ids_stream_to_what_they_decode_to(kind: str, opened: dict[str, Tokenizer], data: st.DataObject) -> None:
    tokenizer = opened[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size + 2), max_size=40))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_stream_is_not_held_back_longer_than_a_character(opened: dict[str, Tokenizer]) -> None:
    tokenizer = opened["byte_level"]
    text = "abc\N{GRINNING FACE}d"
    parts = streamed(tokenizer, tokenizer.encode(text, special=False))
    assert parts[:3] == ["a", "b", "c"]
    assert parts[-2:] == ["d", ""]


@pytest.mark.torch
@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_ids_agree_with_transformers(config: dict[str, bool], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="pip install transformers==5.23.0")
    import json

    byte_level().save(str(tmp_path / "tokenizer.json"))
    settings_of_class = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        **config,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_of_class))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ours = Tokenizer.open(tmp_path)
    ids = ours.encode(SAMPLE)
    assert ids == theirs(SAMPLE)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff", r"byte 0 is not UTF-8; fetch the file again"),
        (b"", r"is no tokenizer \(EOF while parsing a value at line 1 column 0\); fetch the file again"),
        (b"{}", r"is no tokenizer \(.*\); fetch the file again"),
        (b'{"version": "1.0", "model": {"type": "x"}}', r"is no tokenizer \(.*\); fetch the file again"),
    ],
)
def test_what_is_no_tokenizer_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ModelError, match=rf"^\S+/tokenizer\.json: {reason}$"):
        Tokenizer.open(tmp_path)


def test_errors_are_whole_sentences(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^\S+/tokenizer\.json: not found; a model directory needs tokenizer\.json$"):
        Tokenizer.open(tmp_path)
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path, vocab=50)
    with pytest.raises(
        ModelError,
        match=r"^\S+/tokenizer\.json: encodes the prompt with token \d+, the model has tokens 0\.\.49; use the "
        r"tokenizer\.json that belongs to this model$",
    ):
        tokenizer.encode("xyz")
    with pytest.raises(ModelError, match=r"^the prompt's character 1 is half a surrogate pair; give UTF-8 text$"):
        tokenizer.encode("a\udc80")
    with pytest.raises(ModelError, match=r"^token id -1 must be within 0\.\.4294967295$"):
        tokenizer.decode([-1])


@pytest.mark.parametrize("kind", KINDS)
def test_500_random_byte_changes_end_in_a_sentence_or_normally(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    KINDS[kind]().save(str(file), pretty=False)

    def attempt() -> None:
        tokenizer = Tokenizer.open(file, vocab=400)
        ids = tokenizer.encode(SAMPLE)
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)

    digits = [at for at, byte in enumerate(file.read_bytes()) if chr(byte).isdigit()]
    report = fuzz_file(file, attempt, seed=7, places=digits)
    assert report.normal > 50
    assert len(report.refusals) > 50
