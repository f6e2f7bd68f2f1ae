"""A small random model, and a runner of commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.helpers import Runner
from tests.reference.make_model import make_llama


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, hidden size 64, byte tokenizer with a vocabulary of 300, context 512."""
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", vocab=300, context=512, seed=5)
