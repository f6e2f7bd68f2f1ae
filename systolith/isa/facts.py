"""What the cycle rules read of a chip, as one array of integers, and the bit positions of the fields that they read."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from systolith.spec import QUEUES, Chip

__all__ = ["FACTS", "facts"]

# What `facts` holds of a chip, by index. Cycles and bytes unless the name says otherwise.
(
    SLICES, ROWS, COLUMNS, LOAD_BYTES, PASSES, BLOCKS, SKEW, ACC_INTERVAL, UNITS_PER_CYCLE, BURST_UNITS, DRAM_LATENCY,
    BURST, OUTSTANDING, BANK_BYTES, BANK_SIZE, LANES, LOG2_LANES, NET_NUM, NET_DEN, NET_LATENCY, ISSUE, BRANCH,
    SEMAPHORE, BANK, DMA, NORMALISE, ADD, MULTIPLY, FUNCTION, CONVERT, ARRAY_COLUMNS, STACK, DEPTH, RATE, SHIFT,
) = (*range(33), 33 + len(QUEUES), 33 + len(QUEUES) + 9)  # fmt: skip
# DEPTH + queue: entries. RATE + 3 * format of A + format of the weights: cycles of a row in a pass.
# SHIFT + i: lowest bit of field i of _SHIFTS.
_SHIFTS: Final = (
    ("MATMUL", "by_rows"), ("MATMUL", "terms"), ("VEC", "op1"), ("VEC", "op2"), ("VEC", "func"), ("VEC", "red"),
    ("PUT", "sem"), ("PUT", "counter"), ("PUT", "expect"), ("PUT", "arrive"), ("PUT", "apart"),
    ("LOOP", "len"), ("COPY", "free"),
)  # fmt: skip
(
    BY_ROWS, TERMS, OP1, OP2, FUNC, RED, PUT_SEM, PUT_COUNTER, PUT_EXPECT, PUT_ARRIVE, PUT_APART, LOOP_LEN, FREE,
) = range(SHIFT, SHIFT + 13)  # fmt: skip
FACTS: Final = SHIFT + len(_SHIFTS)
"""Length of `facts`."""


@lru_cache(maxsize=64)
def facts(chip: Chip) -> npt.NDArray[np.int64]:
    """Collect what the rules read of a chip, int64 [FACTS]."""
    from .registry import BY_NAME  # the records import this module

    c = chip
    out = np.zeros(FACTS, np.int64)
    bandwidth, ingress = c.dram_sustained_bytes_per_cycle, c.ingress_bytes_per_cycle
    out[:DEPTH] = (
        c.slices, c.array_rows, c.columns, c.weight_load_bytes, c.passes_per_block, c.blocks_per_pass,
        c.array_skew_cycles, c.accumulator_interval_cycles, bandwidth.numerator,
        c.dram_burst_bytes * bandwidth.denominator, c.dram_latency_cycles, c.dram_burst_bytes, c.dram_outstanding,
        c.bank_bytes, c.bank_size_bytes, c.lanes, c.log2_lanes, ingress.numerator, ingress.denominator,
        c.network_latency_cycles, c.issue_cycles, c.branch_cycles, c.semaphore_cycles, c.bank_cycles, c.dma_cycles,
        c.normalise_cycles, c.fp32_add_cycles, c.fp32_multiply_cycles, c.function_cycles, c.convert_cycles,
        c.array_cols, c.array_stack,
    )  # fmt: skip
    for i, queue in enumerate(QUEUES):
        out[DEPTH + i] = c.queue_depth(queue)
    out[RATE : RATE + 9] = 1
    for i, pair in enumerate(("E2M1xE2M1", "E4M3xE2M1", "INT8xE2M1", "E4M3xE4M3", "INT8xINT8")):
        out[RATE + (0, 3, 6, 4, 8)[i]] = (1 / c.rate(pair)).numerator
    for i, (name, field) in enumerate(_SHIFTS):
        out[SHIFT + i] = next(bits.low for bits in BY_NAME[name].LAYOUT if bits.name == field)
    return out
