"""Nothing talks to another machine unless asked to: an audit hook in every process sees to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration_helpers import Result, run_python

# Python imports it at its start, in each process that inherits PYTHONPATH.
HOOK = """
import os, sys

def _watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # else a path
    elif event == "urllib.Request":
        host = args[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode("latin1")
    if host in (None, "", "localhost", "::1", "0.0.0.0", "::") or str(host).startswith("127."):
        return
    if str(host).startswith("file:"):
        return
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{event} {host!r} {sys.argv}\\n")
    raise OSError(f"no network here: {event} {host!r}")

sys.addaudithook(_watch)
with open(os.environ["NETWORK_LOG"] + ".watched", "a") as log:
    log.write(f"{os.getpid()}\\n")
"""
EXPERIMENT = """
title: "Mine"
source: "nobody"
config: simclr_sscl
data: digits
seeds: 1
rows:
  plain: {title: "Plain", overrides: [negatives=all]}
"""
SCALE = """
title: "tiny"
epochs: 1
images: 400
batch_size: 64
backbone: resnet10t
linear_epochs: 1
"""

pytestmark = pytest.mark.slow


class Watched:
    """Runs programs in a folder, and knows what they asked the network for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "network.log"
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)

    def run(self, *arguments: object) -> Result:
        env = {"PYTHONPATH": str(self.folder / "hook"), "NETWORK_LOG": str(self.log)}
        env |= {"SOLO_HARDNEG_HOST": "standalone", "HF_HUB_OFFLINE": "0", "NLTK_DATA": "nowhere"}
        return run_python(*arguments, cwd=self.folder, env=env, timeout=900)

    def ours(self, *arguments: object) -> Result:
        """``solo-hardneg ARGUMENTS``, which must ask for nothing."""
        done = self.run("-m", "solo_hardneg", *arguments)
        assert not self.log.exists(), self.log.read_text()
        return done

    @property
    def processes(self) -> int:
        """How many processes were watched so far."""
        log = self.log.with_name(f"{self.log.name}.watched")
        return len(set(log.read_text().split())) if log.exists() else 0


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 1)",
        "import socket; socket.getaddrinfo('example.invalid', 80)",
        "import socket; s = socket.socket(2, socket.SOCK_DGRAM); s.sendto(b'x', ('192.0.2.1', 9))",
        "import urllib.request; urllib.request.urlopen('http://example.invalid/')",
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', "
        "\"import socket; socket.create_connection(('192.0.2.1', 80), 1)\"]))",
    ],
)
def test_the_hook_fires(watched: Watched, program: str) -> None:
    done = watched.run("-c", program)
    assert done.code != 0
    assert "no network here" in done.text
    assert watched.log.is_file()


def test_this_machine_may_be_talked_to(watched: Watched) -> None:
    program = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "socket.create_connection(s.getsockname()).close(); socket.getaddrinfo('localhost', 80)"
    )
    watched.run("-c", program).ok()
    assert not watched.log.exists()


def test_from_pretraining_to_the_report(watched: Watched) -> None:
    small = ("data=digits", "max_epochs=1", "+limit_train_batches=2", "+limit_val_batches=1")
    small = (*small, "optimizer.batch_size=32", "accelerator=cpu", "checkpoint.dir=runs")
    moco = ("method_kwargs.queue_size=64", "hardness.enabled=True", "hardness.every_n_steps=1")
    watched.ours("pretrain", "--config-name", "mocov2_banded", *small, *moco).ok()
    (run,) = (watched.folder / "runs" / "mocov2_banded").iterdir()
    source = f"pretrained_feature_extractor='{run}'"
    watched.ours("linear", "--config-name", "linear", *small, source).ok()
    settings = ("queries=40", "negatives=80", "percentiles=20", "device=cpu", "tsne=true")
    watched.ours("analyze", run, *settings).ok()
    watched.ours("report", "runs", "--out", "report").ok()
    assert (watched.folder / "report" / "report.html").is_file()
    watched.ours("policies").ok()
    (watched.folder / "images").mkdir()
    assert watched.ours("folders", "tinyimagenet", "images").code == 1
    assert watched.processes >= 6


def test_reproducing(watched: Watched) -> None:
    (watched.folder / "mine.yaml").write_text(EXPERIMENT)
    (watched.folder / "tiny.yaml").write_text(SCALE)
    watched.ours("reproduce", "mine.yaml", "--scale", "tiny.yaml").ok()
    assert list((watched.folder / "reproduced").rglob("table.csv"))
    assert watched.processes >= 2, "the cell has a process of its own"
