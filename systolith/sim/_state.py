"""Columns of the integer tables that kernels share: state of a slice, operands, decoded words, configuration.

State is one row of int64 a slice, so that a kernel takes one array for all of it.
"""

from __future__ import annotations

from typing import Final

from systolith.spec.limits import CELLS, DESCRIPTORS, LOOP_DEPTH, REGISTERS, SEMAPHORES

# --- state of a slice -------------------------------------------------------------------------------------------------
PC: Final = 0
STATUS: Final = 1
RUNNING: Final = 0
BLOCKED: Final = 1
HALTED: Final = 2
CAUSE: Final = 3
"""Cause of HALT."""
DEPTH: Final = 4
"""Loops that run."""
ERR: Final = 5
"""Code of a trap, then up to four numbers that its sentence names."""
ERR_A: Final = 6
ERR_B: Final = 7
ERR_C: Final = 8
ERR_D: Final = 9
DONE: Final = 10
"""Words run in this call."""
REGS: Final = 16
SEMS: Final = REGS + REGISTERS
COUNTERS: Final = SEMS + SEMAPHORES
COUNTER_COUNT: Final = 16
LOOPS: Final = COUNTERS + COUNTER_COUNT
LOOP_START: Final = 0
LOOP_END: Final = 1
LOOP_LEFT: Final = 2
LOOP_ITERATION: Final = 3
LOOP_FIELDS: Final = 4
DESCS: Final = LOOPS + LOOP_DEPTH * LOOP_FIELDS

# --- descriptor: fields as in docs/decisions/0001, then what ADV keeps ------------------------------------------------
D_SPACE: Final = 0
D_FORMAT: Final = 1
D_SCALE: Final = 2
D_BASE: Final = 3
D_SBASE: Final = 4
D_EXT: Final = 5
D_STRIDE: Final = 8
D_STEP: Final = 11
D_XB: Final = 12
D_XE: Final = 13
D_VIA: Final = 14
D_UNIT: Final = 15
D_WRAP: Final = 16
CONSTANT_FIELDS: Final = 17
D_BASE0: Final = 17
"""Base and scale base of the constant it came from: where its ring starts."""
D_SBASE0: Final = 18
D_FIELDS: Final = 19
STATE: Final = DESCS + DESCRIPTORS * D_FIELDS

# --- operands of the instruction in hand ------------------------------------------------------------------------------
OD: Final = 0
OA: Final = 1
OB: Final = 2
OC: Final = 3
OE: Final = 4
OX: Final = 5
"""D[c+1]: the second exponent of shiftadd, the position of PICK."""
OPERANDS: Final = 6
O_SPACE: Final = 0
"""-1: no such operand."""
O_FORMAT: Final = 1
O_SCALE: Final = 2
O_BASE: Final = 3
O_SBASE: Final = 4
O_EXT: Final = 5
O_STRIDE: Final = 8
O_VIA: Final = 11
"""log2 of the rows one index stands for, plus 1; 0: none."""
O_LIST: Final = 12
"""Byte of the index list in the scratchpad."""
O_XB: Final = 13
"""Cell value added to i0 before the lookup."""
O_ABS: Final = 14
"""Byte 0 of the operand's space in the memory array."""
O_SIZE: Final = 15
"""Bytes of the space."""
O_LIST_ABS: Final = 16
"""Byte 0 of the scratchpad in the memory array."""
O_LIST_SIZE: Final = 17
O_FIELDS: Final = 18

# --- decoded word -----------------------------------------------------------------------------------------------------
W_OP: Final = 0
W_WAIT: Final = 1
W_POST: Final = 2
W_D: Final = 3
W_A: Final = 4
W_B: Final = 5
W_C: Final = 6
W_QUEUE: Final = 7
W_FIELDS: Final = 8
"""The 50 bits of the fields as one integer, for the resolved stream."""
W_F: Final = 9
"""The fields one by one, in the order of the instruction's record; at most 9."""
W_OPERANDS: Final = 18
"""Descriptor registers of the operands, in the order of OD .. OX; -1: none."""
WORD_COLUMNS: Final = 24

# --- configuration of the machine -------------------------------------------------------------------------------------
C_SLICES: Final = 0
C_WORDS: Final = 1
C_STRIDE: Final = 2
"""Bytes from one slice's memory to the next one's."""
C_CURSOR: Final = 3
"""The slice whose turn it is."""
C_MOVED: Final = 4
"""Words run since the cursor last passed slice 0: none means deadlock, if no slice is tired."""
C_TIRED: Final = 5
"""Slices that stopped for the limit since then."""
C_STOP: Final = 6
"""1: stop after a record of slice 0."""
C_RINGS: Final = 7
"""Words used in the ring buffer."""
C_OFFSET: Final = 8
"""Five offsets of spaces in a slice's memory, then their five sizes."""
C_SIZE: Final = 13
CONFIG: Final = 18

SPACES: Final = 5
DRAM, SPAD, SLOT, ACC, CELL = range(SPACES)
CELL_BYTES: Final = 4 * CELLS
E2M1, E4M3, INT8, FP32, INT32, E8M0 = range(6)
