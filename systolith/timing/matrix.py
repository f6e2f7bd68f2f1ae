"""The matrix unit: a loader of weights before the array, each with its own instruction.

The first tile loads while the array still streams the instruction before; the loader takes the next instruction when
the last tile of this one has gone into the array. `isa.cycles.matmul` counts passes and loads.
"""

from __future__ import annotations

from systolith.isa import cycles

from .records import finish, slot_of
from .state import Q_BUSY, R_BOUND, S_ARRAY, S_LOADER, Row, State, kernel

__all__ = ["start_matrix"]

_M = 2


@kernel
def start_matrix(st: State, s: int, number: int, start: int, op: Row) -> int:
    """Run a MATMUL that starts at `start`; give its end."""
    sl = st.sl[s]
    loaded = start + op[cycles.LEAD]
    first = max(loaded, sl[S_ARRAY])
    if first > loaded:
        st.rec[slot_of(st, number)][R_BOUND] = 1
    sl[S_ARRAY] = first + op[cycles.HOLD]
    sl[S_LOADER] = max(start + 1, sl[S_ARRAY] - op[cycles.LAST])
    st.qu[s, _M, Q_BUSY] += op[cycles.HOLD]
    return finish(st, s, _M, number, loaded, first, sl[S_ARRAY], sl[S_ARRAY] + op[cycles.TAIL])
