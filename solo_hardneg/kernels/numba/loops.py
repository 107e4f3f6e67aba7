"""Compiled loops that list candidates, find ranks among them and sum their gradients.

A candidate's key is one number: the bits of its similarity, rearranged to sort like the similarity,
above its column. So keys sort as in bands, ties by column. The loops run in one thread each, see
:mod:`solo_hardneg.kernels.numba.threads`.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64

from solo_hardneg.kernels.numba.cache import cached

_SIGN = np.uint32(0x80000000)
_SHORT = 24  # keys; up to this length a piece is sorted by insertion
_SAMPLE = 16  # keys from which the pivot of a longer piece is chosen
_LOW = np.uint64(0xFFFFFFFF)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_COLUMN = np.int32(2**31 - 1)


def compiled(function):
    """Compiles a function that runs without the interpreter's lock."""
    return cached(njit(function, nogil=True, error_model="numpy"))


def compiled_sums(function):
    """Compiles a function whose sums may be reordered, so that they vectorise."""
    fast = {"reassoc", "contract"}
    return cached(njit(function, nogil=True, error_model="numpy", fastmath=fast))


@compiled
def key_of(bits, place):
    """Returns the uint64 key of a similarity, given as uint32 bits, and a column."""
    # Negative numbers flip all bits, others the sign.
    mask = uint32(np.int32(bits) >> np.int32(31)) | _SIGN
    return (uint64(bits ^ mask) << uint64(32)) | uint64(place)


@compiled
def bits_of(key):
    """Returns the uint32 bits of the similarity in a key."""
    flipped = uint32(key >> uint64(32))
    return flipped ^ _SIGN if flipped & _SIGN else ~flipped


@compiled
def mask_own(tile, own, start, width, values):
    """Moves the similarities of each query's own image out of a tile, leaving -inf.

    Args:
        tile: (N, w) float32 similarities.
        own: (N, v) int64 columns of each query's own image.
        start, width: First column of the tile, and number of columns.
        values: (N, v) float32, written.
    """
    for query in range(len(own)):
        for i in range(own.shape[1]):
            place = own[query, i] - start
            if 0 <= place < width:
                values[query, i] = tile[query, place]
                tile[query, place] = -np.inf


@compiled
def list_tile(tile, width, skip, start, lower, upper, keys, sizes, below, hide):
    """Lists the candidates of a tile whose similarity lies between the bounds of their query.

    Args:
        tile: (N, w) float32 similarities, w a multiple of 8.
        width: Number of columns; the rest is padding.
        skip: Number of leading columns that belong to the tile before.
        start: Column of the first candidate that is not skipped.
        lower, upper: (N,) float32 bounds, [lower, upper).
        keys: (N, capacity) uint64 lists in the order of columns, extended; keys above the capacity
            are counted only.
        sizes: (N,) int64 candidates between the bounds so far, increased.
        below: (N,) int64 candidates below the bounds so far, increased.
        hide: Whether to set what is listed or skipped to -inf.
    """
    padded, capacity = tile.shape[1], keys.shape[1]
    inside = np.zeros(padded, np.uint8)
    eights = inside.view(np.uint64)
    found = np.empty(padded + 8, np.int32)
    values = np.empty(padded, np.float32)
    bits = values.view(np.uint32)
    for query in range(len(tile)):
        low, high = lower[query], upper[query]
        row = tile[query]
        for place in range(width):
            inside[place] = np.uint8(not row[place] < low)  # NaN is listed
        inside[:skip] = 0
        above = 0
        if high < np.inf:
            for place in range(skip, width):
                above += row[place] >= high
                inside[place] &= np.uint8(not row[place] >= high)
        hits = uint64(0)
        for eight in range(padded // 8):
            if eights[eight]:
                for place in range(8 * eight, 8 * eight + 8):
                    found[hits] = place
                    hits += uint64(inside[place])
        size, number = sizes[query], np.int64(hits)
        room = min(number, max(0, capacity - size))
        for i in range(room):
            values[i] = row[found[i]] + np.float32(0)  # -0 is 0
        for i in range(room):
            keys[query, size + i] = key_of(bits[i], start - skip + found[i])
        if hide:
            for i in range(number):
                row[found[i]] = -np.inf
            row[:skip] = -np.inf
        sizes[query] = size + number
        below[query] += width - skip - number - above


@compiled
def insertion_sort(keys, low, high):
    """Sorts ``keys[low:high]``."""
    for i in range(low + 1, high):
        key = keys[i]
        j = i - 1
        while j >= low and keys[j] > key:
            keys[j + 1] = keys[j]
            j -= 1
        keys[j + 1] = key


@compiled
def partition(keys, low, high, place):
    """Reorders ``keys[low:high]`` so that ``keys[place]`` is as if sorted, lesser keys before it.

    All keys differ. As in Floyd and Rivest's selection (1975), pivots come from a sample, in turn a
    little below the place and a little above it. The inner loop has no branch to mispredict.
    """
    sample = np.empty(_SAMPLE, np.uint64)
    aim = -1
    while high - low > _SHORT:
        step = (high - low) // _SAMPLE
        for i in range(_SAMPLE):
            sample[i] = keys[low + i * step]
        insertion_sort(sample, 0, _SAMPLE)
        near = (place - low) * _SAMPLE // (high - low)
        pivot = sample[min(max(near + 2 * aim, 0), _SAMPLE - 1)]
        aim = -aim
        cut = low
        for i in range(low, high):
            key = keys[i]
            keys[i] = keys[cut]
            keys[cut] = key
            cut += key < pivot
        if place < cut:
            high = cut
        elif cut > low:
            low = cut
        else:  # the pivot is the least key: move it to the front and continue after it
            for i in range(low, high):
                if keys[i] == pivot:
                    keys[i] = keys[low]
                    keys[low] = pivot
                    break
            if place == low:
                return
            low += 1
    insertion_sort(keys, low, high)


@compiled
def values_at_rank(bits, rank, found):
    """Finds the value at a rank of each row; all values are given as uint32 bits of float32.

    Args:
        bits: (n, S) values.
        rank: Rank in ascending order.
        found: (n,), written.
    """
    width = bits.shape[1]
    keys = np.empty(width, np.uint64)
    for query in range(len(bits)):
        for i in range(width):
            keys[i] = key_of(bits[query, i], i)
        partition(keys, 0, width, rank)
        found[query] = bits_of(keys[rank])


@compiled
def select_kept(keys, sizes, below, listed, past_listed, first, past, inside, columns, values):
    """Selects the kept candidates of each list, in the order of columns.

    Args:
        keys, sizes, below: Lists, see :func:`list_tile`.
        listed, past_listed: Ranks [listed, past_listed) that each list must hold.
        first, past: Ranks [first, past) that are kept, or dropped.
        inside: Whether these ranks are kept, or all others in the list.
        columns, values: (N, k) int32 and float32 similarities, written; the rest of a row is filled
            with a column above all others and -inf.

    Returns:
        Number of queries whose list misses candidates.
    """
    capacity, width = keys.shape[1], columns.shape[1]
    scratch = np.empty(capacity, np.uint64)
    found_columns, found_bits = np.empty(capacity, np.int32), np.empty(capacity, np.uint32)
    bits = values.view(np.uint32)
    missed = 0
    for query in range(len(keys)):
        size, before = sizes[query], below[query]
        if listed < before or past_listed - before > size or size > capacity:
            missed += 1
            continue
        low, high = first - before, past - before
        lower, upper = uint64(0), _LAST
        if low > 0 or high < size:
            scratch[:size] = keys[query, :size]
        if low == size:
            lower = _LAST
        elif low > 0:
            partition(scratch, 0, size, low)
            lower = scratch[low]
        if high < size:
            partition(scratch, low, size, high)
            upper = scratch[high]
        number = 0
        for i in range(size):
            key = keys[query, i]
            found_bits[number] = bits_of(key)
            found_columns[number] = np.int32(key & _LOW)
            number += ((key >= lower) & (key < upper)) == inside
        number = min(number, width)
        for i in range(number):
            bits[query, i] = found_bits[i]
            columns[query, i] = found_columns[i]
        columns[query, number:] = _NO_COLUMN
        values[query, number:] = -np.inf
    return missed


@compiled
def sort_hardest(values, places):
    """Finds the s largest values of each row, largest first, the last of equal ones first.

    A radix sort.

    Args:
        values: (n, k) float32.
        places: (n, s) int32, written.
    """
    width, number = values.shape[1], places.shape[1]
    bits = values.view(np.uint32)
    keys, scratch = np.empty(width, np.uint64), np.empty(width, np.uint64)
    one, other = np.empty(width, np.uint64), np.empty(width, np.uint64)
    starts = np.empty(256, np.int64)
    for query in range(len(values)):
        for i in range(width):
            keys[i] = key_of(bits[query, i], i)
        edge = uint64(0)
        if number < width:
            scratch[:] = keys
            partition(scratch, 0, width, width - number)
            edge = scratch[width - number]
        hits = 0
        for i in range(width):
            one[hits] = keys[i]
            hits += keys[i] >= edge
        least, most = one[0] >> uint64(32), one[0] >> uint64(32)
        for i in range(number):
            least = min(least, one[i] >> uint64(32))
            most = max(most, one[i] >> uint64(32))
        shift = uint64(0)
        while (most - least) >> shift:
            starts[:] = 0
            for i in range(number):
                starts[(((one[i] >> uint64(32)) - least) >> shift) & uint64(255)] += 1
            total = 0
            for digit in range(256):
                count = starts[digit]
                starts[digit] = total
                total += count
            for i in range(number):
                digit = (((one[i] >> uint64(32)) - least) >> shift) & uint64(255)
                other[starts[digit]] = one[i]
                starts[digit] += 1
            one, other = other, one
            shift += uint64(8)
        for i in range(number):
            places[query, i] = np.int32(one[number - 1 - i] & _LOW)


@compiled_sums
def gather_add(columns, weights, tile, start, cursors, pulled):
    """Adds Σ weight·vector over the listed columns of a tile.

    Args:
        columns, weights: (n, k) ascending columns, and float32 weights.
        tile: (w, D) float32 candidates.
        start: First column of the tile.
        cursors: (n,) int64 position of the next column in each list, advanced.
        pulled: (n, D) float32 sums, increased.
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
        total[:] = 0  # a sum per tile: long sums lose digits
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
def scatter_add(columns, weights, query, start, past, gradient):
    """Adds weight·query to the gradient of the listed candidates in [start, past).

    Args:
        columns, weights: (n, k) ascending columns, and float32 weights.
        query: (n, D) float32.
        start, past: Rows of the gradient.
        gradient: (M, D) float32, increased.
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
def transpose(dimensions, tile):
    """Writes the transpose of (D, w) to ``tile`` (w, D)."""
    width = tile.shape[0]
    for first in range(0, width, 16):
        last = min(first + 16, width)
        for d in range(tile.shape[1]):
            for i in range(first, last):
                tile[i, d] = dimensions[d, i]
