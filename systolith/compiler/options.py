"""What a user chooses of a program: how many requests, how long, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from systolith.spec.errors import ConfigError
from systolith.spec.limits import CHUNK_TOKENS

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user chooses.

    batch: request slots; context: most tokens of a sequence; page_tokens: 1..256, a power of two; steps: most step
    records the program can walk through; log_rows: rows of logits that are kept (0: the last step's); every_row: logits
    of every row of a prompt; dump: keep intermediates; rows: most rows of a step (None: what fits); serve: the program
    takes its steps from a mailbox and never ends by itself; pages: of the pool of each lane group (None: all slots at
    full context); grid: steps of a prefill on the grid of slices, where model and chip allow them (`compiler.grid`).
    """

    batch: int = 1
    context: int = 512
    page_tokens: int = 64
    steps: int = 64
    log_rows: int = 0
    every_row: bool = False
    dump: bool = False
    rows: int | None = None
    serve: bool = False
    pages: int | None = None
    grid: bool = True

    def __post_init__(self) -> None:
        page = self.page_tokens
        faults = [f"{name}={value} must be at least {low}" for name, value, low in (
            ("batch", self.batch, 1), ("context", self.context, 1), ("steps", self.steps, 2),
            ("log_rows", self.log_rows, 0), ("rows", 1 if self.rows is None else self.rows, 1),
            ("pages", 1 if self.pages is None else self.pages, 1),
        ) if value < low]  # fmt: skip
        if not 1 <= page <= CHUNK_TOKENS or page & (page - 1):
            faults.append(f"page_tokens={page} must be a power of two 1..{CHUNK_TOKENS}")
        if self.serve and (self.every_row or self.log_rows or self.dump):
            faults.append("serve=true goes with neither every_row, log_rows nor dump, which keep what a job has made")
        if faults:
            raise ConfigError("; ".join(faults) + "; correct the option")
