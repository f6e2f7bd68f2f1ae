"""`python -m tests.serve.launch JSON`: a server on a free port with settings of its own; prints where, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from systolith.cli._options import open_model
from systolith.models.profile import Profile
from systolith.serve.server import Listening, serve
from systolith.serve.worker import Setup
from systolith.spec import load


def show(listening: Listening) -> None:
    print(json.dumps({"url": listening.url, "engine": listening.engine_pid, "plain": listening.plain_chat}), flush=True)


def main() -> None:
    given = json.loads(sys.argv[1])
    checkpoint = open_model(given.pop("model", "tinycode"))
    keys, chat_template = given.pop("keys", []), given.pop("chat_template", None)
    setup = {
        "slots": 4, "context": 256, "page_tokens": 64, "pages": None, "max_waiting": 8, "prefill_chunk": None,
        "device": "sim", "timing": True, "prefix_cache": True, "pace": False,
    } | given  # fmt: skip
    chip = load(setup.pop("chip", "nano"))
    serve(
        Setup(checkpoint=checkpoint.path, chip=chip, profile=Profile.default("INT8", "INT8", "INT8"), **setup),
        checkpoint, host="127.0.0.1", port=0, keys=keys, chat_template=chat_template and Path(chat_template),
        on_ready=show,
    )  # fmt: skip


if __name__ == "__main__":
    main()
