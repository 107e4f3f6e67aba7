"""The host's own losses, to which all ratios are.

They come out of solo-learn's files, without ``import solo``, which takes seven seconds. Where there
is no checkout, the same arithmetic stands here. It is not taken from the standalone host: that one
calls ``solo_hardneg.losses``, with whatever backend is the fastest, so ours would be compared with
ours.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

WRITTEN_OUT = "solo-learn's lines"  # what rows say where there is no checkout
Loss = Callable[..., Tensor]


def checkout() -> Path | None:
    """``$SOLO_LEARN_DIR`` or ``~/solo-learn``, if solo-learn is there."""
    root = Path(os.environ.get("SOLO_LEARN_DIR", Path.home() / "solo-learn"))
    return root if (root / "solo" / "losses" / "mocov2plus.py").is_file() else None


def use_host(name: str) -> None:
    """Chooses the host of whole steps, in this process and those that it starts.

    Args:
        name: ``solo`` or ``standalone``; empty for solo-learn where there is a checkout.
    """
    root = checkout()
    name = name or ("solo" if root else "standalone")
    os.environ["SOLO_HARDNEG_HOST"] = name
    if name == "solo" and root is not None:
        sys.path.insert(0, str(root))
        known = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else str(root)


def hosts_loss() -> tuple[str, Loss]:
    """MoCo's loss, and whose it is."""
    root = checkout()
    if root is None:
        return WRITTEN_OUT, _written_out
    return "solo-learn", _module(root, "mocov2plus").mocov2plus_loss_func


def hosts_simclr_loss() -> tuple[str, Loss] | None:
    """SimCLR's loss, and whose it is; ``None`` where there is no checkout."""
    root = checkout()
    if root is None:
        return None
    # All that its file needs of solo-learn, for one process.
    stub = ModuleType("solo.utils.misc")
    names: Any = stub
    names.gather, names.get_rank = (lambda tensor: tensor), (lambda: 0)
    packages = {name: ModuleType(name) for name in ("solo", "solo.utils")}
    with patch.dict(sys.modules, {**packages, "solo.utils.misc": stub}):
        return "solo-learn", _module(root, "simclr").simclr_loss_func


@contextmanager
def standalone_with_hosts_loss() -> Iterator[None]:
    """Inside, the standalone host's MoCo takes the host's loss and not ours."""
    from solo_hardneg.standalone import mocov2plus

    with patch.object(mocov2plus, "mocov2plus_loss_func", hosts_loss()[1]):
        yield


def _module(root: Path, name: str) -> Any:
    file = root / "solo" / "losses" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"solo_learns_{name}", file)
    assert spec is not None and spec.loader is not None  # noqa: PT018  (the file is there)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _written_out(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Query and key (N, D), queue (D, K): as ``solo/losses/mocov2plus.py``."""
    positive = torch.einsum("nc,nc->n", [query, key]).unsqueeze(-1)
    negative = torch.einsum("nc,ck->nk", [query, queue])
    logits = torch.cat([positive, negative], dim=1)
    logits /= temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))
