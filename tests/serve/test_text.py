"""Text that is sent: whole characters, no part of a stop string, the same however it is cut."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systolith.models.token_bytes import TokenBytes
from systolith.models.tokenizer import Tokenizer
from systolith.serve.text import Piece, StopFilter, TextStream

TINYCODE = Path(str(resources.files("systolith.models"))) / "tinycode"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(TINYCODE, 2048)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The rule, a character at a time: the first stop string that is complete ends the text before it."""
    for end in range(len(text) + 1):
        found = [len(s) for s in stops if text[:end].endswith(s)]
        if found:
            return text[: end - max(found)], True
    return text, False


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_stops_do_not_depend_on_how_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    want, stopped = cut(text, stops)
    found, sent, rest = StopFilter(stops), "", text
    while rest and not found.stopped:
        size = data.draw(st.integers(1, len(rest)))
        sent += found.push(rest[:size])
        rest = rest[size:]
        assert want.startswith(sent), "a part of a stop string was sent"
    sent += found.finish()
    assert (sent, found.stopped) == (want, stopped)


def test_what_cannot_become_a_stop_string_is_sent_at_once() -> None:
    found = StopFilter(["\n\n", "END"])
    assert [found.push(t) for t in ["ab", "c\n", "d", "E", "N", "x", "EN", "D", "y"]] == [
        "ab", "c", "\nd", "", "", "ENx", "", "", "",
    ]  # fmt: skip
    assert found.stopped


def pieces(tokenizer: Tokenizer, text: str, stops: list[str], hidden: frozenset[int] = frozenset()) -> list[Piece]:
    stream, out = TextStream(tokenizer.stream(), stops, hidden), []
    for token in tokenizer.encode(text, special=False):
        if piece := stream.push(token, -1.0):
            out.append(piece)
        if stream.stopped:
            break
    return [*out, stream.finish()]


@pytest.mark.parametrize("text", ["une fenêtre où l'été s'éternise", "🙂👩‍👩‍👧 and 🇫🇷", "日本語 \N{SNOWMAN}"])
def test_characters_are_whole_and_log_probabilities_follow_their_text(tokenizer: Tokenizer, text: str) -> None:
    found = pieces(tokenizer, text, [])
    assert "".join(p.text for p in found) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in p.text for p in found)
    tokens = [e.token for p in found for e in p.logprobs]
    assert tokens == [t for p in found for t in p.ids] == tokenizer.encode(text, special=False)
    spell = TokenBytes(tokenizer)
    assert b"".join(map(spell, tokens)).decode() == text
    at = 0
    for piece in found:  # each piece has the tokens that its text is made of, where they begin
        assert b"".join(spell(e.token) for e in piece.logprobs).decode() == piece.text
        assert all(at <= e.offset < at + len(piece.text) for e in piece.logprobs)
        at += len(piece.text)


def test_half_a_character_at_the_end_is_one_replacement(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂", special=False)[:-1]
    stream = TextStream(tokenizer.stream(), [], frozenset())
    sent = [piece.text for token in ids if (piece := stream.push(token))]
    assert (sent, stream.finish().text) == (["a"], "\N{REPLACEMENT CHARACTER}")


def test_behind_a_stop_string_nothing_is_told(tokenizer: Tokenizer) -> None:
    found = pieces(tokenizer, "return x + y\n\ndef g(x):", ["\n\ndef"])
    assert "".join(p.text for p in found) == "return x + y"
    assert all(e.offset < len("return x + y") for p in found for e in p.logprobs)


def test_a_token_that_ends_the_answer_is_told_and_has_no_text(tokenizer: Tokenizer) -> None:
    colon = tokenizer.encode(":", special=False)[0]
    found = pieces(tokenizer, "else:", [], frozenset([colon]))
    assert "".join(p.text for p in found) == "else"
    assert [t for p in found for t in p.ids][-1] == colon
    assert all(e.token != colon for p in found for e in p.logprobs)
