"""The compiled loops of :mod:`solo_hardneg.kernels.numba_cpu`.

A candidate is one number here, its key: the similarity's bits, arranged so that they are in the
similarity's order, and below them the column. So keys are in the order of bands, ties by column.
Queries are shared out among Numba's threads.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange, uint32, uint64

from solo_hardneg.kernels.numba_cache import cached

_SIGN = np.uint32(0x80000000)
_SHORT = 48  # a piece of so many is sorted as it stands
_SAMPLE = 24  # of a longer one, to find where to cut it


def _compiled(function):
    return cached(njit(function, nogil=True, error_model="numpy"))


def _shared_out(function):
    return cached(njit(function, nogil=True, error_model="numpy", parallel=True))


_AT_A_TIME = 16  # queries that one thread takes, with the room that it needs for them


@_compiled
def bits_of(key):
    """uint32, the bits of the similarity in a key."""
    flipped = uint32(key >> uint64(32))
    return flipped ^ _SIGN if flipped & _SIGN else ~flipped


@_shared_out
def list_tile(tile, width, skip, start, lower, upper, keys, sizes, below, hide):
    """Lists the candidates of a tile whose similarity lies in the bracket of its query.

    Args:
        tile: (N, w) float32 similarities, w a multiple of 8.
        width: how many columns there are; those behind are of nobody.
        skip: how many of the first columns are another tile's.
        start: the column of the first that is not skipped.
        lower, upper: (N,) float32, the bracket [lower, upper).
        keys: (N, capacity) uint64, the lists; what doesn't fit is counted only.
        sizes: (N,) int64, how many are in each list, or would be.
        below: (N,) int64, how many were below the bracket.
        hide: whether to put -inf in the place of what is listed, and of what is skipped.
    """
    padded, capacity = tile.shape[1], keys.shape[1]
    for block in prange(-(-len(tile) // _AT_A_TIME)):
        inside = np.zeros(padded, np.uint8)
        eights = inside.view(np.uint64)
        found = np.empty(padded + 8, np.int32)
        values = np.empty(padded, np.float32)
        bits = values.view(np.uint32)
        for query in range(block * _AT_A_TIME, min(len(tile), (block + 1) * _AT_A_TIME)):
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
                # All bits of a negative number are turned, of others the sign's.
                mask = uint32(np.int32(bits[i]) >> np.int32(31)) | _SIGN
                column = uint64(start - skip + found[i])
                keys[query, size + i] = (uint64(bits[i] ^ mask) << uint64(32)) | column
            if hide:
                for i in range(number):
                    row[found[i]] = -np.inf
                row[:skip] = -np.inf
            sizes[query] = size + number
            below[query] += width - skip - number - above


@_compiled
def sort_piece(keys, low, high):
    """Sorts ``keys[low:high]``, a few, by insertion."""
    for i in range(low + 1, high):
        key = keys[i]
        j = i - 1
        while j >= low and keys[j] > key:
            keys[j + 1] = keys[j]
            j -= 1
        keys[j + 1] = key


@_compiled
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


@_shared_out
def at_rank(bits, rank, found):
    """Writes to ``found`` (n,) what is at a rank of each row of ``bits`` (n, S): float32's bits."""
    width = bits.shape[1]
    for query in prange(len(bits)):
        keys = np.empty(width, np.uint64)
        for i in range(width):
            mask = uint32(np.int32(bits[query, i]) >> np.int32(31)) | _SIGN
            keys[i] = (uint64(bits[query, i] ^ mask) << uint64(32)) | uint64(i)
        part(keys, 0, width, rank)
        found[query] = bits_of(keys[rank])


@_shared_out
def select(keys, sizes, below, named, past_named):
    """Arranges each list: before, in, and behind the ranks [named, past_named) of all candidates.

    Returns:
        How many of the queries have a list that doesn't hold all of these ranks.
    """
    missed = 0
    for query in prange(len(keys)):
        low, high = named - below[query], past_named - below[query]
        size = sizes[query]
        if low < 0 or high > size or size > keys.shape[1]:
            missed += 1
            continue
        if 0 < low < size:
            part(keys[query], 0, size, low)
        if 0 < high < size and high > low:
            part(keys[query], low, size, high)
    return missed


@_shared_out
def hardest(keys, below, rank, past_rank, columns):
    """Writes the columns of the ranks [rank, past_rank), the hardest first, to ``columns``.

    The lists are arranged so that these ranks are in their places, in any order.
    """
    for query in prange(len(keys)):
        low, high = rank - below[query], past_rank - below[query]
        ordered = np.sort(keys[query, low:high])
        for i in range(high - low):
            columns[query, i] = uint32(ordered[high - low - 1 - i] & uint64(0xFFFFFFFF))


@_shared_out
def kept(keys, sizes, below, named, past_named, inside, columns, values):
    """Writes the kept ones of each list, ``inside`` the ranks or outside, in any order.

    ``columns`` (N, k) int32 and ``values`` (N, k) float32, their similarities; behind them 0 and
    -inf.
    """
    bits = values.view(np.uint32)
    for query in prange(len(keys)):
        low, high, size = named - below[query], past_named - below[query], sizes[query]
        number = 0
        for i in range(low if inside else 0, high if inside else size):
            if inside or i < low or i >= high:
                key = keys[query, i]
                bits[query, number] = bits_of(key)
                columns[query, number] = uint32(key & uint64(0xFFFFFFFF))
                number += 1
        columns[query, number:] = 0
        values[query, number:] = -np.inf


@cached
@njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def dot(one, other):
    """float64, exact enough for what nearly cancels."""
    total = 0.0
    for d in range(len(one)):
        total += np.float64(one[d]) * np.float64(other[d])
    return total


@_shared_out
def mix(query, vectors, columns, first, second, alpha, partner, gamma, similarity, norms):
    """Synthetic negatives (α·nₐ + (1-α)·n_b)/‖·‖ and (γ·q + (1-γ)·nₐ)/‖·‖, but not the vectors.

    Args:
        query, vectors: (N, D), (M, D).
        columns: (N, s) the hardest of each query.
        first, second, alpha: (N, k) places a, b among these, and α.
        partner, gamma: (N, k′) places a, and γ.
        similarity, norms: (N, k + k′), to be written: q·h, and ‖·‖ before it was divided by.
    """
    number, width = columns.shape[1], query.shape[1]
    pairs = first.shape[1]
    for i in prange(len(query)):
        hardest = np.empty((number, width), np.float32)
        products, squares = np.empty(number, np.float64), np.empty(number, np.float64)
        for j in range(number):
            hardest[j] = vectors[columns[i, j]]
            products[j] = dot(query[i], hardest[j])
            squares[j] = dot(hardest[j], hardest[j])
        own = dot(query[i], query[i])
        for k in range(pairs):
            a, b, share = first[i, k], second[i, k], np.float64(alpha[i, k])
            rest = 1 - share
            both = 2 * share * rest * dot(hardest[a], hardest[b])
            norm = math.sqrt(share * share * squares[a] + rest * rest * squares[b] + both)
            norms[i, k] = norm
            similarity[i, k] = (share * products[a] + rest * products[b]) / max(norm, 1e-12)
        for k in range(partner.shape[1]):
            a, share = partner[i, k], np.float64(gamma[i, k])
            rest = 1 - share
            both = 2 * share * rest * products[a]
            norm = math.sqrt(share * share * own + rest * rest * squares[a] + both)
            norms[i, pairs + k] = norm
            similarity[i, pairs + k] = (share * own + rest * products[a]) / max(norm, 1e-12)


@_shared_out
def unmix(derivatives, norms, first, second, alpha, partner, gamma, weights, own):
    """Σ ∂L/∂(q·h)·h as weights: ``weights`` (N, s) of the hardest, ``own`` (N,) of the query.

    Both are added to; the other arguments are those of :func:`mix`.
    """
    pairs = first.shape[1]
    for i in prange(len(derivatives)):
        for k in range(pairs):
            share, part = alpha[i, k], derivatives[i, k] / max(norms[i, k], np.float32(1e-12))
            weights[i, first[i, k]] += part * share
            weights[i, second[i, k]] += part * (1 - share)
        for k in range(partner.shape[1]):
            share = gamma[i, k]
            part = derivatives[i, pairs + k] / max(norms[i, pairs + k], np.float32(1e-12))
            weights[i, partner[i, k]] += part * (1 - share)
            own[i] += part * share


@_shared_out
def gather(columns, weights, dimensions, pulled):
    """pulled (N, D) = Σ weight·vector, the vectors being the columns of ``dimensions`` (D, M)."""
    for d in prange(dimensions.shape[0]):
        row = dimensions[d]
        for query in range(len(columns)):
            total = np.float32(0)
            for i in range(columns.shape[1]):
                total += weights[query, i] * row[columns[query, i]]
            pulled[query, d] = total
