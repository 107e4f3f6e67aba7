"""Values that are no numbers (NaN) or infinite, found before they reach weights, queue or file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from solo_hardneg.distributed import gather, get_rank, get_world_size
from solo_hardneg.errors import DivergedError

_WAY_OUT = (
    "Nothing of this step is kept. Mend what is named here, or go on from the last checkpoint "
    "with a lower optimizer.lr, a longer warm-up or precision=32."
)
_SHOWN = 5  # names or indexes that a message lists


def check_outputs(
    module: nn.Module,
    batch: Sequence[Any],
    vectors: Iterable[Tensor],
    class_loss: Tensor,
    step: int,
) -> None:
    """Ends the run, on all ranks alike, if any rank's outputs of a step are not all finite.

    One rank alone must not stop: the others would wait for it in their next collective.

    Args:
        module: whose parameters may be the reason.
        batch: ``[indexes, views, targets]``, whose images may be it.
        vectors: of this rank.
        class_loss: the classifier's. Where no image has a label, solo-learn's is NaN, and teaches
            nothing.
        step: the optimizer's, for the message.

    Raises:
        DivergedError: it names step, ranks and reasons.
    """
    labelled = (batch[2] != -1).any()
    finite = [vector.isfinite().all() for vector in vectors]
    fine = torch.stack([*finite, class_loss.isfinite().all() | ~labelled]).all()
    if _everywhere(fine):
        return
    mine = None if fine else _reason(module, batch)
    everybodys: list[Any] = [mine]
    if get_world_size() > 1:
        everybodys = [None] * get_world_size()
        dist.all_gather_object(everybodys, mine)
    told = "; ".join(f"rank {rank}: {why}" for rank, why in enumerate(everybodys) if why)
    raise DivergedError(f"Step {step}: not all that was computed is finite. {told}. {_WAY_OUT}")


def check_loss(loss: Tensor, step: int) -> None:
    """Ends the run, on all ranks alike, if a rank's loss of finite vectors isn't finite.

    Raises:
        DivergedError: it names step and rank, and the loss there.
    """
    if not _everywhere(loss.isfinite().all()):
        do = "Raise method_kwargs.temperature, or lower negatives.reweight.beta."
        text = f"Step {step}, rank {get_rank()}: the loss is {float(loss.mean())}"
        raise DivergedError(f"{text}, and all vectors are finite. {do}")


def check_weights(state: Mapping[str, Any], step: int) -> None:
    """Refuses to save weights that are not finite: the last checkpoint must stay the good one.

    Statistics of batches are each rank's own, so one rank's may be the only ones.

    Raises:
        DivergedError: it names step and weights, on all ranks alike.
    """
    wrong = _not_finite(state)
    if not _everywhere(torch.tensor(not wrong)):
        which = _some(wrong) if wrong else "those of another rank"
        text = f"Step {step}, rank {get_rank()}: not all weights are finite ({which})"
        raise DivergedError(
            f"{text}, and no checkpoint is written. Go on from the last one with a lower "
            "optimizer.lr, a longer warm-up or precision=32."
        )


def _everywhere(fine: Tensor) -> bool:
    """Whether something holds on all ranks; all must ask together."""
    if get_world_size() > 1 and dist.get_backend() == "nccl":
        fine = fine.cuda()
    return bool(gather(fine.reshape(1)).all())


def _reason(module: nn.Module, batch: Sequence[Any]) -> str:
    indexes, views, _ = batch
    wrong = torch.stack([~view.flatten(1).isfinite().all(dim=1) for view in views]).any(dim=0)
    if wrong.any():
        which = _some([str(int(index)) for index in indexes[wrong]])
        some = f"{int(wrong.sum())} of its {len(indexes)} images"
        return f"{some} hold NaN or infinity (indexes {which})"
    weights = _not_finite(dict(module.named_parameters()) | dict(module.named_buffers()))
    if weights:
        return f"its images are finite, its weights are not ({_some(weights)})"
    return "its images and weights are finite, what the network makes of them is not"


def _not_finite(tensors: Mapping[str, Any]) -> list[str]:
    floats = {n: t for n, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()}
    return [name for name, tensor in floats.items() if not tensor.isfinite().all()]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown}, ... {len(names)} in all" if len(names) > _SHOWN else shown
