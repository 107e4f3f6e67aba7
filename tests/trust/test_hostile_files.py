"""Hostile and broken files give an error or a note, and nothing in them is executed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import hostile_files
import numpy as np
import pyarrow as pa
import pytest
import torch
from hostile_files import PARQUET, Bomb, marker_of, table_of, write_table
from hydra import compose, initialize_config_module
from made_up_runs import MOCO, write_args
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError
from typer.testing import CliRunner

from solo_hardneg.cli import app
from solo_hardneg.errors import CheckpointError, DataError, HardnegError
from solo_hardneg.files import literal, resolved
from solo_hardneg.models.checkpoints import read_checkpoint, read_or_older
from solo_hardneg.recording import records
from solo_hardneg.report import page
from solo_hardneg.report.studies import newest_study
from solo_hardneg.reproduce import store as results
from solo_hardneg.reproduce.grid import Cell
from solo_hardneg.runs.find import SOURCE, Run, find_runs
from solo_hardneg.standalone.run import linear
from solo_hardneg.study import encoder
from solo_hardneg.study.analyze import analyze

SECRET = "SOLO_HARDNEG_SECRET_OF_MINE"
CELL = Cell("a-seed0", "a", 0, "simclr", ("data=digits",), (), (), "0123456789ab")
Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path) -> Iterator[None]:
    """No bomb of any test explodes."""
    yield
    assert not list(tmp_path.rglob("*.executed"))


def kinds(*names: str) -> Any:
    """Runs the test for each of these hostile files."""
    makes = [getattr(hostile_files, name) for name in names]
    return pytest.mark.parametrize("make", makes, ids=names)


@kinds("pickled", "saved_by_torch", "saved_by_old_torch")
def test_the_bombs_are_real(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "x")
    if make is hostile_files.pickled:
        pickle.loads((tmp_path / "x").read_bytes())
    else:
        torch.load(tmp_path / "x", weights_only=False)
    marker_of(tmp_path / "x").rmdir()  # fails if the file is harmless


# ---------------------------------------------------------------------- checkpoints


@kinds("pickled", "saved_by_torch", "saved_by_old_torch", "cut_off", "loop", "folder")
def test_checkpoints(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    make(file)
    for read in (read_checkpoint, read_or_older):
        with pytest.raises(CheckpointError, match=r"resume_from_checkpoint=.*last\.ckpt"):
            read("resume_from_checkpoint", file)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        encoder.load_encoder(file)


def test_linear_evaluation_executes_nothing(tmp_path: Path) -> None:
    hostile_files.saved_by_torch(tmp_path / "last.ckpt")
    source = f"pretrained_feature_extractor='{tmp_path / 'last.ckpt'}'"
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        out = f"checkpoint.dir='{tmp_path}'"
        cfg = compose("linear", ["data=digits", source, out, "max_epochs=1"])
    with pytest.raises(CheckpointError, match=r"pretrained_feature_extractor=.*last\.ckpt"):
        linear(cfg)


def test_errors_of_commands_are_one_line(tmp_path: Path) -> None:
    hostile_files.saved_by_torch(tmp_path / "last.ckpt")
    for name in ("args.json", "plan.json"):
        hostile_files.deep_json(tmp_path / name)
    for command, start in (
        (("analyze", tmp_path / "last.ckpt"), "CheckpointError: "),
        (("report", tmp_path, "--out", tmp_path / "out"), "DataError: "),
        (
            ("reproduce", "sscl_table3", "data=digits", "--no-run", "--folder", tmp_path),
            "DataError: ",
        ),
    ):
        done = CliRunner().invoke(app, [str(part) for part in command])
        assert done.exit_code == 1, done.output
        assert done.output.startswith(start)
        assert "\n" not in done.output.strip()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "holds no weights"),
        ({"backbone.conv1.weight": "text"}, "holds no weights"),
        ({3: torch.zeros(1)}, "holds no weights"),
        ({"backbone.conv1.weight": torch.zeros(2, 2)}, "doesn't fit"),
        ({}, "holds no weights"),
        ({"head.weight": torch.zeros(1)}, "holds no backbone"),
    ],
)
def test_checkpoints_of_something_else(state: Any, message: str, tmp_path: Path) -> None:
    write_args(tmp_path, {**MOCO, "backbone": {"name": "resnet18", "kwargs": {}}})
    torch.save({"state_dict": state, "epoch": "three"}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message):
        encoder.load_encoder(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "layers",
    [
        {"projector.999999999999.weight": torch.zeros(2, 4)},
        {"projector.0.weight": torch.zeros(2, 2, 2)},
        {"projector.0.running_mean": torch.tensor(1.0), "projector.0.running_var": torch.ones(1)},
        {"projector.²": torch.zeros(2)},
    ],
)
def test_an_impossible_projector_is_refused(layers: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="its projector can't be rebuilt"):
        encoder.rebuild("projector", layers, 4, Path("x.ckpt"))


# ---------------------------------------------------------------------- configs


@kinds("pickled", "empty", "no_text", "folder", "deep_json", "deep_config")
def test_configs(make: Make, tmp_path: Path) -> None:
    good = write_args(tmp_path / "good" / "a", MOCO)
    bad = tmp_path / "bad" / "b"
    bad.mkdir(parents=True)
    make(bad / "args.json")
    found = find_runs([tmp_path])
    assert [run.folder for run in found.runs] == [good]
    assert any("its args.json is damaged" in note.text for note in found.notes)
    torch.save({"state_dict": {"backbone.conv1.weight": torch.zeros(1)}}, bad / "x.ckpt")
    if make is not hostile_files.folder:
        with pytest.raises(CheckpointError, match=r"args\.json: can't be read"):
            encoder.load_encoder(bad / "x.ckpt")


def test_odd_names_of_a_linear_evaluation(tmp_path: Path) -> None:
    write_args(tmp_path / "m" / "a", MOCO)
    hostile_files.loop(tmp_path / "loop")
    named = ("\0", "~nobody-of-this-name/x", "x" * 5000, 3, None, str(tmp_path / "loop" / "x"))
    for number, name in enumerate(named):
        write_args(tmp_path / "linear" / str(number), {SOURCE: name})
    assert [run.title for run in find_runs([tmp_path]).runs] == ["m/a"]


REFERENCES = {
    "plain": {"x": f"${{oc.env:{SECRET}}}"},
    "default": {"x": f"${{oc.select:nothing,${{oc.env:{SECRET}}}}}"},
    "name from a key": {"a": "oc.env", "x": f"${{${{a}}:{SECRET}}}"},
    "part from a key": {"a": "env", "x": f"${{oc.${{a}}:{SECRET}}}"},
    "put together": {"n": {"a": "$", "b": f"{{oc.env:{SECRET}}}", "x": "${n.a}${n.b}"}},
    "passed on": {"n": {"a": f"${{oc.env:{SECRET}}}", "b": "${n.a}", "c": "${n}"}},
    "backslashes": {"n": {"a": f"\\${{oc.env:{SECRET}}}", "b": f"\\\\${{oc.env:{SECRET}}}"}},
    "beside an error": {"x": "${nowhere}", "n": {"a": [f"${{oc.env:{SECRET}}}"]}},
    "a policy": {"negatives": {"fill": f"${{oc.env:{SECRET}}}"}},
    "a backbone": {
        "backbone": {"name": f"${{oc.env:{SECRET}}}", "kwargs": {"a": f"${{oc.env:{SECRET}}}"}}
    },
}


@pytest.mark.parametrize("args", REFERENCES.values(), ids=REFERENCES)
def test_references_to_the_environment_are_not_resolved(
    args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``${oc.env:SECRET}`` shows neither in a resolved config nor in an error."""
    monkeypatch.setenv(SECRET, "the-secret")
    plain = resolved(args)
    assert "the-secret" not in json.dumps(plain)
    again = OmegaConf.to_container(OmegaConf.create(literal(plain)), resolve=True)
    assert "the-secret" not in json.dumps(again)
    nested = {key: value for key, value in plain.items() if not isinstance(value, str)}
    with suppress(InterpolationKeyError):
        again = OmegaConf.to_container(OmegaConf.create({"v": nested}), resolve=True)
        assert "the-secret" not in json.dumps(again)
    write_args(tmp_path, {**MOCO, **args})
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(HardnegError) as error:
        analyze([tmp_path])
    assert "the-secret" not in str(error.value)


def test_references_to_the_config_itself_are_resolved() -> None:
    args = {"a": 3, "b": "${a}", "n": {"c": "${oc.select:a,5}", "d": "x${a}", "e": "\\${a}"}}
    assert resolved(args) == {"a": 3, "b": 3, "n": {"c": 3, "d": "x3", "e": "${a}"}}


# ---------------------------------------------------------------------- records, studies, reports


@pytest.mark.parametrize("kind", PARQUET)
def test_records(kind: str, tmp_path: Path) -> None:
    PARQUET[kind](tmp_path / "epoch00001-rank0.parquet")
    with pytest.raises(DataError, match="there is nothing to read"):
        records.read_records(tmp_path)
    assert records.recorded_config(tmp_path) in (
        None,
        "not JSON",
        "[1, 2]",
        "{}",
    ) or kind.startswith("d")
    write_table(tmp_path / "epoch00000-rank0.parquet", table_of())
    read = records.read_records(tmp_path)
    assert len(read.table) == 3
    (note,) = read.notes
    assert "epoch00001-rank0.parquet: left out, because" in note


def objects(file: Path) -> None:
    """A study with a bomb in an array of objects."""
    bombs = np.array([Bomb(marker_of(file))], dtype=object)
    np.savez(file, **{"solo_hardneg.study": np.array([1]), "json": "{}", "tsne": bombs})


@pytest.mark.parametrize("make", [objects, hostile_files.pickled, hostile_files.folder])
def test_studies(make: Make, tmp_path: Path) -> None:
    folder = write_args(tmp_path / "runs" / "a", MOCO)
    (folder / "analysis").mkdir()
    make(folder / "analysis" / "study.npz")
    study, notes = newest_study(Run(folder, MOCO))
    assert study is None
    assert "left out" in notes[0]


SENSELESS: tuple[dict[str, Any], ...] = (
    {"seed": {"a": 1}, "name": ["x"]},
    {"seed": [1]},
    {"max_epochs": float("inf"), "data": {"dataset": float("nan")}},
    {"data": "text", "hardness": 3, "method_kwargs": []},
    {"method": {"a": 1}, "backbone": None},
    {"negatives": {"keep": {"band": [float("nan"), float("inf")]}}},
    {"negatives": [[[]]], "max_epochs": 10**400},
    {"hardness": {"dir": "\0"}, "name": "\0"},
    {"hardness": {"dir": "x" * 5000}},
    {"augmentations": {"a": "${"}, "name": "${"},
)
METRICS = {
    "numbers": "epoch,step,val_acc1\ninf,0,nan\n1e300,1,inf\n-5,2,1e999\n",
    "formulas": "epoch,val_=cmd|' /C calc'!A0,val_acc1\n0,=1+1,@x\n1,<b>,2\n",
}


def write_odd_records(folder: Path, value: float) -> None:
    """Writes records of all kinds whose values and weights are all this one."""
    folder.mkdir()
    values = pa.array([value] * 3)
    for kind in ("scalar", "percentile", "histogram", "image", "metric"):
        for name in ("similarity/negative", "mass/hardest_5", "same_class", "negative", "hard"):
            table = table_of(
                kind=pa.array([kind] * 3),
                quantity=pa.array([name] * 3),
                value=values,
                weight=values,
                bin=pa.array([0, 1, 2**31 - 1], pa.int32()),
            )
            file = folder / f"epoch{len(list(folder.iterdir())):05d}-rank0.parquet"
            write_table(file, table.select(records.FIELDS.names))


@pytest.mark.parametrize("what", ["configs", "records", "metrics"])
def test_hostile_runs_are_reported_on(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Senseless configs and references, records of NaN and infinity, and broken metrics."""
    monkeypatch.setenv(SECRET, "the-secret")
    root = tmp_path / "runs"
    if what == "configs":
        monkeypatch.setattr(page, "_svg_uri", lambda figure: "data:image/svg+xml;base64,")
        for number, args in enumerate([{}, *SENSELESS, *REFERENCES.values()]):
            write_args(root / "m" / str(number), {**MOCO, **args})
    elif what == "records":
        for value in (float("nan"), float("inf"), -float("inf"), 1e308):
            folder = write_args(root / "m" / str(value), {**MOCO, "seed": len(str(value))})
            write_odd_records(folder / "hardness", value)
    else:
        for number, make in enumerate([*hostile_files.ANY.values(), *METRICS.values()]):
            file = write_args(root / "m" / str(number), {**MOCO, "seed": number}) / "metrics.csv"
            file.write_text(make) if isinstance(make, str) else make(file)
    made = page.write_report([root], tmp_path / "out")
    for file in made.html.parent.iterdir():
        assert "the-secret" not in file.read_text(encoding="utf-8")
    assert made.comparison.rows


# ---------------------------------------------------------------------- reproduce


@kinds("pickled", "empty", "no_text", "folder", "deep_json", "deep_config")
def test_results_and_plans(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "plan.json")
    for read in (results.read_result, results.read_plan):
        with pytest.raises(DataError, match=r"plan\.json"):
            read(tmp_path / "plan.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"top1": float("inf")}},
        {"metrics": {"top1": "=1+1"}},
        {"metrics": [1]},
        {"ran_on": {"x": {"y": 1}}},
        {"error": {"x": 1}},
        {"pretrain": [1, 2]},
        {"cell": None},
        {"seconds": "3"},
    ],
)
def test_damaged_results(changes: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    results.write_json(file, RESULT)
    assert results.read_result(file).metrics == {"top1": 5.0}
    results.write_json(file, {**RESULT, **changes})
    with pytest.raises(DataError, match=r"x\.json"):
        results.read_result(file)


RESULT: dict[str, Any] = {
    **{"format": "solo-hardneg result", "version": 1, "cell": "a-seed0", "row": "a"},
    **{"seed": 0, "fingerprint": "0" * 12, "state": "done", "metrics": {"top1": 5.0}},
}


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a\\b", "a\0b", "", 3])
def test_a_plan_names_no_file_elsewhere(name: Any, tmp_path: Path) -> None:
    """Unreadable results are moved aside, so a plan could move other files."""
    plan = results.write_plan(tmp_path, [CELL], {})
    content = json.loads(plan.read_text())
    for key in ("name", "fingerprint"):
        cell = {**content["cells"][0], key: name}
        plan.write_text(json.dumps({**content, "cells": [cell]}))
        with pytest.raises(DataError, match="there is no plan that can be read"):
            results.read_plan(plan)


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results.write_json(tmp_path / "x.json", RESULT)
    monkeypatch.setattr("solo_hardneg.files.MOST_BYTES", 10)
    with pytest.raises(DataError, match="it is larger than"):
        results.read_result(tmp_path / "x.json")
