"""Models for the tests of the compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reference.make_model import make_llama

from systolith.models.checkpoint import Checkpoint

Make = Callable[..., Checkpoint]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make a small random Llama; arguments of `make_llama`."""

    def build(**changes: Any) -> Checkpoint:
        shape: dict[str, Any] = {"hidden": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 32,
                                 "intermediate": 96, "vocab": 70, "context": 512}  # fmt: skip
        return Checkpoint.open(make_llama(tmp_path / "m", **{**shape, **changes}))

    return build
