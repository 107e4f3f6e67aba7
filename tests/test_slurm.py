"""The SLURM job script: what it asks for fits together, and its command line trains.

No SLURM is needed: ``srun`` and ``scontrol`` are stand-ins, first in PATH.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from integration_helpers import (
    PROJECT,
    Result,
    environment,
    load_checkpoint,
    only_checkpoint,
    run_python,
)
from many_processes import free_port

SCRIPT = PROJECT / "scripts" / "slurm" / "pretrain.sbatch"
GUIDE = PROJECT / "docs" / "slurm.md"
# Of sbatch's long options, those that a job like ours may have.
KNOWN = {
    *("account", "array", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency"),
    *("error", "exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres"),
    *("job-name", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nodelist"),
    *("nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue"),
    *("reservation", "signal", "time"),
}
SRUN = """#!/usr/bin/env bash
# Runs the command once for each task, all at a time; its status is the highest of theirs.
printf '%s\\n' "$@" > srun.txt
[ -z "${SRUN_STATUS:-}" ] || exit "$SRUN_STATUS"
while [[ "$1" == --* ]]; do shift; done
pids=() status=0
for ((task = 0; task < ${SRUN_TASKS:-$SLURM_NTASKS}; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 "$@" > "task$task.txt" 2>&1 &
  pids+=($!)
done
echo "${pids[@]}" > pids.txt
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  ((code <= status)) || status=$code
done
exit "$status"
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> scontrol.txt
"""
PYTHON = f"""#!/usr/bin/env bash
exec {sys.executable} "$@"
"""
# What makes the job's command line one for two processes on a CPU, and small.
TINY = [
    *("accelerator=cpu", "devices=2", "sync_batchnorm=False", "precision=32", "data=digits"),
    *("max_epochs=1", "scheduler.warmup_epochs=0", "+limit_train_batches=2", "+data.fraction=0.1"),
    *("+limit_val_batches=1", "+enable_progress_bar=False", "optimizer.batch_size=16"),
    *("method_kwargs.queue_size=32", "method_kwargs.proj_hidden_dim=32"),
]


def asked() -> dict[str, str]:
    """What the script asks SLURM for."""
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE)
    assert len(lines) == SCRIPT.read_text().count("#SBATCH")
    assert len(dict(lines)) == len(lines), "an option is there twice"
    return dict(lines)


def of_slurm(nodes: int, tasks: int) -> dict[str, str]:
    """The variables that SLURM sets in a job of so many nodes, and tasks on each."""
    return {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "moco-hardest_5-seed5",
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS": str(nodes * tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_NODELIST": "127.0.0.1",
    }


@dataclass(frozen=True)
class Cluster:
    """A folder in which jobs run, with stand-ins for SLURM's programs."""

    folder: Path

    def command(self, *arguments: object) -> list[str]:
        return ["bash", str(SCRIPT), *map(str, arguments)]

    def env(self, slurm: Mapping[str, str], **more: str) -> dict[str, str]:
        return environment(
            PATH=f"{self.folder / 'bin'}:{os.environ['PATH']}",
            MAIN=str(PROJECT / "scripts" / "main_pretrain.py"),
            SOLO_HARDNEG_HOST="standalone",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(free_port()),
            **slurm,
            **more,
        )

    def start(
        self, *arguments: object, slurm: Mapping[str, str], **more: str
    ) -> subprocess.Popen[str]:
        """Runs the job script with these arguments, as SLURM would on the job's first node."""
        for file in self.folder.glob("task*.txt"):
            file.unlink()
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env(slurm, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, job: subprocess.Popen[str]) -> Result:
        """Waits for the end of a job."""
        try:
            out, err = job.communicate(timeout=300)
        except BaseException:
            os.killpg(job.pid, signal.SIGKILL)
            raise
        return Result(job.returncode, out, "\n".join([err, *self.tasks()]))

    def run(self, *arguments: object, slurm: Mapping[str, str], **more: str) -> Result:
        """The same, and waits for its end."""
        return self.finish(self.start(*arguments, slurm=slurm, **more))

    def tasks(self) -> list[str]:
        """What each task has written."""
        return [file.read_text() for file in sorted(self.folder.glob("task*.txt"))]

    def read(self, name: str) -> list[str]:
        """The lines of a file; none if it isn't there."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return Cluster(tmp_path)


# ---------------------------------------------------------------- what is written in it


def test_what_it_asks_for_fits_together() -> None:
    options = asked()
    assert set(options) <= KNOWN
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options  # each process would see one GPU, and Lightning all
    assert "requeue" in options
    name, seconds = options["signal"].split("@")
    assert name == "TERM"
    assert int(seconds) >= 120
    assert options["open-mode"] == "append"  # what was written before a requeue stays
    # Lightning takes a job of these names for a shell, in which it starts the processes itself.
    assert options["job-name"] not in ("bash", "interactive")


def test_its_syntax() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)


# ---------------------------------------------------------------- what it does


@pytest.mark.parametrize(("status", "again"), [(0, False), (1, False), (137, False), (143, True)])
def test_only_a_run_that_was_asked_to_end_is_queued_again(
    cluster: Cluster, status: int, again: bool
) -> None:
    result = cluster.run("mocov2_banded", slurm=of_slurm(2, 4), SRUN_STATUS=str(status))
    assert result.code == status
    assert cluster.read("scontrol.txt") == ["requeue 4711"] * again


def test_without_a_config_it_says_what_is_missing(cluster: Cluster) -> None:
    result = cluster.run(slurm=of_slurm(2, 4))
    assert result.code != 0
    assert "the name of a config" in result.text
    assert not cluster.read("srun.txt")


def test_a_job_of_its_size_gets_a_config_of_its_size(cluster: Cluster) -> None:
    options = asked()
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    more = ["negatives=hardest_10", "data=imagenet100", "data.train_path=there", "--cfg", "job"]
    slurm = of_slurm(nodes, tasks) | {"SLURM_CPUS_PER_TASK": options["cpus-per-task"]}
    result = cluster.run("mocov2_banded", *more, slurm=slurm, SRUN_TASKS="1").ok()
    (text,) = cluster.tasks()
    cfg = yaml.safe_load(text[text.index("knn_eval:") :])
    assert cfg["devices"] == [*range(tasks)], result.text
    assert cfg["num_nodes"] == nodes
    assert (cfg["accelerator"], cfg["strategy"]) == ("gpu", "ddp")
    assert cfg["name"] == slurm["SLURM_JOB_NAME"]
    assert cfg["auto_resume"] == {"enabled": True, "max_hours": 720}
    assert cfg["data"]["num_workers"] == int(options["cpus-per-task"]) - 1
    assert cfg["negatives"] == {"keep": {"band": [0.9, 1.0]}}
    assert {f"--cpus-per-task={options['cpus-per-task']}", "--kill-on-bad-exit=0"} <= {
        *cluster.read("srun.txt")
    }


@pytest.mark.full
def test_its_command_line_trains_on_a_node_of_two_tasks(cluster: Cluster) -> None:
    result = cluster.run("mocov2_banded", "negatives=all", *TINY, slurm=of_slurm(1, 2)).ok()
    first, second = cluster.tasks()
    assert "Backend of the loss:" in first
    assert "Backend of the loss:" not in second
    checkpoint = load_checkpoint(only_checkpoint(cluster.folder / "trained_models"))
    assert checkpoint["global_step"] == 2
    assert len(checkpoint["solo_hardneg_rng"]) == 2
    assert checkpoint["state_dict"]["queue_filled"].item() == 32
    assert "srun` command is available on your system but is not used" not in result.text


@pytest.mark.full
def test_at_its_time_limit_it_saves_and_is_queued_again_and_goes_on(cluster: Cluster) -> None:
    epochs = 8
    arguments = ["mocov2_banded", "negatives=all", *TINY, f"max_epochs={epochs}"]
    job = cluster.start(*arguments, slurm=of_slurm(1, 2))
    end = time.monotonic() + 300
    while job.poll() is None and not any("Backend of" in text for text in cluster.tasks()):
        assert time.monotonic() < end, cluster.tasks()
        time.sleep(0.02)
    for pid in cluster.read("pids.txt")[0].split():
        os.kill(int(pid), signal.SIGTERM)  # which SLURM sends to all tasks, not to the script
    result = cluster.finish(job)
    assert result.code == 143, result.text[-3000:]
    assert "SIGTERM: the run ends after step" in result.text
    assert cluster.read("scontrol.txt") == ["requeue 4711"]
    saved = load_checkpoint(only_checkpoint(cluster.folder))["global_step"]
    assert 0 < saved < 2 * epochs

    again = cluster.run(*arguments, slurm=of_slurm(1, 2)).ok()
    assert "Resuming " in again.text
    steps = [load_checkpoint(file)["global_step"] for file in cluster.folder.rglob("*.ckpt")]
    assert sorted(steps) == [saved, 2 * epochs]
    assert cluster.read("scontrol.txt") == ["requeue 4711"]


@pytest.mark.full
def test_a_number_of_devices_that_slurm_does_not_give_is_refused(cluster: Cluster) -> None:
    result = cluster.run(
        *("mocov2_banded", "negatives=all", *TINY, "devices=3"),
        slurm=of_slurm(1, 2),
        SRUN_TASKS="1",
    )
    assert result.code == 1
    assert "You set `devices=3` in Lightning, but the number of tasks per node" in result.text


# ---------------------------------------------------------------- the guide


def commands(program: str) -> list[list[str]]:
    """The arguments of a program in each of the guide's commands."""
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index(program) + 1 :] for line in words if program in line]


def test_the_guides_commands_compose(tmp_path: Path) -> None:
    script = PROJECT / "scripts" / "main_pretrain.py"
    one_node, sweep, torchrun = commands("main_pretrain.py")
    assert sweep[0] == "--multirun"
    launcher = dict(
        word.removeprefix("hydra.launcher.").split("=") for word in sweep if "launcher." in word
    )
    single = [w.split(",")[0] if w.startswith("negatives=") else w for w in sweep[1:]]
    single = [word for word in single if "launcher" not in word]
    for arguments, nodes in ((one_node, None), (single, 2), (torchrun, 2)):
        plain = [word for word in arguments if word != "…"]
        result = run_python(
            *(script, *plain, "data.train_path=there", "--cfg", "job"),
            cwd=tmp_path,
            env={"SOLO_HARDNEG_HOST": "standalone"},
        ).ok()
        cfg = yaml.safe_load(result.out[result.out.index("knn_eval:") :])
        assert cfg["devices"] == [0, 1, 2, 3]
        assert cfg.get("num_nodes") == nodes
        assert cfg["strategy"] == "ddp"
    assert launcher["nodes"] == "2"
    assert launcher["tasks_per_node"] == launcher["gpus_per_node"] == "4"


def test_the_guide_says_what_the_script_does() -> None:
    (job,) = commands("sbatch")[:1]
    assert job[1].endswith("scripts/slurm/pretrain.sbatch")
    assert [word.partition("=")[0] for word in job if word.startswith("--")] == ["--job-name"]
    for word in ("--wait=120", "auto_resume.enabled=True", "++auto_resume.max_hours=720"):
        assert word in SCRIPT.read_text()
    assert "`srun --wait=120`" in GUIDE.read_text()
