"""Losses never wait for a GPU, and their code path there gives the same values as on a CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_helpers import BY_SIMILARITY, POLICIES, moco, unit
from torch import Tensor
from waits import watch

from solo_hardneg.kernels import chunked
from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import build
from solo_hardneg.negatives.ranks import TooFewNegativesError
from solo_hardneg.negatives.stats import LossStats

QUERIES, KEYS = 12, 150
SMALL = {"hardest": 8, "pairs": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: POLICIES[name] for name in ("all", "keep", "mochi", "everything")},
    "kept after the mixing": POLICIES["kept after the mixing"],  # dense only
    "without the middle": {"drop": {"band": [0.4, 0.6]}},
    "two bands": {"drop": {"band": [0.4, 0.6]}, "keep": {"band": [0.1, 0.9]}},
    "below a class": {"drop": {"label": "same"}, "keep": {"band": [0.2, 0.7]}},
    "hardest below a class": {"drop": {"label": "same"}, "keep": {"band": [0.9, 1.0]}},
    "mixed below a class": {"drop": {"label": "same"}, "mix": SMALL},
    "mixed with gradient": {"mix": {**SMALL, "queries": 3, "detach": False}},
    "filled band": {"drop": {"band": [0.7, 1.0], "label": "same"}, "fill": "older"},
    "own image": {"drop": {"image": "same"}, "reweight": 1.0},
    "kept class": {"keep": {"band": [0.5, 1.0], "label": "same"}, "debias": 0.1},
    "retained": {"drop": {"label": "same"}, "retain": {"strength": 1.0}},
    **BY_SIMILARITY,
}


BACKENDS = ["dense", "chunked"]


def labels_and_ages(keys: int) -> dict[str, Any]:
    """Labels, indexes and ages for all conditions, and a reserve for ``fill``."""
    generator = torch.Generator().manual_seed(0)
    return {
        "query_labels": torch.arange(QUERIES) % 4,
        "queue_labels": torch.randint(-1, 4, (keys,), generator=generator),
        "query_indexes": torch.arange(QUERIES),
        "queue_indexes": torch.randint(40, (keys,), generator=generator),
        "queue_age": torch.randperm(keys, generator=generator),
        "queue_size": keys - 30,
    }


Run = Callable[[], tuple[Tensor, list[Tensor], LossStats]]


def moco_step(name: str, backend: str, older: bool) -> Run:
    query, key, queue = moco(QUERIES, KEYS, 8)
    queue = queue[:, torch.arange(KEYS) // 7]  # ties
    query.requires_grad_(), key.requires_grad_()
    more = labels_and_ages(KEYS)
    if not older:
        more["queue_size"] = None
    policy = build(CONFIGS[name]).at(1.0)

    def run() -> tuple[Tensor, list[Tensor], LossStats]:
        stats: list[LossStats] = []
        loss = mocov2plus_loss_func(
            query, key, queue, 0.2, policy=policy, backend=backend, report=stats.append, **more
        )
        return loss, list(torch.autograd.grad(loss, [query, key])), stats[0]

    return run


def simclr_step(name: str, backend: str, twice: bool) -> Run:
    images = torch.arange(20).repeat(2)
    z = 2 * unit(40, 8)
    z[25:] = z[5]  # ties
    if twice:  # repeats an image, so that queries have different counts
        images[3] = 4
    z.requires_grad_()
    labels = torch.arange(20).repeat(2) % 4
    config = {verb: value for verb, value in CONFIGS[name].items() if verb != "fill"}
    policy = build(config).at(1.0)

    def run() -> tuple[Tensor, list[Tensor], LossStats]:
        stats: list[LossStats] = []
        loss = simclr_loss_func(
            z, images, 0.5, policy=policy, labels=labels, backend=backend, report=stats.append
        )
        return loss, list(torch.autograd.grad(loss, [z])), stats[0]

    return run


def check(run: Run) -> None:
    """Compares the code paths of CPU and GPU, and checks that the latter doesn't wait."""
    torch.manual_seed(0)
    loss, gradients, stats = run()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, watch() as seen:
        patch.setattr(chunked, "_MIN_ROWS", 7)
        patch.setattr(chunked, "_BLOCK_SIZE", {"cpu": 1})
        found, found_gradients, found_stats = run()
    assert not seen.waits, f"\n{seen}"
    torch.testing.assert_close(found, loss)
    for found_gradient, gradient in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(found_gradient, gradient, rtol=1e-4, atol=1e-7)
    assert torch.equal(found_stats.counts, stats.counts)
    assert found_stats.notes.keys() == stats.notes.keys()
    for note in stats.notes:
        assert torch.equal(found_stats.notes[note], stats.notes[note]), note
    if stats.hard_share is not None:
        torch.testing.assert_close(found_stats.hard_share, stats.hard_share)


def backends(name: str) -> list[str]:
    return BACKENDS[:1] if name == "kept after the mixing" else BACKENDS


@pytest.mark.parametrize("name", CONFIGS)
def test_moco(name: str) -> None:
    for backend, older in itertools.product(backends(name), (False, True)):
        check(moco_step(name, backend, older))


@pytest.mark.parametrize("name", [name for name in CONFIGS if "retain" not in CONFIGS[name]])
def test_simclr(name: str) -> None:
    for backend, twice in itertools.product(backends(name), (False, True)):
        check(simclr_step(name, backend, twice))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "config", [{"keep": {"band": [0.5, 0.51]}}, {"mix": {"hardest": 60, "pairs": 4}}]
)
def test_too_few_negatives_raise_on_a_cpu_and_give_a_note_on_a_gpu(
    config: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "too few", config)
    run = simclr_step("too few", backend, twice=False)
    with pytest.raises(TooFewNegativesError, match="M=38"):
        run()
    with watch() as seen:
        loss, (gradient,), stats = run()
    assert not seen.waits
    assert gradient.isfinite().all()
    if "keep" in config:
        assert stats.counts.eq(0).all()
        assert loss.eq(0)
    else:
        assert stats.notes["mix_short"].eq(1).all()
