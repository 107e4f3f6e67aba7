"""The registry of verbs: names in the config and the classes behind them, third parties' included.

A verb is registered by the decorator :func:`register`: in this package, in a user's script, or in
an installed package with an entry point in the group ``solo_hardneg.policies``.
"""

from __future__ import annotations

import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Protocol, TypeGuard, TypeVar

from solo_hardneg.errors import ConfigError, bad_value, unknown_name
from solo_hardneg.negatives.pool import Pool
from solo_hardneg.negatives.ranks import Intervals
from solo_hardneg.negatives.schedule import is_schedule
from solo_hardneg.negatives.thresholds import ThresholdRule

ENTRY_POINT_GROUP = "solo_hardneg.policies"
NEEDS = ("labels", "indexes", "queue")
EPOCH_ARGUMENTS = ("from_epoch", "until_epoch")  # every verb has them; no constructor takes them


class Transform(Protocol):
    """All that a verb must be: a callable from pool to pool.

    The registry, policies and ``backend=dense`` ask for no more. To be followed by the other
    backends, too, derive from :class:`Verb`.
    """

    def __call__(self, pool: Pool) -> Pool: ...


class Verb(ABC):
    """Base class of verbs that describe their effect, so that the kernels can follow them.

    Kernels hold no pool of all queries and vectors. They read the effect from the attributes below,
    and call only verbs that select, with the similarities of a block of queries. A class that
    defines ``__call__`` sets ``described = True`` in its own body to promise that the attributes
    are complete: it writes no ``log_weight`` and needs no vectors. A subclass that overrides
    ``__call__`` without it is followed by ``backend=dense`` only, like any plain callable.

    Example:
        >>> class Sharpen(Verb):
        ...     described = True
        ...     beta = 0.5
        ...
        ...     def __call__(self, pool):
        ...         return replace(pool, beta=pool.beta + self.beta)

    Attributes:
        described: Whether the attributes say everything that ``__call__`` does.
        beta: Added to β.
        tau_plus: New τ⁺; ``None`` leaves it.
        adds: Number of synthetic negatives per query; a verb that adds any has the methods of
            :class:`~solo_hardneg.negatives.mix.Mix`.
        selects: Whether it changes which negatives are present, for each query independently; the
            chunked backend then calls it for each block of queries.
        by_rank: Whether :meth:`ranks` says which, if the queue has no reserve; numba and triton
            follow no other selection.
        needs_positive: Whether it reads ``pool.positive``.
        threshold_rule: How the thresholds in ``pool.threshold`` move, if it reads them; it then
            notes as ``above_threshold`` the share of each query's negatives above its threshold.
        reserve: How much longer than K the queue must be, as a share of K.
    """

    described: ClassVar[bool] = False
    beta: float = 0.0
    tau_plus: float | None = None
    adds: int = 0
    selects: bool = False
    by_rank: bool = False
    needs_positive: bool = False
    threshold_rule: ThresholdRule | None = None
    reserve: float = 0.0

    def ranks(self, count: int) -> Intervals:
        """Returns the ranks that it keeps of ``count`` negatives, from easy to hard."""
        return [(0, count)]

    @abstractmethod
    def __call__(self, pool: Pool) -> Pool:
        """Applies the verb to a pool; the reference for the attributes."""


def describes_itself(verb: Transform) -> TypeGuard[Verb]:
    """Whether the attributes of a verb describe its ``__call__``, see :class:`Verb`."""
    definer = next(
        (c for c in type(verb).__mro__ if {"described", "__call__"} & set(vars(c))), object
    )
    return isinstance(verb, Verb) and bool(vars(definer).get("described"))


@dataclass(frozen=True)
class Info:
    """An entry of the registry.

    Attributes:
        name: The verb in the config.
        factory: The class; the parameters of its constructor are the verb's arguments.
        summary: One line for users.
        source: Paper, equation or table.
        needs: What it may need besides similarities: ``labels``, ``indexes``, ``queue``. An
            instance with other needs has an attribute ``needs``.
        example: Its value in a config, as YAML.
    """

    name: str
    factory: Callable[..., Transform]
    summary: str
    source: str = ""
    needs: frozenset[str] = field(default_factory=frozenset)
    example: str = ""

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the verb's arguments, in the order of its constructor."""
        return tuple(inspect.signature(self.factory).parameters)

    @property
    def defaults(self) -> dict[str, Any]:
        """Default values of the optional arguments."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    @property
    def integers(self) -> frozenset[str]:
        """Arguments for which a schedule is rounded, at any depth.

        Those annotated as ``int``, and those in the class's ``integers``.
        """
        parameters = inspect.signature(self.factory).parameters.values()
        annotated = frozenset(p.name for p in parameters if p.annotation in (int, "int"))
        return annotated | getattr(self.factory, "integers", frozenset())


_registry: dict[str, Info] = {}
F = TypeVar("F", bound=Callable[..., Transform])


def register(
    name: str,
    *,
    summary: str = "",
    source: str = "",
    needs: Iterable[str] = (),
    example: str = "",
) -> Callable[[F], F]:
    """Returns a decorator that registers a verb.

    Args:
        name: The verb in the config.
        summary: One line for ``solo-hardneg policies``; by default the first of the docstring.
        source: Paper, equation or table.
        needs: Any of ``labels``, ``indexes``, ``queue``.
        example: A value in a config, as YAML, such as ``{beta: 1.0}``.

    Raises:
        ConfigError: Another class has that name, it takes an argument that every verb has, or a
            need is unknown.
    """
    wanted = frozenset(needs)
    if not wanted <= set(NEEDS):
        raise ConfigError(
            f"register({name!r}, needs={sorted(wanted)}): known needs are {', '.join(NEEDS)}."
        )

    def decorate(factory: F) -> F:
        clash = set(EPOCH_ARGUMENTS) & set(inspect.signature(factory).parameters)
        if clash:
            raise ConfigError(
                f"register({name!r}): every verb has the arguments "
                f"{' and '.join(EPOCH_ARGUMENTS)} already. Rename "
                f"{', '.join(sorted(clash))} of {_full_name(factory)}."
            )
        owner = _registry.get(name)
        # A module loaded again, as by a notebook's autoreload, has a new class of the same name.
        if owner is not None and _full_name(owner.factory) != _full_name(factory):
            raise ConfigError(
                f"The verb '{name}' is taken twice: by {_full_name(owner.factory)} and by "
                f"{_full_name(factory)}. Register one of them under another name."
            )
        first_line = (inspect.getdoc(factory) or "").partition("\n")[0]
        _registry[name] = Info(name, factory, summary or first_line, source, wanted, example)
        return factory

    return decorate


def available() -> dict[str, Info]:
    """Returns all verbs by name, those of installed packages included.

    Warns of packages that can't be imported, and leaves them out.
    """
    _load_entry_points()
    return dict(sorted(_registry.items()))


def bind_arguments(name: str, value: Any) -> dict[str, Any]:
    """Returns the arguments of a verb from its value in the config.

    A single value or schedule is the first argument: ``fill: older`` is ``fill: {kind: older}``.
    Equal settings give equal mappings: defaults are filled in, arguments are in the constructor's
    order, and those that are ``None`` are left out.

    Args:
        name: The verb.
        value: Its value in the config.

    Raises:
        ConfigError: The verb or an argument is unknown, or an argument is missing.
    """
    known = available()
    if name not in known:
        error = unknown_name("negatives", name, known, "verb")
        raise ConfigError(" ".join([str(error), *_load_entry_points()]))
    info = known[name]
    if isinstance(value, Mapping) and not (is_schedule(value) and set(value) - set(info.arguments)):
        arguments = {str(k): v for k, v in value.items() if v is not None}
    elif info.arguments:
        arguments = {info.arguments[0]: value}
    else:
        raise bad_value(f"negatives.{name}", value, "this verb takes no arguments: write {}")
    for argument in arguments:
        if argument not in info.arguments:
            names = (*info.arguments, *EPOCH_ARGUMENTS)
            raise unknown_name(f"negatives.{name}", argument, names, "argument")
    try:
        bound = inspect.signature(info.factory).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"negatives.{name}: {error}.") from None
    bound.apply_defaults()
    return {k: v for k, v in bound.arguments.items() if v is not None}


def make_verb(name: str, arguments: Mapping[str, Any]) -> Transform:
    """Makes a verb from its name and arguments.

    Raises:
        ConfigError: The verb refuses a value.
    """
    return available()[name].factory(**arguments)


@cache
def _load_entry_points() -> tuple[str, ...]:
    """Imports third parties' verbs; warns of failures and returns the warnings."""
    broken = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()  # the module registers its verbs
        except (Exception, SystemExit) as error:
            package = "" if entry.dist is None else f" of {entry.dist.name} {entry.dist.version}"
            broken.append(
                f"The verbs{package} (entry point '{entry.name} = {entry.value}') can't be "
                f"loaded ({type(error).__name__}: {error}). Repair or uninstall that package."
            )
            warnings.warn(f"{broken[-1]} All others can be used.", stacklevel=2)
    return tuple(broken)


def _full_name(factory: Callable[..., Any]) -> str:
    return f"{factory.__module__}.{factory.__qualname__}"
