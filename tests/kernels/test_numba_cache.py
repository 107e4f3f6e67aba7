"""The cache of compiled loops, whose faults never end a run."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numba
import pytest

from solo_hardneg.kernels.numba import cache as numba_cache
from solo_hardneg.kernels.numba import loops
from solo_hardneg.kernels.numba.cache import cached

SOURCE = "def twice(x):\n    return 2 * x\n"


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Returns a function that compiles anew, as a new process does, with ``tmp_path/cache``."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba_cache, "_warned", set())
    file = tmp_path / "loops.py"
    file.write_text(SOURCE, encoding="utf-8")

    def make(file: Path = file) -> Any:
        module = ModuleType("loops_of_this_test")
        monkeypatch.setitem(sys.modules, module.__name__, module)  # pickled by this name
        exec(compile(SOURCE, str(file), "exec"), vars(module))
        return cached(numba.njit(module.twice))

    return make


def test_compiled_functions_are_loaded(compiled: Callable[..., Any]) -> None:
    first, second = compiled(), compiled()
    assert (first(21), second(21)) == (42, 42)
    assert (first.stats.cache_hits.total(), second.stats.cache_hits.total()) == (0, 1)


def test_no_writable_folder(compiled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/proc/nowhere")
    with pytest.warns(UserWarning, match=r"no locator (.|\n)*set NUMBA_CACHE_DIR"):
        function = compiled(Path("/proc/nowhere/loops.py"))
    assert function(21) == 42


def test_the_folder_becomes_unwritable(compiled: Callable[..., Any], tmp_path: Path) -> None:
    function = compiled()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_bytes(b"")
    with pytest.warns(UserWarning, match=f"{tmp_path}/cache.*NUMBA_CACHE_DIR"):
        assert function(21) == 42
    with warnings.catch_warnings():  # warns once
        warnings.simplefilter("error")
        assert function(2.5) == 5


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_truncated_file_is_replaced(
    kind: str, compiled: Callable[..., Any], tmp_path: Path
) -> None:
    compiled()(21)
    (file,) = tmp_path.glob(f"cache/*/*.{kind}")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.warns(UserWarning, match=r"can't be read from .*cache.* \(\w+Error: "):
        assert compiled()(21) == 42
    again = compiled()
    assert again(21) == 42
    assert again.stats.cache_hits.total() == 1


def test_without_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    assert cached(numba.njit(lambda x: 2 * x))(21) == 42


def test_all_loops_are_cached() -> None:
    found = [value for value in vars(loops).values() if hasattr(value, "py_func")]
    assert len(found) > 5
    assert {type(loop._cache) for loop in found} == {numba_cache._Cache}
