"""Writes a run's records into its own folder, and refuses a folder with those of another run."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from solo_hardneg.distributed import all_or_none
from solo_hardneg.errors import ConfigError, DataError
from solo_hardneg.host import run_folder
from solo_hardneg.negatives import build
from solo_hardneg.recording import records


class RecordsWriter:
    """Collects this process's rows, and writes them as one file per epoch.

    All ranks must create it together. Files of epochs that will be trained again are deleted.

    Args:
        trainer: Trainer of the run.
        directory: ``hardness.dir``; a relative path is below the folder of the run's checkpoints.
        name: Name of the run.
        config: The run's config, as JSON.

    Attributes:
        folder: Folder of the files.
        rows: Rows since the last :meth:`write`.

    Raises:
        ConfigError: The folder holds another run's records.
        DataError: The folder can't be written to.
    """

    def __init__(self, trainer: Trainer, directory: str, name: str, config: str) -> None:
        self.directory, self.config = directory, config
        self.rows = records.Rows()
        # Only rank 0's choice counts: without checkpoints, each rank draws another name.
        choice = str(self._choose_folder(trainer, name))
        self.folder = Path(trainer.strategy.broadcast(choice))
        all_or_none(self._check_folder)
        all_or_none(lambda: self._clear_folder(trainer))

    def _choose_folder(self, trainer: Trainer, name: str) -> Path:
        folder = Path(self.directory).expanduser()
        if folder.is_absolute():
            return folder
        run = run_folder(trainer)
        if run is not None:
            return run / folder
        return folder / f"{name.replace('/', '_')}-{uuid.uuid4().hex[:8]}"

    def _check_folder(self) -> None:
        # On all ranks: the folder may be on one rank's disk only.
        earlier = records.recorded_config(self.folder)
        if earlier is not None and _identity(earlier) != _identity(self.config):
            raise ConfigError(
                f"hardness.dir={self.directory}: {self.folder} holds the records of another run. "
                "Give each run its own folder, or move the old records away."
            )

    def _clear_folder(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            with self._explain_write_errors():
                records.drop_from(self.folder, trainer.current_epoch)
            print(f"Hardness records: {self.folder}")

    def write(self, epoch: int, rank: int, notes: Sequence[str]) -> None:
        """Writes the epoch's file; see :meth:`records.Rows.write`.

        Raises:
            DataError: It can't be written.
        """
        with self._explain_write_errors():
            self.rows.write(self.folder, epoch, rank, self.config, notes)
        self.rows = records.Rows()

    @contextlib.contextmanager
    def _explain_write_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"hardness.dir={self.directory}: the records can't be written to {self.folder} "
                f"({error.strerror or error}). Make room there, or set hardness.dir to another "
                "folder."
            ) from error


def _identity(config: str) -> str:
    """The settings that define a run, without those of the machine it runs on."""
    plain = json.loads(config)
    keys = ("method", "pretrained_feature_extractor", "method_kwargs", "seed")
    identity = {key: plain.get(key) for key in keys}
    identity["negatives"] = _canonical_policy(plain.get("negatives"))
    identity["dataset"] = (plain.get("data") or {}).get("dataset")
    identity["backbone"] = (plain.get("backbone") or {}).get("name")
    hardness = plain.get("hardness") or {}
    identity |= {name: hardness.get(name) for name in ("every_n_steps", "queries", "percentiles")}
    return json.dumps(identity, sort_keys=True)


def _canonical_policy(negatives: Any) -> Any:
    """One form for all configs of the same policy, as a list, because the order of verbs counts."""
    if negatives is None:  # the method's default
        return None
    try:
        return list(build(negatives).config.items())
    except ConfigError:  # a verb that isn't installed here
        return negatives
