"""Which policies there are: name → class, with what a person wants to know before choosing one.

A policy is a callable that takes a :class:`~solo_hardneg.negatives.pool.Pool` of negatives and
returns another one. It gets into the registry by the decorator :func:`register`, in this package,
in a user's own script, or in a third party's package that names itself in the entry point group
``solo_hardneg.policies``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.schedule import is_schedule

ENTRY_POINT_GROUP = "solo_hardneg.policies"
NEEDS = ("labels", "indexes", "queue")
TIMES = ("from_epoch", "until_epoch")  # arguments that every policy has


class Transform(Protocol):
    """What a policy is once it has its arguments: a pool in, a pool out."""

    def __call__(self, pool: Pool) -> Pool: ...


@dataclass(frozen=True)
class Info:
    """One entry of the registry.

    Attributes:
        name: the verb as it stands in the config.
        factory: the class; its constructor's parameters are the verb's arguments.
        summary: one line for a person.
        source: the paper, equation or table that it comes from.
        needs: what it may need beside the similarities: ``labels``, ``indexes``, ``queue``.
            An instance that needs less (or more) says so in its own attribute ``needs``.
    """

    name: str
    factory: Callable[..., Transform]
    summary: str
    source: str = ""
    needs: frozenset[str] = field(default_factory=frozenset)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the verb's arguments, in the order of its constructor."""
        return tuple(inspect.signature(self.factory).parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """The arguments that may be left out, and their values then."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def whole(self) -> frozenset[str]:
        """The arguments that are annotated as ``int``: a schedule rounds them."""
        parameters = inspect.signature(self.factory).parameters.values()
        return frozenset(p.name for p in parameters if p.annotation in (int, "int"))


_registry: dict[str, Info] = {}
F = TypeVar("F", bound=Callable[..., Transform])


def register(
    name: str, *, summary: str = "", source: str = "", needs: Iterable[str] = ()
) -> Callable[[F], F]:
    """Makes a decorator that enters a policy under ``name``.

    Args:
        name: the verb as it will stand in the config.
        summary: one line for ``solo-hardneg policies``; by default the docstring's first.
        source: the paper it comes from, if any.
        needs: any of ``labels``, ``indexes``, ``queue``.

    Raises:
        ConfigError: the name belongs to another class already, or ``needs`` holds something else.
    """
    wanted = frozenset(needs)
    if not wanted <= set(NEEDS):
        raise ConfigError(
            f"register({name!r}, needs={sorted(wanted)}): known needs are {', '.join(NEEDS)}."
        )

    def enter(factory: F) -> F:
        clash = set(TIMES) & set(inspect.signature(factory).parameters)
        if clash:
            raise ConfigError(
                f"register({name!r}): every policy has the arguments {' and '.join(TIMES)} "
                f"already. Name {_where(factory)}'s own {', '.join(sorted(clash))} otherwise."
            )
        owner = _registry.get(name)
        if owner is not None and not _same_source(owner.factory, factory):
            raise ConfigError(
                f"The policy name '{name}' is taken twice: by {_where(owner.factory)} and by "
                f"{_where(factory)}. Register one of them under another name."
            )
        first_line = (inspect.getdoc(factory) or "").partition("\n")[0]
        _registry[name] = Info(name, factory, summary or first_line, source, wanted)
        return factory

    return enter


def available() -> dict[str, Info]:
    """All policies by name, those of installed third-party packages included.

    A package that can't be imported is left out, with a warning.
    """
    _load_entry_points()
    return dict(sorted(_registry.items()))


def arguments_of(name: str, value: Any) -> dict[str, Any]:
    """What stands behind a verb in the config, as a mapping of its arguments.

    One value alone, be it a schedule, is the first argument: ``fill: older`` is ``fill: {kind:
    older}``. Defaults are filled in and arguments stand in the constructor's order, so that equal
    settings are equal; those that are ``None`` are left out.

    Raises:
        ConfigError: the verb or an argument is not known, or an argument is missing.
    """
    known = available()
    if name not in known:
        error = unknown_name("negatives", name, known, "policy")
        raise ConfigError(" ".join([str(error), *_load_entry_points()]))
    info = known[name]
    if isinstance(value, Mapping) and not (is_schedule(value) and set(value) - set(info.arguments)):
        arguments = {str(k): v for k, v in value.items() if v is not None}
    elif info.arguments:
        arguments = {info.arguments[0]: value}
    else:
        raise bad_value(f"negatives.{name}", value, "this policy takes no arguments: write {}")
    for argument in arguments:
        if argument not in info.arguments:
            raise unknown_name(f"negatives.{name}", argument, (*info.arguments, *TIMES), "argument")
    try:
        bound = inspect.signature(info.factory).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"negatives.{name}: {error}.") from None
    bound.apply_defaults()
    return {k: v for k, v in bound.arguments.items() if v is not None}


def create(name: str, arguments: Mapping[str, Any]) -> Transform:
    """Makes one policy from its name and its arguments, as :func:`arguments_of` gives them.

    Raises:
        ConfigError: the policy refuses a value.
    """
    return available()[name].factory(**arguments)


@cache
def _load_entry_points() -> tuple[str, ...]:
    """Imports third-party policies; warns of those that can't be imported and returns the texts."""
    broken = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()  # importing it runs its @register
        except (Exception, SystemExit) as error:
            package = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
            broken.append(
                f"The policies{package} (entry point '{entry.name} = {entry.value}') can't be "
                f"loaded ({type(error).__name__}: {error}). Mend or uninstall that package."
            )
            warnings.warn(f"{broken[-1]} All others can be used.", stacklevel=2)
    return tuple(broken)


def _where(factory: Callable[..., Any]) -> str:
    return f"{factory.__module__}.{factory.__qualname__}"


def _same_source(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    # A module that is loaded again (a notebook's autoreload) brings a new class of the old name.
    return _where(one) == _where(other)
