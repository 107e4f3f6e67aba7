"""Compiled sums over few of the candidates: gradients of what a list keeps."""

from __future__ import annotations

import numpy as np

from solo_hardneg.kernels.numba_loops import compiled, compiled_sums


@compiled_sums
def gather(columns, weights, tile, start, cursors, pulled):
    """Adds Σ weight·vector over the listed columns of a tile to ``pulled`` (n, D).

    Args:
        columns, weights: (n, k) int32 and float32, ascending columns.
        tile: (w, D) float32, the candidates from ``start`` on.
        start: the first column of the tile.
        cursors: (n,) int64, the place in each list from which on nothing is done yet; moved on.
        pulled: (n, D) float32.
    """
    past, width = start + tile.shape[0], tile.shape[1]
    total = np.empty(width, np.float32)
    for query in range(len(columns)):
        i = cursors[query]
        end = i
        while end < columns.shape[1] and columns[query, end] < past:
            end += 1
        if i == end:
            continue
        cursors[query] = end
        total[:] = 0  # few terms in a row, so that no digits are lost
        while i + 4 <= end:
            a, b = weights[query, i], weights[query, i + 1]
            c, d = weights[query, i + 2], weights[query, i + 3]
            one, two = columns[query, i] - start, columns[query, i + 1] - start
            three, four = columns[query, i + 2] - start, columns[query, i + 3] - start
            for k in range(width):
                total[k] += (a * tile[one, k] + b * tile[two, k]) + (
                    c * tile[three, k] + d * tile[four, k]
                )
            i += 4
        while i < end:
            a, one = weights[query, i], columns[query, i] - start
            for k in range(width):
                total[k] += a * tile[one, k]
            i += 1
        for k in range(width):
            pulled[query, k] += total[k]


@compiled
def scatter(columns, weights, query, start, past, gradient):
    """Adds weight·query to the rows of ``gradient`` (M, D) that are listed, from start to past.

    ``columns`` and ``weights`` are (n, k), ascending columns; ``query`` is (n, D).
    """
    width = query.shape[1]
    for i in range(len(columns)):
        place = np.searchsorted(columns[i], start)
        while place < columns.shape[1] and columns[i, place] < past:
            column, weight = columns[i, place], weights[i, place]
            for k in range(width):
                gradient[column, k] += weight * query[i, k]
            place += 1


@compiled
def turn(dimensions, tile):
    """Copies (D, w) candidates, dimension by dimension, to (w, D), candidate by candidate."""
    width = tile.shape[0]
    for first in range(0, width, 16):
        last = min(first + 16, width)
        for d in range(tile.shape[1]):
            for i in range(first, last):
                tile[i, d] = dimensions[d, i]
