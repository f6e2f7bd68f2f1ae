"""Servers that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve.helpers import FAKE, Server, running


@pytest.fixture(scope="session")
def fake() -> Iterator[Server]:
    """Repeats the prompt; 4 slots, 8 wait, context 256."""
    with running(engine=FAKE) as server:
        yield server


@pytest.fixture(scope="session")
def real() -> Iterator[Server]:
    """tinycode on nano; 4 slots, 8 wait, context 256."""
    with running() as server:
        yield server
