"""The Triton kernel without a GPU: in Triton's interpreter, and compiled for GPUs.

TRITON_INTERPRET=1 must be set before Triton is imported, so a child process runs this file again
for the tests in the interpreter.
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

from solo_hardneg.kernels.interface import KernelInput, Ranks


def _major() -> int:
    try:
        return int(version("triton").partition(".")[0])
    except PackageNotFoundError:
        return 0


TRITON_3 = pytest.mark.skipif(_major() < 3, reason="needs triton 3")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in a child process")
not_in_interpreter = pytest.mark.skipif(INTERPRETED, reason="not for the interpreter")


@not_in_interpreter
@TRITON_3
def test_in_the_interpreter(request: pytest.FixtureRequest) -> None:
    """12 s; with --all it runs the rest too."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    if request.config.getoption("--all"):
        command.append("--all")
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


def assert_equal_to_dense(
    config: dict[str, Any], tensors: Any, tau: float = 0.2, scale: float = 1.0
) -> Outcome:
    found = moco_loss("triton", config, tensors, tau, scale)
    assert found.stats.backend == "triton"
    found.assert_equal(moco_loss("dense", config, tensors, tau, scale))
    return found


@in_interpreter
def test_each_kernel_once() -> None:
    tensors = moco(2, 77, 7)
    assert_equal_to_dense(
        {**BANDS["middle"], "reweight": 0.5, "mix": {"hardest": 4, "pairs": 2}}, tensors
    )
    assert_equal_to_dense(BANDS["without the hardest"], tensors, scale=-3.5)


@in_interpreter
@pytest.mark.full
@named({name: config for name, config in BANDS.items() if name != "holes"})
def test_bands(config: dict[str, Any]) -> None:
    assert_equal_to_dense(config, moco(3, 77, 7), scale=-3.5)


@in_interpreter
@pytest.mark.full
@pytest.mark.parametrize("shape", [(1, 37, 3), (35, 40, 16), (2, 700, 20)])
def test_shapes(shape: tuple[int, int, int]) -> None:
    assert_equal_to_dense(BANDS["hardest tenth"], moco(*shape))


@in_interpreter
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
    assert_equal_to_dense(BANDS["middle"], (query, key, queue))
    assert_equal_to_dense(BANDS["without the hardest"], (query, key, queue))


@in_interpreter
@pytest.mark.full
@pytest.mark.parametrize("kind", ["pairs", "both", "hardest dropped"])
def test_mixing(kind: str) -> None:
    config: dict[str, Any] = {"mix": {"hardest": 5, "pairs": 6}, "reweight": 0.3}
    if kind == "both":
        config = {**BANDS["hardest tenth"], "mix": {"hardest": 4, "pairs": 2, "queries": 3}}
    elif kind == "hardest dropped":
        config = {**BANDS["without the hardest"], **config, "debias": 0.01}
    assert_equal_to_dense(config, moco(3, 77, 7))


@in_interpreter
@pytest.mark.full
@pytest.mark.parametrize("misled", [False, True])
def test_all_are_listed_if_a_sample_misleads(misled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg.kernels.triton import kernel as triton_kernel

    monkeypatch.setattr(triton_kernel, "_PROGRAMS", 3)  # few, long lists
    listed: list[int] = []
    real = triton_kernel.TritonKernel._list

    def recording(self: Any, query: torch.Tensor, bounds: Any, done: torch.Tensor) -> Any:
        if bounds is not None and misled:
            bounds = (bounds[0] + 0.5, bounds[1] + 0.5, bounds[2])
        lists = real(self, query, bounds, done)
        if bounds is None:
            listed.extend(lists.sizes.sum(dim=1).tolist())
        return lists

    monkeypatch.setattr(triton_kernel.TritonKernel, "_list", recording)
    monkeypatch.setattr(triton_kernel, "_MAX_LISTED", 1500)
    assert_equal_to_dense(BANDS["hardest"], moco(2, 1500, 4))
    assert listed == ([1500, 1500] if misled else [0, 0])


@in_interpreter
@pytest.mark.full
def test_a_sample_misleads_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg.kernels.triton import kernel as triton_kernel

    real = triton_kernel.TritonKernel._bounds

    def mislead(self: Any, query: torch.Tensor, rank: int) -> Any:
        lower, upper, width = real(self, query, rank)
        lower[1], upper[1] = lower[1] + 0.5, upper[1] + 0.5
        return lower, upper, width

    monkeypatch.setattr(triton_kernel.TritonKernel, "_bounds", mislead)
    assert_equal_to_dense(
        {**BANDS["hardest tenth"], "mix": {"hardest": 4, "pairs": 2}}, moco(3, 1500, 4)
    )


@in_interpreter
@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    tensors = tuple(tensor.to(dtype) for tensor in moco(3, 77, 16))
    expected = moco_loss("dense", BANDS["hardest tenth"], tensors)
    found = moco_loss("triton", BANDS["hardest tenth"], tensors)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    assert found.grads[0].dtype == dtype
    torch.testing.assert_close(found.grads[0], expected.grads[0], rtol=1e-2, atol=1e-5)


@in_interpreter
@pytest.mark.full
def test_nan() -> None:
    query, key, queue = moco(2, 77, 7)
    queue[:, 5] = torch.nan
    for name in ("hardest", "easiest", "without the hardest"):
        assert moco_loss("triton", BANDS[name], (query, key, queue)).loss.isnan()


@in_interpreter
@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1, 40, 76])
def test_edges_equal_sorting(rank: int) -> None:
    from solo_hardneg.kernels.triton.kernel import TritonKernel

    query, vectors = unit(3, 4), (unit(77, 4, seed=1) * 2).round() / 2  # few values
    kernel = TritonKernel(KernelInput(query, vectors, 0.2, ranks=Ranks(rank, 77)))
    kernel.reduce(slice(0, 3))
    if rank:
        order = (query @ vectors.T).sort(dim=1, stable=True)
        torch.testing.assert_close(kernel.edges.values[0], order.values[:, rank])
        assert kernel.edges.columns[0].tolist() == order.indices[:, rank].tolist()


@not_in_interpreter
@TRITON_3
@pytest.mark.parametrize("ranks", [Ranks(700, 900), Ranks(0, 900, inside=False)])
def test_the_cpu_never_waits(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    from solo_hardneg.kernels.triton import kernel as triton_kernel

    launched: set[str] = set()

    class NoLoops:
        """Device code that does nothing."""

        def __getattr__(self, name: str) -> Any:
            launched.add(name)
            return defaultdict(lambda: lambda *args, **kwargs: None)

    monkeypatch.setattr(triton_kernel, "loops", NoLoops())
    query, vectors = unit(5, 4), unit(1000, 4, seed=1)
    kernel = triton_kernel.TritonKernel(KernelInput(query, vectors, 0.2, ranks=ranks, hardest=3))
    kernel.reduce(slice(0, 5))  # copies the columns of the sample to the device
    with watch() as seen:
        sums = kernel.reduce(slice(0, 5))
        kernel.pull(slice(0, 5), sums.total)
    assert not seen.waits, f"\n{seen}"
    assert launched == {
        "list_candidates",
        "find_edge",
        "list_between",
        "sum_exponentials",
        "pull_gradient",
    }


# ---------------------------------------------------------------- compiled for GPUs

TYPES = {
    **dict.fromkeys(("lower", "upper", "values", "edges", "tops", "totals", "logs"), "*fp32"),
    **dict.fromkeys(("factors", "pulled", "edge_value"), "*fp32"),
    **dict.fromkeys(("columns", "sizes", "above", "edge_columns", "edge_column"), "*i32"),
    **dict.fromkeys(("from_top", "done"), "*i32"),
    **dict.fromkeys(("scale_a", "scale_b"), "fp32"),
}
KEPT = {"HAS_FIRST": True, "HAS_PAST": True, "INSIDE": True, "TWO": True}
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes of shared memory per program


@not_in_interpreter
@TRITON_3
@pytest.mark.parametrize(
    ("capability", "dtype", "dimensions"),
    [(80, "fp32", 128), (90, "fp32", 256), (80, "bf16", 256), (90, "fp16", 3), (80, "bf16", 1024)],
)
def test_compiles_for_gpus(capability: int, dtype: str, dimensions: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from solo_hardneg.kernels.triton import kernel as triton_kernel
    from solo_hardneg.kernels.triton import loops as triton_loops

    tile = triton_kernel.tile_sizes(dimensions, half=dtype != "fp32")
    for name, known in {
        "list_candidates": tile,
        "sum_exponentials": {**tile, **KEPT},
        "pull_gradient": {**tile, **KEPT},
        "find_edge": {"BLOCK": 256},
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
