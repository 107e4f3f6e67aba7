"""How embeddings lie on the sphere: RankMe, alignment, uniformity. Pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-7  # of RankMe's entropy, as in the paper


def gram(vectors: Tensor) -> Tensor:
    """(D, D) float64 on the CPU, ZᵀZ of (n, D) vectors; those of several batches add up."""
    vectors = vectors.detach().cpu().double()
    return vectors.T @ vectors


def rankme(products: Tensor) -> float:
    """The effective rank of embeddings, from 1 (collapsed) to D.

    exp of the entropy of their singular values, divided by their sum (Garrido et al. 2023, arXiv
    2210.02885, equation 1).

    Args:
        products: (D, D) from :func:`gram`.
    """
    singular = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    share = singular / singular.sum() + _EPSILON
    return float((-share * share.log()).sum().exp())


def alignment(positive: Tensor) -> Tensor:
    """(n,) squared distances of queries to their positives, from (n,) cosines.

    Their mean is the alignment of Wang & Isola 2020 (arXiv 2005.10242), section 4.1.2, with α = 2.
    """
    return 2 - 2 * positive.detach()


def uniformity(vectors: Tensor, images: Tensor | None = None) -> float:
    """log mean exp(-2·‖x - y‖²) over pairs; lower is more uniform, 0 is collapsed.

    Wang & Isola 2020 (arXiv 2005.10242), section 4.1.2, with t = 2.

    Args:
        vectors: (n, D) unit vectors.
        images: (n,) int, their images; pairs of one image are left out.

    Returns:
        NaN if there is no pair.
    """
    vectors = vectors.detach().double()
    is_pair = torch.ones(len(vectors), len(vectors), dtype=torch.bool, device=vectors.device)
    if images is not None:
        is_pair = (images[:, None] != images[None, :]) | (images < 0)[:, None]
    values = (4 * (vectors @ vectors.T) - 4)[is_pair.triu(diagonal=1)]
    return float(values.exp().mean().log())
