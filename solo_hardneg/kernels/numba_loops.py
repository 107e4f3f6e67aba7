"""Compiled loops that list candidates and find ranks among them.

A candidate is one number here, its key: the similarity's bits, arranged so that they are in the
similarity's order, and below them the column. So keys are in the order of bands, ties by column.
The loops run in one thread; :mod:`solo_hardneg.kernels.threads` shares the queries out.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64

from solo_hardneg.kernels.numba_cache import cached

_SIGN = np.uint32(0x80000000)
_SHORT = 24  # a piece of so many is sorted as it stands
_SAMPLE = 16  # of a longer one, to find where to cut it
_LOW = np.uint64(0xFFFFFFFF)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_NO_COLUMN = np.int32(2**31 - 1)


def compiled(function):
    return cached(njit(function, nogil=True, error_model="numpy"))


def compiled_sums(function):
    """Compiles a function whose sums may be taken in any order, so that they vectorise."""
    fast = {"reassoc", "contract"}
    return cached(njit(function, nogil=True, error_model="numpy", fastmath=fast))


@compiled
def key_of(bits, place):
    """uint64, the key of a similarity, given by its bits, in a column."""
    # All bits of a negative number are turned, of others the sign's.
    mask = uint32(np.int32(bits) >> np.int32(31)) | _SIGN
    return (uint64(bits ^ mask) << uint64(32)) | uint64(place)


@compiled
def bits_of(key):
    """uint32, the bits of the similarity in a key."""
    flipped = uint32(key >> uint64(32))
    return flipped ^ _SIGN if flipped & _SIGN else ~flipped


@compiled
def hide_own(tile, own, start, width, values):
    """Puts -inf in the place of each query's own candidates, and keeps their similarities.

    Args:
        tile: (N, w) float32, the similarities of ``width`` columns from ``start`` on.
        own: (N, v) int64, the columns of each query's own image.
        start, width: the columns in the tile.
        values: (N, v) float32, where to keep them.
    """
    for query in range(len(own)):
        for i in range(own.shape[1]):
            place = own[query, i] - start
            if 0 <= place < width:
                values[query, i] = tile[query, place]
                tile[query, place] = -np.inf


@compiled
def list_tile(tile, width, skip, start, lower, upper, keys, sizes, below, hide):
    """Lists the candidates of a tile whose similarity lies in the bracket of its query.

    Args:
        tile: (N, w) float32 similarities, w a multiple of 8.
        width: how many columns there are; those behind are of nobody.
        skip: how many of the first columns are another tile's.
        start: the column of the first that is not skipped.
        lower, upper: (N,) float32, the bracket [lower, upper).
        keys: (N, capacity) uint64, the lists, in the order of columns; what doesn't fit is
            counted only.
        sizes: (N,) int64, how many are in each list, or would be.
        below: (N,) int64, how many were below the bracket.
        hide: whether to put -inf in the place of what is listed, and of what is skipped.
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
def sort_piece(keys, low, high):
    """Sorts ``keys[low:high]``, a few, by insertion."""
    for i in range(low + 1, high):
        key = keys[i]
        j = i - 1
        while j >= low and keys[j] > key:
            keys[j + 1] = keys[j]
            j -= 1
        keys[j + 1] = key


@compiled
def part(keys, low, high, place):
    """Puts into ``keys[place]`` what would be there if ``keys[low:high]`` were sorted.

    What is less comes before it. All keys differ. As in Floyd and Rivest's selection (1975), a
    sample says where to cut, now a little below the place and now a little above it; and the
    cutting has no branch that a processor could guess wrong.
    """
    sample = np.empty(_SAMPLE, np.uint64)
    aim = -1
    while high - low > _SHORT:
        step = (high - low) // _SAMPLE
        for i in range(_SAMPLE):
            sample[i] = keys[low + i * step]
        sort_piece(sample, 0, _SAMPLE)
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
        else:  # the pivot is the least: put it first, and go on behind it
            for i in range(low, high):
                if keys[i] == pivot:
                    keys[i] = keys[low]
                    keys[low] = pivot
                    break
            if place == low:
                return
            low += 1
    sort_piece(keys, low, high)


@compiled
def at_rank(bits, rank, found):
    """Writes to ``found`` (n,) what is at a rank of each row of ``bits`` (n, S): float32's bits."""
    width = bits.shape[1]
    keys = np.empty(width, np.uint64)
    for query in range(len(bits)):
        for i in range(width):
            keys[i] = key_of(bits[query, i], i)
        part(keys, 0, width, rank)
        found[query] = bits_of(keys[rank])


@compiled
def kept(keys, sizes, below, listed, past_listed, named, past_named, inside, columns, values):
    """Writes the kept candidates of each list, in the order of columns.

    Args:
        keys, sizes, below: the lists, see :func:`list_tile`.
        listed, past_listed: the ranks [listed, past_listed) that each list should hold.
        named, past_named: the ranks that are kept, if ``inside``, or are not.
        inside: see above.
        columns, values: (N, k) int32 and float32, the kept ones' similarities; behind them a
            column that is none, above all others, and -inf.

    Returns:
        How many of the queries have a list that doesn't hold what it should.
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
        low, high = named - before, past_named - before
        lower, upper = uint64(0), _LAST
        if low > 0 or high < size:
            scratch[:size] = keys[query, :size]
        if low == size:
            lower = _LAST
        elif low > 0:
            part(scratch, 0, size, low)
            lower = scratch[low]
        if high < size:
            part(scratch, low, size, high)
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
def order(values, places):
    """Writes the places of the largest of each row of ``values`` (n, k) to ``places`` (n, s).

    The largest comes first; of equal values the last. Sorts by radix, digit after digit.
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
            part(scratch, 0, width, width - number)
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
