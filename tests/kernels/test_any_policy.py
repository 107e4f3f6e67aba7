"""Policies of any verbs together: every backend that takes one equals the dense reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import BACKENDS, moco_loss
from loss_helpers import moco

from solo_hardneg.errors import ConfigError

QUERIES, KEYS = 8, 90


def between(lo: float, hi: float) -> st.SearchStrategy[list[float]]:
    ends = [[a, b] for a in range(20) for b in range(a + 1, 21)]
    share = (hi - lo) / 20
    return st.sampled_from([[round(lo + share * end, 3) for end in pair] for pair in ends])


def some_of(choices: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """At least one of the keys, in the order given."""
    names = st.sets(st.sampled_from([*choices]), min_size=1)
    found = names.flatmap(lambda some: st.fixed_dictionaries({n: choices[n] for n in some}))
    return found.map(lambda values: {name: values[name] for name in choices if name in values})


def scheduled(number: float) -> st.SearchStrategy[Any]:
    ramp = {"from": number, "to": number / 2, "epochs": [0, 4]}
    return st.sampled_from([number, ramp])


CONDITIONS: dict[str, st.SearchStrategy[Any]] = {
    "band": between(0.0, 1.0),
    "label": st.sampled_from(["same", "different"]),
    "image": st.just("same"),
    "similarity": between(-1.0, 1.0),
    "margin": between(-2.0, 2.0),
}
LEARNED = st.just({"above": "learned", "share": 0.1})
conditions = some_of(CONDITIONS)
KINDS = {
    **{kind: st.integers(1, 4) for kind in ("pairs", "queries", "beyond")},
    "noise": st.just({"count": 2, "sigma": 0.1}),
    "toward": st.just({"count": 2, "step": 0.1}),
    "adversarial": st.just({"count": 2, "step": 0.1}),
}
mixes = st.tuples(some_of(KINDS), st.integers(2, 9), st.booleans()).map(
    lambda parts: {**parts[0], "hardest": parts[1], "detach": parts[2]}
)
# A verb below mix would choose among synthetic negatives, which dense alone can.
policies = some_of(
    {
        "keep": conditions,
        "drop": conditions | LEARNED,
        "mix": mixes,
        "reweight": st.fixed_dictionaries({"beta": scheduled(0.5)}),
        "debias": st.fixed_dictionaries({"tau_plus": scheduled(0.1)}),
    }
)


@given(
    backend=st.sampled_from(["auto", *BACKENDS]),
    config=policies,
    epoch=st.sampled_from([0.0, 1.5, 9.0]),
    seed=st.integers(0, 99),
)
def test_any_policy(backend: str, config: dict[str, Any], epoch: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(number: int, size: int) -> torch.Tensor:
        return torch.randint(number, (size,), generator=generator)

    known = {
        "query_labels": draw(4, QUERIES),
        "queue_labels": draw(4, KEYS) - 1,  # -1: unknown
        "query_indexes": torch.arange(QUERIES),
        "queue_indexes": draw(40, KEYS),
        "query_thresholds": torch.rand(QUERIES, generator=generator) - 0.2,
    }
    tensors = moco(QUERIES, KEYS, 6, seed=seed)
    try:
        expected = moco_loss("dense", config, tensors, epoch=epoch, **known)
    except ConfigError as error:  # too few are left
        # numba may refuse the policy before it finds that.
        with pytest.raises(ConfigError if backend == "numba" else type(error)):
            moco_loss(backend, config, tensors, epoch=epoch, **known)
        return
    try:
        found = moco_loss(backend, config, tensors, epoch=epoch, **known)
    except ConfigError:
        if backend == "numba":  # it takes ranks alone
            return
        raise
    found.assert_equal(expected)
