"""Hostile and broken files: an error that says so, or a note; nothing in them is ever executed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hostile_files import (
    ANY,
    PARQUET,
    SECRET,
    Bomb,
    marker_of,
    pickled,
    saved_by_old_torch,
    saved_by_torch,
    table_of,
    write_table,
)
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError
from typer.testing import CliRunner

from solo_hardneg.analysis import encoder, records, runs
from solo_hardneg.analysis.analyze import analyze
from solo_hardneg.analysis.groups import group
from solo_hardneg.analysis.report import write
from solo_hardneg.analysis.untrusted import literal, resolved
from solo_hardneg.cli import app
from solo_hardneg.errors import CheckpointError, ConfigError, DataError, HardnegError
from solo_hardneg.reproduce import results
from solo_hardneg.reproduce.cells import Cell
from solo_hardneg.safety.reading import read_checkpoint, read_or_older

MOCO = {"method": "mocov2_banded", "seed": 5, "max_epochs": 4, "data": {"dataset": "cifar10"}}
CELL = Cell("a-seed0", "a", 0, "simclr", ("data=digits",), (), (), "0123456789ab")


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does, no bomb goes off."""
    yield
    assert not list(tmp_path.rglob("*.executed"))


def make_run(folder: Path, **args: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps({**MOCO, **args}))
    return folder


def said(*arguments: object) -> str:
    """What the command says of a mistake: one line, and no traceback."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == 1, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    line = done.output.strip()
    assert "Traceback" not in line
    assert line.split(":")[0] in ("CheckpointError", "ConfigError", "DataError")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("make", [pickled, saved_by_torch, saved_by_old_torch])
def test_the_bombs_are_real(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    if make is pickled:
        import pickle

        pickle.loads((tmp_path / "x").read_bytes())
    else:
        torch.load(tmp_path / "x", weights_only=False)
    assert marker_of(tmp_path / "x").is_dir(), "the hostile files of these tests are harmless"
    marker_of(tmp_path / "x").rmdir()


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", ANY)
def test_checkpoints(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    ANY[kind](file)
    for read in (read_checkpoint, read_or_older):
        with pytest.raises(CheckpointError, match=r"resume_from_checkpoint=.*last\.ckpt"):
            read("resume_from_checkpoint", file)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        encoder.load(file)
    assert "last.ckpt" in said("analyze", file)
    cfg = _linear(file, tmp_path)
    from solo_hardneg.standalone.run import linear

    with pytest.raises(CheckpointError, match=r"pretrained_feature_extractor=.*last\.ckpt"):
        linear(cfg)


def _linear(file: Path, out: Path) -> Any:
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        overrides = ["data=digits", f"pretrained_feature_extractor='{file}'"]
        return compose("linear", [*overrides, f"checkpoint.dir='{out}'", "max_epochs=1"])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1, 2], "holds more than tensors"),
        ({"backbone.conv1.weight": "text"}, "holds more than tensors"),
        ({3: torch.zeros(1)}, "holds more than tensors"),
        ({"backbone.conv1.weight": torch.zeros(2, 2)}, "doesn't fit"),
        ({}, "holds no backbone"),
    ],
)
def test_checkpoints_of_something_else(state: Any, message: str, tmp_path: Path) -> None:
    make_run(tmp_path, backbone={"name": "resnet18", "kwargs": {}})
    torch.save({"state_dict": state, "epoch": "three"}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=message):
        encoder.load(tmp_path / "x.ckpt")
    said("analyze", tmp_path)


@pytest.mark.parametrize(
    "layers",
    [
        {"projector.999999999999.weight": torch.zeros(2, 4)},
        {"projector.0.weight": torch.zeros(2, 2, 2)},
        {"projector.0.running_mean": torch.tensor(1.0), "projector.0.running_var": torch.ones(1)},
        {"projector.²": torch.zeros(2)},
    ],
)
def test_a_projector_that_cannot_be_is_not_built(layers: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="its projector can't be rebuilt"):
        encoder.rebuild("projector", layers, 4, Path("x.ckpt"))


# ---------------------------------------------------------------------- configs


@pytest.mark.parametrize("kind", ANY)
def test_configs(kind: str, tmp_path: Path) -> None:
    good, bad = make_run(tmp_path / "good" / "a"), tmp_path / "bad" / "b"
    bad.mkdir(parents=True)
    ANY[kind](bad / "args.json")
    found = runs.find([tmp_path])
    assert [run.folder for run in found.runs] == [good]
    if kind != "loop":  # which is looked for by its name, and isn't there
        assert any("its args.json is damaged" in note.text for note in found.notes)
    with pytest.raises(DataError, match="no run of pretraining|holds no run"):
        runs.find([bad])
    said("report", bad, "--out", tmp_path / "out")
    if (bad / "args.json").is_file():
        torch.save({"state_dict": {}}, bad / "x.ckpt")
        with pytest.raises(CheckpointError, match=r"args\.json: can't be read"):
            encoder.load(bad / "x.ckpt")


@pytest.mark.parametrize(
    "changes",
    [
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
    ],
)
def test_a_config_with_senseless_values_is_reported_on(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    make_run(tmp_path / "runs" / "a", **changes)
    make_run(tmp_path / "runs" / "b")
    assert write([tmp_path / "runs"], tmp_path / "out").html.is_file()


@pytest.mark.parametrize("named", ["\0", "~nobody-of-this-name/x", "x" * 5000, 3, None, "LOOP"])
def test_what_a_linear_evaluation_may_name(named: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "m" / "a")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    place = tmp_path / "runs" / "linear" / "b"
    place.mkdir(parents=True)
    named = str(tmp_path / "loop" / "x") if named == "LOOP" else named
    (place / "args.json").write_text(json.dumps({runs.FROM: named}))
    assert len(runs.find([tmp_path / "runs"]).runs) == 1


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
def test_nobody_reads_the_environment(
    args: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``${oc.env:SECRET}`` in another's config: not in a report, not in an error message."""
    monkeypatch.setenv(SECRET, "the-secret")
    plain = resolved(args)
    assert "the-secret" not in json.dumps(plain)
    again = OmegaConf.to_container(OmegaConf.create(literal(plain)), resolve=True)
    assert "the-secret" not in json.dumps(again)
    nested = {key: value for key, value in plain.items() if not isinstance(value, str)}
    with suppress(InterpolationKeyError):
        again = OmegaConf.to_container(OmegaConf.create({"v": nested}), resolve=True)
        assert "the-secret" not in json.dumps(again)

    make_run(tmp_path / "runs" / "a", **args)
    make_run(tmp_path / "runs" / "b")
    assert len(group(runs.find([tmp_path / "runs"]).runs, [])) >= 1
    made = write([tmp_path / "runs"], tmp_path / "out")
    for file in made.html.parent.iterdir():
        assert "the-secret" not in file.read_text()
    torch.save({"state_dict": {}}, tmp_path / "runs" / "a" / "x.ckpt")
    with pytest.raises(HardnegError) as error:
        analyze([tmp_path / "runs" / "a"])
    assert "the-secret" not in str(error.value)


def test_references_to_the_config_itself_are_filled_in() -> None:
    args = {"a": 3, "b": "${a}", "n": {"c": "${oc.select:a,5}", "d": "x${a}", "e": "\\${a}"}}
    assert resolved(args) == {"a": 3, "b": 3, "n": {"c": 3, "d": "x3", "e": "${a}"}}


# ---------------------------------------------------------------------- records, metrics, studies


@pytest.mark.parametrize("kind", PARQUET)
def test_records(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "hardness"
    folder.mkdir()
    PARQUET[kind](folder / "epoch00001-rank0.parquet")
    with pytest.raises(DataError, match="there is nothing to read"):
        records.read(folder)
    assert records.config_of(folder) in (None, "not JSON", "[1, 2]", "{}") or kind.startswith("d")
    write_table(folder / "epoch00000-rank0.parquet", table_of())
    read = records.read(folder)
    assert len(read.table) == 3
    (note,) = read.notes
    assert "epoch00001-rank0.parquet: left out, because" in note


def test_records_leave_the_report_alone(tmp_path: Path) -> None:
    for number, make in enumerate(PARQUET.values()):
        folder = make_run(tmp_path / "runs" / f"r{number}", max_epochs=number)
        (folder / "hardness").mkdir()
        make(folder / "hardness" / "epoch00000-rank0.parquet")
    found = runs.find([tmp_path / "runs"])
    assert len(found.runs) == len(PARQUET)
    assert all(run.records is None for run in found.runs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e308])
def test_records_of_what_is_no_number(value: float, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "a")
    (folder / "hardness").mkdir()
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
            place = folder / "hardness" / f"epoch{len(list(folder.rglob('*.parquet'))):05d}"
            write_table(place.with_name(f"{place.name}-rank0.parquet"), table.select(FIELD_NAMES))
    assert write([tmp_path / "runs"], tmp_path / "out").html.is_file()


FIELD_NAMES = records.FIELDS.names


@pytest.mark.parametrize("kind", [*ANY, "numbers", "formulas"])
def test_metrics(kind: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "a")
    file = folder / "metrics.csv"
    if kind == "numbers":
        file.write_text("epoch,step,val_acc1\ninf,0,nan\n1e300,1,inf\n-5,2,1e999\n")
    elif kind == "formulas":
        file.write_text("epoch,val_=cmd|' /C calc'!A0,val_acc1\n0,=1+1,@x\n1,<b>,2\n")
    else:
        ANY[kind](file)
    assert write([tmp_path / "runs"], tmp_path / "out").html.is_file()


@pytest.mark.parametrize("kind", [*ANY, "objects"])
def test_studies(kind: str, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "a")
    (folder / "analysis").mkdir()
    file = folder / "analysis" / "study.npz"
    if kind == "objects":
        bombs = np.array([Bomb(marker_of(file))], dtype=object)
        np.savez(file, **{"solo_hardneg.study": np.array([1]), "json": "{}", "tsne": bombs})
    else:
        ANY[kind](file)
    (run,) = runs.find([tmp_path / "runs"]).runs
    assert run.study is None


# ---------------------------------------------------------------------- reproduce


def result_text(**changes: Any) -> str:
    content = {
        **{"format": "solo-hardneg result", "version": 1, "cell": "a-seed0", "row": "a"},
        **{"seed": 0, "fingerprint": "0" * 12, "state": "done", "metrics": {"top1": 5.0}},
    }
    return json.dumps({**content, **changes})


@pytest.mark.parametrize("kind", ANY)
def test_results_and_plans(kind: str, tmp_path: Path) -> None:
    ANY[kind](tmp_path / "plan.json")
    with pytest.raises(DataError, match=r"plan\.json"):
        results.read_result(tmp_path / "plan.json")
    with pytest.raises(DataError, match=r"plan\.json"):
        results.read_plan(tmp_path / "plan.json")
    if kind != "loop":
        said(*("reproduce", "sscl_table3", "data=digits", "--no-run", "--folder", tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 99},
        {"format": "a recipe"},
        {"metrics": {"top1": float("nan")}},
        {"metrics": {"top1": float("inf")}},
        {"metrics": {"top1": "=1+1"}},
        {"metrics": [1]},
        {"ran_on": ["x"]},
        {"ran_on": {"x": {"y": 1}}},
        {"error": {"x": 1}},
        {"pretrain": [1, 2]},
        {"cell": None},
        {"seconds": "3"},
    ],
)
def test_results_with_something_wrong_in_them(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(result_text())
    assert results.read_result(tmp_path / "x.json").metrics == {"top1": 5.0}
    (tmp_path / "x.json").write_text(result_text(**changes))
    with pytest.raises(DataError, match=r"x\.json"):
        results.read_result(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/b", "a\\b", "a\0b", "", 3])
@pytest.mark.parametrize("key", ["name", "fingerprint"])
def test_a_plan_names_no_file_elsewhere(key: str, name: Any, tmp_path: Path) -> None:
    """What can't be read is moved aside, so that a plan could move others' files."""
    plan = results.write_plan(tmp_path, [CELL], {})
    content = json.loads(plan.read_text())
    content["cells"][0][key] = name
    plan.write_text(json.dumps(content))
    with pytest.raises(DataError, match="there is no plan that can be read"):
        results.read_plan(plan)


def test_a_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_text(result_text())
    monkeypatch.setattr("solo_hardneg.analysis.untrusted.MOST_BYTES", 10)
    with pytest.raises(DataError, match="it is larger than"):
        results.read_result(tmp_path / "x.json")


@pytest.mark.parametrize("kind", ANY)
def test_a_table_of_synsets(kind: str, tmp_path: Path) -> None:
    from solo_hardneg.analysis.wordnet import synsets_of

    ANY[kind](tmp_path / "synsets.csv")
    with pytest.raises(ConfigError, match=r"synsets=.*synsets\.csv"):
        synsets_of(["cat"], "cifar10", tmp_path / "synsets.csv")
