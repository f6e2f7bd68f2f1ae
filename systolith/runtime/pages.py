"""Pages of the KV cache: who has which, and which hold a prefix that another request may read.

A page belongs to the pool of its lane group, because only the slices of that group have the memory behind it. A page
that is full and whose tokens and all before them are known may be shared: it is never written again. The last, partly
filled page of a prompt is made anew by each request, so that no page that two read is ever written.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from systolith.compiler.plan import Plan
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["Lease", "PagePool"]

Page = tuple[int, int]
"""Lane group, number in its pool."""


@dataclass(eq=False)
class Lease:
    """Pages of a request, in the order of positions. shared: how many of the first were found in the cache."""

    pages: list[Page]
    shared: int
    keys: list[bytes] = field(default_factory=list)
    """Keys of the pages known to be full."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """The page list as the device takes it."""
        return tuple(number for _, number in self.pages)


class PagePool:
    """All pages of a chip, the same on every slice of a lane group."""

    def __init__(self, plan: Plan, *, cache: bool = True) -> None:
        self.page_tokens = plan.page_tokens
        self._lanes, self._local, self._groups = plan.profile_lanes, plan.lanes_local, plan.group
        self._each, self._cache = plan.pool_pages, cache
        # In an order of no meaning: nothing may depend on pages lying side by side.
        self._free = [list(np.random.default_rng(g).permutation(self._each).tolist()) for g in range(self._groups)]
        self._uses: dict[Page, int] = {}
        self._by_key: dict[bytes, Page] = {}
        self._key_of: dict[Page, bytes] = {}
        self._idle: list[OrderedDict[Page, None]] = [OrderedDict() for _ in range(self._groups)]
        """Pages that nobody uses and that hold a known prefix, the longest unused first."""
        self.hits = 0
        """Pages found that another request has made."""

    @property
    def total(self) -> int:
        """Pages there are."""
        return self._groups * self._each

    @property
    def used(self) -> int:
        """Pages that requests have."""
        return len(self._uses)

    def _group(self, index: int) -> int:
        chunk = index * self.page_tokens // CHUNK_TOKENS
        return chunk % self._lanes // self._local

    def shortage(self, tokens: int) -> tuple[int, int] | None:
        """(pages needed, pages there are) of the lane group that can never hold a sequence; None if it fits."""
        count = -(-tokens // self.page_tokens)
        for group in range(self._groups):
            need = sum(self._group(i) == group for i in range(count))
            if need > self._each:
                return need, self._each
        return None

    def chain(self, prompt: Sequence[int]) -> list[bytes]:
        """Keys of the pages of a prompt that may come from another request. One token at least is computed: its logits
        are what the request came for."""
        keys: list[bytes] = []
        for index in range((len(prompt) - 1) // self.page_tokens if self._cache else 0):
            keys.append(_key(keys[-1] if keys else b"", prompt[index * self.page_tokens :][: self.page_tokens]))
        return keys

    def take(self, chain: Sequence[bytes], tokens: int) -> Lease | None:
        """Pages for a prompt with such a `chain` that grows to `tokens`; None, and nothing changed, where too few are
        free."""
        count = -(-tokens // self.page_tokens)
        keys: list[bytes] = []
        shared: list[Page] = []
        for key in chain:
            if (page := self._by_key.get(key)) is None:
                break
            keys.append(key)
            shared.append(page)
        need = [0] * self._groups
        for index in range(len(shared), count):
            need[self._group(index)] += 1
        for group in range(self._groups):
            kept = sum(page in self._idle[group] for page in shared)
            if need[group] > len(self._free[group]) + len(self._idle[group]) - kept:
                return None
        self.hits += len(shared)
        for page in shared:
            self._use(page)
        pages = shared + [self._new(self._group(index)) for index in range(len(shared), count)]
        return Lease(pages, len(shared), keys)

    def adopt(self, lease: Lease, key: bytes) -> bool:
        """Replace the first page of which nothing is known, and which no step has written, by one with this key;
        whether there is one."""
        page, index = self._by_key.get(key), len(lease.keys)
        if page is None:
            return False
        self._use(page)
        self._leave(lease.pages[index])
        lease.pages[index] = page
        lease.keys.append(key)
        lease.shared = index + 1
        self.hits += 1
        return True

    def _use(self, page: Page) -> None:
        self._idle[page[0]].pop(page, None)
        self._uses[page] = self._uses.get(page, 0) + 1

    def _new(self, group: int) -> Page:
        if self._free[group]:
            page = (group, self._free[group].pop())
        else:
            page, _ = self._idle[group].popitem(last=False)
            del self._by_key[self._key_of.pop(page)]
        self._uses[page] = 1
        return page

    def fills(self, lease: Lease, tokens: int) -> bool:
        """Whether so many tokens fill a page of which `know` has not been told."""
        return tokens // self.page_tokens > len(lease.keys)

    def know(self, lease: Lease, tokens: Sequence[int]) -> None:
        """The steps that write these tokens of the request have been sent: later steps may read its full pages."""
        size = self.page_tokens
        while self._cache and (len(lease.keys) + 1) * size <= len(tokens):
            index = len(lease.keys)
            key = _key(lease.keys[-1] if lease.keys else b"", tokens[index * size : (index + 1) * size])
            lease.keys.append(key)
            page = lease.pages[index]
            if key not in self._by_key:
                self._by_key[key], self._key_of[page] = page, key

    def give_back(self, lease: Lease) -> None:
        """The request has ended, and no step that may write its pages is to come."""
        for page in reversed(lease.pages):
            self._leave(page)
        lease.pages = []

    def _leave(self, page: Page) -> None:
        self._uses[page] -= 1
        if self._uses[page]:
            return
        del self._uses[page]
        if page in self._key_of:
            self._idle[page[0]][page] = None
        else:
            self._free[page[0]].append(page[1])


def _key(before: bytes, tokens: Sequence[int]) -> bytes:
    """Key of a full page: of its tokens and all before them."""
    return hashlib.blake2b(before + np.asarray(tokens, "<u4").tobytes(), digest_size=16).digest()
