"""Learned thresholds: for each image, the similarity that a share of its negatives exceeds.

GloFND (Balmaseda et al. 2025, arXiv 2502.20612) takes the negatives above it for false ones. A
quantile of the queue or the batch would do so with the most similar of a few thousand images; the
threshold of an image moves a little whenever the image is seen, so it is one of the whole dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from solo_hardneg.distributed import check_equal_on_ranks, gather, keep_out_of_broadcast
from solo_hardneg.errors import CheckpointError, ConfigError, bad_value
from solo_hardneg.validate import real

_BETA_MEAN, _BETA_SQUARE, _EPSILON = 0.9, 0.98, 1e-8  # those of GloFND's authors
_RATE = 0.05
_UNIT = 2**30  # shares are summed as whole numbers of this fraction


@dataclass(frozen=True)
class ThresholdRule:
    """How a threshold λ moves: a step of Adam along α - (share of the negatives with s > λ).

    That is the gradient of λ·α + mean(max(s - λ, 0)), whose minimum is the (1 - α)-quantile.

    Attributes:
        share: α in (0, 1).
        rate: Learning rate; λ moves by at most about this much each time its image is seen.
    """

    share: float
    rate: float = _RATE

    def step(self, values: Tensor, moments: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the thresholds and moments after a step.

        Args:
            values: (n,) λ in [-1, 1].
            moments: (3, n) mean and mean square of the gradient, and the number of steps.
            shares: (n,) share of the negatives with s > λ.
        """
        mean, square, steps = moments
        gradient = self.share - shares
        mean = _BETA_MEAN * mean + (1 - _BETA_MEAN) * gradient
        square = _BETA_SQUARE * square + (1 - _BETA_SQUARE) * gradient**2
        steps = steps + 1
        unbiased = mean / (1 - _BETA_MEAN**steps)
        scale = (square / (1 - _BETA_SQUARE**steps)).sqrt() + _EPSILON
        values = (values - self.rate * unbiased / scale).clamp(-1, 1)
        return values, torch.stack([mean, square, steps])


def parse_threshold_rule(key: str, above: Any, share: Any, rate: Any) -> ThresholdRule | None:
    """Reads ``above: learned``, ``share`` and ``rate`` of a condition; ``None`` without them.

    Args:
        key: Key of the verb, for messages.
        above, share, rate: Their values; ``None`` if not set.

    Raises:
        ConfigError: A value is not allowed, or ``above`` or ``share`` is missing.
    """
    if above is None:
        for name, value in (("share", share), ("rate", rate)):
            if value is not None:
                raise bad_value(f"{key}.{name}", value, f"needs {key}.above=learned")
        return None
    if above != "learned":
        do = "A fixed similarity is similarity: [0.8, 1.0]."
        raise bad_value(f"{key}.above", above, "must be learned (a threshold for each image)", do)
    do = "0.01 takes the most similar hundredth of an image's negatives for false ones."
    allowed = "must be a share of the negatives in (0, 1)"
    share = real(f"{key}.share", share, allowed, do, above=0, below=1)
    if rate is None:
        return ThresholdRule(share)
    return ThresholdRule(share, real(f"{key}.rate", rate, "must lie in (0, 1]", above=0, most=1))


class LearnedThresholds:
    """The thresholds of all images of a dataset, in the buffers of a module.

    The module gets the buffers ``thresholds`` (n,), which start at 1, so nothing is above them, and
    ``threshold_moments`` (3, n), the state of :class:`ThresholdRule`. An image that isn't in the
    batch keeps its own. All ranks take the same steps, so DDP broadcasts none of it.

    Args:
        module: Module that holds the buffers, and saves and loads them with its own.
    """

    names = ("thresholds", "threshold_moments")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        for name in self.names:
            module.register_buffer(name, torch.empty(0))
        self.resize(0)
        keep_out_of_broadcast(module, self.names)

    def __len__(self) -> int:
        return len(self.module.get_buffer("thresholds"))

    def resize(self, images: int) -> None:
        """Starts anew with the thresholds of so many images."""
        # float32 at any precision of the run: steps are small.
        state = torch.zeros(4, images, device=self.module.get_buffer("thresholds").device).float()
        self.module.register_buffer("thresholds", state[0] + 1)
        self.module.register_buffer("threshold_moments", state[1:].clone())

    def fit(self, images: int) -> None:
        """Makes the thresholds of a dataset, unless a checkpoint has brought them.

        Raises:
            CheckpointError: Those of the checkpoint are of another number of images.
        """
        if len(self) not in (0, images):
            raise CheckpointError(
                f"This checkpoint has learned thresholds of {len(self)} images, and this dataset "
                f"has {images}. Resume with the dataset of that run (data.train_path, "
                "data.data_fraction), or start a new run with another name=."
            )
        if not len(self):
            self.resize(images)

    def of(self, indexes: Tensor) -> Tensor:
        """Returns the (N,) thresholds of images by their (N,) dataset indexes."""
        return self.module.get_buffer("thresholds")[indexes]

    @torch.no_grad()
    def update(
        self, indexes: Tensor, shares: Tensor, rule: ThresholdRule, valid: Tensor | None = None
    ) -> None:
        """Moves the thresholds of the images that all ranks have seen. All must call it together.

        Args:
            indexes: (N,) dataset index of each query of this rank.
            shares: (N,) share of its negatives above the threshold; those of several views of an
                image are averaged.
            rule: The step.
            valid: A bool; ``False`` leaves all thresholds as they are.
        """
        # Sums of integers are equal on all ranks, in whatever order a device adds.
        whole = (shares.float() * _UNIT).round().to(indexes)
        indexes, whole = gather(torch.stack([indexes, whole], dim=1)).unbind(dim=1)
        group = torch.searchsorted(indexes.sort().values, indexes.contiguous())
        totals = torch.zeros_like(indexes).index_add_(0, group, whole)
        views = torch.zeros_like(indexes).index_add_(0, group, torch.ones_like(indexes))
        means = (totals[group] / views[group] / _UNIT).float()
        values, moments = (self.module.get_buffer(name) for name in self.names)
        new = rule.step(values[indexes], moments[:, indexes], means)
        for buffer, value in zip((values, moments), new, strict=True):
            if valid is not None:
                value = torch.where(valid, value, buffer[..., indexes])
            buffer[..., indexes] = value

    def check_ranks(self, epoch: int) -> None:
        """Raises RanksDifferError if the thresholds differ between ranks; all must call it."""
        known = {name: self.module.get_buffer(name) for name in self.names}
        check_equal_on_ranks("a learned threshold", known, epoch)


def above_threshold(similarity: Tensor, thresholds: Tensor | None) -> Tensor:
    """Returns (N, M) bool, similarities above the (N,) thresholds; none is above 1.

    Raises:
        ConfigError: There are no thresholds.
    """
    if thresholds is None:
        raise ConfigError(
            "This policy drops or keeps what is above a learned threshold, and the thresholds of "
            "the queries are unknown. Pass query_thresholds= to the loss."
        )
    limits = thresholds.to(similarity)[:, None]
    return (similarity.detach() > limits) & (limits < 1)  # 1 itself may be rounded up
