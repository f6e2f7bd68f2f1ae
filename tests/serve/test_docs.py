"""docs/serve.md says what there is, and its example runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import typer

from systolith.cli import app
from systolith.serve.fields import FIELDS
from tests.serve.helpers import Server

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_every_field_stands_in_the_table() -> None:
    of = {("chat", "text"): "both", ("chat",): "chat", ("text",): "completions"}
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", PAGE, re.MULTILINE)
    assert rows == [(f.name, of[f.apis], f.about) for f in FIELDS]


def test_every_option_and_metric_is_described(fake: Server) -> None:
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    flags = [flag for p in command.params for flag in (*p.opts, *p.secondary_opts) if flag.startswith("--")]
    assert [flag for flag in flags if flag not in PAGE] == []
    fake.complete(prompt="x")
    metrics = fake.get("/metrics").data.decode()
    names = set(re.findall(r"^(?:vllm|systolith):\w+?(?=_bucket|_count|_sum|\{)", metrics, re.MULTILINE))
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
    assert len(names) == 14


def test_the_example_runs(real: Server) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code) == 1
    text = code[0].replace("http://127.0.0.1:8000/v1", real.url)
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "s on the chip to the first token" in ended.stdout
