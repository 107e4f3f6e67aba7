"""Compiled loops that mix synthetic negatives without making their vectors."""

from __future__ import annotations

import math

import numpy as np

from solo_hardneg.kernels.numba.loops import compiled, compiled_sums

_CANCELS = 0.05  # below this share of its terms, a squared norm is recomputed in double precision
_EPS = 1e-12  # as in torch.nn.functional.normalize


@compiled
def draw_position(uniform, count):
    """Returns an integer in [0, count) from a number in [0, 1)."""
    return np.int64(np.float64(uniform) * count)


@compiled
def draw_pair(first, second, count):
    """Draws two positions as :func:`solo_hardneg.negatives.mix.draw_pairs` does."""
    one = draw_position(first, count)
    two = one + 1 + draw_position(second, max(count - 1, 1))
    return one, two - count if two >= count else two


@compiled_sums
def dot_rows(vectors, one, other):
    """Returns the dot product of two rows."""
    total = np.float32(0)
    for d in range(vectors.shape[1]):
        total += vectors[one, d] * vectors[other, d]
    return total


@compiled_sums
def exact_dot(one, other):
    """Returns the dot product of two vectors in double precision."""
    total = 0.0
    for d in range(len(one)):
        total += np.float64(one[d]) * np.float64(other[d])
    return total


@compiled_sums
def squared_norms(vectors, found):
    """Writes the squared norms (M,) of vectors (M, D) to ``found``."""
    for i in range(len(vectors)):
        total = np.float32(0)
        for d in range(vectors.shape[1]):
            total += vectors[i, d] * vectors[i, d]
        found[i] = total


@compiled
def exact_mix(query, one, other, share):
    """Returns q·h and ‖·‖ of h = (share·one + (1-share)·other)/‖·‖, in double precision."""
    rest = 1 - share
    both = 2 * share * rest * exact_dot(one, other)
    norm = math.sqrt(
        max(share * share * exact_dot(one, one) + rest * rest * exact_dot(other, other) + both, 0.0)
    )
    product = share * exact_dot(query, one) + rest * exact_dot(query, other)
    return product / max(norm, _EPS), norm


@compiled
def mix(query, vectors, norms2, columns, values, places, pairs, queries, similarity, norms):
    """Computes similarities to h = (α·nₐ + (1-α)·n_b)/‖·‖ and h = (γ·q + (1-γ)·nₐ)/‖·‖.

    Args:
        query, vectors: (n, D) queries and (M, D) candidates.
        norms2: (M,) squared norms of the candidates.
        columns, values: (n, l) listed candidates and their similarities.
        places: (n, s) positions of the hardest in each list, hardest first.
        pairs: Three (n, k) arrays in [0, 1) that determine a, b and α.
        queries: Two (n, k′) arrays in [0, 1) that determine a and γ.
        similarity, norms: (n, k + k′) q·h and ‖·‖, written.
    """
    first, second, alpha = pairs
    partner, gamma = queries
    number, made = places.shape[1], first.shape[1]
    for i in range(len(query)):
        own = exact_dot(query[i], query[i])
        for k in range(made):
            a, b = draw_pair(first[i, k], second[i, k], number)
            a, b = places[i, a], places[i, b]
            one, other = columns[i, a], columns[i, b]
            share = np.float64(alpha[i, k])
            rest = 1 - share
            alone = share * share * norms2[one] + rest * rest * norms2[other]
            squared = alone + 2 * share * rest * dot_rows(vectors, one, other)
            if squared > _CANCELS * alone:
                norm = math.sqrt(squared)
                similarity[i, k] = (share * values[i, a] + rest * values[i, b]) / norm
            else:
                similarity[i, k], norm = exact_mix(query[i], vectors[one], vectors[other], share)
            norms[i, k] = norm
        for k in range(partner.shape[1]):
            a = places[i, draw_position(partner[i, k], number)]
            share = np.float64(gamma[i, k]) / 2
            rest, product = 1 - share, np.float64(values[i, a])
            alone = share * share * own + rest * rest * norms2[columns[i, a]]
            squared = alone + 2 * share * rest * product
            if squared > _CANCELS * alone:
                norm = math.sqrt(squared)
                similarity[i, made + k] = (share * own + rest * product) / norm
            else:
                other = vectors[columns[i, a]]
                similarity[i, made + k], norm = exact_mix(query[i], query[i], other, share)
            norms[i, made + k] = norm


@compiled
def unmix(derivatives, norms, places, pairs, queries, weights, own):
    """Adds Σ ∂L/∂(q·h)·h as weights of the vectors that h is made of.

    Args:
        derivatives: (n, k + k′) ∂L/∂(q·h).
        norms, places, pairs, queries: As in :func:`mix`.
        weights: (n, l) weights of the listed candidates, increased.
        own: (n,) weight of the query, increased.
    """
    first, second, alpha = pairs
    partner, gamma = queries
    number, made = places.shape[1], first.shape[1]
    least = np.float32(_EPS)
    for i in range(len(derivatives)):
        for k in range(made):
            a, b = draw_pair(first[i, k], second[i, k], number)
            share, derivative = alpha[i, k], derivatives[i, k] / max(norms[i, k], least)
            weights[i, places[i, a]] += derivative * share
            weights[i, places[i, b]] += derivative * (1 - share)
        for k in range(partner.shape[1]):
            a, share = draw_position(partner[i, k], number), gamma[i, k] / 2
            derivative = derivatives[i, made + k] / max(norms[i, made + k], least)
            weights[i, places[i, a]] += derivative * (1 - share)
            own[i] += derivative * share
