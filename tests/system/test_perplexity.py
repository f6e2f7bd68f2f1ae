"""Perplexity of tinycode on held-out text: compiled program, PyTorch emulation, and the model without quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from math import e, exp, log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import TINYCODE
from .harness import Subject, chip, compiled, run_job
from .test_profiles import FP8

torch = pytest.importorskip("torch", reason="torch is not installed: make test installs it (the test extra)")
from reference import torch_emulation as emulation  # noqa: E402 - needs torch

from systolith.runtime.job import Request  # noqa: E402

pytestmark = pytest.mark.torch

CONTEXT = 512
CHIP = "mini"
BARS = {"mxint8": ({}, 0.002), "mxfp8": (FP8, 0.02)}
"""Profile, and by what share the perplexity may rise over the model that is not quantised."""
STATED: dict[str, dict[str, Any]] = {
    "mxfp4-mxfp8": {"weights": "E2M1", "activations": "E4M3"},
    "mxfp4-mxint8": {"weights": "E2M1", "activations": "INT8"},
}
"""Profiles whose loss is stated and has no bar."""


@dataclass(frozen=True)
class Text:
    """Windows [N, 512] that begin with the start token, and the loss of the plain model (nats) [N, 511]."""

    subject: Subject
    windows: np.ndarray
    plain: np.ndarray


def fixed_swiglu(gate: Any, up: Any) -> Any:
    """silu(gate) * up with the chip's fixed-point exponent: 16 bits below the point, as in attention.

    Without them h is off by up to 2^-17 of itself, a hundred times an FP32 rounding, and that flips codes.
    """
    power = torch.exp2((gate * (-65536 * log2(e))).round() / 65536)
    return gate / (1 + power) * up


def make_text(subject: Subject, files: list[Path], tokens: int) -> Text:
    """Windows at even distances over all held-out text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINYCODE / "tokenizer.json"))
    coded = [tokenizer.encode(file.read_text("utf-8"), add_special_tokens=False).ids for file in files]
    run = CONTEXT - 1
    every = [[0, *ids[at : at + run]] for ids in coded for at in range(0, len(ids) - run + 1, run)]
    count = -(-tokens // run)
    if len(every) < count:
        pytest.skip(f"this interpreter's held-out files hold {len(every) * run} tokens in whole windows, not {tokens}")
    windows = [every[n * len(every) // count] for n in range(count)]
    array = np.array(windows)
    return Text(subject, array, emulation.EmulatedLlama(TINYCODE).losses(array).numpy())


@pytest.fixture(scope="module")
def text(tinycode: Subject, heldout: list[Path]) -> Text:
    return make_text(tinycode, heldout, 5_000)


@pytest.fixture(scope="module")
def long_text(tinycode: Subject, heldout: list[Path]) -> Text:
    return make_text(tinycode, heldout, 50_000)


def chip_losses(text: Text, table: dict[str, Any]) -> np.ndarray:
    """Loss of every token by the compiled program, one window after the other."""
    requests = [[Request(tuple(window.tolist()))] for window in text.windows]
    program = compiled(text.subject, chip(CHIP), text.subject.profile(table), requests[0], every_row=True)
    losses = []
    for request, window in zip(requests, text.windows, strict=True):
        logits = torch.from_numpy(run_job(program, chip(CHIP), request).logits[0][:-1].astype(np.float64))
        losses.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(window[1:]), reduction="none"))
    return torch.stack(losses).numpy()  # type: ignore[no-any-return]


def measure(text: Text, table: dict[str, Any], most: float | None, record: Any, errors: float = 0.0) -> None:
    """Compare the chip with the emulation, in float64 so that it is the same everywhere, and with the plain model.

    errors: standard errors of the paired difference that the comparison with the emulation allows on top of 0.05 %.
    """
    on_chip = chip_losses(text, table)
    emulated_model = emulation.EmulatedLlama(TINYCODE, text.subject.profile(table).to_dict(), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emulation, "swiglu", fixed_swiglu)
        difference = on_chip - emulated_model.losses(text.windows).numpy()
    perplexity, rise = exp(on_chip.mean()), exp(on_chip.mean() - text.plain.mean()) - 1
    apart, chance = exp(difference.mean()) - 1, difference.std() / difference.size**0.5
    record("perplexity", round(perplexity, 4))
    print(f"{text.windows.size:,} tokens: {perplexity:.4f}, plain {rise:+.4%}, emulation {apart:+.4%} +- {chance:.4%}")
    assert abs(apart) <= 0.0005 + errors * chance, f"{perplexity:.4f}, {apart:+.4%} from the emulation"
    if most is not None:
        assert rise <= most, f"{perplexity:.4f}, {rise:+.4%} from the model that is not quantised"


@pytest.mark.parametrize("name", BARS)
def test_perplexity_of_5000_tokens(text: Text, name: str, record_property: Any) -> None:
    """One ulp flips a code here and there: of so few tokens chance alone moves the mean by 0.05 %."""
    measure(text, *BARS[name], record_property, errors=2)


@pytest.mark.deep
@pytest.mark.parametrize("name", [*BARS, *STATED])
def test_perplexity_of_50000_tokens(long_text: Text, name: str, record_property: Any) -> None:
    measure(long_text, *BARS.get(name, (STATED.get(name, {}), None)), record_property)


def test_the_plain_model_is_transformers_and_the_graphs_interpreter(tinycode: Subject, text: Text) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make test installs it")
    from systolith.models.reference import interpret

    theirs = transformers.AutoModelForCausalLM.from_pretrained(TINYCODE, dtype=torch.float32, local_files_only=True)
    ids = text.windows[0]
    with torch.inference_mode():
        want = theirs(torch.from_numpy(ids)[None]).logits[0].numpy()
    got = interpret(tinycode.checkpoint.graph, tinycode.checkpoint, ids.tolist())
    assert np.abs(got - want).max() < 1e-4
    losses = torch.nn.functional.cross_entropy(torch.from_numpy(want[:-1]).double(), torch.from_numpy(ids[1:]))
    assert float(losses) == pytest.approx(text.plain[0].mean(), abs=1e-5)
