"""What a program finds around it: environment variables, encodings, logins, the current folder."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from solo_hardneg.errors import bad_value

# Paths of what a run reads, as both hosts' configs have them.
INPUTS = (
    *("data.train_path", "data.val_path", "hardness.synsets"),
    *("resume_from_checkpoint", "pretrained_feature_extractor"),
)
WANDB_REMEDIES = (
    "Log in with `wandb login` or WANDB_API_KEY, or set wandb.offline=True or wandb.enabled=False."
)
_BACKEND = "MPLBACKEND"
# In all versions of matplotlib, which takes a second to import.
_EVERYWHERE = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


def prepare() -> None:
    """Makes this process, and those it starts, robust against its environment variables.

    The doors call it first. Calling it again is harmless.
    """
    print_any_text()
    _drop_missing_backend()


def print_any_text() -> None:
    """Has ``print`` show a replacement for what the terminal's encoding lacks, not fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _drop_missing_backend() -> None:
    """Removes a backend that matplotlib would refuse to be imported with.

    Notebooks export theirs to every program that they start, also to one in another environment.
    torchmetrics imports matplotlib, and with it every training does.
    """
    backend = os.environ.get(_BACKEND)
    if not backend or "matplotlib" in sys.modules or _has_backend(backend):
        return
    del os.environ[_BACKEND]
    print(
        f"{_BACKEND}={backend}: matplotlib has no such backend in this environment, so the "
        "variable is ignored. Figures are drawn without one.",
        file=sys.stderr,
    )


def _has_backend(name: str) -> bool:
    if name.lower() in _EVERYWHERE:
        return True
    if not name.startswith("module://"):
        return _is_known(name)
    try:
        return importlib.util.find_spec(name.removeprefix("module://")) is not None
    except (ImportError, ValueError):  # its package is missing, or is no package
        return False


def _is_known(name: str) -> bool:
    kept = os.environ.pop(_BACKEND)
    try:
        from matplotlib.rcsetup import validate_backend

        validate_backend(name)
    except ValueError:
        return False
    finally:
        os.environ[_BACKEND] = kept
    return True


def check_wandb(cfg: DictConfig) -> None:
    """Refuses ``wandb.enabled=True`` where wandb is missing or nobody is logged in.

    On a terminal wandb asks for the key instead. Only the first process needs a login.

    Raises:
        ConfigError: says how to log in, or how to do without.
    """
    if not OmegaConf.select(cfg, "wandb.enabled"):
        return
    key = "wandb.enabled"
    try:
        import wandb
    except ModuleNotFoundError as error:
        do = "pip install wandb, or set it to False."
        raise bad_value(key, True, "wandb isn't installed", do) from error
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    offline = OmegaConf.select(cfg, "wandb.offline") or os.environ.get("WANDB_MODE", "online") in (
        *("offline", "disabled", "dryrun"),
    )
    if offline or getattr(rank_zero_only, "rank", 0):
        return
    try:
        wandb.login()
    except wandb.errors.UsageError as error:
        raise bad_value(key, True, "no one is logged in to wandb here", WANDB_REMEDIES) from error
    except wandb.errors.Error as error:
        text = f"wandb refuses the login, or can't be reached ({_first_line(error)})"
        raise bad_value(key, True, text, WANDB_REMEDIES) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def resolve_paths(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Makes relative paths absolute where ``hydra.job.chdir=true`` has changed the folder.

    They are meant from where the command was given. Elsewhere they stay as they are, and so do
    addresses and the word None, by which the host means no path.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized() or not HydraConfig.get().job.chdir:
        return
    start = Path(HydraConfig.get().runtime.cwd)
    if start == Path.cwd():
        return
    for key in keys:
        path = OmegaConf.select(cfg, key, throw_on_missing=False)
        if not isinstance(path, str) or path in ("", "None") or "://" in path:
            continue
        if not Path(path).expanduser().is_absolute():
            OmegaConf.update(cfg, key, str(start / path))
