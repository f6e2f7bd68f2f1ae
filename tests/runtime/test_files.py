"""Files are whole or not there."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from systolith.runtime.files import check_output, write_whole
from systolith.spec import ConfigError


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    write_whole(file, lambda f: f.write(b"one"))

    def fail(f: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError) as error:
        write_whole(file, fail)
    assert str(error.value) == f"{file}: cannot be written (No space left on device); free space or take another path"
    assert file.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "whole", lambda f: f.write(b""))
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "whole")]
    assert modes[0] == modes[1]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(f: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        check_output(tmp_path)
    assert str(error.value) == f"{tmp_path}: is a directory; give the path of a file"
