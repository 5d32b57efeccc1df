"""Winograd's products of groups with few output channels: all of a block in one go.

16 channels of 14 x 14 are 16 tiles of F(4x4); a product of 16 x 16 x 16 for each of its 36 elements takes 45 ns,
and to find out what to multiply, and to ask for, took ``multiply_panel`` 60. So here nothing is found out: an element's
V, U and M lie so far behind those of the one before. Where a vector holds all outputs, U has rows of one vector, and
tiles 28, 16 or 8 of them; their numbers of V are operands of the multiply-adds, 29 loads for 28 of those.

So few products do not hide that input and output lie in L3 or beyond: of 512 channels of 14x14, 16 images, copies from
and to NCHW took a third of the time. Blocks are whole planes where those are small, whose channels of one group are one
piece of memory, and the tiles ask for all of it, 8 rows further on in each: F(5x5), two threads, 1900 to 1580 us.
"""

from __future__ import annotations

from typing import NamedTuple

from .blocking import LINE_BYTES
from .compile import jit
from .panels import (
    LOW_ROWS,
    MIDDLE_ROWS,
    NARROW_ROWS,
    high_tile,
    low_tile,
    middle_tile,
    narrow_high_tile,
    narrow_low_tile,
    narrow_middle_tile,
)
from .simd import keep_whole, load, pointer, shift, store, vector_lanes
from .tiles import TILE_ROWS


class Lines(NamedTuple):
    """Pieces of memory that tiles ask for."""

    place: int  # address of the first line
    step: int  # elements from one to the next
    jump: int  # bytes from the lines of one tile to those of the next
    tiles: int  # for a piece
    apart: int  # bytes from one piece to the next
    pieces: int


_LINES = len(Lines._fields)


@jit(inline=True)
def lines_at(table):
    return Lines(load(table, 0), load(table, 1), load(table, 2), load(table, 3), load(table, 4), load(table, 5))


@jit(inline=True)
def write_lines(table, place, size, steps, stride_c, stride_h, stride_w, rows, channels, apart, planes):
    """The lines of some rows of ``planes``; where the planes of channels do not follow each other, of the first."""
    line = 2 * LINE_BYTES // size  # with each line the CPU fetches its neighbour
    if stride_c == 1:
        lines, line = rows * stride_h // max(1, stride_w), stride_w
    elif stride_c == rows * stride_h:
        lines = -(-channels * stride_c // line)
    else:
        lines, apart, planes = -(-rows * stride_h // line), stride_c, channels
    store(table, 0, place)
    store(table, 1, line)
    store(table, 2, steps * line * size)
    store(table, 3, -(-lines // steps))
    store(table, 4, apart * size)
    store(table, 5, planes)


@jit(inline=True)
def list_lines(g, table, lines, steps, start, end, group):
    """Two rows of ``lines``: the output under the cells ``start`` to ``end``, then the next item's input."""
    plane, size = g.tile_rows * g.cell_columns, g.itemsize
    row = start % plane // g.cell_columns * g.tile_h
    rows, planes = -(-(end - start) // g.cell_columns) * g.tile_h, -(-(end - start) // plane)
    rows = min(rows, g.out_height - row)
    this = shift(pointer(g.plane_table, table), start // plane * g.plane_numbers)
    after = shift(this, g.plane_numbers if planes > 1 else 0)
    image, depth = load(this, 0), load(this, 1)
    apart = (load(after, 0) - image) * g.out_n + (load(after, 1) - depth) * g.out_d
    place = g.out + (image * g.out_n + depth * g.out_d + row * g.out_h + group * g.group_outputs * g.out_c) * size
    write_lines(lines, place, size, steps, g.out_c, g.out_h, g.out_w, rows, g.group_outputs, apart, planes)
    following = shift(lines, _LINES)
    for i in range(2):  # no tile is the last of 0
        for j in range(1, _LINES):
            store(following, i * _LINES + j, 0)
        store(following, i * _LINES, place)
    group += 1
    if group == g.groups:
        if end + plane > g.planes * plane:
            return
        group, row = 0, end % plane // g.cell_columns * g.tile_h
        this = shift(pointer(g.plane_table, table), end // plane * g.plane_numbers)
        image = load(this, 0)
    depth = max(0, load(this, 2))
    place = g.x + (image * g.x_n + depth * g.x_d + row * g.x_h + group * g.group_inputs * g.x_c) * size
    apart = (load(after, 0) - image) * g.x_n + (max(0, load(after, 2)) - depth) * g.x_d
    write_lines(following, place, size, steps, g.x_c, g.x_h, g.x_w, rows, g.group_inputs, apart, planes)


@jit(inline=True)
def multiply_few(g, length, height, a, b, b_xi, c, more, lines, kind):
    """The products of every ξ, whose weights are ``b_xi`` elements apart, for one tile column of outputs, added to C
    where ``more`` is not 0. Tiles ask for the next ξ's weights and for what rows of ``Lines`` at ``lines`` say."""
    keep_whole()
    lanes, a_block, c_block = vector_lanes(kind), g.v_block, g.m_block
    width, narrow, tile, piece = 2 * lanes, g.width == lanes, 0, 0
    far = lines_at(lines)
    place = far.place
    for _ in range(g.products):
        i, ahead = 0, shift(b, b_xi)
        while i < height:
            left, r, to, other = height - i, shift(a, i * lanes), shift(c, i * lanes), pointer(place, kind)
            if narrow:
                if left > 3 * MIDDLE_ROWS:
                    narrow_high_tile(length, r, a_block, b, to, c_block, ahead, lanes, other, far.step, more)
                    i += NARROW_ROWS
                elif left > MIDDLE_ROWS:
                    narrow_middle_tile(length, r, a_block, b, to, c_block, ahead, lanes, other, far.step, more)
                    i += 2 * MIDDLE_ROWS
                else:
                    narrow_low_tile(length, r, a_block, b, to, c_block, ahead, lanes, other, far.step, more)
                    i += MIDDLE_ROWS
            elif left <= LOW_ROWS:
                low_tile(length, r, a_block, b, to, c_block, ahead, width, other, far.step, more)
                i += LOW_ROWS
            elif left <= MIDDLE_ROWS or left == 2 * MIDDLE_ROWS:
                middle_tile(length, r, a_block, b, to, c_block, ahead, width, other, far.step, more)
                i += MIDDLE_ROWS
            else:
                high_tile(length, r, a_block, b, to, c_block, ahead, width, other, far.step, more)
                i += TILE_ROWS
            tile, place = tile + 1, place + far.jump
            if tile == far.tiles:
                tile, piece = 0, piece + 1
                if piece == far.pieces:
                    piece, lines = 0, shift(lines, _LINES)
                    far = lines_at(lines)
                place = far.place + piece * far.apart
        a, b, c = shift(a, g.v_xi), ahead, shift(c, g.m_xi)
