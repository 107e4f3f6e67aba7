"""Adds our configs and methods to a host's Hydra program.

Hydra imports this file in every Hydra program on the machine, so it imports nothing but Hydra and
``sys``, and acts only if a host is loaded in this process.
"""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

# Loaded by solo-learn's main_*.py, or by our own programs, before their @hydra.main runs.
HOSTS = ("solo.methods", "solo_hardneg.runner")


def host_is_loaded() -> bool:
    """Whether this process is a host's program."""
    return any(name in sys.modules for name in HOSTS)


class _RegisteringPath(str):
    """Path of our configs that registers our methods when it is unpickled.

    Hydra's joblib, submitit and Ray launchers send the search path to worker processes, where no
    search-path plug-in runs. Only a host's program holds such a path.
    """

    def __reduce__(self) -> tuple:
        return _register_in_worker, (str(self),)


def _register_in_worker(path: str) -> _RegisteringPath:
    from solo_hardneg.plugin import register

    register()
    return _RegisteringPath(path)


class SoloHardnegSearchPath(SearchPathPlugin):
    """Appends our configs, so that a user's file of the same name takes precedence."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if not host_is_loaded():
            return
        from solo_hardneg.plugin import register

        register()
        search_path.append("solo-hardneg", _RegisteringPath("pkg://solo_hardneg.configs"))
