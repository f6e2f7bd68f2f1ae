"""Points a second of the vectorised device model on one core: `python -m bench.points`.

Distinct random points of device, model in a format, context, batch and layout; the time from index arrays to seconds.
Some are held against the scalar path. Writes bench/results/points.md.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from bench.__main__ import RESULTS, commit, processor, table
from systolith.peers.catalogue import find_device
from systolith.peers.facts_file import packaged
from systolith.peers.formats import precision_of
from systolith.peers.model import Layout, Step, step_seconds
from systolith.peers.sweep import Sweep
from systolith.peers.work import work_of

COUNT = 2_000_000
DEVICES = ("h100", "h200", "b200", "gb200", "mi300x", "l40s")
MODELS = (
    "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "qwen3-30b-a3b", "qwen3-235b-a22b", "gpt-oss-20b",
    "gpt-oss-120b", "deepseek-r1", "llama-4-maverick", "mixtral-8x7b",
)  # fmt: skip


def main() -> None:
    """Measure, compare, write."""
    facts, _ = packaged()
    devices = [find_device(key) for key in DEVICES]
    scalars = [facts.generations[device.generation] for device in devices]
    variants = [
        (work_of(name), precision_of(fmt, "fp8", work_of(name), devices[0]))
        for name in MODELS
        for fmt in ("bf16", "fp8")
    ]
    sweep = Sweep(variants, list(zip(devices, scalars, strict=True)))
    rng = np.random.default_rng(0)
    variant, device = rng.integers(len(variants), size=COUNT), rng.integers(len(devices), size=COUNT)
    context, sequences = rng.integers(1, 131072, size=COUNT), rng.integers(1, 4096, size=COUNT)
    tensor, data, pipeline = (2 ** rng.integers(0, 4, size=COUNT) for _ in range(3))
    keys = np.stack([variant, device, context, sequences, tensor, data, pipeline])
    distinct = len(np.unique(np.ascontiguousarray(keys.T).view([("", keys.dtype)] * 7)))
    arrays = [a.astype(np.float64) for a in (context, sequences, tensor, data, pipeline)]
    sweep.decode_seconds(variant[:20000], device[:20000], *(a[:20000] for a in arrays))
    spent = []
    for _ in range(3):
        start = time.process_time()
        found = sweep.decode_seconds(variant, device, *arrays)
        spent.append(time.process_time() - start)
    worst = 0.0
    for i in rng.integers(COUNT, size=2000):
        want = step_seconds(
            *variants[variant[i]], devices[device[i]], Layout(int(tensor[i]), int(data[i]), int(pipeline[i])),
            Step(float(sequences[i]), 1.0, float(context[i]), False), scalars[device[i]],
        )  # fmt: skip
        worst = max(worst, abs(found[i] / want - 1))
    rows = [[f"{distinct:,}", f"{COUNT / min(spent):,.0f}", f"{COUNT / max(spent):,.0f}", f"{worst:.1e}"]]
    text = table(["distinct points", "points a second, best of 3", "worst of 3", "greatest difference of 2,000"], rows)
    where = f"{processor()}, one thread, CPU seconds, NumPy {np.__version__}, {len(variants)} variants"
    title = "# Points a second of the vectorised device model"
    page = f"{title}\n\n`python -m bench.points` at {commit()}: {where}, {len(DEVICES)} devices.\n\n{text}\n"
    (RESULTS / "points.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
