"""Checks an installed solo-hardneg, far from its source; noxfile.py calls it.

    python check_install.py OUT                     writes the result to OUT, a JSON file
    python check_install.py OUT --solo-learn PATH   also trains in a checkout of solo-learn

Runs in the environment to check and in an empty folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

SECONDS = 900  # for one program; an idle machine needs one minute
COMMAND = str(Path(sys.executable).with_name("solo-hardneg"))
TINY = (
    *("method_kwargs.queue_size=32", "optimizer.batch_size=8", "max_epochs=1"),
    *("method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=16"),
    *("++limit_train_batches=2", "++limit_val_batches=1", "data.num_workers=0"),
)


def run(*command: str, host: str | None = None) -> str:
    """Returns a program's output, or raises RuntimeError with its end."""
    hidden = ("PYTHONPATH", "SOLO_HARDNEG_HOST")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"OMP_NUM_THREADS": "1"} | ({"SOLO_HARDNEG_HOST": host} if host else {})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def check_place() -> None:
    """The package is imported from the environment."""
    import solo_hardneg

    place = Path(solo_hardneg.__file__).resolve()
    assert Path(sys.prefix).resolve() in place.parents, place


def check_files() -> None:
    """Configs and data files are installed."""
    for group in ("negatives", "data", "paper", "scale", "common"):
        names = [file.name for file in files("solo_hardneg.configs").joinpath(group).iterdir()]
        assert any(name.endswith(".yaml") for name in names), f"no configs in {group}"
    for package, name in (("report", "report.html.j2"), ("report", "published.csv")):
        # Not files("solo_hardneg.report"), which imports what the extra "report" brings.
        assert files("solo_hardneg").joinpath(package, name).is_file(), name
    assert files("solo_hardneg").joinpath("py.typed").is_file(), "py.typed"


def check_entry_points() -> None:
    """Lightning's callbacks factory and the command can be loaded."""
    for group in ("lightning.pytorch.callbacks_factory", "console_scripts"):
        found = [e for e in entry_points(group=group) if e.value.startswith("solo_hardneg.")]
        assert found, f"no entry point in {group}"
        for entry in found:
            entry.load()


def check_policies() -> None:
    """``solo-hardneg policies`` lists verbs and presets."""
    text = run(COMMAND, "policies")
    assert "keep" in text, text[-500:]
    assert "hardest_5" in text, text[-500:]


def check_standalone() -> None:
    """The standalone host pretrains on digits for two steps."""
    place = Path("alone").resolve()
    overrides = ("data=digits", "negatives=hardest_5", *TINY, f"checkpoint.dir={place}")
    run(COMMAND, "pretrain", "--config-name", "mocov2_banded", *overrides, host="standalone")
    assert list(place.rglob("*.ckpt")), "no checkpoint was written"


def check_inside(solo_learn: Path) -> None:
    """solo-learn's own program pretrains with our config and method for two steps."""
    place = Path("inside").resolve()
    images = write_images(place / "images")
    overrides = (
        *("data=custom", "data.dataset=custom", f"data.train_path={images}"),
        *("data.val_path=null", "data.suggest.crop_size=32", "negatives=hardest_5", *TINY),
        f"checkpoint.dir={place}",
    )
    script = str(solo_learn / "main_pretrain.py")
    run(sys.executable, script, "--config-name", "mocov2_banded", *overrides)
    assert list(place.rglob("*.ckpt")), "no checkpoint was written"


def write_images(folder: Path) -> Path:
    """Writes six classes of four images; solo-learn's top-5 accuracy needs five classes."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(5)
    for label in range(6):
        (folder / str(label)).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def main() -> int:
    """Runs all checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--solo-learn", type=Path)
    options = parser.parse_args()
    checks: dict[str, Callable[[], None]] = {
        "place": check_place,
        "files": check_files,
        "entry points": check_entry_points,
        "policies": check_policies,
        "pretrain alone": check_standalone,
    }
    if options.solo_learn is not None:
        checks["pretrain inside solo-learn"] = partial(check_inside, options.solo_learn)
    failed = 0
    for name, check in checks.items():
        try:
            check()
        except Exception as error:  # the other checks are run all the same
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
            failed += 1
        else:
            print(f"passed {name}", flush=True)
    result = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "lightning")},
        "passed": len(checks) - failed,
        "failed": failed,
        "skipped": int(options.solo_learn is None),
    }
    options.out.write_text(json.dumps(result), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
