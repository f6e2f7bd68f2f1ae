"""Steps and layouts for tests of the device model."""

from __future__ import annotations

from pathlib import Path

from systolith.peers.model import Scalars
from systolith.peers.rows import COLUMNS

GOLDEN = Path(__file__).parents[1] / "golden" / "peers"
PLAIN = Scalars(compute=0.5, memory=0.8, vector=0.25, kernel_s=4e-6, launch_s=2e-6, row_s=1e-5)

ROW = {
    "id": "1", "chip": "H100", "n_chips": "1", "model": "Llama 3.1 8B", "precision": "fp8", "kv_precision": "fp8",
    "parallelism": "TP1", "input_len": "128", "output_len": "128", "batch_or_concurrency": "8",
    "metric": "output tokens/s", "value": "1000", "unit_scope": "system total", "framework": "vLLM 0.10",
    "source": "none", "date": "2025", "confidence": "measured", "notes": "",
}  # fmt: skip


def text_of(*rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> str:
    """A CSV file of rows, each given by what differs from ROW."""
    lines = [",".join(columns)]
    for number, row in enumerate(rows, 1):
        cells = {**ROW, "id": str(number), **row}
        lines.append(",".join(f'"{cells[name]}"' if "," in cells[name] else cells[name] for name in columns))
    return "\n".join(lines) + "\n"
