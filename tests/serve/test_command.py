"""`systolith serve`: what it prints, and what it refuses before it compiles anything."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from systolith.cli.serve import _keys
from systolith.spec import ConfigError
from tests.cli.helpers import Runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(capsys)


def test_the_one_line_is_the_address_and_ctrl_c_is_130() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "systolith", "serve", "--port", "0", "--slots", "1", "--context", "64"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"tinycode on nano at http://127\.0\.0\.1:\d+/v1\n", line)
        os.kill(process.pid, signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    assert (process.returncode, rest) == (130, "")
    assert said == (
        "systolith: warning: tinycode has no chat template, messages are joined, a line each; see --chat-template\n"
    )


def test_a_port_that_is_taken(run: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run("serve", "--port", port)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        f"systolith: --host 127.0.0.1 --port {port}: cannot be listened on (Address already in use); take another\n"
    )


def test_options_that_cannot_be(run: Runner, tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n \n")
    cases: list[tuple[list[object], str]] = [
        (["--pace", "chip", "--no-timing"], "--pace chip needs the chip's times; leave --no-timing out"),
        (["--context", 513], "--context=513 must be 2..512, tinycode has no more; take a smaller one"),
        (["--page-tokens", 48], "--page-tokens=48 must be 32, 64, 128 or 256; take one of them"),
        (["--device", "null"], "device null runs nothing, so it has no answers; take sim or execute"),
        (["--api-key", ""], "an API key must be ASCII without blanks around it and not empty; give another"),
        (["--api-key-file", empty], f"{empty}: holds no API key; give one a line"),
        (["--host", "256.0.0.1", "--api-key", "x"],
         "--host 256.0.0.1 --port 8000: cannot be listened on (Name or service not known); take another"),
        (["--chat-template", tmp_path / "none"],
         f"{tmp_path}/none: the chat template cannot be read (No such file or directory); check the path"),
        (["--port", 0, "--slots", 4000],
         "nano: a batch of 4000 has more rows than a step of tinycode on this chip can hold; take a smaller batch or a "
         "larger chip"),
    ]  # fmt: skip
    for arguments, sentence in cases:
        ended = run("serve", *arguments)
        assert (ended.code, ended.out) == (2, ""), arguments
        assert re.sub(r"Temporary failure in name resolution", "Name or service not known", ended.err) == (
            f"systolith: {sentence}\n"
        )


def test_500_damaged_files_of_keys(tmp_path: Path) -> None:
    file, rng = tmp_path / "keys", random.Random(8)
    data = b"sk-first\nsk-second\n\n"
    refused = 0
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(changed)
        try:
            assert all(key and key.isascii() for key in _keys([], file))
        except ConfigError:
            refused += 1
    assert 100 < refused < 400


def test_others_can_reach_it_and_no_key_is_asked_for(run: Runner) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        ended = run("serve", "--host", "0.0.0.0", "--port", taken.getsockname()[1])
    assert ended.err.splitlines()[0] == (
        "systolith: warning: --host 0.0.0.0 may be reached by others, and no --api-key was given: whoever reaches it "
        "can use it"
    )


def test_generating_needs_nothing_of_the_server() -> None:
    code = (
        "import sys\nfrom systolith.cli import main\n"
        "main(['generate', '--prompt', 'x', '--device', 'null', '--json'])\n"
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'prometheus_client', 'jinja2'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_without_the_extra_the_sentence_says_what_to_install(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("systolith.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ended = run("serve")
    assert (ended.code, ended.err) == (
        2, "systolith: uvicorn is not installed; install what serving needs: pip install 'systolith[serve]'\n",
    )  # fmt: skip
