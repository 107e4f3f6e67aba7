"""NaN and infinity: found on the device, reported with step, rank and cause, kept out of the queue.

A step asks nothing of the device for it. Its outputs become a flag, which travels with the
:class:`~solo_hardneg.step_report.StepReport`; outputs that are not finite are replaced by
zeros before the loss, whose kernels sort, and are never written to the queue. The flag is looked
at after the backward pass, before the optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from solo_hardneg.distributed import gather_objects, get_rank
from solo_hardneg.errors import DivergedError

_WAY_OUT = (
    "Weights and queue are unchanged. Fix what is named here, or resume from the last checkpoint "
    "with a lower optimizer.lr, a longer warm-up or precision=32."
)
_SHOWN = 5  # names or indexes that a message lists


def outputs_finite(vectors: Iterable[Tensor], class_loss: Tensor, targets: Tensor) -> Tensor:
    """Whether a step's outputs on this rank are all finite, a bool on the device.

    Args:
        vectors: queries, keys or projections.
        class_loss: the online classifier's. It doesn't count where no image has a label, because
            solo-learn's is NaN then, and trains nothing.
        targets: (B,) classes, -1 where unknown.
    """
    unlabelled = ~(targets != -1).any()
    flags = [vector.isfinite().all() for vector in vectors]
    return torch.stack([*flags, class_loss.isfinite().all() | unlabelled]).all()


def check_outputs(
    fine: Sequence[float], module: nn.Module, batch: Sequence[Any], step: int
) -> None:
    """Ends the run, on all ranks alike, if any rank's outputs of a step are not all finite.

    Args:
        fine: one value per rank, 0 where outputs are not finite; the same on all ranks.
        module: whose parameters may be the cause.
        batch: ``[indexes, views, targets]``, whose images may be the cause.
        step: the optimizer's step, for the message.

    Raises:
        DivergedError: it names step, ranks and causes.
    """
    if all(fine):
        return
    mine = None if fine[get_rank()] else _cause(module, batch)
    causes = enumerate(gather_objects(mine))
    told = "; ".join(f"rank {rank}: {cause}" for rank, cause in causes if cause)
    raise DivergedError(f"Step {step}: not all outputs are finite. {told}. {_WAY_OUT}")


def check_loss(fine: Sequence[float], loss: Tensor, step: int) -> None:
    """Ends the run, on all ranks alike, if a rank's loss of finite vectors isn't finite.

    Args:
        fine: one value per rank, 0 where the loss is not finite; the same on all ranks.
        loss: this rank's, for the message.
        step: the optimizer's step, for the message.

    Raises:
        DivergedError: it names step and rank, and the loss there.
    """
    if not all(fine):
        do = "Raise method_kwargs.temperature, or lower negatives.reweight.beta."
        text = f"Step {step}, rank {get_rank()}: the loss is {float(loss)}"
        raise DivergedError(f"{text}, and all vectors are finite. {do}")


def check_weights(state: Mapping[str, Any], step: int) -> None:
    """Refuses to save weights that are not finite, so that the last good checkpoint stays.

    BatchNorm statistics are each rank's own, so they may be bad on one rank only.

    Raises:
        DivergedError: it names step and weights, on all ranks alike.
    """
    wrong = _not_finite(state)
    if any(gather_objects(bool(wrong))):
        which = _some(wrong) if wrong else "those of another rank"
        text = f"Step {step}, rank {get_rank()}: not all weights are finite ({which})"
        raise DivergedError(
            f"{text}, and no checkpoint is written. Resume from the last one with a lower "
            "optimizer.lr, a longer warm-up or precision=32."
        )


def _cause(module: nn.Module, batch: Sequence[Any]) -> str:
    indexes, views, _ = batch
    wrong = torch.stack([~view.flatten(1).isfinite().all(dim=1) for view in views]).any(dim=0)
    if wrong.any():
        which = _some([str(int(index)) for index in indexes[wrong]])
        some = f"{int(wrong.sum())} of its {len(indexes)} images"
        return f"{some} hold NaN or infinity (indexes {which})"
    weights = _not_finite(dict(module.named_parameters()) | dict(module.named_buffers()))
    if weights:
        return f"its images are finite, its weights are not ({_some(weights)})"
    return "its images and weights are finite, the network's outputs are not"


def _not_finite(tensors: Mapping[str, Any]) -> list[str]:
    floats = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return [name for name, tensor in floats.items() if not tensor.isfinite().all()]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ... {len(names)} in all" if len(names) > _SHOWN else shown
