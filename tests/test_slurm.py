"""The SLURM job script: what it asks for fits together, and its command line trains.

No SLURM is needed: ``srun`` and ``scontrol`` are stand-ins, first in PATH.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from integration_helpers import PROJECT, environment, load_checkpoint, only_checkpoint
from many_processes import free_port
from omegaconf import DictConfig, OmegaConf

SCRIPT = PROJECT / "scripts" / "slurm" / "pretrain.sbatch"
GUIDE = PROJECT / "docs" / "slurm.md"
SRUN = f"""#!/usr/bin/env bash
# Runs the command once for each task, all at a time; its status is the highest of theirs.
printf '%s\\n' "$@" > srun.txt
[ -z "${{SRUN_STATUS:-}}" ] || exit "$SRUN_STATUS"
while [[ "$1" != python ]]; do shift; done
shift
pids=() status=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 \\
    {sys.executable} "$@" > "task$task.txt" 2>&1 &
  pids+=($!)
done
echo "${{pids[@]}}" > pids.txt
for pid in "${{pids[@]}}"; do
  code=0
  wait "$pid" || code=$?
  ((code <= status)) || status=$code
done
exit "$status"
"""
SCONTROL = '#!/usr/bin/env bash\necho "$@" >> scontrol.txt\n'


def asked() -> dict[str, str]:
    """What the script asks SLURM for."""
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines) == SCRIPT.read_text().count("#SBATCH")
    return dict(lines)


@dataclass(frozen=True)
class Cluster:
    """A folder in which jobs run, with stand-ins for SLURM's programs; and the jobs."""

    folder: Path
    jobs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, *arguments: str, nodes: int, tasks: int, **more: str
    ) -> subprocess.Popen[bytes]:
        """Runs the job script with these arguments, as SLURM would on the job's first node."""
        for file in self.folder.glob("task*.txt"):
            file.unlink()
        slurm = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": "moco-hardest_5-seed5",
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": str(nodes * tasks),
            "SLURM_NTASKS_PER_NODE": str(tasks),
            "SLURM_CPUS_PER_TASK": "2",
            "SLURM_NODELIST": "127.0.0.1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "MAIN": str(PROJECT / "scripts" / "main_pretrain.py"),
            "SOLO_HARDNEG_HOST": "standalone",
        }
        with (self.folder / "job.txt").open("w") as log:
            job = subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                cwd=self.folder,
                env=environment(**slurm, **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.jobs.append(job)
        return job

    def run(self, *arguments: str, nodes: int = 2, tasks: int = 4, **more: str) -> int:
        """The same, and waits for its end: its status."""
        return self.start(*arguments, nodes=nodes, tasks=tasks, **more).wait(200)

    def tasks(self) -> list[str]:
        """What each task has written."""
        return [file.read_text() for file in sorted(self.folder.glob("task*.txt"))]

    def read(self, name: str) -> list[str]:
        """The lines of a file; none if it isn't there."""
        file = self.folder / name
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    cluster = Cluster(tmp_path)
    yield cluster
    for job in cluster.jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def composed(arguments: list[str]) -> DictConfig:
    """The config of ``main_pretrain.py ARGUMENTS``, without what is Hydra's own."""
    name = arguments.index("--config-name")
    overrides = [word for word in arguments[name + 2 :] if not word.startswith("hydra")]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        return compose(arguments[name + 1], [*overrides, "data.train_path=there"])


# ---------------------------------------------------------------- what the script does


def test_what_it_asks_for_fits_together() -> None:
    options = asked()
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options  # each process would see one GPU, and Lightning all
    assert "requeue" in options
    name, seconds = options["signal"].split("@")
    assert name == "TERM"
    assert int(seconds) >= 120
    assert options["open-mode"] == "append"  # what was written before a requeue stays
    # Lightning takes a job of these names for a shell, in which it starts the processes itself.
    assert options["job-name"] not in ("bash", "interactive")


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (1, 0, False), (137, 0, False), (143, 99, True), (143, 100, False)],
)
def test_only_a_run_that_was_asked_to_end_is_queued_again_and_not_for_ever(
    cluster: Cluster, status: int, restarts: int, again: bool
) -> None:
    more = {"SRUN_STATUS": str(status), "SLURM_RESTART_COUNT": str(restarts)}
    assert cluster.run("mocov2_banded", **more) == status
    assert cluster.read("scontrol.txt") == ["requeue 4711"] * again


def test_without_a_config_it_says_what_is_missing(cluster: Cluster) -> None:
    assert cluster.run() != 0
    assert "the name of a config" in "".join(cluster.read("job.txt"))
    assert not cluster.read("srun.txt")


def test_a_job_of_its_size_gets_a_config_of_its_size(cluster: Cluster) -> None:
    nodes, tasks = int(asked()["nodes"]), int(asked()["ntasks-per-node"])
    more = ["negatives=hardest_10", "data=imagenet100"]
    assert cluster.run("mocov2_banded", *more, nodes=nodes, tasks=tasks, SRUN_STATUS="0") == 0
    words = cluster.read("srun.txt")
    assert {"--cpus-per-task=2", "--kill-on-bad-exit=0", "--wait=120"} <= set(words)
    cfg = composed(words)
    assert cfg.devices == [*range(tasks)]
    assert cfg.num_nodes == nodes
    assert (cfg.accelerator, cfg.strategy) == ("gpu", "ddp")
    assert cfg.name == "moco-hardest_5-seed5"
    assert cfg.auto_resume == {"enabled": True, "max_hours": 720}
    assert cfg.data.num_workers == 1
    assert OmegaConf.to_container(cfg.negatives) == {"keep": {"band": [0.9, 1.0]}}


@pytest.mark.full
def test_at_its_time_limit_it_saves_and_is_queued_again_and_goes_on(cluster: Cluster) -> None:
    epochs = 8
    arguments = [  # what makes the job's command line one for two processes on a CPU, and small
        *("mocov2_banded", "negatives=all", "data=digits", "+data.fraction=0.1"),
        *("accelerator=cpu", "devices=2", "sync_batchnorm=False", "precision=32"),
        *(f"max_epochs={epochs}", "scheduler.warmup_epochs=0", "+limit_train_batches=2"),
        *("+limit_val_batches=1", "+enable_progress_bar=False", "optimizer.batch_size=16"),
        *("method_kwargs.queue_size=32", "method_kwargs.proj_hidden_dim=32"),
    ]
    job = cluster.start(*arguments, nodes=1, tasks=2)
    while job.poll() is None and not any("Backend of" in text for text in cluster.tasks()):
        time.sleep(0.02)
    for pid in cluster.read("pids.txt")[0].split():
        os.kill(int(pid), signal.SIGTERM)  # which SLURM sends to all tasks, not to the script
    assert job.wait(200) == 143, cluster.tasks()
    first, second = cluster.tasks()
    assert "Backend of the loss:" not in second
    assert "SIGTERM: the run ends after step" in first
    assert cluster.read("scontrol.txt") == ["requeue 4711"]
    saved = load_checkpoint(only_checkpoint(cluster.folder))["global_step"]
    assert 0 < saved < 2 * epochs

    assert cluster.run(*arguments, nodes=1, tasks=2) == 0, cluster.tasks()
    assert "Resuming " in cluster.tasks()[0]
    last = max(cluster.folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    checkpoint = load_checkpoint(last)
    assert checkpoint["global_step"] == 2 * epochs
    assert len(checkpoint["solo_hardneg_rng"]) == 2
    assert cluster.read("scontrol.txt") == ["requeue 4711"]


# ---------------------------------------------------------------- the guide


def commands(program: str) -> list[list[str]]:
    """The arguments of a program in each of the guide's commands."""
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index(program) + 1 :] for line in words if program in line]


def test_the_guides_commands_compose() -> None:
    (job,) = commands("sbatch")
    assert job[1].endswith("scripts/slurm/pretrain.sbatch")
    one_node, sweep, torchrun = commands("main_pretrain.py")
    assert sweep[0] == "--multirun"
    for arguments, nodes in ((one_node, None), (sweep, 2), (torchrun, 2)):
        one_job = [re.sub("^(negatives=[^,]*).*", r"\1", word) for word in arguments]
        cfg = composed([word for word in one_job if word != "…"])
        assert cfg.devices == [0, 1, 2, 3]
        assert cfg.get("num_nodes") == nodes
        assert cfg.strategy == "ddp"
    launcher = {word.removeprefix("hydra.launcher.") for word in sweep}
    assert {"nodes=2", "tasks_per_node=4", "gpus_per_node=4"} <= launcher
