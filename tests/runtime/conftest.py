"""A small random model."""

from __future__ import annotations

from pathlib import Path

import pytest

import systolith.models
from systolith.models.checkpoint import Checkpoint
from tests.reference.make_model import make_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, hidden size 64, vocabulary 300, context 512."""
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", vocab=300, context=512, seed=5)


@pytest.fixture(scope="session")
def tinycode() -> Checkpoint:
    """The shipped model."""
    return Checkpoint.open(Path(systolith.models.__file__).parent / "tinycode")
