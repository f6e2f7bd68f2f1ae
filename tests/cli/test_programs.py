"""`compile`, `asm`, `disasm`: from a model to text and back."""

from __future__ import annotations

from pathlib import Path

from systolith.isa.program import Program
from tests.cli.helpers import Runner


def test_text_goes_round(run: Runner, tiny: Path, tmp_path: Path) -> None:
    first, text, second = tmp_path / "a.prog", tmp_path / "a.sasm", tmp_path / "b.prog"
    made = run("compile", tiny, "-o", first, "--chip", "micro", "--batch", 2, "--context", 300, "--json").json
    assert run("disasm", first, "-o", text).out == ""
    assert run("disasm", first).out.rstrip("\n") == text.read_text().rstrip("\n")
    ended = run("asm", text, "-o", second, "--images", first)
    a, b = Program.load(first), Program.load(second)
    assert a.sha256 == b.sha256 == made["program_sha256"]
    assert a.images_sha256 == b.images_sha256
    assert ended.out == f"{second}: {len(a.words)} words, {len(a.images)} images, program {a.sha256}\n"
    assert a.meta["options"]["batch"] == 2
    assert a.requires.slices == 2


def test_a_program_is_the_same_each_time(run: Runner, tiny: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("compile", tiny, "-o", tmp_path / name).code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_compile_reports_what_it_made(run: Runner, tiny: Path, tmp_path: Path) -> None:
    ended = run("compile", tiny, "-o", tmp_path / "a", "--weights", "MXFP4", "--activations", "MXFP8")
    assert ended.code == 0
    assert ended.out.startswith(
        f"{tmp_path / 'a'}: tiny for nano, weights MXFP4, activations MXFP8, KV MXINT8, P MXINT8, head MXFP8; batch 1, "
        "context 512, "
    )


def test_a_program_goes_to_a_pipe(run: Runner, tiny: Path, tmp_path: Path) -> None:
    assert run("compile", tiny, "-o", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
