"""The benchmarks' arithmetic, and one small run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from integration_helpers import PROJECT, run_python
from torch import Tensor
from typer.testing import CliRunner

from benchmarks import figures, loss, memory, reference, step
from benchmarks.__main__ import app
from benchmarks.candidates import BY_KEY, TAU, Candidate, Vectors, make_candidates, memory_loss
from benchmarks.chunks import run_chunks
from benchmarks.provenance import provenance, update_csv
from benchmarks.roofline import add_roofline
from benchmarks.timing import summarize_times, time_interleaved
from solo_hardneg import host, losses
from solo_hardneg.losses import mocov2plus_loss_func
from solo_hardneg.negatives import build

# ---------------------------------------------------------------------- timing, memory


def test_rounds_are_interleaved_and_ratios_are_within_a_round() -> None:
    clock, calls = 0.0, []

    def candidate(name: str, *seconds: float) -> Callable[[], None]:
        durations: Iterator[float] = iter(seconds)

        def call() -> None:
            nonlocal clock
            calls.append(name)
            clock += next(durations)

        return call

    candidates = {
        "host": candidate("host", 9, 1, 2, 4, 8, 16),
        "half": candidate("half", 9, 0.5, 1, 2, 4, 8),
    }
    seconds = time_interleaved(candidates, rounds=5, warm_up=1, clock=lambda: clock)
    assert seconds == {"host": [1, 2, 4, 8, 16], "half": [0.5, 1, 2, 4, 8]}
    rounds = {tuple(calls[start : start + 2]) for start in range(0, 12, 2)}
    assert rounds == {("host", "half"), ("half", "host")}
    summary = summarize_times(seconds, "host")
    assert summary["half"]["ratio"] == summary["half"]["ratio_p20"] == 0.5
    assert summary["host"]["ms"] == 4000
    assert summary["host"]["ms_p20"] == pytest.approx(1800)
    assert summary["half"]["ms_p80"] == pytest.approx(4800)


def test_no_round_starts_after_the_time_is_up() -> None:
    clock = 0.0

    def call() -> None:
        nonlocal clock
        clock += 2

    seconds = time_interleaved({"a": call}, 10, 1, lambda: clock, until=20, repeats=3)
    assert seconds == {"a": [2.0, 2.0, 2.0]}  # warm-up until 6, rounds until 12, 18, 24
    assert len(time_interleaved({"a": call}, 10, 1, lambda: clock, until=0)["a"]) == 1


@pytest.mark.full
@pytest.mark.skipif(not memory.RESET.exists(), reason="needs Linux")
def test_the_peak_is_that_of_the_call(tmp_path: Path) -> None:
    script = (
        "import numpy as np, torch\n"
        "from benchmarks.memory import peak_memory as peak\n"
        "def tensors():\n"
        "    a = torch.ones(10_000_000); del a; b = torch.ones(5_000_000)\n"
        "before = torch.ones(20_000_000)\n"
        "peak(tensors)\n"
        "print(peak(tensors), peak(lambda: np.ones(10_000_000)), peak(lambda: None))\n"
    )
    env = {"PYTHONPATH": str(PROJECT), **memory.RETURN_FREED}
    out = run_python("-c", script, cwd=tmp_path, env=env).ok().out
    of_torch, of_numpy, of_nothing = map(float, out.split())
    assert of_torch == pytest.approx(40e6, rel=0.05)
    assert of_numpy == pytest.approx(80e6, rel=0.05)
    assert of_nothing < 1e6


def test_the_limit_is_the_slower_of_arithmetic_and_memory() -> None:
    table = pd.DataFrame({"N": [2, 2, 2], "K": 100, "D": 10, "ms": [16.0, 8.0, 8.4]})
    table["policy"] = ["plain", "plain", "hardest 5 %"]
    # 2·2·100·10 flop for the similarities, as many for the gradient; 100·10 numbers of 4 bytes
    found = add_roofline(table, {"flops": 1e6, "bytes": 1e9})
    assert found.limit_by.tolist() == ["flop"] * 3
    assert found.limit_ms.tolist() == pytest.approx([8, 8, 4.2])
    assert found.share_of_limit.tolist() == pytest.approx([0.5, 1, 0.5])
    found = add_roofline(table, {"flops": 1e12, "bytes": 1e6}, element=2)
    assert found.limit_by.tolist() == ["byte"] * 3
    assert found.limit_ms.tolist() == pytest.approx([2, 2, 2])


# ---------------------------------------------------------------------- what is compared


def test_all_candidates_compute_the_same_loss() -> None:
    vectors = Vectors.make(8, 512, 16)
    gradients = {}
    for name, call in make_candidates(vectors, ("dense", "chunked"), libraries=False).items():
        call()
        assert vectors.query.grad is not None
        gradients[name.candidate, name.policy] = vectors.query.grad.clone()
    (candidate, policy), expected = next(iter(gradients.items()))
    assert (candidate, policy) == (reference.reference_loss()[0], "plain")
    for backend in ("dense", "chunked"):
        torch.testing.assert_close(gradients[backend, "plain"], expected, rtol=1e-4, atol=1e-7)
    hardest = build({"keep": {"band": [1 - 26 / 512, 1.0]}})  # 5 %, rounded as by topk
    inputs = vectors.query, vectors.key, vectors.by_key
    value = mocov2plus_loss_func(*inputs, TAU, policy=hardest)
    (expected,) = torch.autograd.grad(value, vectors.query)
    torch.testing.assert_close(gradients["topk", "hardest 5 %"], expected, rtol=1e-4, atol=1e-7)


def test_the_reference_is_never_our_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vectors = Vectors.make(8, 32, 16)

    def gradient(loss: Callable[..., Tensor]) -> Tensor:
        value = loss(vectors.query, vectors.key, vectors.by_dimension, TAU)
        return torch.autograd.grad(value, vectors.query)[0]

    expected = gradient(mocov2plus_loss_func)
    monkeypatch.setattr(
        "solo_hardneg.losses.contrastive_loss", lambda *_, **__: pytest.fail("our loss")
    )
    found = gradient(reference.reference_loss()[1])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    monkeypatch.setenv("SOLO_LEARN_DIR", str(tmp_path))
    name, copied = reference.reference_loss()
    assert name == reference.COPY
    torch.testing.assert_close(gradient(copied), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(host.NAME != "standalone", reason="solo-learn has its own loss")
def test_the_standalone_hosts_step_uses_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = losses.contrastive_loss
    monkeypatch.setattr(
        "solo_hardneg.losses.contrastive_loss", lambda *given: calls.append(given) or real(*given)
    )
    steps = step.make_steps(4, 64, "resnet18", 8, "auto")
    steps[step.BASELINE]()
    assert calls == []
    steps["mocov2_banded, hardest 5 %"]()
    assert len(calls) == 2  # so the check above could have failed


def test_a_memory_of_pairs_holds_one_positive_per_query() -> None:
    library = pytest.importorskip("pytorch_metric_learning.losses")
    vectors = Vectors.make(8, 32, 16)
    memory = library.CrossBatchMemory(library.NTXentLoss(TAU), 16, 32)
    loss = memory_loss(vectors, memory)
    for _ in range(6):  # four calls fill the memory
        value = loss()
    _, counts = memory.label_memory.unique(return_counts=True)
    assert counts.tolist() == [1] * 32
    # The memory holds the keys four times; the query's own is a negative three times.
    similarity = vectors.query @ vectors.key.T / TAU
    total = similarity.exp().sum(dim=1) * 4
    expected = (total.log() - similarity.diagonal()).mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------- the CSVs


def test_a_comparison_writes_a_row_for_each_candidate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        loss, "run_in_fresh_process", lambda *command: [8e6 for _ in json.loads(command[-1])]
    )
    file = tmp_path / "loss.csv"
    loss.run_loss([(8, 512, 16)], ("chunked", "numba"), rounds=1, file=file, libraries=False)
    assert "left out: chunked, {'mix'" in capsys.readouterr().out  # too few negatives
    table = pd.read_csv(file).fillna({"backend": ""}).set_index(["candidate", "policy"])
    assert {"N", "K", "D", "rounds", "ms_p20", "ratio_p80", "peak_MB", "dtype"} <= set(table)
    assert set(provenance()) <= set(table)
    assert {"device", "threads", "commit", "solo-hardneg"} <= set(provenance())
    assert table.ms.gt(0).all()
    assert table.iloc[0].ratio == 1  # the reference
    for expected in (
        Candidate("chunked", "plain", "chunked", BY_KEY),
        Candidate("topk", "hardest 5 %"),
        Candidate("numba, the host's queue", "hardest 5 %", "numba"),
    ):
        row = table.loc[expected[:2]]
        assert (row.backend, row.layout) == expected[2:]


def test_rows_with_other_keys_stay(tmp_path: Path) -> None:
    file, keys = tmp_path / "loss.csv", ["N", "K"]
    update_csv(file, pd.DataFrame({"N": [1, 2], "K": [4, 4], "ms": [10.0, 20.0]}), keys)
    update_csv(file, pd.DataFrame({"N": [2, 3], "K": [4, 4], "ms": [25.0, 30.0]}), keys)
    found = pd.read_csv(file)
    assert found.N.tolist() == [1, 2, 3]
    assert found.ms.tolist() == [10, 25, 30]


@pytest.mark.full
def test_a_small_run_with_peak_memory_from_another_process() -> None:
    options = ("--quick", "--no-libraries", "--backends", "chunked")
    out = run_python("-m", "benchmarks", "loss", *options, cwd=PROJECT).ok().out
    assert "N=16 K=512 D=16" in out
    assert "chunked" in out


@pytest.mark.full
def test_a_small_step_in_chunks(tmp_path: Path) -> None:
    table = run_chunks([128], [0, 16], "resnet18", 8, tmp_path / "chunks.csv")
    assert table.chunk.tolist() == ["all", 16]
    assert table.peak_MB.iloc[0] > table.peak_MB.iloc[1] > 0
    assert (tmp_path / "chunks.csv").is_file()


def test_the_readme_shows_the_tables_of_the_csvs() -> None:
    readme = (PROJECT / "README.md").read_text()
    for table in (figures.target_table(), figures.main_table(), figures.loader_table()):
        for line in figures.as_markdown_table(table).splitlines():
            assert line in readme


# ---------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["loss", "--n", "0"], ["n=0: must be whole numbers above 0"]),
        (["loss", "--k", "some"], ["k=some: must be whole numbers"]),
        (["loss", "--backends", "fast"], ["backends=fast: unknown fast. Choose from: auto"]),
        (["loader", "--workers", "-1"], ["workers=-1"]),
        (["step", "--host", "other"], ["--host", "other", "standalone"]),
        (["gpu", "--device", "tpu"], ["--device", "tpu", "cuda"]),
        (["gpu", "--parts", "loss,speed"], ["unknown speed. Choose from: tests, waits, loss"]),
        (["gpu", "--minutes", "0"], ["--minutes", "0.01"]),
        (["gpu", "--data", "."], ["data=.: holds no cifar-100-python"]),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = ["--out", "x"] if arguments[0] == "gpu" else []
    found: Any = CliRunner().invoke(app, [*arguments, *out])
    assert found.exit_code == 2
    text = " ".join(found.output.replace("│", " ").split())
    assert [part for part in parts if part not in text] == []
