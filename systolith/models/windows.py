"""Layers that see all of the context and layers with a sliding window: `layer_types` of config.json."""

from __future__ import annotations

from collections.abc import Sequence

from systolith.models._text import show
from systolith.models.ops import AttrValue, Scalar

__all__ = ["FULL", "SLIDING", "by_kind", "read_kinds"]

FULL, SLIDING = "full_attention", "sliding_attention"


def read_kinds(value: object, default: Sequence[str]) -> tuple[list[str], list[str]]:
    """The kind of each layer, from `layer_types` or, where that is null, the default; and the faults."""
    if value is None:
        return list(default), []
    layers = len(default)
    if not isinstance(value, list) or len(value) != layers or any(kind not in (FULL, SLIDING) for kind in value):
        words = f"must be a list with {FULL} or {SLIDING} for each of {layers} layers, or null"
        return [], [f"layer_types={show(value)} {words}"]
    return list(value), []


def by_kind(kinds: object, full: Scalar, sliding: Scalar) -> AttrValue:
    """An attribute that follows the kind of the layer: one value where all layers are alike, else one for each."""
    assert isinstance(kinds, list)
    values = tuple(sliding if kind == SLIDING else full for kind in kinds)
    return values[0] if len(set(values)) == 1 else values
