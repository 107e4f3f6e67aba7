"""The process environment: variables, encodings, logins, the working directory, Hydra."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from solo_hardneg.errors import bad_value

# Keys of both hosts' configs that hold paths to read.
INPUTS = (
    *("data.train_path", "data.val_path", "hardness.synsets"),
    *("resume_from_checkpoint", "pretrained_feature_extractor"),
)
WANDB_REMEDIES = (
    "Log in with `wandb login` or WANDB_API_KEY, or set wandb.offline=True or wandb.enabled=False."
)
_BACKEND = "MPLBACKEND"
# Backends of all versions of matplotlib, which takes a second to import.
_COMMON_BACKENDS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")


def prepare() -> None:
    """Makes this process and its children robust against encodings and environment variables.

    Each program calls it first. Idempotent.
    """
    print_any_text()
    _unset_missing_backend()


def print_any_text() -> None:
    """Lets ``print`` replace characters that the terminal can't encode, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _unset_missing_backend() -> None:
    """Unsets a matplotlib backend that would make its import fail.

    Notebooks export their backend to the programs they start, also in other environments. Every
    training imports matplotlib, through torchmetrics.
    """
    backend = os.environ.get(_BACKEND)
    if not backend or "matplotlib" in sys.modules or _backend_exists(backend):
        return
    del os.environ[_BACKEND]
    print(
        f"{_BACKEND}={backend}: matplotlib has no such backend in this environment, so the "
        "variable is ignored.",
        file=sys.stderr,
    )


def _backend_exists(name: str) -> bool:
    if name.lower() in _COMMON_BACKENDS:
        return True
    if name.startswith("module://"):
        try:
            return importlib.util.find_spec(name.removeprefix("module://")) is not None
        except (ImportError, ValueError):  # its package is missing, or not a package
            return False
    value = os.environ.pop(_BACKEND)  # matplotlib's import would fail with it
    try:
        from matplotlib.rcsetup import validate_backend

        validate_backend(name)
    except ValueError:
        return False
    finally:
        os.environ[_BACKEND] = value
    return True


def check_wandb(cfg: DictConfig) -> None:
    """Refuses ``wandb.enabled=True`` if wandb is missing or nobody is logged in.

    On a terminal, wandb asks for the key instead. Only rank 0 needs a login.

    Raises:
        ConfigError: Names the ways to log in, or to run without.
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
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        text = f"wandb refuses the login, or can't be reached ({reason})"
        raise bad_value(key, True, text, WANDB_REMEDIES) from error


def resolve_paths(cfg: DictConfig, keys: Iterable[str]) -> None:
    """Makes relative paths absolute if ``hydra.job.chdir=true`` has changed the directory.

    They are relative to where the command was started. URLs stay, and so does the word None, which
    the host uses for no path.
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


@contextmanager
def nested_hydra() -> Iterator[None]:
    """Context in which Hydra can be initialized again; restores the caller's state afterwards.

    That is Hydra itself, its config, and the root logger, which Hydra's programs configure.
    """
    root = logging.getLogger()
    hydra, config = GlobalHydra.instance().hydra, HydraConfig.instance().cfg
    level, handlers = root.level, root.handlers[:]
    GlobalHydra.instance().hydra = None
    try:
        yield
    finally:  # Hydra may have replaced these instances
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg = hydra, config
        root.level, root.handlers[:] = level, handlers
