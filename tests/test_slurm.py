"""The SLURM job script and its guide, with stand-ins for ``srun`` and ``scontrol``."""

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
# Runs the command once for each task, at the same time; returns the highest status.
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


def sbatch_options() -> dict[str, str]:
    """The script's #SBATCH options."""
    lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", SCRIPT.read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines) == SCRIPT.read_text().count("#SBATCH")
    return dict(lines)


@dataclass(frozen=True)
class Cluster:
    """A folder with stand-ins for SLURM's programs, and the jobs started in it."""

    folder: Path
    jobs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, *arguments: str, nodes: int, tasks: int, **more: str
    ) -> subprocess.Popen[bytes]:
        """Starts the job script, as SLURM does on the job's first node."""
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
        """Runs the job script and returns its status."""
        return self.start(*arguments, nodes=nodes, tasks=tasks, **more).wait(200)

    def task_outputs(self) -> list[str]:
        """The output of each task."""
        return [file.read_text() for file in sorted(self.folder.glob("task*.txt"))]

    def read_lines(self, name: str) -> list[str]:
        """The lines of a file, if it exists."""
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


def compose_config(arguments: list[str]) -> DictConfig:
    """The config of ``main_pretrain.py ARGUMENTS``, without Hydra's own options."""
    name = arguments.index("--config-name")
    overrides = [word for word in arguments[name + 2 :] if not word.startswith("hydra")]
    with initialize_config_module("solo_hardneg.configs", version_base="1.2"):
        return compose(arguments[name + 1], [*overrides, "data.train_path=there"])


# ---------------------------------------------------------------- the script


def test_the_options_agree() -> None:
    options = sbatch_options()
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options  # would hide a node's other GPUs
    assert "requeue" in options
    name, seconds = options["signal"].split("@")
    assert name == "TERM"
    assert int(seconds) >= 120
    assert options["open-mode"] == "append"  # keeps the output from before a requeue
    # In jobs of these names Lightning starts the processes itself.
    assert options["job-name"] not in ("bash", "interactive")


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"),
    [(0, 0, False), (1, 0, False), (137, 0, False), (143, 99, True), (143, 100, False)],
)
def test_only_an_interrupted_run_is_requeued_and_not_forever(
    cluster: Cluster, status: int, restarts: int, requeued: bool
) -> None:
    more = {"SRUN_STATUS": str(status), "SLURM_RESTART_COUNT": str(restarts)}
    assert cluster.run("mocov2_banded", **more) == status
    assert cluster.read_lines("scontrol.txt") == ["requeue 4711"] * requeued


def test_a_missing_config_is_an_error(cluster: Cluster) -> None:
    assert cluster.run() != 0
    assert "the name of a config" in "".join(cluster.read_lines("job.txt"))
    assert not cluster.read_lines("srun.txt")


def test_the_config_follows_the_size_of_the_job(cluster: Cluster) -> None:
    nodes, tasks = (int(sbatch_options()[key]) for key in ("nodes", "ntasks-per-node"))
    more = ["negatives=hardest_10", "data=imagenet100"]
    assert cluster.run("mocov2_banded", *more, nodes=nodes, tasks=tasks, SRUN_STATUS="0") == 0
    words = cluster.read_lines("srun.txt")
    assert {"--cpus-per-task=2", "--kill-on-bad-exit=0", "--wait=120"} <= set(words)
    cfg = compose_config(words)
    assert cfg.devices == [*range(tasks)]
    assert cfg.num_nodes == nodes
    assert (cfg.accelerator, cfg.strategy) == ("gpu", "ddp")
    assert cfg.name == "moco-hardest_5-seed5"
    assert cfg.auto_resume == {"enabled": True, "max_hours": 720}
    assert cfg.data.num_workers == 1
    assert OmegaConf.to_container(cfg.negatives) == {"keep": {"band": [0.9, 1.0]}}


@pytest.mark.full
def test_a_job_at_its_time_limit_saves_and_resumes(cluster: Cluster) -> None:
    epochs = 8
    arguments = [  # overrides the command line for two small processes on a CPU
        *("mocov2_banded", "negatives=all", "data=digits", "+data.fraction=0.1"),
        *("accelerator=cpu", "devices=2", "sync_batchnorm=False", "precision=32"),
        *(f"max_epochs={epochs}", "scheduler.warmup_epochs=0", "+limit_train_batches=2"),
        *("+limit_val_batches=1", "+enable_progress_bar=False", "optimizer.batch_size=16"),
        *("method_kwargs.queue_size=32", "method_kwargs.proj_hidden_dim=32"),
    ]
    job = cluster.start(*arguments, nodes=1, tasks=2)
    while job.poll() is None and not any("Backend of" in text for text in cluster.task_outputs()):
        time.sleep(0.02)
    for pid in cluster.read_lines("pids.txt")[0].split():
        os.kill(int(pid), signal.SIGTERM)  # SLURM sends it to the tasks, not to the script
    assert job.wait(200) == 143, cluster.task_outputs()
    first, second = cluster.task_outputs()
    assert "Backend of the loss:" not in second
    assert "SIGTERM: the run ends after step" in first
    assert cluster.read_lines("scontrol.txt") == ["requeue 4711"]
    saved = load_checkpoint(only_checkpoint(cluster.folder))["global_step"]
    assert 0 < saved < 2 * epochs

    assert cluster.run(*arguments, nodes=1, tasks=2) == 0, cluster.task_outputs()
    assert "Resuming " in cluster.task_outputs()[0]
    last = max(cluster.folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    checkpoint = load_checkpoint(last)
    assert checkpoint["global_step"] == 2 * epochs
    assert len(checkpoint["solo_hardneg_rng"]) == 2
    assert cluster.read_lines("scontrol.txt") == ["requeue 4711"]


# ---------------------------------------------------------------- the guide


def commands(program: str) -> list[list[str]]:
    """The arguments of a program, in each of the guide's commands that runs it."""
    blocks = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index(program) + 1 :] for line in words if program in line]


def test_the_commands_of_the_guide_compose() -> None:
    (job,) = commands("sbatch")
    assert job[1].endswith("scripts/slurm/pretrain.sbatch")
    one_node, sweep, torchrun = commands("main_pretrain.py")
    assert sweep[0] == "--multirun"
    for arguments, nodes in ((one_node, None), (sweep, 2), (torchrun, 2)):
        one_job = [re.sub("^(negatives=[^,]*).*", r"\1", word) for word in arguments]
        cfg = compose_config([word for word in one_job if word != "…"])
        assert cfg.devices == [0, 1, 2, 3]
        assert cfg.get("num_nodes") == nodes
        assert cfg.strategy == "ddp"
    launcher = {word.removeprefix("hydra.launcher.") for word in sweep}
    assert {"nodes=2", "tasks_per_node=4", "gpus_per_node=4"} <= launcher
