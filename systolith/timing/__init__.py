"""Cycles of a program: event-driven, per queue, from the resolved stream alone.

docs/decisions/0004-timing.md has the rules as hardware.
"""

from .machine import Executor, RingEvent, TimingMachine, TimingResult, simulate
from .path import EDGE, PARTS, WHY
from .state import RECORD
from .waterfall import Waterfall

__all__ = [
    "EDGE", "PARTS", "RECORD", "WHY", "Executor", "RingEvent", "TimingMachine", "TimingResult", "Waterfall", "simulate",
]  # fmt: skip
