"""solo-learn's MoCo loss, the reference of all ratios.

It is loaded from solo-learn's file without ``import solo``, which takes seven seconds. Without a
checkout, a copy of its arithmetic stands in. The standalone host's loss would not do: it is
``solo_hardneg.losses``, so we would be compared with ourselves.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

COPY = "solo-learn's lines"  # in the CSVs, without a checkout
Loss = Callable[..., Tensor]


def solo_learn_checkout() -> Path | None:
    """``$SOLO_LEARN_DIR`` or ``~/solo-learn``, if solo-learn is there."""
    root = Path(os.environ.get("SOLO_LEARN_DIR", Path.home() / "solo-learn"))
    return root if (root / "solo" / "losses" / "mocov2plus.py").is_file() else None


def choose_host(name: str | None) -> None:
    """Sets the host of training steps, in this process and its children.

    Args:
        name: ``solo`` or ``standalone``; None for ``solo`` with a checkout, else ``standalone``.
    """
    root = solo_learn_checkout()
    name = name or ("solo" if root else "standalone")
    os.environ["SOLO_HARDNEG_HOST"] = name
    if name == "solo" and root is not None:
        sys.path.insert(0, str(root))
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else str(root)


def reference_loss() -> tuple[str, Loss]:
    """Returns the name of the reference and solo-learn's ``mocov2plus_loss_func``."""
    root = solo_learn_checkout()
    if root is None:
        return COPY, _copied_loss
    file = root / "solo" / "losses" / "mocov2plus.py"
    spec = importlib.util.spec_from_file_location("solo_learns_mocov2plus", file)
    assert spec is not None and spec.loader is not None  # noqa: PT018  (the file is there)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "solo-learn", module.mocov2plus_loss_func


@contextmanager
def reference_in_standalone() -> Iterator[None]:
    """Makes the standalone host's MoCo use the reference loss."""
    from solo_hardneg.standalone import mocov2plus

    with patch.object(mocov2plus, "mocov2plus_loss_func", reference_loss()[1]):
        yield


def _copied_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """``solo/losses/mocov2plus.py``: query and key (N, D), queue (D, K)."""
    positive = torch.einsum("nc,nc->n", [query, key]).unsqueeze(-1)
    negative = torch.einsum("nc,ck->nk", [query, queue])
    logits = torch.cat([positive, negative], dim=1)
    logits /= temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
