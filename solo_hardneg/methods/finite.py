"""NaN and infinity: found on the device, reported with step, rank and cause, kept out of the queue.

The check adds no wait. A step's outputs become a flag in the
:class:`~solo_hardneg.distributed.StepReport`; outputs that are not finite are replaced by zeros
before the loss, whose kernels sort, and never enter the queue. The flag is read after the backward
pass, before the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solo_hardneg.distributed import gather_objects, get_rank
from solo_hardneg.errors import DivergedError

_RESUME = (
    "Resume from the last checkpoint with a lower optimizer.lr, a longer warm-up or precision=32."
)
_SHOWN = 5  # names or indexes in a message


def outputs_finite(vectors: Iterable[Tensor], class_loss: Tensor, targets: Tensor) -> Tensor:
    """Returns whether a step's outputs on this rank are all finite, a bool on the device.

    Args:
        vectors: Queries, keys or projections.
        class_loss: The online classifier's loss. Ignored if no image has a label: solo-learn's is
            NaN then, and trains nothing.
        targets: (B,) classes, -1 where unknown.
    """
    unlabelled = ~(targets != -1).any()
    flags = [vector.isfinite().all() for vector in vectors]
    return torch.stack([*flags, class_loss.isfinite().all() | unlabelled]).all()


def check_outputs(
    flags: Sequence[float], module: nn.Module, batch: Sequence[Any], step: int
) -> None:
    """Ends the run on all ranks if any rank's outputs of a step are not finite.

    Args:
        flags: One per rank, 0 if its outputs are not finite; the same on all ranks.
        module: Module whose parameters may be the cause.
        batch: ``[indexes, views, targets]``, whose images may be the cause.
        step: The optimizer's step, for the message.

    Raises:
        DivergedError: Names step, ranks and causes.
    """
    if all(flags):
        return
    own = None if flags[get_rank()] else _cause(module, batch)
    causes = [f"rank {rank}: {text}" for rank, text in enumerate(gather_objects(own)) if text]
    raise DivergedError(
        f"Step {step}: not all outputs are finite. {'; '.join(causes)}. Weights and queue are "
        f"unchanged. Replace the named images, if any. {_RESUME}"
    )


def check_loss(flags: Sequence[float], loss: Tensor, step: int) -> None:
    """Ends the run on all ranks if a rank's loss of finite vectors isn't finite.

    Args:
        flags: One per rank, 0 if its loss is not finite; the same on all ranks.
        loss: This rank's loss, for the message.
        step: The optimizer's step, for the message.

    Raises:
        DivergedError: Names step, rank and loss.
    """
    if not all(flags):
        raise DivergedError(
            f"Step {step}, rank {get_rank()}: the loss is {float(loss)}, although all vectors are "
            "finite. Raise method_kwargs.temperature, or lower negatives.reweight.beta."
        )


def check_weights(state: Mapping[str, Any], step: int) -> None:
    """Refuses to save weights that are not finite, so that the last good checkpoint stays.

    BatchNorm statistics differ between ranks, so they may be bad on one rank only.

    Raises:
        DivergedError: Names step and weights, on all ranks.
    """
    bad = _not_finite(state)
    if any(gather_objects(bool(bad))):
        names = _list_names(bad) if bad else "those of another rank"
        raise DivergedError(
            f"Step {step}, rank {get_rank()}: not all weights are finite ({names}), and no "
            f"checkpoint is written. {_RESUME}"
        )


def _cause(module: nn.Module, batch: Sequence[Any]) -> str:
    indexes, views, _ = batch
    bad = torch.stack([~view.flatten(1).isfinite().all(dim=1) for view in views]).any(dim=0)
    if bad.any():
        shown = _list_names([str(int(index)) for index in indexes[bad]])
        count = f"{int(bad.sum())} of its {len(indexes)} images"
        return f"{count} hold NaN or infinity (indexes {shown})"
    weights = _not_finite(dict(module.named_parameters()) | dict(module.named_buffers()))
    if weights:
        return f"its images are finite, its weights are not ({_list_names(weights)})"
    return "its images and weights are finite, the network's outputs are not"


def _not_finite(tensors: Mapping[str, Any]) -> list[str]:
    floats = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return [name for name, tensor in floats.items() if not tensor.isfinite().all()]


def _list_names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ... {len(names)} in all" if len(names) > _SHOWN else shown
