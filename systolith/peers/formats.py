"""Formats of weights, activations and KV cache that a measurement may have, and the rate of the device each runs at."""

from __future__ import annotations

import re
from dataclasses import dataclass

from systolith.peers.catalogue import Device
from systolith.peers.work import Work
from systolith.spec.errors import ConfigError

__all__ = ["FORMATS", "Precision", "precision_of"]

FORMATS = ("bf16", "fp8", "int8", "fp4", "int8w", "int4w")
"""Of weights and activations; `w`: of weights alone, which are widened before they meet 16-bit activations."""

_WEIGHT_BITS = {"bf16": 16.0, "fp8": 8.0, "int8": 8.0, "fp4": 4.5, "int8w": 8.0, "int4w": 4.25}
"""With scales: FP4 in blocks of 16 with a byte each; 4-bit integers in groups of 128 with a scale and a zero."""
_RATE = {"bf16": "bf16", "fp8": "fp8", "int8": "int8", "fp4": "fp4", "int8w": "bf16", "int4w": "bf16"}
_ACTIVATION_BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5625, "int8w": 2.0, "int4w": 2.0}
_KV_BITS = {"bf16": 16.0, "fp8": 8.0, "int8": 8.0, "fp4": 4.5}


@dataclass(frozen=True)
class Precision:
    """Bits of an element with its scales, and the device's rate that products run at.

    linear, expert, head : (bits of a weight, rate).      activation_bytes : of what goes into a product.
    widened : whether weights are made wider before they are multiplied.
    """

    linear: tuple[float, str]
    expert: tuple[float, str]
    head: tuple[float, str]
    activation_bytes: float
    kv_bits: float
    widened: bool

    def of(self, tensor: str) -> tuple[float, str]:
        """(bits, rate) of a product of `Work`."""
        if tensor == "router":
            return 16.0, "bf16"
        found: tuple[float, str] = getattr(self, tensor)
        return found


def group_bits(text: str) -> float | None:
    """Bits that a weight's share of a scale and a zero of 16 bits takes, where a name such as int4w-g32 says so."""
    found = re.search(r"g(\d{1,5})$", text)
    return 32 / int(found[1]) if found and int(found[1]) else None


def precision_of(name: str, kv: str, work: Work, device: Device, group: float | None = None) -> Precision:
    """How a model of a format runs on a device.

    name, kv : of FORMATS.      group : bits a weight's scales take, else the usual.
    A model whose experts were published as MXFP4 keeps them so; the format is then that of activations, and what its
    config leaves alone stays at 16 bits. The head is never quantised, but by formats of weights alone.
    Raises ConfigError where the device has no rate for it.
    """
    bits, rate = _WEIGHT_BITS[name], _RATE[name]
    if group is not None and name == "int4w":
        bits = 4.0 + group
    if kv not in _KV_BITS:
        raise ConfigError(f"kv_precision={kv} is none of {', '.join(_KV_BITS)}")
    linear, expert = (bits, rate), (bits, rate)
    if work.native_expert_bits is not None:
        linear = (16.0, "bf16")
        native = "fp8" if name in ("fp8", "fp4") and device.rate("fp8") else "bf16"
        expert = (work.native_expert_bits, native)
    for _, needed in (linear, expert):
        if not device.rate(needed):
            raise ConfigError(f"{device.key} has no figure for its rate in {needed}, which {name} needs")
    if not device.rate("bf16"):
        raise ConfigError(f"{device.key} has no figure for its rate in bf16, which attention needs")
    head = (bits, rate) if name.endswith("w") else (16.0, "bf16")
    return Precision(linear, expert, head, _ACTIVATION_BYTES[name], _KV_BITS[kv], name.endswith("w"))
