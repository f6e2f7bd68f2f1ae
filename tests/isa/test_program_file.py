import os
import random
import re

import pytest

from systolith import spec
from systolith.isa import Halt, Image, Program, Requires, Set
from systolith.isa.program_file import MAGIC
from systolith.spec import CapacityError, ProgramError

from .helpers import random_program


def sample():
    p = random_program(random.Random(3), 40)
    needs = Requires(slices=2, dram_bytes=4096, pairs=("INT8xINT8",))
    return Program(
        name="sample", words=p.words, constants=p.constants, sem_init=p.sem_init, requires=needs,
        lines=tuple(f"k.py:{n} käse" for n in range(len(p.words))), meta={"a": [1, "ü"]},
        images=(Image(-1, 0, b"abc"), Image(1, 4000, bytes(96))),
    )  # fmt: skip


def test_save_and_load_are_inverse(tmp_path):
    p = sample()
    p.save(tmp_path / "p.sys")
    q = Program.load(tmp_path / "p.sys")
    assert q == p
    assert (q.sha256, q.images_sha256) == (p.sha256, p.images_sha256)
    assert os.listdir(tmp_path) == ["p.sys"]  # noqa: PTH208  # no temporary file stays


def test_500_random_byte_changes_are_refused(tmp_path):
    path = tmp_path / "p.sys"
    sample().save(path)
    good = path.read_bytes()
    rng = random.Random(11)
    for _ in range(500):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= rng.randrange(1, 256)
        path.write_bytes(bad)
        with pytest.raises(ProgramError, match=rf"^{re.escape(str(path))}: [^\n]*\.$"):
            Program.load(path)


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "p.sys"
    sample().save(path)
    good = path.read_bytes()
    cases = {
        b"": "this is no Systolith program; `systolith compile MODEL -o FILE` makes one.",
        b"\x7fELF" + good: "this is no Systolith program; `systolith compile MODEL -o FILE` makes one.",
        good[:30]: "the file ends after 30 bytes, inside its header; copy or compile it again.",
        MAGIC + b"\x02\x00" + good[12:]: "the file has format version 2, this Systolith reads 1; compile it again.",
        good[:-1]: f"the checksum over {len(good) - 1} bytes does not match, so the file is damaged or cut short; "
        "copy or compile it again.",
        good + b"x": f"the checksum over {len(good) + 1} bytes does not match, so the file is damaged or cut short; "
        "copy or compile it again.",
    }
    for data, message in cases.items():
        path.write_bytes(data)
        with pytest.raises(ProgramError, match=f"^{re.escape(f'{path}: {message}')}$"):
            Program.load(path)
    missing = tmp_path / "none"
    message = f"{missing}: the program file cannot be read (No such file or directory); check the path."
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        Program.load(missing)


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "no" / "p.sys"
    message = f"{path}: the program cannot be written (No such file or directory); free space or take another path."
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        sample().save(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "p.sys"
    path.write_bytes(b"old")

    class Full:
        def __init__(self, handle, mode):
            self.handle = handle

        def __enter__(self):
            return self

        def __exit__(self, *rest):
            os.close(self.handle)

        def write(self, part):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("systolith.isa.program_file.os.fdopen", Full)
    message = f"{path}: the program cannot be written (No space left on device); free space or take another path."
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        sample().save(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["p.sys"]


def test_the_digest_covers_code_and_not_names():
    words = (Set(r=1, imm=1).encode(), Halt().encode())
    a = Program(name="a", words=words)
    assert a.sha256 == Program(name="b", words=words, lines=("x", "y")).sha256
    assert a.sha256 != Program(words=(Set(r=1, imm=2).encode(), words[1])).sha256
    assert a.sha256 != Program(words=words, meta={"x": 1}).sha256
    assert a.sha256 != Program(words=words, requires=Requires(dram_bytes=4)).sha256


def test_a_chip_that_offers_less_is_refused():
    p = Program(name="big", words=(Halt().encode(),), requires=Requires(slices=2, spad_bytes=1 << 20))
    message = (
        "program 'big' does not fit on chip nano: it needs slices=2 and nano has 1, it needs "
        "scratchpad_bytes=1048576 and nano has 65536; take a larger chip or compile it for this one."
    )
    with pytest.raises(CapacityError, match=f"^{re.escape(message)}$"):
        p.check_chip(spec.load("nano"))
    old = Program(name="old", words=(Halt().encode(),), requires=Requires(isa_version=0))
    with pytest.raises(ProgramError, match=r"^program 'old' is for instruction set 0, this is 1; compile it again\.$"):
        old.check_chip(spec.load("nano"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": ()}, "program '' has no words."),
        ({"sem_init": (256,) + (0,) * 23}, "program '': sem_init must be 24 counts in 0..255."),
        ({"lines": ("a", "b")}, "program '' has 2 source lines for 1 words."),
        (
            {"requires": Requires(pairs=("FP8xFP8",))},
            "program '': requires.pairs=['FP8xFP8'] must be from E2M1xE2M1, E4M3xE2M1, INT8xE2M1, "
            "E4M3xE4M3, INT8xINT8.",
        ),
        (
            {"images": (Image(0, 0, b"abcd"),)},
            "program '': an image of 4 bytes at 0 of slice 0 does not fit in 1 slices of 0 bytes.",
        ),
        ({"words": (0,)}, "program '': word 0: opcode=0 is unknown; known are 1..17."),
    ],
)
def test_illegal_programs_are_named(values, message):
    with pytest.raises(ProgramError, match=f"^{re.escape(message)}$"):
        Program(**{"words": (Halt().encode(),)} | values)
