"""The Triton kernels without a GPU: in Triton's interpreter, and compiled for GPUs.

The interpreter must be asked for before Triton is imported, so those tests run in a process of
their own: this file again, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from kernel_helpers import BANDS, Outcome, moco_loss, named
from loss_helpers import moco, unit
from waits import watch

from solo_hardneg.kernels.problem import Problem, Pulls, Ranks


def _major() -> int:
    try:
        return int(version("triton").partition(".")[0])
    except PackageNotFoundError:
        return 0


NEW = pytest.mark.skipif(_major() < 3, reason="needs triton 3")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")
outside = pytest.mark.skipif(INTERPRETED, reason="not in the interpreter")


@outside
@NEW
def test_in_the_interpreter(request: pytest.FixtureRequest) -> None:
    """12 s in another process: nothing else runs Triton's kernels without a GPU; most are full."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    if request.config.getoption("--all"):
        command.append("--all")
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


def equal(config: dict[str, Any], tensors: Any, tau: float = 0.2, scale: float = 1.0) -> Outcome:
    found = moco_loss("triton", config, tensors, tau, scale)
    assert found.kept.backend == "triton"
    found.same_as(moco_loss("dense", config, tensors, tau, scale))
    return found


@inside
def test_each_kernel_once() -> None:
    tensors = moco(2, 77, 7)
    equal({**BANDS["middle"], "reweight": 0.5, "mix": {"hardest": 4, "pairs": 2}}, tensors)
    equal(BANDS["without the hardest"], tensors, scale=-3.5)


@inside
@pytest.mark.full
@named({name: config for name, config in BANDS.items() if name != "holes"})
def test_bands(config: dict[str, Any]) -> None:
    equal(config, moco(3, 77, 7), scale=-3.5)


@inside
@pytest.mark.full
@pytest.mark.parametrize("shape", [(1, 37, 3), (35, 40, 16), (2, 700, 20)])
def test_shapes(shape: tuple[int, int, int]) -> None:
    equal(BANDS["hardest tenth"], moco(*shape))


@inside
@pytest.mark.full
@pytest.mark.parametrize("kind", ["equal", "twice", "axes", "keys in rows"])
def test_ties_and_layouts(kind: str) -> None:
    query, key, queue = moco(3, 120, 8)
    if kind == "equal":
        queue = queue[:, :1].expand(-1, 120).contiguous()
    elif kind == "twice":
        queue = torch.cat([queue[:, :60], queue[:, :60]], dim=1)
    elif kind == "axes":  # with -0, 0 and 1
        query, queue = torch.eye(8)[:3], torch.eye(8).repeat(1, 15)
        queue[:, ::3] *= -1
    else:
        queue = queue.T.contiguous().T
    equal(BANDS["middle"], (query, key, queue))
    equal(BANDS["without the hardest"], (query, key, queue))


@inside
@pytest.mark.full
@pytest.mark.parametrize("kind", ["pairs", "both", "of the rest"])
def test_mixing_its_hardest(kind: str) -> None:
    config: dict[str, Any] = {"mix": {"hardest": 5, "pairs": 6}, "reweight": 0.3}
    if kind == "both":
        config = {**BANDS["hardest tenth"], "mix": {"hardest": 4, "pairs": 2, "queries": 3}}
    elif kind == "of the rest":
        config = {**BANDS["without the hardest"], **config, "debias": 0.01}
    equal(config, moco(3, 77, 7))


@inside
@pytest.mark.full
@pytest.mark.parametrize("misled", [False, True])
def test_a_sample_misleads_or_not(misled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg.kernels import triton_kernel

    monkeypatch.setattr(triton_kernel, "_PROGRAMS", 3)  # few and long lists
    listed: list[int] = []
    real = triton_kernel.TritonKernel._list

    def watched(self: Any, query: torch.Tensor, bounds: Any, done: torch.Tensor) -> Any:
        if bounds is not None and misled:
            bounds = (bounds[0] + 0.5, bounds[1] + 0.5, bounds[2])
        lists = real(self, query, bounds, done)
        if bounds is None:
            listed.extend(lists.sizes.sum(dim=1).tolist())
        return lists

    monkeypatch.setattr(triton_kernel.TritonKernel, "_list", watched)
    monkeypatch.setattr(triton_kernel, "_LISTED", 1500)
    equal(BANDS["hardest"], moco(2, 1500, 4))
    assert listed == ([1500, 1500] if misled else [0, 0])


@inside
@pytest.mark.full
def test_a_sample_misleads_for_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg.kernels import triton_kernel

    real = triton_kernel.TritonKernel._bounds

    def misled(self: Any, query: torch.Tensor, rank: int) -> Any:
        lower, upper, width = real(self, query, rank)
        lower[1], upper[1] = lower[1] + 0.5, upper[1] + 0.5
        return lower, upper, width

    monkeypatch.setattr(triton_kernel.TritonKernel, "_bounds", misled)
    equal({**BANDS["hardest tenth"], "mix": {"hardest": 4, "pairs": 2}}, moco(3, 1500, 4))


@inside
@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    tensors = tuple(tensor.to(dtype) for tensor in moco(3, 77, 16))
    expected = moco_loss("dense", BANDS["hardest tenth"], tensors)
    found = moco_loss("triton", BANDS["hardest tenth"], tensors)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    assert found.grads[0].dtype == dtype
    torch.testing.assert_close(found.grads[0], expected.grads[0], rtol=1e-2, atol=1e-5)


@inside
@pytest.mark.full
def test_nan_ends_and_shows() -> None:
    query, key, queue = moco(2, 77, 7)
    queue[:, 5] = torch.nan
    for name in ("hardest", "easiest", "without the hardest"):
        assert moco_loss("triton", BANDS[name], (query, key, queue)).loss.isnan()


@inside
@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1, 40, 76])
def test_an_edge_is_what_sorting_says(rank: int) -> None:
    from solo_hardneg.kernels.triton_kernel import TritonKernel

    query, vectors = unit(3, 4), (unit(77, 4, seed=1) * 2).round() / 2  # few values
    kernel = TritonKernel(Problem(query, vectors, 0.2, ranks=Ranks(rank, 77)))
    kernel.reduce(slice(0, 3))
    if rank:
        order = (query @ vectors.T).sort(dim=1, stable=True)
        torch.testing.assert_close(kernel.edges.values[0], order.values[:, rank])
        assert kernel.edges.columns[0].tolist() == order.indices[:, rank].tolist()


@outside
@NEW
@pytest.mark.parametrize("ranks", [Ranks(700, 900), Ranks(0, 900, inside=False)])
def test_its_host_part_waits_for_nothing(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg.kernels import triton_kernel

    launched: set[str] = set()

    class Kernels:
        """The device code, which does nothing."""

        def __getattr__(self, name: str) -> Any:
            launched.add(name)
            return defaultdict(lambda: lambda *args, **kwargs: None)

    monkeypatch.setattr(triton_kernel, "loops", Kernels())
    query, vectors = unit(5, 4), unit(1000, 4, seed=1)
    kernel = triton_kernel.TritonKernel(Problem(query, vectors, 0.2, ranks=ranks, hardest=3))
    kernel.reduce(slice(0, 5))  # puts the sample on the device
    with watch() as seen:
        sums = kernel.reduce(slice(0, 5))
        kernel.pull(slice(0, 5), Pulls(sums.total))
    assert not seen.waits, f"\n{seen}"
    assert launched == {"list_candidates", "select", "list_between", "sum_up", "pull"}


# ---------------------------------------------------------------- compiled, and refused

TYPES = {
    **dict.fromkeys(("lower", "upper", "values", "edges", "tops", "totals", "logs"), "*fp32"),
    **dict.fromkeys(("derivatives", "pulled", "edge_value"), "*fp32"),
    **dict.fromkeys(("columns", "sizes", "above", "edge_columns", "edge_column"), "*i32"),
    **dict.fromkeys(("from_top", "done"), "*i32"),
    **dict.fromkeys(("scale_a", "scale_b"), "fp32"),
}
KEPT = {"HAS_FIRST": True, "HAS_PAST": True, "INSIDE": True, "TWO": True}
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # of one program, at most


@outside
@NEW
@pytest.mark.parametrize(
    ("capability", "dtype", "dimensions"),
    [(80, "fp32", 128), (90, "fp32", 256), (80, "bf16", 256), (90, "fp16", 3), (80, "bf16", 1024)],
)
def test_they_compile_for_gpus(capability: int, dtype: str, dimensions: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from solo_hardneg.kernels import triton_kernel, triton_loops

    tile = triton_kernel.tile_sizes(dimensions, half=dtype != "fp32")
    for name, known in {
        "list_candidates": tile,
        "sum_up": {**tile, **KEPT},
        "pull": {**tile, **KEPT},
        "select": {"BLOCK": 256},
        "list_between": {**tile, "HAS_FIRST": True, "HAS_PAST": True},
    }.items():
        function = getattr(triton_loops, name)
        types = {**TYPES, "query": f"*{dtype}", "vectors": f"*{dtype}"}
        signature = {
            argument: "constexpr" if argument in known else types.get(argument, "i32")
            for argument in function.arg_names
        }
        compiled = triton.compile(
            ASTSource(function, signature, known),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": triton_kernel.WARPS, "num_stages": triton_kernel.STAGES},
        )
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED[capability]
