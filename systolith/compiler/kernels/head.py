"""The head: rows that need logits are picked, multiplied by the table and told to whoever needs them."""

from __future__ import annotations

from systolith.compiler.context import Cell, Context, Counter
from systolith.compiler.kernels.linear import operand, product, sums
from systolith.compiler.plan import padded
from systolith.isa.instruction import Queue
from systolith.isa.vector import Op1

__all__ = ["head"]


def head(ctx: Context) -> None:
    """Logits of the picked rows, FP32, into the logits region of DRAM: of all slices where they are sampled there, else
    of the first. The final norm's operand and sums have been gathered; V has r."""
    b, plan = ctx.b, ctx.plan
    linear, fmt, rows, hidden = plan.head, plan.profile.activations, plan.rows, ctx.hidden
    out_rows, xe = plan.out_rows, Cell.OUT_ROWS
    deferred = plan.profile.deferred_norm
    b.tensor_name = "head"
    # L may read the operand when V has its sums and M its codes.
    b.sync(Queue.V, post="released")
    b.sync(Queue.M, post="gathered")
    with b.descriptors(3) as (index, a, d):
        b.load(index, ctx.spad("record", "INT32", (out_rows, 1, 1), (1, 0, 0), offset=4 * ctx.memory.record.out_rows))
        b.load(a, ctx.spad("a", fmt, (rows, 1, hidden), (hidden, 0, 1), scales=rows * hidden, via=index))
        b.load(d, ctx.spad("picked", fmt, (out_rows, 1, hidden), (hidden, 0, 1), scales=out_rows * hidden, xe=xe))
        b.copy(Queue.L, d, a, wait="released gathered", post="kv_full" if deferred else "kv_full load_full")
        b.load(a, ctx.spad("r", "FP32", (rows, 1, 1), (1, 0, 0), via=index))
        b.load(d, ctx.spad("r_picked", "FP32", (out_rows, 1, 1), (1, 0, 0), xe=xe))
        if deferred:
            b.copy(Queue.L, d, a, post="load_full")
        b.sync(Queue.V, wait="load_full")
    b.sync(Queue.M, wait="kv_full")
    receivers = 1 if plan.options.every_row else 0
    with ctx.cell_loop(Cell.HEAD_TILES) as tile, b.descriptors(3) as (stage, r, out):
        product(ctx, linear, operand(ctx, "picked", hidden, fmt, out_rows, xe), out_rows, xe)
        with sums(ctx, linear, out_rows, xe) as s:
            ctx.load_ring(stage, ctx.stage("FP32", (out_rows, 1, linear.nt), (linear.nt, 0, 1), xe=xe), ctx.r_stage)
            b.load(r, ctx.spad("r_picked", "FP32", (out_rows, 1, 1), (1, 0, 0)))
            b.vec(stage, s.d, r if deferred else 0, op1=Op1.MUL if deferred else Op1.NONE,
                  wait=f"{s.wait} stage_free", post=f"{s.post} stage_full")  # fmt: skip
        width = padded(plan.model.vocab)
        b.load(
            out,
            ctx.dram(
                "logits", "FP32", (out_rows, 1, linear.nt), (width, 0, 1), step=linear.nt, xb=Cell.HEAD_FIRST, xe=xe
            ),
        )
        b.advance_r(out, 0, ctx.r_log)
        b.advance_r(out, 3, tile)
        b.put(out, stage, count=receivers, wait="stage_full", post="stage_free")
        ctx.bump(ctx.r_stage)
    ctx.arrive(("arrived", Counter.LOGITS))
    b.tensor_name = ""
