"""Every backend that can be had here against the dense, readable one."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from loss_helpers import POLICIES, moco
from torch import Tensor

from solo_hardneg.errors import ConfigError
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import build
from solo_hardneg.negatives.kept import Kept
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.weigh import Reweight

BACKENDS = ["chunked", *(["numba"] if importlib.util.find_spec("numba") else [])]
if os.environ.get("TRITON_INTERPRET") == "1":  # see test_triton.py
    BACKENDS = ["triton"]
BANDS = {
    "all": {},
    "hardest": {"keep": {"band": [0.95, 1.0]}},
    "hardest tenth": {"keep": {"band": [0.9, 1.0]}},
    "easiest": {"keep": {"band": [0.0, 0.95]}},
    "middle": {"keep": {"band": [0.9, 0.95]}},
    "wide": {"keep": {"band": [0.2, 0.8]}},
    "without the hardest": {"drop": {"band": [0.97, 1.0]}},
    "without the easiest": {"drop": {"band": [0.0, 0.5]}},
    "without the middle": {"drop": {"band": [0.4, 0.6]}},
    "holes": {"drop": {"band": [0.4, 0.6]}, "keep": {"band": [0.1, 0.9]}},
    "one": {"keep": {"band": [0.9, 1.0]}, "drop": {"band": [0.0, 0.5]}},
    "weighed": {"keep": {"band": [0.8, 1.0]}, "reweight": {"beta": 1.0}},
    "debiased": {"keep": {"band": [0.8, 1.0]}, "debias": {"tau_plus": 0.05}},
}
CLASSES: dict[str, dict[str, Any]] = {
    "same": {"drop": {"band": [0.8, 1.0], "label": "same"}},
    "different": {"drop": {"label": "different"}},
    "image": {"drop": {"image": "same"}, "reweight": {"beta": 0.3}},
    "kept": {"keep": {"band": [0.5, 1.0], "label": "same"}, "debias": {"tau_plus": 0.1}},
    "filled": {"drop": {"band": [0.7, 1.0], "label": "same"}, "fill": "older"},
    "retained": {"keep": {"band": [0.3, 1.0]}, "retain": {"strength": 1.0}},
    "none left": {"keep": {"label": "same"}, "reweight": 0.5, "debias": 0.1},
    "mixed": {"drop": {"label": "same"}, "mix": {"hardest": 3, "pairs": 4}},
}


class Outcome:
    """One loss, its gradients, and what the policy left."""

    def __init__(
        self, loss: Tensor, leaves: list[Tensor], kept: list[Kept], scale: float, tau: float
    ) -> None:
        self.loss = loss.detach()
        if loss.requires_grad:
            (loss * scale).backward()
        self.grads = [leaf.grad for leaf in leaves if leaf.requires_grad]
        (self.kept,) = kept
        self.rounding = 3e-6 * abs(scale) / (tau * len(leaves[0]))  # of parts that cancel

    def same_as(self, other: Outcome, rtol: float = 1e-5) -> None:
        torch.testing.assert_close(self.loss, other.loss, rtol=rtol, atol=1e-7)
        for mine, theirs in zip(self.grads, other.grads, strict=True):
            assert (mine is None) == (theirs is None)
            if theirs is not None:
                # Relative to the largest: a sum's small parts have the rounding of its large ones.
                largest = float(theirs.abs().max())
                torch.testing.assert_close(
                    mine, theirs, rtol=rtol, atol=rtol * largest + self.rounding
                )
        assert torch.equal(self.kept.counts, other.kept.counts)
        assert self.kept.candidates == other.kept.candidates
        assert sorted(self.kept.notes) == sorted(other.kept.notes)
        for name, values in other.kept.notes.items():
            assert torch.equal(self.kept.notes[name], values), name
        if other.kept.hard_share is not None:
            torch.testing.assert_close(self.kept.hard_share, other.kept.hard_share)


def moco_loss(
    backend: str,
    config: dict[str, Any],
    tensors: tuple[Tensor, Tensor, Tensor],
    tau: float = 0.2,
    scale: float = 1.0,
    queue_grad: bool = False,
    **more: Any,
) -> Outcome:
    query, key, queue = (tensor.clone(memory_format=torch.preserve_format) for tensor in tensors)
    query.requires_grad_(), key.requires_grad_(), queue.requires_grad_(queue_grad)
    kept: list[Kept] = []
    torch.manual_seed(0)
    loss = mocov2plus_loss_func(
        query, key, queue, tau, policy=build(config), backend=backend, report=kept.append, **more
    )
    return Outcome(loss, [query, key, queue], kept, scale, tau)


EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


def named(configs: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


# ---------------------------------------------------------------- MoCo


@EACH_BACKEND
@named(BANDS)
@pytest.mark.parametrize("shape", [(1, 37, 3), (5, 37, 7), (70, 333, 16), (3, 1111, 8)])
def test_bands(backend: str, config: dict[str, Any], shape: tuple[int, int, int]) -> None:
    tensors = moco(*shape)
    if backend == "numba" and "holes" in str(config):
        return
    for scale in (1.0, -3.5):
        expected = moco_loss("dense", config, tensors, scale=scale)
        try:
            found = moco_loss(backend, config, tensors, scale=scale)
        except ConfigError:
            assert config == BANDS["holes"]
            assert backend != "chunked"
            return
        found.same_as(expected)
        assert found.kept.backend == backend


@EACH_BACKEND
@named({**POLICIES})
def test_everything_that_the_formula_has(backend: str, config: dict[str, Any]) -> None:
    tensors = moco(6, 60, 7)
    expected = moco_loss("dense", config, tensors)
    if list(config)[:1] == ["mix"] and "keep" in config:
        with pytest.raises(ConfigError, match=r"backend=\w+: negatives.keep stands below"):
            moco_loss(backend, config, tensors)
        return
    moco_loss(backend, config, tensors).same_as(expected)


@named(CLASSES)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_classes_images_reserve_and_retention(
    config: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solo_hardneg.kernels.chunked._LEAST_ROWS", rows)
    monkeypatch.setattr("solo_hardneg.kernels.chunked._NUMBERS", {"cpu": 1})
    torch.manual_seed(1)
    query_labels = torch.randint(3, (20,))
    query_labels[4] = 9  # of whose class there is no key
    known = {
        "query_labels": query_labels,
        "queue_labels": torch.randint(-1, 3, (90,)),
        "query_indexes": torch.arange(20),
        "queue_indexes": torch.randint(40, (90,)),
        "queue_age": torch.randperm(90),
        "queue_size": 77,
    }
    tensors = moco(20, 90, 6)
    found = moco_loss("chunked", config, tensors, **known)
    found.same_as(moco_loss("dense", config, tensors, **known))
    assert found.kept.backend == "chunked"


@EACH_BACKEND
@named(BANDS)
@pytest.mark.parametrize("kind", ["equal", "twice", "few values", "sorted", "keys in rows"])
def test_ties_and_layouts(backend: str, config: dict[str, Any], kind: str) -> None:
    query, key, queue = moco(6, 120, 8)
    if kind == "equal":
        queue = queue[:, :1].expand(-1, 120).contiguous()
    elif kind == "twice":
        queue = torch.cat([queue[:, :60], queue[:, :60]], dim=1)
    elif kind == "few values":  # axes: similarities are exact, whatever the order of summation
        query = torch.eye(8)[:6]
        queue = torch.eye(8).repeat(1, 15)
    elif kind == "sorted":
        queue = queue[:, (query[0] @ queue).argsort()]
    else:
        queue = queue.T.contiguous().T
    if backend != "chunked" and config == BANDS["holes"]:
        return
    found = moco_loss(backend, config, (query, key, queue))
    found.same_as(moco_loss("dense", config, (query, key, queue)))


@given(
    backend=st.sampled_from(BACKENDS),
    shape=st.tuples(st.integers(1, 9), st.integers(2, 300), st.integers(1, 9)),
    band=st.tuples(st.integers(0, 20), st.integers(0, 20)).filter(lambda b: b[0] < b[1]),
    verb=st.sampled_from(["keep", "drop"]),
    beta=st.sampled_from([0.0, 0.5]),
    tau=st.sampled_from([0.07, 0.5]),
    seed=st.integers(0, 99),
)
@example("chunked", (3, 20, 1), (19, 20), "keep", 0.0, 0.5, 1)  # all are ties
@example("numba", (1, 3, 1), (0, 14), "keep", 0.0, 0.07, 0)  # all are at the band's edge
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
    moco_loss(backend, config, tensors, tau).same_as(expected)


@pytest.mark.parametrize("number", [49, 97])
def test_a_remainder_of_one_query_rounds_as_the_others(number: int) -> None:
    """Vectors of ±1/√D: many similarities are equal, if they are all rounded alike."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2, (number + 3000, 12), generator=generator) * 2.0 - 1
    query, queue = codes[:number] / 12**0.5, (codes[number:] / 12**0.5).T
    for name in ("hardest", "middle", "easiest"):
        tensors = query, query, queue
        found = moco_loss("chunked", BANDS[name], tensors).grads[0]
        expected = moco_loss("dense", BANDS[name], tensors).grads[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_thousands_of_like_terms_lose_no_digit() -> None:
    query, key, queue = moco(4, 60_000, 8)
    queue = torch.nn.functional.normalize(queue + 3 * query[0][:, None], dim=0).T.contiguous().T
    config = {"keep": {"band": [0.9, 1.0]}}
    expected = moco_loss("dense", config, tuple(t.double() for t in (query, key, queue)))
    for backend in BACKENDS:
        found = moco_loss(backend, config, (query, key, queue))
        error = (found.grads[0].double() - expected.grads[0]).abs().max()
        assert error < 3e-6 * expected.grads[0].abs().max() + 3e-7


def test_a_changed_verb_is_left_to_the_dense_way() -> None:
    class Twice(Reweight):
        def __call__(self, pool: Pool) -> Pool:
            return super().__call__(super().__call__(pool))

    policy = build({"reweight": 1.0})
    policy.verbs = {"reweight": Twice(1.0)}
    with pytest.raises(ConfigError, match="negatives.reweight is a policy that only backend=dense"):
        mocov2plus_loss_func(*moco(), policy=policy, backend="chunked")


def test_fill_without_ages_is_refused_by_all() -> None:
    policy = build({"drop": {"band": [0.9, 1.0]}, "fill": "older"})
    for backend in ("dense", "chunked"):
        with pytest.raises(ConfigError, match="their age is not known here"):
            mocov2plus_loss_func(*moco(), policy=policy, backend=backend)


@named({name: BANDS[name] for name in ("all", "hardest", "middle", "easiest")})
@EACH_BACKEND
def test_a_key_that_is_no_number_shows(backend: str, config: dict[str, Any]) -> None:
    query, key, queue = moco(5, 3000, 8)
    queue[:, 7] = torch.nan
    if config == BANDS["all"] or config == BANDS["hardest"]:
        assert moco_loss("dense", config, (query, key, queue)).loss.isnan()
        assert moco_loss(backend, config, (query, key, queue)).loss.isnan()
    else:  # NaN is the hardest, and left out
        moco_loss(backend, config, (query, key, queue))


@named(BANDS)
def test_a_queue_that_wants_a_gradient(config: dict[str, Any]) -> None:
    tensors = moco(5, 64, 7)
    tensors = (*tensors[:2], tensors[2].T.contiguous().T)
    expected = moco_loss("dense", config, tensors, queue_grad=True)
    moco_loss("chunked", config, tensors, queue_grad=True).same_as(expected)


@pytest.mark.parametrize("kind", ["pairs", "queries"])
def test_gradient_through_synthetic_ends(kind: str) -> None:
    config = {"mix": {"hardest": 5, kind: 7, "detach": False}, "reweight": {"beta": 0.4}}
    tensors = moco(5, 64, 7)
    expected = moco_loss("dense", config, tensors, queue_grad=True)
    moco_loss("chunked", config, tensors, queue_grad=True).same_as(expected)


@EACH_BACKEND
def test_long_vectors_and_low_temperatures(backend: str) -> None:
    query, key, queue = moco(4, 200, 5)
    tensors = (20 * query, key, 5 * queue)
    for config in (BANDS["all"], BANDS["hardest"], BANDS["without the hardest"]):
        for tau in (0.01, 5.0):
            found = moco_loss(backend, config, tensors, tau)
            found.same_as(moco_loss("dense", config, tensors, tau))


@pytest.mark.parametrize("config", [BANDS["all"], BANDS["hardest"], BANDS["weighed"]])
def test_double_precision_agrees_with_finite_differences(config: dict[str, Any]) -> None:
    query, key, queue = (t.requires_grad_() for t in moco(3, 40, 4, dtype=torch.float64))
    policy = build(config)

    def function(*tensors: Tensor) -> Tensor:
        return mocov2plus_loss_func(*tensors, 0.3, policy=policy, backend="chunked")

    assert torch.autograd.gradcheck(function, (query, key, queue))


# ---------------------------------------------------------------- gradients, or none


@EACH_BACKEND
def test_without_gradient(backend: str) -> None:
    tensors = moco(5, 200, 7)
    for config in (BANDS["all"], BANDS["hardest"], POLICIES["sscl"]):
        with torch.no_grad():
            found = moco_loss(backend, config, tensors)
            expected = moco_loss("dense", config, tensors)
        assert found.grads == expected.grads == [None, None]
        found.same_as(expected)


@EACH_BACKEND
def test_only_the_key_wants_a_gradient(backend: str) -> None:
    query, key, queue = moco(5, 200, 7)
    grads = []
    for name in (backend, "dense"):
        leaf = key.clone().requires_grad_()
        mocov2plus_loss_func(
            query, leaf, queue, policy=build(BANDS["hardest"]), backend=name
        ).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


@EACH_BACKEND
def test_a_second_derivative_is_refused(backend: str) -> None:
    query, key, queue = moco(5, 50, 7)
    query.requires_grad_()
    loss = mocov2plus_loss_func(query, key, queue, backend=backend)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend='dense'"):
        torch.autograd.grad(loss, query, create_graph=True)


@EACH_BACKEND
def test_the_queue_may_change_before_the_backward_pass(backend: str) -> None:
    tensors = moco(5, 200, 7)
    expected = moco_loss("dense", BANDS["hardest"], tensors).grads[0]
    query, key, queue = (t.clone() for t in tensors)
    query.requires_grad_()
    loss = mocov2plus_loss_func(
        query, key, queue, 0.2, policy=build(BANDS["hardest"]), backend=backend
    )
    queue.zero_()
    loss.backward()
    torch.testing.assert_close(query.grad, expected, rtol=1e-5, atol=1e-7)


@EACH_BACKEND
def test_backward_twice_gives_the_same(backend: str) -> None:
    query, key, queue = moco(5, 50, 7)
    query.requires_grad_()
    loss = mocov2plus_loss_func(query, key, queue, backend=backend)
    loss.backward(retain_graph=True)
    once = query.grad.clone()
    loss.backward()
    torch.testing.assert_close(query.grad, 2 * once)


@EACH_BACKEND
def test_half_precision_is_computed_in_single(backend: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        tensors = tuple(t.to(dtype) for t in moco(5, 200, 8))
        expected = moco_loss("dense", BANDS["hardest"], tensors)
        found = moco_loss(backend, BANDS["hardest"], tensors)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
        assert found.grads[0].dtype == dtype
        torch.testing.assert_close(found.grads[0], expected.grads[0], rtol=1e-2, atol=1e-5)
