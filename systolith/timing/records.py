"""Records: what each instruction waited for and when it did what, in a ring; what the waterfall and the trace read."""

from __future__ import annotations

from .state import (
    G_DONE,
    G_RECORDS,
    Q_END,
    Q_END_REF,
    R_BEGIN,
    R_DATA_END,
    R_END,
    R_FIRST,
    R_OWN_END,
    R_RUN_REF,
    R_SLICE,
    REC_COLS,
    S_END,
    S_END_REF,
    State,
    kernel,
)

__all__ = ["finish", "new_record", "slot_of"]


@kernel
def new_record(st: State, s: int) -> int:
    """Open a record and give its number."""
    number = st.g[G_RECORDS]
    rec = st.rec[number & (st.rec.shape[0] - 1)]
    for i in range(REC_COLS):
        rec[i] = 0
    rec[R_SLICE] = s
    rec[R_RUN_REF] = -1
    st.g[G_RECORDS] += 1
    return int(number)


@kernel
def slot_of(st: State, number: int) -> int:
    """Row of the ring that a record is in."""
    return int(number & (st.rec.shape[0] - 1))


@kernel
def finish(st: State, s: int, q: int, number: int, begin: int, first: int, data_end: int, own_end: int) -> int:
    """Close a record: an instruction ends no earlier than the one before it in its queue. Gives its end."""
    qu, rec = st.qu[s, q], st.rec[slot_of(st, number)]
    end = max(own_end, qu[Q_END])
    rec[R_BEGIN], rec[R_FIRST], rec[R_DATA_END], rec[R_OWN_END], rec[R_END] = begin, first, data_end, own_end, end
    qu[Q_END], qu[Q_END_REF] = end, number
    if end >= st.sl[s, S_END]:
        st.sl[s, S_END], st.sl[s, S_END_REF] = end, number
    st.g[G_DONE] += 1
    return int(end)
