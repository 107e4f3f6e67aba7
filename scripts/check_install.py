"""Whether an installed solo-hardneg works, far from its source: ``python check_install.py OUT``.

Runs in the environment it was installed into, in an empty folder, and imports nothing of the source
tree. ``nox`` calls it (see noxfile.py); OUT is a JSON file that it writes.

    python check_install.py OUT                     alone
    python check_install.py OUT --solo-learn PATH   and inside a checkout of solo-learn
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

SECONDS = 900  # for one program; it takes a minute on a machine that does nothing else
TINY = (
    *("method_kwargs.queue_size=32", "optimizer.batch_size=8", "max_epochs=1"),
    *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=16"),
    *("++limit_train_batches=2", "++limit_val_batches=1", "data.num_workers=0"),
)
GROUPS = ("negatives", "data", "paper", "scale", "common")


def run(*command: str, host: str | None = None) -> str:
    """What a program printed; RuntimeError with its last lines if it failed."""
    hidden = ("PYTHONPATH", "SOLO_HARDNEG_HOST")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"OMP_NUM_THREADS": "1"} | ({"SOLO_HARDNEG_HOST": host} if host else {})
    out = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    if out.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(out.stdout + out.stderr)[-3000:]}")
    return out.stdout


def command() -> str:
    """The path of the installed ``solo-hardneg``."""
    return str(Path(sys.executable).with_name("solo-hardneg"))


def wanted(condition: object, text: str) -> None:
    """Raises RuntimeError unless something holds."""
    if not condition:
        raise RuntimeError(text)


def check_place() -> None:
    """What is imported is what was installed."""
    import solo_hardneg

    place = Path(solo_hardneg.__file__).resolve()
    wanted(Path(sys.prefix).resolve() in place.parents, f"solo_hardneg is that of {place}")


def check_files() -> None:
    """The configs and the report's template are there."""
    configs = files("solo_hardneg.configs")
    for group in GROUPS:
        found = [f.name for f in configs.joinpath(group).iterdir() if f.name.endswith(".yaml")]
        wanted(found, f"no configs in {group}")
    for name in ("report.html.j2", "published.csv"):
        wanted(files("solo_hardneg.analysis").joinpath(name).is_file(), f"{name} is missing")
    wanted(files("solo_hardneg").joinpath("py.typed").is_file(), "py.typed is missing")


def check_entry_points() -> None:
    """Lightning's factory of callbacks and the command are in the metadata, and can be loaded."""
    for group in ("lightning.pytorch.callbacks_factory", "console_scripts"):
        ours = [e for e in entry_points(group=group) if e.value.startswith("solo_hardneg.")]
        wanted(ours, f"no entry point in {group}")
        for one in ours:
            one.load()


def check_policies() -> None:
    """``solo-hardneg policies`` lists the verbs and the presets."""
    text = run(command(), "policies")
    wanted("keep" in text and "hardest_5" in text, f"policies says: {text[-500:]}")


def check_alone() -> None:
    """Two steps of pretraining on digits, by the standalone host."""
    place = Path("alone").resolve()
    overrides = ("data=digits", "negatives=hardest_5", *TINY, f"checkpoint.dir={place}")
    run(command(), "pretrain", "--config-name", "mocov2_banded", *overrides, host="standalone")
    wanted(list(place.rglob("*.ckpt")), "no checkpoint was written")


def check_inside(solo_learn: Path) -> None:
    """Two steps of solo-learn's own program, with our config and method."""
    place = Path("inside").resolve()
    images = write_images(place / "images")
    overrides = (
        *("data=custom", "data.dataset=custom", f"data.train_path={images}"),
        *("data.val_path=null", "data.suggest.crop_size=32", "negatives=hardest_5", *TINY),
        f"checkpoint.dir={place}",
    )
    script = str(solo_learn / "main_pretrain.py")
    run(sys.executable, script, "--config-name", "mocov2_banded", *overrides)
    wanted(list(place.rglob("*.ckpt")), "no checkpoint was written")


def write_images(folder: Path) -> Path:
    """Six classes of four small images; solo-learn's top-5 accuracy needs five classes."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(5)
    for label in range(6):
        (folder / str(label)).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def checked(checks: Sequence[tuple[str, Callable[[], None] | None]]) -> dict[str, list[str]]:
    """The names of what passed, failed, and was skipped (None stands for it)."""
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for name, check in checks:
        if check is None:
            found["skipped"].append(name)
            continue
        try:
            check()
        except Exception as error:  # whatever it is: the others are tried all the same
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
            found["failed"].append(name)
        else:
            print(f"passed {name}", flush=True)
            found["passed"].append(name)
    return found


def main() -> int:
    """Runs all checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--solo-learn", type=Path)
    asked = parser.parse_args()
    host = asked.solo_learn
    checks: list[tuple[str, Callable[[], None] | None]] = [
        ("place", check_place),
        ("files", check_files),
        ("entry points", check_entry_points),
        ("policies", check_policies),
        ("pretrain alone", check_alone),
        ("pretrain inside solo-learn", None if host is None else lambda: check_inside(host)),
    ]
    found = checked(checks)
    versions = {name: version(name) for name in ("torch", "lightning")}
    content = {"python": platform.python_version(), **versions}
    content |= {name: len(names) for name, names in found.items()}
    asked.out.write_text(json.dumps(content), encoding="utf-8")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
