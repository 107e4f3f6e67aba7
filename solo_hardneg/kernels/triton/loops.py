"""The device code of :mod:`solo_hardneg.kernels.triton.kernel`.

Each program handles some queries and a split of the candidates, tile by tile. Every pass recomputes
similarities by :func:`similarities` in tiles of the same size, so that they are bit-equal.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_queries(query, rows, number, stride_n, stride_d, D: tl.constexpr, PADDED: tl.constexpr):
    """Returns (BN, PADDED) queries, padded by 0."""
    dims = tl.arange(0, PADDED)
    places = rows[:, None] * stride_n + dims[None, :] * stride_d
    return tl.load(query + places, mask=(rows < number)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit
def load_vectors(vectors, columns, end, stride_m, stride_d, D: tl.constexpr, PADDED: tl.constexpr):
    """Returns (PADDED, BM) candidates, padded by 0."""
    dims = tl.arange(0, PADDED)
    places = columns[None, :].to(tl.int64) * stride_m + dims[:, None].to(tl.int64) * stride_d
    return tl.load(vectors + places, mask=(columns < end)[None, :] & (dims < D)[:, None], other=0.0)


@triton.jit
def similarities(query, vectors):
    """Returns (BN, BM) float32 products of (BN, PADDED) and (PADDED, BM) in any dtypes."""
    if query.dtype != vectors.dtype:
        found = tl.dot(query.to(tl.float32), vectors.to(tl.float32), input_precision="ieee")
    else:
        found = tl.dot(query, vectors, input_precision="ieee")
    return tl.where(found == 0.0, 0.0, found)  # -0 is 0


@triton.jit
def is_kept(
    similarity,
    columns,
    value_first,
    column_first,
    value_past,
    column_past,
    HAS_FIRST: tl.constexpr,
    HAS_PAST: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """Returns (BN, BM) whether candidates lie between two edges, or else outside.

    Candidates are ordered by (similarity, column).
    """
    between = similarity == similarity
    between = between | True
    if HAS_FIRST:
        tied = (similarity == value_first[:, None]) & (columns[None, :] >= column_first[:, None])
        between = between & ((similarity > value_first[:, None]) | tied)
    if HAS_PAST:
        tied = (similarity == value_past[:, None]) & (columns[None, :] >= column_past[:, None])
        between = between & (((similarity > value_past[:, None]) | tied) == 0)
    # NaN is kept, so that it propagates to the loss.
    nan = similarity != similarity
    if INSIDE:
        return between | nan
    else:
        return (between == 0) | nan


@triton.jit
def list_candidates(
    query, vectors, lower, upper,  # (N, D), (M, D), (N,) bounds [lower, upper)
    values, columns,  # (N, splits, capacity) the lists, written
    sizes, above,  # (N, splits) numbers of candidates between the bounds and above, written
    done,  # (N,) nonzero for queries that need no list
    number, width, per_split, splits, capacity,
    query_n, query_d, vectors_m, vectors_d,
    D: tl.constexpr, PADDED: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Lists the candidates between the bounds of each query, in the order of columns."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    there = rows < number
    low = tl.load(lower + rows, mask=there, other=float("inf"))
    high = tl.load(upper + rows, mask=there, other=float("inf"))
    of_rows = load_queries(query, rows, number, query_n, query_d, D, PADDED)
    size = tl.zeros((BN,), dtype=tl.int32)
    over = tl.zeros((BN,), dtype=tl.int32)
    begin = split * per_split
    end = tl.minimum(begin + per_split, width)
    needless = tl.min(tl.load(done + rows, mask=there, other=1), axis=0) != 0
    end = tl.where(needless, begin, end)
    for start in range(begin, end, BM):
        found = start + tl.arange(0, BM)
        of_columns = load_vectors(vectors, found, end, vectors_m, vectors_d, D, PADDED)
        similarity = similarities(of_rows, of_columns)
        valid = there[:, None] & (found < end)[None, :]
        harder = valid & (similarity >= high[:, None])
        # NaN lies between the bounds.
        inside = valid & (harder == 0) & ((similarity < low[:, None]) == 0)
        place = size[:, None] + tl.cumsum(inside.to(tl.int32), axis=1) - 1
        room = inside & (place < capacity)
        target = (rows[:, None].to(tl.int64) * splits + split) * capacity + place
        tl.store(values + target, similarity, mask=room)
        tl.store(columns + target, found[None, :] + tl.zeros_like(place), mask=room)
        size += tl.sum(inside.to(tl.int32), axis=1)
        over += tl.sum(harder.to(tl.int32), axis=1)
    tl.store(sizes + rows * splits + split, size, mask=there)
    tl.store(above + rows * splits + split, over, mask=there)


@triton.jit
def ordered_bits(value):
    """Returns uint32 keys that sort like the float32 values."""
    bits = value.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def find_edge(
    values, columns, sizes,  # as list_candidates writes them
    from_top,  # (N,) place in the list by (similarity, column), 1 for the last
    edge_value, edge_column,  # (N,) similarity and column in that place, written
    done,  # (N,) nonzero for queries whose edge is known and stays
    splits, capacity,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Finds the candidate in a place of each list by radix selection.

    Each pass fixes four bits, from the highest: of the similarity, then of the column among ties.
    """
    row = tl.program_id(0).to(tl.int64)
    length = splits * capacity
    known = tl.load(done + row) != 0
    end = tl.where(known, 0, length)
    digits = tl.arange(0, 16)
    wanted = tl.load(from_top + row)
    prefix = tl.zeros((), dtype=tl.uint32)
    column = tl.zeros((), dtype=tl.uint32)
    for step in tl.static_range(16):
        shift = 28 - 4 * (step % 8)
        counts = tl.zeros((16,), dtype=tl.int32)
        for start in range(0, end, BLOCK):
            place = start + tl.arange(0, BLOCK)
            size = tl.load(sizes + row * splits + place // capacity, mask=place < end, other=0)
            valid = (place < end) & (place % capacity < size)
            value = tl.load(values + row * length + place, mask=valid, other=0.0)
            key = ordered_bits(value)
            if step >= 8:
                valid = valid & (key == prefix)
                key = tl.load(columns + row * length + place, mask=valid, other=0).to(tl.uint32)
            if step % 8 > 0:
                so_far = prefix if step < 8 else column
                valid = valid & ((key >> (shift + 4)) == (so_far >> (shift + 4)))
            digit = ((key >> shift) & 15).to(tl.int32)
            reached = valid[:, None] & (digit[:, None] >= digits[None, :])
            counts += tl.sum(reached.to(tl.int32), axis=0)
        # counts[d]: number of candidates with this prefix whose digit is at least d.
        chosen = tl.sum(((counts >= wanted) & (digits > 0)).to(tl.int32), axis=0)
        wanted -= tl.sum(tl.where(digits == chosen + 1, counts, 0), axis=0)
        if step < 8:
            prefix = prefix | (chosen.to(tl.uint32) << shift)
        else:
            column = column | (chosen.to(tl.uint32) << shift)
    bits = tl.where((prefix >> 31) != 0, prefix & 0x7FFFFFFF, prefix ^ 0xFFFFFFFF)
    tl.store(edge_value + row, bits.to(tl.float32, bitcast=True), mask=known == 0)
    tl.store(edge_column + row, column.to(tl.int32), mask=known == 0)


@triton.jit
def list_between(
    query, vectors, edges, edge_columns,  # (N, D), (M, D), (2, N) edges
    values, columns,  # (N, capacity) the lists, written
    sizes,  # (N,) 0, increased
    number, width, per_split, capacity,
    query_n, query_d, vectors_m, vectors_d,
    HAS_FIRST: tl.constexpr, HAS_PAST: tl.constexpr,
    D: tl.constexpr, PADDED: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Lists the candidates between two edges, in any order."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    there = rows < number
    value_first = tl.load(edges + rows, mask=there, other=0.0)
    value_past = tl.load(edges + number + rows, mask=there, other=0.0)
    column_first = tl.load(edge_columns + rows, mask=there, other=0)
    column_past = tl.load(edge_columns + number + rows, mask=there, other=0)
    of_rows = load_queries(query, rows, number, query_n, query_d, D, PADDED)
    begin = split * per_split
    end = tl.minimum(begin + per_split, width)
    for start in range(begin, end, BM):
        found = start + tl.arange(0, BM)
        of_columns = load_vectors(vectors, found, end, vectors_m, vectors_d, D, PADDED)
        similarity = similarities(of_rows, of_columns)
        kept = is_kept(
            similarity, found, value_first, column_first, value_past, column_past,
            HAS_FIRST, HAS_PAST, True,
        )  # fmt: skip
        kept = kept & there[:, None] & (found < end)[None, :]
        size = tl.sum(kept.to(tl.int32), axis=1)
        first = tl.atomic_add(sizes + rows, size, mask=there & (size > 0))
        place = first[:, None] + tl.cumsum(kept.to(tl.int32), axis=1) - 1
        room = kept & (place < capacity)
        target = rows[:, None].to(tl.int64) * capacity + place
        tl.store(values + target, similarity, mask=room)
        tl.store(columns + target, found[None, :] + tl.zeros_like(place), mask=room)


@triton.jit
def update_sum(logits, top, total):
    """Adds a tile (BN, BM) to the running maximum (BN,) and sum of exponentials (BN,)."""
    higher = tl.maximum(top, tl.max(logits, axis=1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    total = total * tl.exp(top - base) + tl.sum(tl.exp(logits - base[:, None]), axis=1)
    return higher, total


@triton.jit
def sum_exponentials(
    query, vectors, edges, edge_columns,  # (N, D), (M, D), (2, N) edges
    tops, totals,  # (2, splits, N) maxima and sums for A and, if TWO, for B, written
    number, width, per_split, splits, scale_a, scale_b,
    query_n, query_d, vectors_m, vectors_d,
    HAS_FIRST: tl.constexpr, HAS_PAST: tl.constexpr, INSIDE: tl.constexpr, TWO: tl.constexpr,
    D: tl.constexpr, PADDED: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Sums the exponentials of kept candidates over each split."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    there = rows < number
    value_first = tl.load(edges + rows, mask=there, other=0.0)
    value_past = tl.load(edges + number + rows, mask=there, other=0.0)
    column_first = tl.load(edge_columns + rows, mask=there, other=0)
    column_past = tl.load(edge_columns + number + rows, mask=there, other=0)
    of_rows = load_queries(query, rows, number, query_n, query_d, D, PADDED)
    top_a = tl.full((BN,), float("-inf"), dtype=tl.float32)
    top_b = tl.full((BN,), float("-inf"), dtype=tl.float32)
    total_a = tl.zeros((BN,), dtype=tl.float32)
    total_b = tl.zeros((BN,), dtype=tl.float32)
    begin = split * per_split
    end = tl.minimum(begin + per_split, width)
    for start in range(begin, end, BM):
        found = start + tl.arange(0, BM)
        of_columns = load_vectors(vectors, found, end, vectors_m, vectors_d, D, PADDED)
        similarity = similarities(of_rows, of_columns)
        kept = is_kept(
            similarity, found, value_first, column_first, value_past, column_past,
            HAS_FIRST, HAS_PAST, INSIDE,
        )  # fmt: skip
        kept = kept & there[:, None] & (found < end)[None, :]
        similarity = tl.where(kept, similarity, float("-inf"))
        top_a, total_a = update_sum(similarity * scale_a, top_a, total_a)
        if TWO:
            top_b, total_b = update_sum(similarity * scale_b, top_b, total_b)
    place = split * number + rows
    tl.store(tops + place, top_a, mask=there)
    tl.store(totals + place, total_a, mask=there)
    if TWO:
        tl.store(tops + splits * number + place, top_b, mask=there)
        tl.store(totals + splits * number + place, total_b, mask=there)


@triton.jit
def pull_gradient(
    query, vectors, edges, edge_columns,  # as in sum_exponentials
    logs, factors,  # (2, N) A and B, and the factor of each softmax
    pulled,  # (splits, N, D), written
    number, width, per_split, splits, scale_a, scale_b,
    query_n, query_d, vectors_m, vectors_d,
    HAS_FIRST: tl.constexpr, HAS_PAST: tl.constexpr, INSIDE: tl.constexpr, TWO: tl.constexpr,
    D: tl.constexpr, PADDED: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of the queries from each split of the candidates."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    split = tl.program_id(1)
    there = rows < number
    value_first = tl.load(edges + rows, mask=there, other=0.0)
    value_past = tl.load(edges + number + rows, mask=there, other=0.0)
    column_first = tl.load(edge_columns + rows, mask=there, other=0)
    column_past = tl.load(edge_columns + number + rows, mask=there, other=0)
    log_a = tl.load(logs + rows, mask=there, other=0.0)
    by_a = tl.load(factors + rows, mask=there, other=0.0)
    log_b = tl.load(logs + number + rows, mask=there, other=0.0)
    by_b = tl.load(factors + number + rows, mask=there, other=0.0)
    of_rows = load_queries(query, rows, number, query_n, query_d, D, PADDED)
    total = tl.zeros((BN, PADDED), dtype=tl.float32)
    begin = split * per_split
    end = tl.minimum(begin + per_split, width)
    for start in range(begin, end, BM):
        found = start + tl.arange(0, BM)
        of_columns = load_vectors(vectors, found, end, vectors_m, vectors_d, D, PADDED)
        similarity = similarities(of_rows, of_columns)
        kept = is_kept(
            similarity, found, value_first, column_first, value_past, column_past,
            HAS_FIRST, HAS_PAST, INSIDE,
        )  # fmt: skip
        kept = kept & there[:, None] & (found < end)[None, :]
        weight = by_a[:, None] * tl.exp(similarity * scale_a - log_a[:, None])
        if TWO:
            weight += by_b[:, None] * tl.exp(similarity * scale_b - log_b[:, None])
        weight = tl.where(kept, weight, 0.0)
        turned = tl.trans(of_columns).to(tl.float32)
        total += tl.dot(weight, turned, input_precision="ieee")
    dims = tl.arange(0, PADDED)
    place = (split * number + rows)[:, None].to(tl.int64) * D + dims[None, :]
    tl.store(pulled + place, total, mask=there[:, None] & (dims < D)[None, :])
