"""The models of the system tests, each opened once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from reference.make_model import make_llama

import systolith.models

from .harness import Subject

GOLDEN = Path(__file__).parent.parent / "golden" / "llama-int8"
TINYCODE = Path(systolith.models.__file__).parent / "tinycode"


@pytest.fixture(scope="session")
def golden_model() -> Subject:
    """The model of the golden files."""
    return Subject.open(GOLDEN)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A random Llama in which nothing is a multiple of 32 times the slices, with room for 18 chunks of attention."""
    path = make_llama(
        tmp_path_factory.mktemp("models") / "odd", hidden=144, layers=2, heads=3, kv_heads=1, head_dim=48,
        intermediate=352, vocab=1003, context=4608, tied=True, seed=5,
    )  # fmt: skip
    return Subject.open(path)


@pytest.fixture(scope="session")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Biases on q, k, v and o, a head of its own, two KV heads, three layers."""
    path = make_llama(
        tmp_path_factory.mktemp("models") / "biased", hidden=96, layers=3, heads=4, kv_heads=2, head_dim=64,
        intermediate=160, vocab=300, context=1024, tied=False, attention_bias=True, seed=9,
    )  # fmt: skip
    return Subject.open(path)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A model so small that plain Python runs it: two layers, two query heads on one KV head, biases."""
    path = make_llama(
        tmp_path_factory.mktemp("models") / "small", hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32,
        intermediate=96, vocab=70, context=512, tied=True, attention_bias=True, seed=6,
    )  # fmt: skip
    return Subject.open(path)


@pytest.fixture(scope="session")
def tinycode() -> Subject:
    """The shipped model."""
    if not (TINYCODE / "model.safetensors").exists():
        pytest.skip("tinycode's weights are not in the package: tools/train_tinycode.py makes them")
    return Subject.open(TINYCODE)


@pytest.fixture(scope="session")
def tinycode_text(tinycode: Subject) -> list[int]:
    """Tokens of some Python: the text of a file of the tests."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINYCODE / "tokenizer.json"))
    return list(tokenizer.encode(Path(__file__).read_text(), add_special_tokens=False).ids)


@pytest.fixture(scope="session")
def heldout() -> list[Path]:
    """Held-out files of tinycode, of the standard library of the interpreter that runs the tests."""
    listing = TINYCODE / "heldout.json"
    if not listing.exists():
        pytest.skip("tinycode/heldout.json is not in the package: tools/train_tinycode.py writes it")
    root = Path(os.__file__).parent
    found = []
    for entry in json.loads(listing.read_text()):
        path = root / entry["path"]
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == entry["sha256"]:
            found.append(path)
    if not found:
        pytest.skip("this interpreter's standard library holds none of tinycode's held-out files in the version listed")
    return found
