"""The vector unit: one instruction at a time, from its first read to its last write.

The next one may read what this one writes, and nothing but the program's order says so: it starts when all writes are
visible. `isa.cycles.vector` counts beats, port accesses and stages.
"""

from __future__ import annotations

from systolith.isa import cycles

from .records import finish
from .state import Q_BUSY, S_VECTOR, Row, State, kernel

__all__ = ["start_vector"]

_V = 3


@kernel
def start_vector(st: State, s: int, number: int, start: int, op: Row) -> int:
    """Run an instruction that starts at `start`; give its end."""
    done = start + op[cycles.HOLD]
    end = done + op[cycles.TAIL]
    st.sl[s, S_VECTOR] = end
    st.qu[s, _V, Q_BUSY] += op[cycles.HOLD]
    return finish(st, s, _V, number, start, start, done, end)
