"""solo-learn's script resumes with other settings, after a limit, and beside foreign runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration_helpers import Job, Result, Run, load_checkpoint, run_in_one_process

pytestmark = [pytest.mark.full, pytest.mark.host, pytest.mark.timeout(900)]

AUTO = "auto_resume.enabled=True"
HALF = "++optimizer.kwargs.momentum=0.5"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("resuming")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ended(solo_learn: Path, small: list[str], pretrained: Run, outputs: Path) -> dict[str, Result]:
    """Results of runs that resume earlier ones; an epoch has three steps."""
    for name, content in {"a": b'{"name": "${oc.env:SOLO_HARDNEG_NOT_SET}"}', "b": b"\xff"}.items():
        foreign = outputs / "limited" / "mocov2_banded" / name
        foreign.mkdir(parents=True)
        (foreign / "args.json").write_bytes(content)
        (foreign / "x.ckpt").touch()
    banded = ["--config-name", "mocov2_banded", *small, "method_kwargs.queue_size=32"]
    limited = [*banded, "max_epochs=2", f"checkpoint.dir={outputs / 'limited'}"]
    limited.append("++checkpoint.frequency=10")  # solo-learn saves in the first epoch only
    baseline = ["--config-name", "simclr", *small, f"checkpoint.dir={outputs / 'simclr'}"]
    named = [
        *(a for a in pretrained.arguments if not a.startswith("checkpoint")),
        f"+resume_from_checkpoint='{pretrained.checkpoint}'",
    ]
    jobs = {
        "first": [*limited, "+max_steps=4"],
        "used_up": [*limited, "+max_steps=4", AUTO],
        "resumed": [*limited, HALF, AUTO],
        "other_rate": [*limited, "optimizer.lr=0.5", AUTO],
        "baseline": baseline,
        "baseline_again": [*baseline, AUTO],
        "named": [*named, "max_epochs=2", "optimizer.lr=0.5", "optimizer.weight_decay=0.25"],
        "longer": [*named, "max_epochs=3"],
        "adamw": [*named, "max_epochs=2", "optimizer.name=adamw"],
    }
    folders = {name: f"checkpoint.dir={outputs / name}" for name in ("named", "longer", "adamw")}
    main = solo_learn / "main_pretrain.py"
    return run_in_one_process(
        {
            name: Job(main, [*job, folders[name]] if name in folders else job)
            for name, job in jobs.items()
        },
        cwd=outputs,
    )


def newest(folder: Path) -> Path:
    return max(folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)


def test_limit_is_named_and_used_up(ended: dict[str, Result]) -> None:
    first = ended["first"].ok().out
    assert "max_steps=4 reached (step 4, inside epoch 2)." in first
    assert "++resume_from_checkpoint=" in first
    assert ended["used_up"].code != 0
    assert "it has trained 4 steps, and max_steps=4. Raise max_steps" in ended["used_up"].err


def test_resumes_inside_the_epoch_with_new_settings(
    ended: dict[str, Result], outputs: Path
) -> None:
    out = ended["resumed"].ok().out
    assert "optimizer.kwargs.momentum: 0.9 there, 0.5 here" in out
    assert "max_steps: 4 there, -1 here" in out
    assert "max_epochs=2 reached (step 6, epoch 2)." in out
    folders = [p for p in (outputs / "limited").rglob("*.ckpt") if p.stat().st_size]
    states = [load_checkpoint(file) for file in folders]
    (last,) = [s for s in states if s["optimizer_states"][0]["param_groups"][0]["momentum"] == 0.5]
    assert last["global_step"] == 6
    assert last["lr_schedulers"][0]["max_epochs"] == 6
    assert last["lr_schedulers"][0]["last_epoch"] == 6


def test_auto_resume_reports_its_choice(ended: dict[str, Result]) -> None:
    assert "auto_resume: resuming " in ended["resumed"].out
    assert "args.json can't be read" in ended["resumed"].out
    out = ended["other_rate"].ok().out
    assert "optimizer.lr is 0.0009375 there, 0.015625 here" in out
    assert "starting from scratch" in out


def test_finished_host_method_is_refused(ended: dict[str, Result]) -> None:
    assert "max_epochs=1 reached (step 3, epoch 1)." in ended["baseline"].ok().out
    assert ended["baseline_again"].code != 0
    assert "auto_resume: resuming " in ended["baseline_again"].out
    assert "all of its epochs, max_epochs=1. Raise max_epochs" in ended["baseline_again"].err


def test_config_overrides_the_checkpoint(ended: dict[str, Result], outputs: Path) -> None:
    out = ended["named"].ok().out
    assert "optimizer.lr: 0.0009375 there, 0.015625 here" in out
    assert "optimizer.weight_decay: 0.0001 there, 0.25 here" in out
    groups = load_checkpoint(newest(outputs / "named"))["optimizer_states"][0]["param_groups"]
    assert {g["name"]: (g["initial_lr"], g["weight_decay"]) for g in groups} == {
        "backbone": (0.015625, 0.25),
        "classifier": (0.3, 0),  # not scaled without validation
        "projector": (0.015625, 0.25),
    }  # fmt: skip


def test_schedule_is_lengthened_with_the_epochs(ended: dict[str, Result], outputs: Path) -> None:
    assert "max_epochs: 1 there, 3 here" in ended["longer"].ok().out
    (schedule,) = load_checkpoint(newest(outputs / "longer"))["lr_schedulers"]
    assert (schedule["max_epochs"], schedule["last_epoch"]) == (9, 9)
    assert max(schedule["_last_lr"]) < 1e-9


def test_different_optimizer_is_refused(ended: dict[str, Result]) -> None:
    assert ended["adamw"].code != 0
    assert "CheckpointError: resume_from_checkpoint=" in ended["adamw"].err
    assert "optimizer.name: sgd there, adamw here" in ended["adamw"].err
