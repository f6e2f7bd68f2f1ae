"""One model's logits have the same bits on every chip, in every batch, for every chunking and page size.

Everything is held against `reference.contract`, which imports nothing of the package. Axes vary one at a time from a
base run; their product is in the deep suite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from reference import contract

from systolith.models.profile import Profile
from systolith.runtime.job import Sampling

from .conftest import GOLDEN
from .harness import CHIPS, Floats, Ran, Subject, chip, generate, prefill, same_bits, same_trace

BASE = "mini"
"""Chip of the base run: prompts alone, prefilled at once, pages of 64 tokens."""
LENGTHS = (300, 1, 33, 64, 97, 130, 7, 257)
"""A batch of 8 of unequal lengths, two of them longer than a chunk of attention."""
SAMPLING = Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=1234567890123456789)


@pytest.mark.parametrize("name", CHIPS)
def test_golden_logits_and_intermediates(golden_model: Subject, name: str) -> None:
    profile = Profile.from_toml(GOLDEN / "profile.toml").resolved(golden_model.checkpoint.graph)
    ids = [int(token) for token in (GOLDEN / "ids.txt").read_text().split(",")]
    ran = prefill(golden_model, chip(name), profile, ids, dump=True)
    same_bits(ran.logits[0][:160], np.load(GOLDEN / "logits.npy"), "logits")
    same_trace(ran.dumped(), dict(np.load(GOLDEN / "trace.npz")), 160)
    digests = [hashlib.sha256(row.tobytes()).hexdigest() for row in ran.logits[0]]
    wanted = (GOLDEN / "logits_sha256.txt").read_text().split()
    assert len(wanted) == len(ids)
    assert [n for n, digest in enumerate(digests) if digest != wanted[n]] == []


@dataclass(frozen=True)
class Base:
    """A model, prompts, and the logits of each prompt alone."""

    subject: Subject
    profile: Profile
    prompts: tuple[tuple[int, ...], ...]
    logits: tuple[Floats, ...]

    def check(self, ran: Ran, which: Sequence[int], what: str) -> None:
        """Assert that a run of some of the prompts gives the base run's bits."""
        for logits, number in zip(ran.logits, which, strict=True):
            same_bits(logits, self.logits[number], f"{what}, prompt {number}")


def make_base(subject: Subject, profile: Profile, tokens: Sequence[int]) -> Base:
    """Run every prompt alone; the whole of it against the reference."""
    prompts = tuple(tuple(tokens[5 * n : 5 * n + length]) for n, length in enumerate(LENGTHS))
    logits = []
    for prompt in prompts:
        got = prefill(subject, chip(BASE), profile, prompt).logits[0]
        same_bits(got, subject.expected(profile, prompt).logits, f"alone on {BASE}, {len(prompt)} tokens")
        logits.append(got)
    return Base(subject, profile, prompts, tuple(logits))


@pytest.fixture(scope="module")
def odd_base(odd: Subject) -> Base:
    tokens = np.random.default_rng(0).integers(0, 1003, 400).tolist()
    return make_base(odd, odd.profile({"lanes": 8}), tokens)


@pytest.fixture(scope="module")
def tinycode_base(tinycode: Subject, tinycode_text: list[int]) -> Base:
    return make_base(tinycode, tinycode.profile(), tinycode_text[:400])


@pytest.fixture(params=["odd", "tinycode"])
def base(request: pytest.FixtureRequest) -> Base:
    found: Base = request.getfixturevalue(f"{request.param}_base")
    return found


@pytest.mark.parametrize("name", [name for name in CHIPS if name != BASE])
def test_chips_agree(base: Base, name: str) -> None:
    base.check(prefill(base.subject, chip(name), base.profile, base.prompts[0]), [0], name)


@pytest.mark.parametrize("name", ["nano", "three"])
def test_a_batch_changes_nothing(base: Base, name: str) -> None:
    ran = prefill(base.subject, chip(name), base.profile, *base.prompts)
    base.check(ran, range(8), f"batch of 8 on {name}")


@pytest.mark.parametrize("name", [BASE, "server"])
@pytest.mark.parametrize("tokens", [32, 96])
def test_prefill_chunks_change_nothing(base: Base, name: str, tokens: int) -> None:
    ran = prefill(base.subject, chip(name), base.profile, base.prompts[0], prefill_chunk=tokens)
    if tokens <= ran.compiled.plan.rows:
        assert len(ran.plan.steps) == -(-300 // tokens)
    else:
        assert name != "server", "the server takes all of them"
    base.check(ran, [0], f"chunks of {tokens}")


def test_a_row_a_step_changes_nothing(base: Base) -> None:
    ran = prefill(base.subject, chip(BASE), base.profile, base.prompts[4], prefill_chunk=1)
    assert len(ran.plan.steps) == len(base.prompts[4])
    base.check(ran, [4], "a row a step")


@pytest.mark.parametrize("tokens", [32, 256])
def test_page_sizes_change_nothing(base: Base, tokens: int) -> None:
    ran = prefill(base.subject, chip(BASE), base.profile, base.prompts[0], page_tokens=tokens)
    base.check(ran, [0], f"pages of {tokens} tokens")


@pytest.mark.parametrize("name", CHIPS)
def test_decoding_agrees_with_prefill(base: Base, name: str) -> None:
    """Tokens made on the device, in one batch; the logits that each was picked from are those of a prefill."""
    prompts, made = base.prompts[1:5], 6
    ran = generate(base.subject, chip(name), base.profile, prompts, made, SAMPLING)
    for number, prompt in enumerate(prompts):
        tokens = ran.tokens[number]
        assert len(tokens) == made
        want = base.subject.expected(base.profile, [*prompt, *tokens[:-1]]).logits
        same_bits(ran.logits[number], want[len(prompt) - 1 :], f"prompt {number}")


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLING], ids=["greedy", "sampled"])
def test_generated_tokens_are_the_references(base: Base, sampling: Sampling) -> None:
    prompts, made = base.prompts[1:6], 8
    batched = generate(base.subject, chip("three"), base.profile, prompts, made, sampling).tokens
    for number, prompt in enumerate(prompts):
        own = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed + number)
        want = base.subject.expected_tokens(base.profile, prompt, made, own)
        assert batched[number] == want, f"prompt {number}"
    alone = generate(base.subject, chip(BASE), base.profile, prompts[:1], made, sampling).tokens
    assert alone == batched[:1]


def test_stop_tokens_end_a_request_and_leave_the_others(base: Base) -> None:
    prompts = base.prompts[1:4]
    free = generate(base.subject, chip(BASE), base.profile, prompts, 8, SAMPLING).tokens
    stop = free[0][3]
    stopped = generate(base.subject, chip(BASE), base.profile, prompts, 8, SAMPLING, stops=[stop]).tokens
    for whole, cut in zip(free, stopped, strict=True):
        assert cut == (whole[: whole.index(stop) + 1] if stop in whole else whole)


@pytest.mark.deep
@pytest.mark.parametrize("page_tokens", [32, 64, 128, 256])
@pytest.mark.parametrize("name", CHIPS)
def test_the_product_of_all_axes(base: Base, name: str, page_tokens: int) -> None:
    for prefill_chunk in (None, 1, 32, 96):
        for which in ([0], [6], list(range(8))):
            prompts = [base.prompts[n] for n in which]
            ran = prefill(
                base.subject, chip(name), base.profile, *prompts, prefill_chunk=prefill_chunk, page_tokens=page_tokens
            )
            base.check(ran, which, f"{name}, chunks of {prefill_chunk}, pages of {page_tokens}")


# ---- a sequence so long that an attention lane holds two chunks ------------------------------------------------------


@dataclass(frozen=True)
class Long:
    """2,400 tokens: ten chunks of attention in eight lanes."""

    subject: Subject
    profile: Profile
    ids: list[int]
    want: Floats
    state: contract.State
    """The reference's KV cache after all but the last three tokens."""


@pytest.fixture(scope="module")
def long_sequence(odd: Subject) -> Long:
    profile = odd.profile({"lanes": 8})
    ids = np.random.default_rng(3).integers(0, 1003, 2400).tolist()
    state = contract.State()
    head = odd.expected(profile, ids[:-3], state=state).logits
    kept = contract.State(state.length, list(state.k), list(state.v))
    tail = odd.expected(profile, ids[-3:], state=state).logits
    return Long(odd, profile, ids, np.concatenate([head, tail]), kept)


@pytest.mark.parametrize(
    "name", [name if name in ("nano", "three") else pytest.param(name, marks=pytest.mark.deep) for name in CHIPS]
)
def test_a_lane_holds_two_chunks(long_sequence: Long, name: str) -> None:
    case = long_sequence
    ran = prefill(case.subject, chip(name), case.profile, case.ids)
    assert case.profile.lanes == 8
    assert ran.compiled.plan.chunks > 8
    same_bits(ran.logits[0], case.want, name)


def test_decoding_after_many_chunks(long_sequence: Long) -> None:
    """Each of four slices holds two lanes here, and the partials of ten chunks meet over the network."""
    case = long_sequence
    ran = generate(case.subject, chip("mini"), case.profile, [case.ids[:-3]], 4)
    assert ran.tokens[0][0] == int(case.want[-4].argmax())
    more = case.subject.expected(case.profile, ran.tokens[0][:3], state=case.state).logits
    same_bits(ran.logits[0], np.concatenate([case.want[-4:-3], more]), "decoded")


def test_the_device_picks_as_the_reference_does(odd: Subject) -> None:
    """Many seeds and limits over one row of logits: temperature, top-k and top-p each alone and together."""
    profile, prompt = odd.profile({"lanes": 8}), [5, 6, 7]
    choices = [(0.7, 0, 1.0), (1.5, 3, 1.0), (1.0, 0, 0.5), (1.0, 0, 0.0), (3.0, 50, 0.9), (0.01, 0, 1.0)]
    for temperature, top_k, top_p in choices:
        sampling = Sampling(temperature, top_k, top_p, 77)
        got = generate(odd, chip("nano"), profile, [prompt] * 4, 3, sampling).tokens
        for number, tokens in enumerate(got):
            own = Sampling(temperature, top_k, top_p, 77 + number)
            assert tokens == odd.expected_tokens(profile, prompt, 3, own), f"{own}"
