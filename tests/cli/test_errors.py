"""Bad input: one whole sentence on stderr, exit code 2, nothing on stdout, no file left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.helpers import Runner

Case = Callable[[Path, Path], tuple[list[object], str]]
"""Given a copy of the tiny model and an empty folder: arguments, and the sentence, where [0-9]+ stands for a number."""


def edit(model: Path, change: Callable[[dict[str, object]], object]) -> Path:
    file = model / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))
    return model


def truncated(model: Path, folder: Path) -> tuple[list[object], str]:
    file = model / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    header = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:header])
    name, last = max(
        ((n, e) for n, e in entries.items() if n != "__metadata__"), key=lambda item: item[1]["data_offsets"][1]
    )
    return ["generate", model, "--prompt", "x"], (
        f'{file}: is not a whole safetensors file (tensor "{name}" has data_offsets {last["data_offsets"]}, must be '
        f"two within 0..{len(data) - 100 - header}); fetch the file again"
    )


def wrong_shape(model: Path, folder: Path) -> tuple[list[object], str]:
    edit(model, lambda c: c.update(vocab_size=301))
    return ["generate", model, "--prompt", "x"], (
        f"{model}: tensor model.embed_tokens.weight of model.safetensors has shape [300, 64], must have [301, 64]; use "
        "the config.json that belongs to these tensors"
    )


def unknown_architecture(model: Path, folder: Path) -> tuple[list[object], str]:
    edit(model, lambda c: c.update(model_type="mamba"))
    return ["generate", model, "--prompt", "x"], (
        f'{model}/config.json: model_type="mamba" is not supported, must be one of deepseek_v3, gemma3, '
        "gemma3_text, gpt_oss, llama, mistral, mixtral, qwen2, qwen3, qwen3_moe (did you mean llama?); choose a model "
        "of these families"
    )


def misspelt_field(model: Path, folder: Path) -> tuple[list[object], str]:
    edit(model, lambda c: c.update(rms_nrom_eps=c.pop("rms_norm_eps")))
    return ["generate", model, "--prompt", "x"], (
        f"{model}/config.json: rms_nrom_eps=1e-05 is no known field of a llama model (did you mean rms_norm_eps?); "
        "correct the file"
    )


def long_prompt(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt-ids", ",".join(["7"] * 500), "--max-tokens", 14], (
        "the prompt has 500 tokens and 14 are to be made, more than the context of 512 in all; shorten the prompt or "
        "ask for fewer tokens"
    )


def foreign_token(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["logits", model, "--prompt-ids", "1,300", "-o", folder / "x.npy"], (
        "the prompt: token 300 must be 0..299; give ids of this model's vocabulary"
    )


def small_memory(model: Path, folder: Path) -> tuple[list[object], str]:
    chip = folder.parent / "little.toml"
    chip.write_text('base = "nano"\ndram_bytes = "128 KiB"\n')
    return ["generate", model, "--prompt", "x", "--chip", chip], (
        f"little: dram_bytes=131072 a slice is too small for {model.name}, which needs [0-9]+ a slice at batch 1 and "
        "context 256; take a larger chip or a smaller batch or context"
    )


def large_batch(model: Path, folder: Path) -> tuple[list[object], str]:
    file = folder.parent / "prompts.txt"
    file.write_text("x\n" * 3000)
    return ["generate", model, "--batch", file], (
        f"nano: scratchpad_bytes=65536 is too small for {model.name}, which needs [0-9]+ with 1 row(s) a "
        "step; take a larger chip, a smaller batch or context"
    )


def foreign_program(model: Path, folder: Path) -> tuple[list[object], str]:
    file = model / "config.json"
    return ["disasm", file], f"{file}: this is no Systolith program; `systolith compile MODEL -o FILE` makes one."


def corrupt_program(model: Path, folder: Path) -> tuple[list[object], str]:
    from systolith.isa import Halt, Program

    file = folder.parent / "damaged.prog"
    Program(words=(Halt().encode(),)).save(file)
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    file.write_bytes(data)
    return ["disasm", file, "-o", folder / "x.sasm"], (
        f"{file}: the checksum over {len(data)} bytes does not match, so the file is damaged or cut short; copy or "
        "compile it again."
    )


def full_disk(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["compile", model, "-o", "/dev/full"], (
        "/dev/full: cannot be written (No space left on device); free space or take another path"
    )


def full_disk_logits(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["logits", model, "--prompt-ids", "1,2", "-o", "/dev/full"], (
        "/dev/full: cannot be written (No space left on device); free space or take another path"
    )


def no_folder(model: Path, folder: Path) -> tuple[list[object], str]:
    file = folder / "none" / "x.npy"
    return ["logits", model, "--prompt-ids", "1,2", "-o", file], (
        f"{file}: the directory {file.parent} is not there; make it or take another path"
    )


def unknown_chip(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt", "x", "--chip", "nanno"], (
        "chip 'nanno' is not known (did you mean 'nano'?); named chips are nano, micro, mini, slice64, server, "
        "server-sram, or give the path of a .toml file."
    )


def unknown_device(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt", "x", "--device", "simm"], (
        "device 'simm' is not known (did you mean sim?); installed devices are execute, null, rtl, sim"
    )


def no_prompt(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model], ("no prompt was given; give one of --prompt TEXT, --prompt-ids 1,2,3 and --batch FILE")


def two_prompts(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt", "x", "--prompt-ids", "1"], (
        "--prompt and --prompt-ids was given; give one of --prompt TEXT, --prompt-ids 1,2,3 and --batch FILE"
    )


def no_tokenizer(model: Path, folder: Path) -> tuple[list[object], str]:
    (model / "tokenizer.json").unlink()
    return ["generate", model, "--prompt", "x"], (
        f"{model}/tokenizer.json: not found; a model directory needs tokenizer.json"
    )


def bad_sampling(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt", "x", "--temperature", "-1", "--top-p", "1.5"], (
        "temperature=-1.0 must be 0 or a positive number; top_p=1.5 must be 0..1; correct the option"
    )


def bad_pages(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt", "x", "--page-tokens", "48"], (
        "--page-tokens=48 must be 32, 64, 128 or 256; take one of them"
    )


def bad_format(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt", "x", "--weights", "MXFP3"], (
        'profile: weights="MXFP3" must be one of E2M1, E4M3, INT8 or INT8x2; correct the profile'
    )


def profile_twice(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["generate", model, "--prompt", "x", "--weights", "MXFP4", "--profile", "p.toml"], (
        "--profile and --weights say the same thing twice; give one of them"
    )


def misspelt_option(model: Path, folder: Path) -> tuple[list[object], str]:
    return [
        "generate",
        model,
        "--promt",
        "x",
    ], "No such option: --promt (Possible options: --prompt, --prompt-ids, --rtl)"


def no_text(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["quality", model], "no text was given; give --text FILE, UTF-8 text that the model has not seen"


def long_window(model: Path, folder: Path) -> tuple[list[object], str]:
    return ["quality", model, "--text", model / "config.json", "--context", 1000], (
        f"--context=1000 must be 2..512, {model.name} has no more; take a smaller one"
    )


def bad_assembly(model: Path, folder: Path) -> tuple[list[object], str]:
    file = folder.parent / "a.sasm"
    file.write_text("HULT\n")
    return ["asm", file, "-o", folder / "x"], (
        f"{file}:1: instruction HULT is unknown; known are SET, ALU, DESC, ADV, LOOP, BR, READX, HALT, COPY, MATMUL, "
        "VEC, PICK, PUT, SYNC, RING, TOPK, GROUP."
    )


CASES = [
    truncated, wrong_shape, unknown_architecture, misspelt_field, long_prompt, foreign_token, small_memory, large_batch,
    foreign_program, corrupt_program, full_disk, full_disk_logits, no_folder, unknown_chip, unknown_device, no_prompt,
    two_prompts, no_tokenizer, bad_sampling, bad_pages, bad_format, profile_twice, misspelt_option, no_text,
    long_window, bad_assembly,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_bad_input_is_one_sentence(run: Runner, tiny: Path, tmp_path: Path, case: Case) -> None:
    model, folder = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny, model)
    folder.mkdir()
    arguments, sentence = case(model, folder)
    ended = run(*arguments)
    pattern = re.escape(f"systolith: {sentence}\n").replace(re.escape("[0-9]+"), "[0-9]+")
    assert re.fullmatch(pattern, ended.err), ended.err
    assert (ended.code, ended.out) == (2, "")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["compile", "logits", "generate"])
def test_a_disk_that_fills_up_leaves_nothing(
    run: Runner, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    old = folder / "file"
    old.write_text("older")
    real = os.fdopen

    class Full:
        """A file that takes 1,000 bytes."""

        def __init__(self, file: object) -> None:
            self.file, self.left = file, 1000

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()  # type: ignore[attr-defined]

        def write(self, data: bytes) -> int:
            self.left -= len(bytes(data))
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(bytes(data))

    monkeypatch.setattr(os, "fdopen", lambda handle, mode: Full(real(handle, mode)))
    arguments = {
        "compile": ["compile", tiny, "-o", old],
        "logits": ["logits", tiny, "--prompt-ids", "1,2", "-o", old],
        "generate": ["generate", tiny, "--prompt", "x", "--max-tokens", 2, "--json", "--logits", old],
    }[what]
    ended = run(*arguments)
    thing = "the program cannot" if what == "compile" else "cannot"
    end = "free space or take another path" + ("." if what == "compile" else "")
    assert ended.err == f"systolith: {old}: {thing} be written (No space left on device); {end}\n"
    assert (ended.code, ended.out) == (2, "")
    assert [p.name for p in folder.iterdir()] == ["file"]
    assert old.read_text() == "older"


def test_stdout_on_a_full_disk(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "systolith", "chips"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.stderr == "systolith: No space left on device; check the path and the space left\n"
    assert ended.returncode == 2


def test_an_interrupt_is_130_and_silent(run: Runner, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from systolith.runtime import session

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "compile_job", interrupt)
    ended = run("generate", tiny, "--prompt", "x")
    assert (ended.code, ended.out, ended.err) == (130, "", "")


def test_a_fault_of_our_own_is_one_sentence_too(run: Runner, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from systolith.runtime import session

    def fail(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(session, "compile_job", fail)
    ended = run("generate", tiny, "--prompt", "x")
    assert ended.code == 70
    assert ended.err.count("\n") == 1
    assert ended.err.startswith("systolith: fault in Systolith itself: KeyError at tests/cli/test_errors.py:")
