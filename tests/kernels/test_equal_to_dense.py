"""Every available backend against the dense reference, with MoCo's loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_helpers import BACKENDS, BANDS, EACH_BACKEND, moco_loss, named
from loss_helpers import BY_SIMILARITY, POLICIES, SIX_KINDS, moco
from torch import Tensor

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import TooFewNegativesError, build
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.reweight import Reweight


def with_ties(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    query, key, queue = moco(6, 120, 8)
    if kind == "equal":
        queue = queue[:, :1].expand(-1, 120).contiguous()
    elif kind == "twice":
        queue = torch.cat([queue[:, :60], queue[:, :60]], dim=1)
    elif kind == "few values":  # axes, so that similarities are exact in any order of summation
        query, queue = torch.eye(8)[:6], torch.eye(8).repeat(1, 15)
    elif kind == "sorted":
        queue = queue[:, (query[0] @ queue).argsort()]
    else:
        queue = queue.T.contiguous().T
    return query, key, queue


TENSORS = {
    **{str(shape): moco(*shape) for shape in [(1, 37, 3), (70, 333, 16), (3, 1111, 8)]},
    **{kind: with_ties(kind) for kind in ("equal", "twice", "few values", "sorted", "in rows")},
}


@EACH_BACKEND
@named(BANDS)
def test_shapes_ties_and_layouts(backend: str, config: dict[str, Any]) -> None:
    if backend == "numba" and config == BANDS["holes"]:
        with pytest.raises(ConfigError, match="numba: supports a single band"):
            moco_loss(backend, config, moco())
        return
    for kind, tensors in TENSORS.items():
        scale = -3.5 if kind.startswith("(") else 1.0
        found = moco_loss(backend, config, tensors, scale=scale)
        found.assert_equal(moco_loss("dense", config, tensors, scale=scale))
        assert found.stats.backend == backend


@EACH_BACKEND
def test_a_band_leaves_too_few_to_mix(backend: str) -> None:
    config = {"keep": {"band": [0.5, 1.0]}, "mix": {"hardest": 51, "pairs": 4}}
    with pytest.raises(TooFewNegativesError, match="hardest=51: there are only M=50 "):
        moco_loss(backend, config, moco(3, 100, 4))


@EACH_BACKEND
@named(POLICIES)
def test_policies(backend: str, config: dict[str, Any]) -> None:
    tensors = moco(6, 60, 7)
    expected = moco_loss("dense", config, tensors)
    if list(config)[:1] == ["mix"] and "keep" in config:
        with pytest.raises(ConfigError, match=r"backend=\w+: negatives.keep stands below"):
            moco_loss(backend, config, tensors)
        return
    moco_loss(backend, config, tensors).assert_equal(expected)


@EACH_BACKEND
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("band", [[0.0, 1.0], [0.8, 1.0], [0.0, 0.9]])
def test_synthetic_negatives_of_six_kinds(backend: str, detach: bool, band: list[float]) -> None:
    config = {"keep": {"band": band}, "mix": {**SIX_KINDS, "detach": detach}, "debias": 0.05}
    tensors = moco(70, 200, 16)
    moco_loss(backend, config, tensors).assert_equal(moco_loss("dense", config, tensors))


CLASSES: dict[str, dict[str, Any]] = {
    "same": {"drop": {"band": [0.8, 1.0], "label": "same"}},
    "different": {"drop": {"label": "different"}},
    "image": {"drop": {"image": "same"}, "reweight": {"beta": 0.3}},
    "kept": {"keep": {"band": [0.5, 1.0], "label": "same"}, "debias": {"tau_plus": 0.1}},
    "filled": {"drop": {"band": [0.7, 1.0], "label": "same"}, "fill": "older"},
    "retained": {"keep": {"band": [0.3, 1.0]}, "retain": {"strength": 1.0}},
    "none left": {"keep": {"label": "same"}, "reweight": 0.5, "debias": 0.1},
    "mixed": {"drop": {"label": "same"}, "mix": {"hardest": 3, "pairs": 4}},
    "six kinds": {"drop": {"label": "same"}, "mix": SIX_KINDS, "reweight": 0.5},
    "learned": {"drop": {"above": "learned", "share": 0.1}, "reweight": 0.3},
    "learned and same": {"drop": {"above": "learned", "share": 0.1, "label": "same"}},
    **BY_SIMILARITY,
}


@named(CLASSES)
def test_labels_images_similarity_reserve_and_retention(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.chunked._BLOCK_SIZE", {"cpu": 1})
    torch.manual_seed(1)
    query_labels = torch.randint(3, (20,))
    query_labels[4] = 9  # a class without keys
    known = {
        "query_labels": query_labels,
        "queue_labels": torch.randint(-1, 3, (90,)),
        "query_indexes": torch.arange(20),
        "queue_indexes": torch.randint(40, (90,)),
        "query_thresholds": torch.rand(20) - 0.2,
        "queue_age": torch.randperm(90),
        "queue_size": 77,
    }
    tensors = moco(20, 90, 6)
    expected = moco_loss("dense", config, tensors, **known)
    for rows in (1, 7, 64):
        monkeypatch.setattr("solo_hardneg.kernels.chunked._MIN_ROWS", rows)
        found = moco_loss("chunked", config, tensors, **known)
        found.assert_equal(expected)
        assert found.stats.backend == "chunked"


@given(
    backend=st.sampled_from(BACKENDS),
    shape=st.tuples(st.integers(1, 9), st.integers(2, 300), st.integers(1, 9)),
    band=st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda b: b[0] < b[1]),
    verb=st.sampled_from(["keep", "drop"]),
    beta=st.sampled_from([0.0, 0.5]),
    tau=st.sampled_from([0.07, 0.5]),
    seed=st.integers(0, 99),
)
@example("chunked", (3, 20, 1), (19, 20), "keep", 0.0, 0.5, 1)  # all similarities tie
@example("numba", (1, 3, 1), (0, 14), "keep", 0.0, 0.07, 0)  # all tie at the band's edge
def test_any_band(
    backend: str,
    shape: tuple[int, int, int],
    band: tuple[int, int],
    verb: str,
    beta: float,
    tau: float,
    seed: int,
) -> None:
    config = {verb: {"band": [band[0] / 20, band[1] / 20]}, "reweight": {"beta": beta}}
    tensors = moco(*shape, seed=seed)
    try:
        expected = moco_loss("dense", config, tensors, tau)
    except ConfigError as error:
        with pytest.raises(type(error), match=str(error).partition(":")[0].replace("[", r"\[")):
            moco_loss(backend, config, tensors, tau)
        return
    moco_loss(backend, config, tensors, tau).assert_equal(expected)


def test_blocks_round_alike() -> None:
    """Vectors of ±1/√D, many of whose similarities tie if all are rounded alike."""
    number = 49  # one more than a block
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (number + 3000, 12), generator=generator) * 2.0 - 1
    query, queue = codes[:number] / 12**0.5, (codes[number:] / 12**0.5).T
    for name in ("hardest", "middle", "easiest"):
        tensors = query, query, queue
        found = moco_loss("chunked", BANDS[name], tensors).grads[0]
        expected = moco_loss("dense", BANDS[name], tensors).grads[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_long_sums_lose_no_digits() -> None:
    query, key, queue = moco(4, 60_000, 8)
    queue = torch.nn.functional.normalize(queue + 3 * query[0][:, None], dim=0).T.contiguous().T
    config = {"keep": {"band": [0.9, 1.0]}}
    expected = moco_loss("dense", config, tuple(t.double() for t in (query, key, queue)))
    for backend in BACKENDS:
        found = moco_loss(backend, config, (query, key, queue))
        error = (found.grads[0].double() - expected.grads[0]).abs().max()
        assert error < 3e-6 * expected.grads[0].abs().max() + 3e-7


def test_a_changed_verb_is_an_error() -> None:
    class Twice(Reweight):
        def __call__(self, pool: Pool) -> Pool:
            return super().__call__(super().__call__(pool))

    policy = build({"reweight": 1.0})
    policy.verbs = {"reweight": Twice(1.0)}
    with pytest.raises(ConfigError, match="negatives.reweight is a policy that only backend=dense"):
        mocov2plus_loss_func(*moco(), policy=policy, backend="chunked")


def test_fill_without_ages_is_an_error() -> None:
    policy = build({"drop": {"band": [0.9, 1.0]}, "fill": "older"})
    for backend in ("dense", "chunked"):
        with pytest.raises(ConfigError, match="their age is not known here"):
            mocov2plus_loss_func(*moco(), policy=policy, backend=backend)


@pytest.mark.parametrize("backend", ["dense", *BACKENDS])
def test_nan_and_infinite_keys(backend: str) -> None:
    query, key, queue = moco(5, 3000, 8)
    for value in (torch.nan, torch.inf, -torch.inf):
        queue[:, 7] = value
        for name in ("all", "hardest", "middle", "easiest", "without the hardest", "weighed"):
            loss = moco_loss(backend, BANDS[name], (query, key, queue)).loss
            if value != value and name in ("all", "hardest"):
                assert loss.isnan()  # other bands drop NaN, which ranks hardest


UNDETACHED = {"mix": {"hardest": 5, "pairs": 4, "queries": 3, "detach": False}}


@named({**BANDS, "mixed": {**UNDETACHED, "reweight": {"beta": 0.4}}})
def test_gradient_of_the_queue(config: dict[str, Any]) -> None:
    tensors = moco(5, 64, 7)
    tensors = (*tensors[:2], tensors[2].T.contiguous().T)
    expected = moco_loss("dense", config, tensors, queue_grad=True)
    moco_loss("chunked", config, tensors, queue_grad=True).assert_equal(expected)


@EACH_BACKEND
def test_long_vectors_and_low_temperatures(backend: str) -> None:
    query, key, queue = moco(4, 200, 5)
    tensors = (20 * query, key, 5 * queue)
    for config in (BANDS["all"], BANDS["hardest"], BANDS["without the hardest"]):
        for tau in (0.01, 5.0):
            found = moco_loss(backend, config, tensors, tau)
            found.assert_equal(moco_loss("dense", config, tensors, tau))


# ---------------------------------------------------------------- gradients


@EACH_BACKEND
def test_without_gradient(backend: str) -> None:
    tensors = moco(5, 200, 7)
    for config in (BANDS["all"], BANDS["hardest"], POLICIES["sscl"]):
        with torch.no_grad():
            found = moco_loss(backend, config, tensors)
            expected = moco_loss("dense", config, tensors)
        assert found.grads == expected.grads == [None, None]
        found.assert_equal(expected)


@EACH_BACKEND
def test_only_the_key_requires_a_gradient(backend: str) -> None:
    query, key, queue = moco(5, 200, 7)
    grads = []
    for name in (backend, "dense"):
        leaf = key.clone().requires_grad_()
        policy = build(BANDS["hardest"])
        mocov2plus_loss_func(query, leaf, queue, policy=policy, backend=name).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@EACH_BACKEND
def test_the_queue_may_change_before_two_backward_passes(backend: str) -> None:
    tensors = moco(5, 200, 7)
    expected = moco_loss("dense", BANDS["hardest"], tensors).grads[0]
    query, key, queue = (t.clone() for t in tensors)
    query.requires_grad_()
    loss = mocov2plus_loss_func(
        query, key, queue, 0.2, policy=build(BANDS["hardest"]), backend=backend
    )
    queue.zero_()
    for times in (1, 2):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(query.grad, times * expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend='dense'"):
        torch.autograd.grad(loss, query, create_graph=True)


@EACH_BACKEND
def test_half_precision_is_computed_in_float32(backend: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        tensors = tuple(t.to(dtype) for t in moco(5, 200, 8))
        expected = moco_loss("dense", BANDS["hardest"], tensors)
        found = moco_loss(backend, BANDS["hardest"], tensors)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
        assert found.grads[0].dtype == dtype
        torch.testing.assert_close(found.grads[0], expected.grads[0], rtol=1e-2, atol=1e-5)
