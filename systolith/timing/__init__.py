"""Cycles of a program: event-driven, per queue, from the resolved stream alone.

docs/decisions/0004-timing.md has the rules as hardware.
"""

from .layers import LayerMachine, layer_loop
from .machine import Executor, RingEvent, TimingMachine, TimingResult, simulate
from .path import EDGE, PARTS, WHY
from .slices import STATES, SliceTimes
from .state import RECORD
from .waterfall import Waterfall

__all__ = [
    "EDGE", "PARTS", "RECORD", "STATES", "WHY", "Executor", "LayerMachine", "RingEvent", "SliceTimes", "TimingMachine",
    "TimingResult", "Waterfall", "layer_loop", "simulate",
]  # fmt: skip
