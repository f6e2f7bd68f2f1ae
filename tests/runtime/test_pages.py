"""The pool of pages: no page for two requests unless both only read it, none lost, the longest unused goes first."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from systolith.runtime.pages import Lease, PagePool


@dataclass
class Shape:
    """What a pool reads of a plan."""

    page_tokens: int = 32
    profile_lanes: int = 4
    lanes_local: int = 1
    group: int = 4
    pool_pages: int = 16


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([32, 64, 256]), st.sampled_from([1, 2, 4]))
def test_a_page_that_is_written_has_one_owner(seed: int, cache: bool, page: int, group: int) -> None:
    draw = random.Random(seed)
    pool = PagePool(Shape(page, 4, 4 // group, group, 12), cache=cache)  # type: ignore[arg-type]
    heads = [[draw.randrange(50) for _ in range(700)] for _ in range(2)]
    running: list[tuple[Lease, list[int], int]] = []
    for _ in range(60):
        if running and draw.random() < 0.45:
            lease, tokens, _ = running.pop(draw.randrange(len(running)))
            pool.know(lease, tokens[: draw.randrange(len(tokens) + 1)])
            pool.give_back(lease)
            assert lease.pages == []
        else:
            prompt = draw.choice(heads)[: draw.randrange(1, 700)] + [
                draw.randrange(50) for _ in range(draw.choice([0, 9]))
            ]
            most = len(prompt) + draw.randrange(1, 60)
            taken = pool.take(pool.chain(prompt), most)
            if taken is None:
                continue
            assert len(taken.pages) == -(-most // page)
            assert taken.shared * page < len(prompt)
            # Lane groups follow the chunks.
            assert [g for g, _ in taken.pages] == [i * page // 256 % 4 // (4 // group) for i in range(len(taken.pages))]
            pool.know(taken, prompt)
            running.append((taken, prompt + [draw.randrange(50) for _ in range(most - len(prompt))], len(prompt)))
        written = [p for lease, _, _ in running for p in lease.pages[lease.shared :]]
        assert len(written) == len(set(written))
        read = {p for lease, _, _ in running for p in lease.pages[: lease.shared]}
        owners = {p: lease for lease, _, _ in running for p in lease.pages[lease.shared :]}
        for p in read & set(owners):
            # A shared page that its maker still has is full: the maker writes behind it.
            lease = owners[p]
            assert lease.pages.index(p) < len(lease.keys)
        assert pool.used == len(read | set(written))
    for lease, _, _ in running:
        pool.give_back(lease)
    assert pool.used == 0
    whole = pool.take(pool.chain([1]), 12 * page)
    if group == 1:
        assert whole is not None, "all pages can be had again"


def test_equal_tokens_behind_different_ones_are_not_a_prefix() -> None:
    pool = PagePool(Shape(group=1, lanes_local=4))  # type: ignore[arg-type]
    first = pool.take(pool.chain([1] * 32 + [2] * 33), 70)
    assert first is not None
    pool.know(first, [1] * 32 + [2] * 33)
    other = pool.take(pool.chain([3] * 32 + [2] * 33), 70)
    same = pool.take(pool.chain([1] * 32 + [2] * 33), 70)
    assert other is not None
    assert same is not None
    assert (other.shared, same.shared) == (0, 2)
    assert same.pages[:2] == first.pages[:2]


def test_one_token_at_least_is_computed() -> None:
    pool = PagePool(Shape(group=1, lanes_local=4))  # type: ignore[arg-type]
    prompt = [5] * 64
    first = pool.take(pool.chain(prompt), 65)
    assert first is not None
    pool.know(first, prompt)
    again = pool.take(pool.chain(prompt), 65)
    assert again is not None
    assert again.shared == 1


def test_the_longest_unused_prefix_goes_first_and_its_end_before_its_start() -> None:
    pool = PagePool(Shape(group=1, lanes_local=4, pool_pages=6))  # type: ignore[arg-type]

    def use(token: int) -> int:
        lease = pool.take(pool.chain([token] * 65), 66)
        assert lease is not None
        pool.know(lease, [token] * 65)
        pool.give_back(lease)
        return lease.shared

    assert [use(1), use(2), use(1), use(2)] == [0, 0, 2, 2]
    assert use(3) == 0  # two pages without a key, and the last page of the prefix of 1
    assert use(2) == 2
    assert use(1) == 1


@pytest.mark.parametrize(("tokens", "want"), [(16 * 32, None), (17 * 32, (17, 16))])
def test_a_sequence_that_can_never_fit_is_known(tokens: int, want: object) -> None:
    assert PagePool(Shape(group=1, lanes_local=4)).shortage(tokens) == want  # type: ignore[arg-type]


def test_too_few_pages_change_nothing() -> None:
    pool = PagePool(Shape(group=1, lanes_local=4, pool_pages=4))  # type: ignore[arg-type]
    first = pool.take(pool.chain([1] * 33), 64)
    assert first is not None
    assert pool.take(pool.chain([1] * 33), 32 * 3) is None
    assert (pool.used, pool.hits) == (2, 0)
