"""Many decode steps at once: points of device, model in a format, context, batch and layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from systolith.peers.catalogue import Device
from systolith.peers.formats import Precision
from systolith.peers.model import Scalars
from systolith.peers.vector import PIECE, Array, Points, variant_seconds
from systolith.peers.work import Work
from systolith.spec.errors import ConfigError

__all__ = ["Sweep"]

Index = npt.NDArray[np.integer[Any]]
_RATES = ("linear_rate", "expert_rate", "head_rate")


class Sweep:
    """Devices with their scalars, and variants: models in formats.

    Raises ConfigError for a device that lacks a figure which a variant or a layout of several devices needs.
    """

    def __init__(self, variants: Sequence[tuple[Work, Precision]], devices: Sequence[tuple[Device, Scalars]]) -> None:
        self.variants, self.devices = list(variants), list(devices)
        faults = [
            f"{device.key} has no figure for its {what}"
            for device, _ in devices
            for what, value in (("bandwidth", device.bytes_per_s), ("link", device.link_bytes_per_s))
            if value is None
        ]
        self.rates = np.zeros((len(self.variants), 4, len(self.devices)))
        for i, (work, precision) in enumerate(self.variants):
            for j, (device, _) in enumerate(self.devices):
                for k, kind in enumerate((precision.linear[1], precision.expert[1], precision.head[1], "bf16")):
                    rate = device.rate(kind)
                    if rate is None:
                        faults.append(f"{device.key} has no figure for its rate in {kind}, which {work.name} needs")
                    self.rates[i, k, j] = rate or 0.0
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))
        self.table = {
            "bandwidth": np.array([d.bytes_per_s for d, _ in devices], dtype=np.float64),
            "link": np.array([d.link_bytes_per_s for d, _ in devices], dtype=np.float64),
        } | {name: np.array([getattr(s, name) for _, s in devices]) for name in Scalars.names()}

    def decode_seconds(
        self, variant: Index, device: Index, context: Array, sequences: Array, tensor: Array, data: Array,
        pipeline: Array,
    ) -> Array:  # fmt: skip
        """Time of each point's decode step, [points].

        variant, device : indices.      context : positions seen.      sequences : of each group that `data` counts.
        tensor, data, pipeline : of the layout, as float64.
        """
        result = np.empty(len(variant))
        order = np.argsort(variant, kind="stable")
        bounds = np.searchsorted(variant[order], np.arange(len(self.variants) + 1))
        ones, zeros = np.ones(PIECE), np.zeros(PIECE)
        no = np.zeros(PIECE, dtype=bool)
        for number, (work, precision) in enumerate(self.variants):
            rates = dict(zip((*_RATES, "rate"), self.rates[number], strict=True))
            for start in range(bounds[number], bounds[number + 1], PIECE):
                index = order[start : min(start + PIECE, bounds[number + 1])]
                size, of = len(index), device[index]
                result[index] = variant_seconds(
                    work,
                    precision,
                    Points(
                        **{name: values.take(of) for name, values in (*rates.items(), *self.table.items())},
                        tensor=tensor[index], data=data[index], pipeline=pipeline[index], sequences=sequences[index],
                        rows=ones[:size], context=context[index], first=no[:size], shared=ones[:size],
                        launched=zeros[:size], hosted=ones[:size],
                    ),
                )  # fmt: skip
        return result
