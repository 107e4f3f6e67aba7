"""The benchmarks' own arithmetic, and one small run of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from integration_helpers import PROJECT, run_python
from typer.testing import CliRunner

from benchmarks import figures, hosts, loss, memory, scaling, simclr, step, timing
from benchmarks.__main__ import app
from benchmarks.limits import needed
from benchmarks.provenance import provenance
from benchmarks.rivals import TAU, Data, candidates, pairs_loss
from solo_hardneg import host, kernels
from solo_hardneg.losses import mocov2plus_loss_func, simclr_loss_func
from solo_hardneg.negatives import build


def test_rounds_are_interleaved_and_ratios_are_within_a_round() -> None:
    time, calls = 0.0, []

    def work(name: str, *seconds: float):
        turns = iter(seconds)

        def call() -> None:
            nonlocal time
            calls.append(name)
            time += next(turns)

        return call

    works = {"host": work("host", 9, 1, 2, 4, 8, 16), "half": work("half", 9, 0.5, 1, 2, 4, 8)}
    seconds = timing.interleaved(works, rounds=5, warm_up=1, clock=lambda: time)
    assert seconds == {"host": [1, 2, 4, 8, 16], "half": [0.5, 1, 2, 4, 8]}
    rounds = {tuple(calls[start : start + 2]) for start in range(0, 12, 2)}
    assert rounds == {("host", "half"), ("half", "host")}
    found = timing.summary(seconds, "host")
    assert found["half"]["ratio"] == found["half"]["ratio_p20"] == 0.5
    assert found["host"]["ms"] == 4000
    assert found["host"]["ms_p20"] == pytest.approx(1800)
    assert found["half"]["ms_p80"] == pytest.approx(4800)


@pytest.mark.full
@pytest.mark.skipif(not memory._CLEAR.exists(), reason="Linux tells")
def test_the_peak_is_that_of_the_call(tmp_path: Path) -> None:
    script = (
        "import numpy as np, torch\n"
        "from benchmarks.memory import peak\n"
        "def tensors():\n"
        "    a = torch.ones(10_000_000); del a; b = torch.ones(5_000_000)\n"
        "before = torch.ones(20_000_000)\n"
        "peak(tensors)\n"
        "print(peak(tensors), peak(lambda: np.ones(10_000_000)), peak(lambda: None))\n"
    )
    env = {"PYTHONPATH": str(PROJECT), **memory._TOLD}
    out = run_python("-c", script, cwd=tmp_path, env=env).ok().out
    of_torch, of_numpy, of_nothing = map(float, out.split())
    assert of_torch == pytest.approx(40e6, rel=0.05)
    assert of_numpy == pytest.approx(80e6, rel=0.05)
    assert of_nothing < 1e6


def test_a_power_law_is_found() -> None:
    sizes = np.array([64, 256, 1024])
    assert scaling.fit(sizes, 3 * sizes**1.5) == pytest.approx((1.5, 0), abs=1e-9)
    assert np.isnan(scaling.fit(sizes[:1], sizes[:1])).all()
    rows = pd.DataFrame({"candidate": "a", "policy": "p", "K": sizes, "ms": sizes**2.0})
    rows["peak_MB"], rows["commit"] = 7.0, ["new", "old", "new"]
    found = scaling.exponents(rows, "K").set_index("of")
    assert found.loc["time", "exponent"] == 2
    assert found.loc["peak memory", "exponent"] == 0
    assert found.loc["time", "points"] == 3
    assert found.loc["time", "commits"] == "new old"


def test_all_compute_the_same_loss() -> None:
    data = Data.make(8, 512, 16)
    works = candidates(data, ("dense", "chunked"))
    gradients = {}
    for key, work in works.items():
        work()
        gradients[key] = data.query.grad.clone()
    host = next(iter(works))
    assert host[1] == "plain"
    for backend in ("dense", "chunked"):
        ours = gradients[backend, "plain"]
        torch.testing.assert_close(ours, gradients[host], rtol=1e-4, atol=1e-7)
    policy = build({"keep": {"band": [1 - 26 / 512, 1.0]}})  # topk rounds
    expected = mocov2plus_loss_func(data.query, data.key, data.ours, 0.2, policy=policy)
    (gradient,) = torch.autograd.grad(expected, data.query)
    torch.testing.assert_close(gradients["topk", "hardest 5 %"], gradient, rtol=1e-4, atol=1e-7)


def test_the_hosts_loss_is_never_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = Data.make(8, 32, 16)

    def gradient(loss) -> torch.Tensor:
        value = loss(data.query, data.key, data.hosts, TAU)
        return torch.autograd.grad(value, data.query)[0]

    ours = gradient(mocov2plus_loss_func)
    monkeypatch.setattr("solo_hardneg.kernels.plan_work", lambda *_, **__: pytest.fail("ours"))
    torch.testing.assert_close(gradient(hosts.hosts_loss()[1]), ours, rtol=1e-4, atol=1e-7)
    monkeypatch.setenv("SOLO_LEARN_DIR", str(tmp_path))
    name, written_out = hosts.hosts_loss()
    assert name == hosts.WRITTEN_OUT
    torch.testing.assert_close(gradient(written_out), ours, rtol=1e-4, atol=1e-7)


@pytest.mark.skipif(host.NAME != "standalone", reason="solo-learn brings its own loss")
def test_the_standalone_hosts_step_takes_the_hosts_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    plan = kernels.plan_work
    monkeypatch.setattr(
        "solo_hardneg.kernels.plan_work", lambda *given: asked.append(given) or plan(*given)
    )
    steps = step.all_steps(4, 64, "resnet18", 8, "auto")
    steps[step.HOSTS]()
    assert asked == []
    steps["mocov2_banded, hardest 5 %"]()
    assert len(asked) == 2  # so the check above could have failed


def test_pairs_have_one_positive_however_often_they_are_asked() -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    data = Data.make(8, 32, 16)
    memory = losses.CrossBatchMemory(losses.NTXentLoss(TAU), 16, 32)
    loss = pairs_loss(data, memory)
    for _ in range(6):  # the memory goes round once in four
        value = loss()
    _, counts = memory.label_memory.unique(return_counts=True)
    assert counts.tolist() == [1] * 32
    # All that it holds now are copies of the keys; the query's own is no negative.
    similarity = data.query @ data.key.T / TAU
    together = similarity.exp().sum(dim=1) * 4
    expected = (together.log() - similarity.diagonal()).mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(hosts.checkout() is None, reason="no checkout of solo-learn")
def test_simclr_is_the_hosts() -> None:
    works = simclr.all_works(8, 16, ("dense", "chunked"))
    assert list(works) == [
        ("solo-learn", "plain"),
        *[(backend, policy) for policy in simclr.POLICIES for backend in ("dense", "chunked")],
    ]
    assert "solo" not in sys.modules or hasattr(sys.modules["solo"], "__path__")  # no stub is left
    _, theirs = hosts.hosts_simclr_loss()
    z, indexes = torch.randn(16, 16), torch.arange(8).repeat(2)
    torch.testing.assert_close(theirs(z, indexes, TAU), simclr_loss_func(z, indexes, TAU))


def test_a_comparison_writes_a_row_for_each_candidate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def peaks(command: list[str]) -> dict[str, float]:
        return dict.fromkeys(json.loads(command[-1]), 8e6)

    monkeypatch.setattr(loss, "elsewhere", peaks)
    file = tmp_path / "loss.csv"
    loss.run([(8, 512, 16)], ("chunked", "numba"), rounds=1, file=file, libraries=False)
    assert "left out: chunked, {'mix'" in capsys.readouterr().out  # there are too few negatives
    table = pd.read_csv(file).set_index(["candidate", "policy"])
    assert {"N", "K", "D", "rounds", "ms_p20", "ratio_p80", "peak_MB", "dtype"} <= set(table)
    assert set(provenance()) <= set(table)
    assert {"device", "threads", "commit", "solo-hardneg"} <= set(provenance())
    assert table.ms.gt(0).all()
    assert table.iloc[0].ratio == 1  # the host's, to which all are compared
    for candidate, backend, layout in (
        (("chunked", "plain"), "chunked", "key by key"),
        (("topk", "hardest 5 %"), "", "dimension by dimension"),
        (("numba, the host's queue", "hardest 5 %"), "numba", "dimension by dimension"),
    ):
        row = table.fillna({"backend": ""}).loc[candidate]
        assert (row.backend, row.layout) == (backend, layout)


def test_rows_of_other_sizes_stay(tmp_path: Path) -> None:
    file = tmp_path / "loss.csv"
    keys = ["N", "K"]
    loss.write(file, pd.DataFrame({"N": [1, 2], "K": [4, 4], "ms": [10.0, 20.0]}), keys)
    loss.write(file, pd.DataFrame({"N": [2, 3], "K": [4, 4], "ms": [25.0, 30.0]}), keys)
    found = pd.read_csv(file)
    assert found.N.tolist() == [1, 2, 3]
    assert found.ms.tolist() == [10, 25, 30]


def test_what_cannot_be_saved() -> None:
    need = needed(queries=2, keys=3, dimensions=5, kept=0.5)
    assert need == {"flop": 2 * 2 * 3 * 5 * 1.5, "byte": 4 * 3 * 5}


@pytest.mark.full
def test_a_small_run_with_peak_memory_from_another_process() -> None:
    options = ("--quick", "--no-libraries", "--backends", "chunked")
    out = run_python("-m", "benchmarks", "loss", *options, cwd=PROJECT).ok().out
    assert "N=16 K=512 D=16" in out
    assert "chunked" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss", "--n", "0"], "n=0: must be whole numbers above 0"),
        (["loss", "--k", "some"], "k=some: must be whole numbers"),
        (["loss", "--backends", "fast"], "unknown backend fast. Choose from: auto"),
        (["loader", "--workers", "-1"], "workers=-1"),
        (["step", "--host", "other"], "host=other: must be solo or standalone"),
        (["simclr", "--b", "x"], "b=x: must be whole numbers"),
        (["gpu", "--out", "x", "--device", "tpu"], "device=tpu: must be cuda or cpu"),
        (
            ["gpu", "--out", "x", "--parts", "loss,speed"],
            "unknown part speed. Choose from: tests, waits, loss",
        ),
        (["gpu", "--out", "x", "--minutes", "0"], "minutes=0.0: must be a number above 0"),
        (["gpu", "--out", "x", "--data", "."], "holds no cifar-100-python"),
    ],
)
def test_impossible_options(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found: Any = CliRunner().invoke(app, arguments)
    assert found.exit_code == 2
    assert message in " ".join(found.output.replace("│", " ").split())


def test_the_readme_has_the_tables_of_the_files() -> None:
    readme = (PROJECT / "README.md").read_text()
    for table in (figures.target_table(), figures.main_table(), figures.loader_table()):
        for line in figures.markdown(table).splitlines():
            assert line in readme
