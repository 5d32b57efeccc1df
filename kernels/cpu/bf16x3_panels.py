"""Products of bf16x3 whose operands come fresh: while one matrix A is multiplied, the next one is split.

    C[i][k] = sum over c of A[i][c] B[c][k]        for blocks of 16 rows of A and 16 columns of B, see ``bf16x3``

    A    [chunk][block][row][part][32]      chunks of 32 numbers along the sum
    B    [chunk][row][part][32]             of one column of blocks: a panel
    C    [block][row][16]

Splitting 16 rows takes longer than a third of a block's products. Both at once take as long as the products:
TDPBF16PS waits 16 cycles for its turn and leaves all other units idle. So after the products of each block a unit, four
rows of what comes next, is split, as long as there are any in the queue:

    queue   done, count, source, target, upper, each, jump
            unit ``u`` is read at ``source + u * 64`` and ``upper`` elements on (see ``bf16x3.split``), from unit
            ``each`` on, where the second chunk begins, ``jump`` elements further, and written to ``target + u * 384``
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .amx import I8, I64, emit
from .bf16x3 import BLOCK, PARTS, ROW, SHORTS, SIDE, store_parts
from .compile import jit
from .simd import INDEX, Vectors, close_phis, const, keep_whole, load, open_phis, shift, store

HEIGHT = 4  # blocks of A multiplied at once: with one of A and three of B these are all tile registers
UNIT = 4  # rows of a unit of the queue
QUEUE = 7
DONE, COUNT, SOURCE, TARGET, UPPER, EACH, JUMP = range(QUEUE)
DEPTH = 2  # chunks of a pass
ROW_BYTES, BLOCK_BYTES, LINE = 2 * ROW, 2 * BLOCK, 64
AHEAD = 16 * BLOCK_BYTES  # how far behind what is read B is asked for


def _field(b: ir.IRBuilder, queue: ir.Value, place: int) -> ir.Value:
    return b.load(b.gep(queue, [const(place)]))


def _split_rows(b: ir.IRBuilder, v: Vectors, queue: ir.Value, unit: ir.Value) -> None:
    """Split unit ``unit`` of the queue."""
    source = b.inttoptr(_field(b, queue, SOURCE), v.element.as_pointer())
    target = b.inttoptr(_field(b, queue, TARGET), ir.IntType(16).as_pointer())
    second = b.icmp_signed(">=", unit, _field(b, queue, EACH))
    offset = b.select(second, _field(b, queue, JUMP), const(0))
    lower = b.gep(source, [b.add(offset, b.mul(unit, const(UNIT * SIDE)))])
    upper = b.gep(lower, [_field(b, queue, UPPER)])
    target = b.gep(target, [b.mul(unit, const(UNIT * ROW))])
    for row in range(UNIT):
        low, high = (b.gep(p, [const(row * SIDE)]) for p in (lower, upper))
        store_parts(v, [v.load(p, const(0)) for p in (low, high)], b.gep(target, [const(row * ROW)]))


def _make_panel(height: int) -> Any:
    """An intrinsic ``(chunks, a, a_chunk, b, c, more, queue)``: ``height`` blocks of A by a panel of B, added to C
    where ``more`` is not 0."""

    @intrinsic
    def panel(typingctx: Any, chunks: Any, a: Any, a_chunk: Any, b: Any, c: Any, more: Any, queue: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            chunks, a, a_chunk, b, c, more, queue = args
            v = Vectors(builder, sig.args[4])

            def at(pointer: ir.Value, offset: int) -> ir.Value:
                return builder.gep(builder.bitcast(pointer, I8.as_pointer()), [const(offset)])

            with builder.if_else(builder.icmp_signed("==", more, const(0))) as (alone, added):
                with alone:
                    for i in range(height):
                        emit(builder, "tilezero", i)
                with added:
                    for i in range(height):
                        emit(builder, "tileloadd64", i, at(c, i * SIDE * LINE), const(LINE))
            begun, count = _field(builder, queue, DONE), _field(builder, queue, COUNT)
            entry = builder.block
            step, end = (builder.append_basic_block(name) for name in ("step", "end"))
            builder.branch(step)

            builder.position_at_end(step)
            phis = open_phis(builder, [const(0), a, b, begun], entry)
            j, left, right, unit = phis
            for part in range(PARTS):
                emit(builder, "tileloadd64", height + 1 + part, at(right, part * LINE), const(ROW_BYTES))
            for i in range(height):
                for part in reversed(range(PARTS)):
                    emit(builder, "tileloadd64", height, at(left, i * BLOCK_BYTES + part * LINE), const(ROW_BYTES))
                    for other in reversed(range(PARTS - part)):
                        emit(builder, "tdpbf16ps", i, height, height + 1 + other)
                for line in range(i, BLOCK_BYTES // LINE, height):
                    v.prefetch(at(right, AHEAD + LINE * line), write=False, level=2)
                before = builder.block
                with builder.if_then(builder.icmp_signed("<", unit, count)):
                    _split_rows(builder, v, queue, unit)
                    after, inside = builder.add(unit, const(1)), builder.block
                following = builder.phi(I64)
                following.add_incoming(unit, before)
                following.add_incoming(after, inside)
                unit = following
            j = builder.add(j, const(1))
            advanced = [j, builder.gep(left, [a_chunk]), builder.gep(right, [const(BLOCK)]), following]
            close_phis(phis, advanced, builder.block)
            builder.cbranch(builder.icmp_signed("<", j, chunks), step, end)

            builder.position_at_end(end)
            builder.store(following, builder.gep(queue, [const(DONE)]))
            for i in range(height):
                emit(builder, "tilestored64", i, at(c, i * SIDE * LINE), const(LINE))
            return context.get_dummy_value()

        floats = types.CPointer(types.float32)
        return types.void(types.int64, SHORTS, types.int64, SHORTS, floats, types.int64, INDEX), codegen

    return panel


_panel_1, _panel_2, _panel_3, _panel_4 = (_make_panel(n) for n in range(1, HEIGHT + 1))


@intrinsic
def _split_queued(typingctx: Any, queue: Any, unit: Any, like: Any) -> Any:
    """Split unit ``unit`` of the queue; ``like`` is a float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        v = Vectors(builder, types.CPointer(sig.args[2]))
        _split_rows(builder, v, args[0], args[1])
        return context.get_dummy_value()

    return types.void(INDEX, types.int64, like), codegen


@jit(inline=True)
def enqueue(queue, chunks, height, source, v_block, target):
    """Let the next products split so many blocks of 16 rows of so many chunks, at most DEPTH."""
    each = height * (SIDE // UNIT)
    store(queue, DONE, 0)
    store(queue, COUNT, chunks * each)
    store(queue, SOURCE, source)
    store(queue, TARGET, target)
    store(queue, UPPER, v_block)
    store(queue, EACH, each)
    store(queue, JUMP, 2 * v_block - each * UNIT * SIDE)


@jit(inline=True)
def finish_queue(queue, kind):
    """Split what the products have left."""
    keep_whole()
    for unit in range(load(queue, DONE), load(queue, COUNT)):
        _split_queued(queue, unit, kind)
    store(queue, DONE, load(queue, COUNT))


@jit(inline=True)
def multiply_columns(height, chunks, a, b, columns, c, c_block, more, queue):
    """C of ``height`` blocks of A for so many panels."""
    keep_whole()
    step = height * BLOCK
    for k in range(columns):
        panel, to = shift(b, k * chunks * BLOCK), shift(c, k * c_block)
        if height == 4:
            _panel_4(chunks, a, step, panel, to, more, queue)
        elif height == 3:
            _panel_3(chunks, a, step, panel, to, more, queue)
        elif height == 2:
            _panel_2(chunks, a, step, panel, to, more, queue)
        else:
            _panel_1(chunks, a, step, panel, to, more, queue)
