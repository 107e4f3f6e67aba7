"""Caches compiled loops on disk; no fault of the cache ends a run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from numba.core.caching import FunctionCache

_warned: set[str] = set()


def cached(dispatcher: Any) -> Any:
    """Caches a compiled function on disk if possible, and returns it.

    ``njit(cache=True)`` raises instead if no folder can be written, the disk is full or a file is
    damaged.
    """
    if not hasattr(dispatcher, "py_func"):  # NUMBA_DISABLE_JIT returns the plain function
        return dispatcher
    try:
        dispatcher._cache = _Cache(dispatcher.py_func)
    except (OSError, RuntimeError) as error:  # "no locator available"
        _warn_once("can't be cached", error)
    return dispatcher


class _Cache(FunctionCache):
    """Numba's cache, except that errors in reading or writing are warnings."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the compiled function; ``None`` if it isn't cached or can't be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged pickle can raise anything
            _warn_once(f"can't be read from {self.cache_path}", error)
            with suppress(Exception):
                self._remove_files()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Saves the compiled function if possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _warn_once(f"can't be saved in {self.cache_path}", error)

    def _remove_files(self) -> None:
        """Removes this function's data and index, so that a damaged index is made anew."""
        for file in Path(self.cache_path).glob(f"{self._impl.filename_base}.*.nbc"):
            file.unlink(missing_ok=True)
        self.flush()


def _warn_once(what: str, error: Exception) -> None:
    if what not in _warned:
        _warned.add(what)
        rank_zero_warn(
            f"The compiled loops of backend=numba {what} ({type(error).__name__}: {error}). They "
            "are compiled in this process, which takes some seconds. If this warning repeats, set "
            "NUMBA_CACHE_DIR to a writable folder with free space."
        )
