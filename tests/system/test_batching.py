"""Requests that come and go on one program: whatever else runs, each has the tokens that it has alone."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.make_model import make_llama

from systolith.compiler.memory import MAIL_ENTRIES
from systolith.models.checkpoint import Checkpoint
from systolith.models.profile import Profile
from systolith.runtime.bound import bound
from systolith.runtime.engine import Engine, EngineRequest, FinishEvent, TokenEvent
from systolith.runtime.job import Sampling
from systolith.runtime.live import StepResult
from systolith.runtime.mail import Message
from systolith.runtime.replay import Arrival
from tests.models.conftest import write_model

from .harness import Subject, chip
from .serving import Alone, Watched, check_against_alone, draw_requests, play_all
from .test_families import CASES, SIZES


def engine(subject: Subject, name: str, table: Mapping[str, Any] | None = None, **options: object) -> Engine:
    chosen = {"slots": 4, "context": 512, "page_tokens": 32, "max_waiting": 1000, "timing": False} | options
    return Engine(subject.checkpoint, chip(name), subject.profile(table), **chosen)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def alone(odd: Subject) -> Alone:
    return Alone(odd.checkpoint, chip("micro"))


def mixed(seed: int, count: int, *, most: int = 8, vocab: int = 1003) -> list[Arrival]:
    """Requests that arrive closer to each other than a request takes; a third of them leaves early."""
    return draw_requests(seed, count, vocab, span=count * 4e-4, cancels=0.35, longest=60, prefix=70, most=most)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nano", {"pages": 12}),  # room for two or three requests at once
        ("micro", {"lag": 2, "timing": True}),  # the host is two steps behind: finished requests stay as dead rows
        ("micro", {"prefix_cache": False, "prefill_chunk": 7}),
        ("three", {"slots": 3, "lag": 1, "pages": 24}),
    ],
)
def test_tokens_are_those_of_each_request_alone(
    odd: Subject, alone: Alone, name: str, options: dict[str, object]
) -> None:
    arrivals = mixed(7, 24)
    outcomes = play_all(engine(odd, name, **options), arrivals)
    check_against_alone(alone, arrivals, outcomes)
    assert {"length", "cancelled"} <= {outcome.reason for outcome in outcomes}


@pytest.mark.parametrize(
    ("name", "page", "table"), [("micro", 64, {"lanes": 4}), ("three", 256, {}), ("server", 32, {})]
)
def test_prompts_of_several_chunks_share_lanes_and_pages(
    odd: Subject, name: str, page: int, table: dict[str, Any]
) -> None:
    """Prompts of up to three chunks of attention: their pages lie in the pools of several lane groups."""
    arrivals = draw_requests(5, 6, 1003, longest=500, prefix=300, most=6)
    serving = engine(odd, name, table, slots=3, context=1024, page_tokens=page)
    assert serving.compiled.plan.group > 1
    outcomes = play_all(serving, arrivals)
    check_against_alone(Alone(odd.checkpoint, chip("micro"), 1024, table), arrivals, outcomes)
    assert serving.stats.prefix_hits > 0
    assert max(outcome.prompt_tokens for outcome in outcomes) > 512


@pytest.mark.parametrize("name", CASES)
def test_families_serve_as_they_generate(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = make_llama(tmp_path / "model", **{**SIZES, "context": 512, "seed": 3, **case.model})
    subject = Subject.open(path)
    arrivals = draw_requests(4, 6, 300, longest=40, prefix=70, most=5)
    outcomes = play_all(engine(subject, "three", case.profile, slots=3), arrivals)
    check_against_alone(Alone(subject.checkpoint, chip("three"), 512, case.profile), arrivals, outcomes)


MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "intermediate_size": 160,
                "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "intermediate_size": 160,
                  "moe_intermediate_size": 64, "num_experts": 12, "num_experts_per_tok": 3, "norm_topk_prob": False},
    "gpt_oss": {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "intermediate_size": 64,
                "num_local_experts": 6, "num_experts_per_tok": 4, "sliding_window": 20, "num_hidden_layers": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_serve_as_they_generate(tmp_path: Path, name: str) -> None:
    """Rows of other requests share experts, and dead rows choose some, too."""
    path = write_model(
        tmp_path / "model", hidden_size=96, head_dim=32, vocab_size=300, max_position_embeddings=512, **MIXTURES[name]
    )
    checkpoint = Checkpoint.open(path)
    arrivals = draw_requests(4, 6, 300, longest=40, prefix=70, most=5)
    serving = Engine(checkpoint, chip("micro"), Profile.default(), slots=3, context=512, page_tokens=32, lag=1,
                     timing=False)  # fmt: skip
    check_against_alone(Alone(checkpoint, chip("micro")), arrivals, play_all(serving, arrivals))
    watched = Watched()
    serving = Engine(checkpoint, chip("micro"), Profile.default(), slots=2, context=512, device=watched, timing=False)
    play_all(serving, draw_requests(1, 3, 300, longest=20, prefix=10, most=2))
    assert [str(finding) for finding in watched.findings] == []


def test_the_order_of_arrival_changes_no_token(odd: Subject) -> None:
    arrivals = draw_requests(3, 10, 1003, longest=60, prefix=70, most=6)
    want = None
    for seed in range(3):
        order = random.Random(seed).sample(arrivals, len(arrivals))
        outcomes = play_all(engine(odd, "micro", slots=2 + seed), order)
        got = {outcome.id: outcome.tokens for outcome in outcomes}
        assert want in (None, got)
        want = got


@pytest.mark.parametrize(("model", "name"), [("small", "nano"), ("small", "micro"), ("odd", "three")])
def test_a_mixed_run_leaves_nothing_open(request: pytest.FixtureRequest, model: str, name: str) -> None:
    """Races, also between host and device, deadlocks, and reads of what nobody has written."""
    watched = Watched()
    subject = request.getfixturevalue(model)
    play_all(engine(subject, name, device=watched, slots=3, lag=1), mixed(2, 5, most=3, vocab=70))
    assert [str(finding) for finding in watched.findings] == []


def test_a_prefix_that_is_being_made_is_read_after_its_stores(small: Subject) -> None:
    """Run in program order a step could read what it stores; under another timing it could not."""
    watched = Watched()
    serving = engine(small, "micro", device=watched, prefill_chunk=20)
    for n in range(3):
        serving.submit(EngineRequest((*range(68), n), 1))
    while not serving.idle:
        serving.step()
    assert serving.stats.prefix_hits == 2 * 64
    assert [str(finding) for finding in watched.findings] == []


def test_a_late_host_leaves_messages_alone_until_they_are_read(small: Subject) -> None:
    """A prompt in many small chunks is a message a step; the host hears of the first six steps later."""
    serving = engine(small, "nano", prefill_chunk=2, lag=6)
    mailbox, heard = serving._live.mailbox, [0]
    write, read = mailbox.write, serving._read

    def writing(message: Message) -> None:
        # The entry that is written now was that of a message before the latest one known to be taken.
        assert mailbox.written + 1 - MAIL_ENTRIES < heard[0]
        write(message)

    def reading(result: StepResult) -> None:
        heard[0] = result.taken
        read(result)

    mailbox.write, serving._read = writing, reading  # type: ignore[method-assign]
    made = _run(serving, EngineRequest(tuple(range(40)), 3, ignore_eos=True))
    assert made == _run(engine(small, "nano"), EngineRequest(tuple(range(40)), 3, ignore_eos=True))
    assert mailbox.written > 20


def test_a_prefix_is_read_and_not_made_again(odd: Subject, alone: Alone) -> None:
    head = tuple(range(100, 170))
    requests = [EngineRequest((*head, n), 3, Sampling(0.9, seed=n)) for n in range(3)]
    serving = engine(odd, "micro")
    assert _run(serving, requests[0]) == alone.tokens(requests[0])
    before = serving.stats.prompt_tokens
    assert before == 71
    for request in requests[1:]:
        serving.submit(request)
    made: dict[int, list[int]] = {1: [], 2: []}
    while not serving.idle:
        for event in serving.step():
            if isinstance(event, TokenEvent):
                made[event.request].append(event.token)
    assert [made[1], made[2]] == [alone.tokens(request) for request in requests[1:]]
    # Two full pages of 32 are shared; what follows them is made anew by each.
    assert serving.stats.prompt_tokens - before == 2 * (71 - 64)
    assert serving.stats.prefix_hits == 128


def test_requests_that_come_together_make_their_prefix_once(odd: Subject, alone: Alone) -> None:
    head = tuple(range(200, 300))
    requests = [EngineRequest((*head, n), 3, Sampling(0.9, seed=n)) for n in range(3)]
    serving = engine(odd, "micro", prefill_chunk=20)
    made: dict[int, list[int]] = {serving.submit(request): [] for request in requests}
    while not serving.idle:
        for event in serving.step():
            if isinstance(event, TokenEvent):
                made[event.request].append(event.token)
    assert list(made.values()) == [alone.tokens(request) for request in requests]
    assert serving.stats.prompt_tokens == 101 + 2 * (101 - 96)
    assert serving.stats.prefix_hits == 2 * 96


def _run(serving: Engine, request: EngineRequest) -> list[int]:
    number = serving.submit(request)
    tokens = []
    while not serving.idle:
        tokens += [e.token for e in serving.step() if isinstance(e, TokenEvent) and e.request == number]
    return tokens


def test_what_a_request_made_is_a_prefix_too(odd: Subject, alone: Alone) -> None:
    serving = engine(odd, "micro")
    first = EngineRequest(tuple(range(20)), 60, Sampling(1.0, seed=3), ignore_eos=True)
    made = _run(serving, first)
    again = EngineRequest((*first.prompt, *made, 5, 6), 4)
    assert _run(serving, again) == alone.tokens(again)
    assert serving.stats.prefix_hits == 64  # of 79 tokens whose keys and values are there


def test_chunks_of_a_prompt_and_decode_rows_are_in_one_step(odd: Subject) -> None:
    serving = engine(odd, "micro", prefill_chunk=10)
    serving.submit(EngineRequest((1, 2, 3), 40, ignore_eos=True))
    serving.step()
    serving.submit(EngineRequest(tuple(range(100)), 2, ignore_eos=True))
    steps = [serving.step() for _ in range(9)]
    assert [[event.request for event in events] for events in steps] == [[0]] * 9
    assert sorted(event.request for event in serving.step()) == [0, 1]


def test_a_full_pool_makes_requests_wait(odd: Subject) -> None:
    """Pages for one request at a time: they run one after the other, first come first served."""
    serving = engine(odd, "nano", pages=4, prefix_cache=False)
    numbers = [serving.submit(EngineRequest(tuple(range(90 + n)), 5, ignore_eos=True)) for n in range(3)]
    ended = []
    while not serving.idle:
        ended += [event.request for event in serving.step() if isinstance(event, FinishEvent)]
        assert serving.stats.running <= 1
        assert serving.stats.pages_used <= 4
    assert ended == numbers


def test_a_cancelled_request_keeps_nobody_awake(small: Subject) -> None:
    """The device counts the request slots that live, and goes on by itself while there are any."""
    serving = engine(small, "nano")
    long, short = (serving.submit(EngineRequest((1, 2, n), 30 - 26 * n, ignore_eos=True)) for n in range(2))
    serving.step()
    assert serving._live.live == 2
    serving.cancel(long)
    serving.cancel(long)
    events = []
    while not any(isinstance(event, FinishEvent) and event.request == short for event in events):
        events += serving.step()
    assert serving._live.live == 0
    assert not serving._live.goes_on
    ends = [event for event in events if isinstance(event, FinishEvent)]
    assert [(end.request, end.reason, end.tokens) for end in ends] == [(long, "cancelled", 1), (short, "length", 4)]
    assert not any(isinstance(event, TokenEvent) and event.request == long for event in events)


def test_log_probabilities_are_those_of_the_logits(odd: Subject) -> None:
    request = EngineRequest((5, 6, 7, 8), 3, Sampling(0.7, seed=2), logprobs=4, ignore_eos=True)
    serving = engine(odd, "micro")
    serving.submit(EngineRequest((9, 9), 6, ignore_eos=True))
    serving.submit(request)
    events = []
    while not serving.idle:
        events += [e for e in serving.step() if isinstance(e, TokenEvent) and e.request == 1]
    ids = [*request.prompt, *(event.token for event in events)]
    logits = odd.expected(odd.profile(), ids).logits[len(request.prompt) - 1 : -1].astype(np.float64)
    assert len(events) == 3
    for event, row in zip(events, logits, strict=True):
        logs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
        best = np.argsort(-logs, kind="stable")[:4]
        assert event.logprob == pytest.approx(logs[event.token], abs=1e-9)
        assert [token for token, _ in event.top] == best.tolist()
        assert [value for _, value in event.top] == pytest.approx(logs[best].tolist(), abs=1e-9)


def test_the_definition_gives_the_same_tokens_and_times(small: Subject) -> None:
    seen = []
    for device in ("sim", "execute"):
        serving = engine(small, "micro", device=device, timing=True, slots=2, context=256)
        serving.submit(EngineRequest((1, 2, 3), 3, Sampling(1.0, seed=4), ignore_eos=True))
        serving.submit(EngineRequest((4,), 2, ignore_eos=True))
        events = []
        while not serving.idle:
            events += serving.step()
        seen.append(events)
    assert seen[0] == seen[1]
    cycles = [event.cycle for event in seen[0] if isinstance(event, TokenEvent)]
    assert cycles == sorted(cycles)


def test_time_that_nobody_uses_passes(odd: Subject) -> None:
    """A request that comes later takes the same cycles, and counts them from its arrival."""
    serving = engine(odd, "micro", timing=True, prefix_cache=False)
    request = EngineRequest((1, 2, 3), 4, ignore_eos=True)

    def times(arrival: int | None) -> tuple[float | None, float | None]:
        serving.submit(request, arrival)
        found = []
        while not serving.idle:
            found += [(e.ttft_s, e.tpot_s) for e in serving.step() if isinstance(e, FinishEvent)]
        return found[0]

    first = times(None)
    start = serving.cycle + 10_000_000
    serving.wait_until(start)
    assert serving.cycle == start
    again = times(start)
    assert again[1] == pytest.approx(first[1], rel=1e-3)
    assert again[0] == pytest.approx(first[0], rel=0.2)  # the first one also waited for the start of the program


@pytest.mark.deep
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("micro", {"slots": 6, "pages": 40, "timing": True}),
        ("server", {"slots": 16, "pages": 100}),
        ("micro", {"lag": 3}),
    ],
)
def test_two_hundred_requests(odd: Subject, alone: Alone, name: str, options: dict[str, object]) -> None:
    serving = engine(odd, name, **options)
    # One arrives every few steps, so that the slots are full most of the time.
    span = 200 * 4 * bound(serving.compiled.plan, [[1]]).seconds
    arrivals = draw_requests(11, 200, 1003, span=span, cancels=0.3, longest=120, most=24)
    outcomes = play_all(serving, arrivals)
    check_against_alone(alone, arrivals, outcomes)
    assert {"length", "cancelled"} <= {outcome.reason for outcome in outcomes}
    assert serving.stats.prefix_hits > 0


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(12))
def test_any_mixed_run_leaves_nothing_open(odd: Subject, alone: Alone, seed: int) -> None:
    draw = random.Random(seed)
    watched = Watched()
    name = draw.choice(["nano", "micro", "three", "mini"])
    arrivals = mixed(seed, 8, most=5)
    options = {"slots": draw.choice([2, 3, 5]), "lag": draw.choice([0, 1, 3]), "pages": draw.choice([None, 20])}
    outcomes = play_all(engine(odd, name, device=watched, **options), arrivals)
    assert [str(finding) for finding in watched.findings] == []
    check_against_alone(alone, arrivals, outcomes)
