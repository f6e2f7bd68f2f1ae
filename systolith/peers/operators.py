"""Single operators that were measured on a device, and what the device model gives for them.

A row is a matrix product, the attention of a prompt or of a decode step; each takes its kernels' time beside that of
`model.product_seconds` or `model.attend_seconds`. Those of the H200 were captured and replayed, as the collector of
their source does, so that launching is no part of them.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from systolith.peers.catalogue import Device, find_device
from systolith.peers.model import EXP_COST
from systolith.spec.errors import ConfigError

__all__ = ["Operators", "read_a100", "read_h200"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Operators:
    """Measured operators of one kind. All arrays are [rows].

    work : operations.      rate : operations a second of the device in the format.      moved : bytes.
    kernels : of one.      cached : whether the bytes are KV cache.      measured : seconds.
    """

    kind: str
    device: Device
    work: Array
    rate: Array
    moved: Array
    kernels: Array
    cached: bool
    measured: Array

    def predict(self, scalars: Array) -> Array:
        """Seconds [sets, rows] for scalars [sets, 6]."""
        compute, memory, _, kernel = (scalars[:, i, None] for i in range(4))
        bandwidth = float(self.device.bytes_per_s or 0.0)
        busy = (np.hypot if self.kind == "gemm" else np.maximum)(
            self.work / (compute * self.rate), self.moved / (memory * bandwidth)
        )
        return np.asarray(busy + self.kernels * kernel)


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); check --data") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; give the file as it was published") from None
    rows = list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))
    faults = []
    if not rows or any(name not in rows[0] for name in columns):
        faults.append(f"{path}: its header must have {', '.join(columns)}; give the file as it was published")
    for number, row in enumerate(rows if not faults else [], 2):
        for name in columns:
            try:
                good = math.isfinite(float(row[name])) and float(row[name]) >= 0
            except (TypeError, ValueError):
                good = name in ("op", "dtype", "kv_dtype") or not row[name]
            if not good:
                faults.append(f"{path}: row {number}: {name}={row[name]!r:.40} must be a number, 0 or more")
    if faults:
        raise ConfigError(faults)
    return rows


def read_a100(path: Path) -> list[Operators]:
    """Matrix products in FP16: columns m, n, k, latency_ms."""
    rows = _rows(path, ("m", "n", "k", "latency_ms"))
    m, n, k, t = (np.array([float(row[name]) for row in rows]) for name in ("m", "n", "k", "latency_ms"))
    device = find_device("a100")
    rate = np.full(len(rows), float(device.rate("bf16") or 0.0))
    return [
        Operators("gemm", device, 2 * m * n * k, rate, 2 * (n * k + m * k + m * n), np.ones(len(rows)), False, t * 1e-3)
    ]


def read_h200(path: Path) -> list[Operators]:
    """Products and attention of an H200: columns op, dtype, kv_dtype, m, n, k, batch, isl, past_kv, heads, ..."""
    names = ("m", "n", "k", "batch", "isl", "past_kv", "heads", "kv_heads", "head_dim", "latency_ms")
    rows = _rows(path, ("op", "dtype", "kv_dtype", *names))
    device = find_device("h200")
    rates = {"bfloat16": float(device.rate("bf16") or 0.0), "fp8": float(device.rate("fp8") or 0.0)}
    size = {"bfloat16": 2.0, "fp8": 1.0}
    found = []
    for kind in ("gemm", "context_attention", "generation_attention"):
        some = [row for row in rows if row["op"] == kind]
        if not some:
            continue
        unknown = sorted({row[name] for row in some for name in ("dtype", "kv_dtype") if row[name]} - set(rates))
        if unknown:
            raise ConfigError(f"{path}: dtype {', '.join(unknown)} is none of {', '.join(rates)}; remove its rows")
        v = {name: np.array([float(row[name] or 0) for row in some]) for name in names}
        if kind == "gemm":
            one = np.array([size[row["dtype"]] for row in some])
            work = 2 * v["m"] * v["n"] * v["k"]
            moved = one * (v["n"] * v["k"] + v["m"] * v["k"]) + 2 * v["m"] * v["n"]
            rate = np.array([rates[row["dtype"]] for row in some])
            kernels = 3 - one  # rows of FP8 are narrowed by a kernel of its own
        else:
            kernels = np.full(len(some), 2.0)
            first = kind == "context_attention"
            pairs = v["batch"] * (v["isl"] * (v["isl"] + 1) / 2 if first else v["past_kv"] + 1)
            work = pairs * v["heads"] * (4 * v["head_dim"] + (EXP_COST if first else 0))
            cache = np.array([size[row["kv_dtype"]] for row in some])
            moved = np.zeros(len(some)) if first else pairs * 2 * v["kv_heads"] * v["head_dim"] * cache
            rate = np.full(len(some), rates["bfloat16"])
        seconds, cached = v["latency_ms"] * 1e-3, kind == "generation_attention"
        found.append(Operators(kind, device, work, rate, moved, kernels, cached, seconds))
    return found
