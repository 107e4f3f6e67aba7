"""Counts, on the CPU, where a step would wait for a GPU, and its collectives.

On a GPU the CPU only enqueues operations, until it needs a value, or the size of a result that
depends on values (``nonzero``), or moves data between the two memories. Then it waits for all that
is enqueued. ``torch.cuda.set_sync_debug_mode`` reports that, but needs a GPU. :func:`watch` finds
it without: it sees every operation that PyTorch dispatches, in the backward pass too.

Some tensors live in the CPU's memory in a run on a GPU, too, such as a seed that is drawn there;
to read them is free. Where all is on the CPU, provenance says which: *host* tensors are those
that

- come from Python numbers, from NumPy, or from a factory (``torch.rand``) without ``device=`` or
  with ``device="cpu"``; code that follows its inputs passes a ``torch.device``;
- are the outcome of an operation on host tensors alone, or of ``.cpu()``.

All others, and so all that exist before, count as the device's. Between the two, host scalars may
enter most operations as arguments. The rest is a copy, which waits unless it is ``non_blocking``,
or would be an error on a GPU; both are reported.

Where our code asks ``sync.is_free``, it is told so, and goes the way that it goes on a GPU. The
backend of a loss must be ``dense`` or ``chunked``; ``auto`` may take numba, which reads all.

Not seen: threads, kernels of Triton and CUDA, memory that has to be allocated, and code that only
runs if ``tensor.is_cuda``.
"""

from __future__ import annotations

import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from solo_hardneg import sync

_ROOT = Path(__file__).parent.parent
_LIBRARIES = ("site-packages", sysconfig.get_path("stdlib"), "<", __file__)
_READS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("bincount", "histc", "_linalg_check_errors"),
}
_SCALARS = {"masked_fill": 2, "masked_fill_": 2, "index_fill": 3, "index_fill_": 3}
_FROM_NUMBERS = ("tensor", "as_tensor", "asarray")
_NO_OPERATION = ("wait_tensor", "monitored_barrier_")


@dataclass(frozen=True)
class Event:
    """A wait or a collective: what it is, whose code is responsible, and how many numbers."""

    what: str
    where: str
    numbers: int = 0

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"


@dataclass
class Seen:
    """What :func:`watch` has seen so far."""

    waits: list[Event] = field(default_factory=list)
    collectives: list[Event] = field(default_factory=list)

    def __str__(self) -> str:
        """Every wait and collective once, with its number, for the message of a failed test."""
        counts = Counter(map(str, [*self.waits, *self.collectives]))
        return "\n".join(f"{number} x {event}" for event, number in counts.items()) or "nothing"


@contextmanager
def watch() -> Iterator[Seen]:
    """Counts waits and collectives of the code inside; see the module.

    Example:
        >>> with watch() as seen:
        ...     bool(torch.ones(3, device=torch.device("cpu")).any())
        True
        >>> [wait.what for wait in seen.waits]
        ['_local_scalar_dense']
    """
    seen = Seen()
    host = _Host(seen)
    with ExitStack() as stack:
        for function in _device_constructors():
            name = function.__name__
            if getattr(torch, name, None) is function:
                stack.enter_context(mock.patch.object(torch, name, host.factory(function)))
        for name in ("from_numpy", "frombuffer"):
            function = getattr(torch, name)
            stack.enter_context(mock.patch.object(torch, name, host.source(function)))
        for name in ("tolist", "numpy", "cpu", "to", "new_tensor"):
            patched = getattr(host, name)(getattr(Tensor, name))
            stack.enter_context(mock.patch.object(Tensor, name, patched))
        stack.enter_context(mock.patch.object(sync, "is_free", host.__contains__))
        stack.enter_context(_Operations(seen, host))
        yield seen


class WatchStep(Callback):
    """Watches one step of a run, from its batch to its end.

    Attributes:
        seen: what that step waited for, without what the tests themselves read.
    """

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, Seen()
        self._stack = ExitStack()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.seen = self._stack.enter_context(watch())

    def on_train_batch_end(self, *_: Any) -> None:
        self._stack.close()
        self.seen.waits = [w for w in self.seen.waits if not w.where.startswith("tests/")]


class _Host:
    """Which tensors live in the CPU's memory, and PyTorch's functions that say so."""

    def __init__(self, seen: Seen) -> None:
        self._tensors = WeakTensorKeyDictionary()
        self._seen = seen

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._tensors

    def add(self, tensor: Tensor) -> Tensor:
        self._tensors[tensor] = True
        return tensor

    def remove(self, tensor: Tensor) -> Tensor:
        self._tensors.pop(tensor, None)
        return tensor

    def wait(self, what: str) -> None:
        self._seen.waits.append(Event(what, _where()))

    def factory(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """Functions with an argument ``device``."""

        @wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            result = make(*args, **kwargs)
            given = next((t for t in args if isinstance(t, Tensor)), None)
            if not isinstance(result, Tensor) or result is given:
                return result
            device = kwargs.get("device")
            if given is not None and device is None:
                return result  # zeros_like, as_tensor: where the given one is
            if device is None or device == "cpu":
                return self.add(result)
            if make.__name__ in _FROM_NUMBERS and given is None:
                self.wait(f"{make.__name__} with device=")
            return self.remove(result)

        return made

    def source(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Functions of what lies in the CPU's memory."""
        return wraps(make)(lambda *args, **kwargs: self.add(make(*args, **kwargs)))

    def new_tensor(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = make(tensor, *args, **kwargs)
            if tensor in self:
                return result
            self.wait("new_tensor")
            return self.remove(result)

        return made

    def tolist(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def found(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if tensor not in self:
                self.wait(read.__name__)
            return read(tensor, *args, **kwargs)

        return found

    numpy = tolist

    def cpu(self, move: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = move(tensor, *args, **kwargs)
            if tensor in self:
                return result
            self.wait("cpu")
            return self.add(result.view_as(result))

        return moved

    def to(self, move: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = move(tensor, *args, **kwargs)
            target = next(
                (
                    x
                    for x in [*args, *kwargs.values()]
                    if isinstance(x, torch.device | str | Tensor)
                ),
                tensor,
            )
            here = tensor in self
            there = target in self if isinstance(target, Tensor) else target == "cpu"
            if here == there:
                return result
            if there or not (kwargs.get("non_blocking") or True in args):
                self.wait("to the host" if there else "to the device")
            return (
                self.add(result.view_as(result)) if there else self.remove(result.view_as(result))
            )

        return moved


class _Operations(TorchDispatchMode):
    """Sees each operation, and counts those that wait."""

    def __init__(self, seen: Seen, host: _Host) -> None:
        super().__init__()
        self._seen, self._host = seen, host

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        space, _, name = str(func.overloadpacket).partition(".")
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if "c10d" in space:
            if name not in _NO_OPERATION:
                numbers = sum(tensor.numel() for tensor in given)
                self._seen.collectives.append(Event(name, _where(), numbers))
            return func(*args, **kwargs)
        there = [tensor for tensor in given if tensor not in self._host]
        if there:
            what = self._wait(name, args, kwargs, len(there) < len(given))
            if what:
                self._host.wait(what)
        result = func(*args, **kwargs)
        if (given and not there) or name == "lift_fresh":  # of a Python number
            for tensor in tree_flatten(result)[0]:
                if isinstance(tensor, Tensor):
                    self._host.add(tensor)
        return result

    def _wait(self, name: str, args: tuple[Any, ...], kwargs: Any, both: bool) -> str:
        """What the operation waits for; nothing where it doesn't.

        Args:
            name: the operation's.
            args, kwargs: its arguments, among which are tensors of the device.
            both: whether there are host tensors, too.
        """
        if name in _READS:
            return name
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            return f"{name} without output_size="
        if name in _SCALARS:
            scalar = args[_SCALARS[name]]
            if isinstance(scalar, Tensor) and scalar not in self._host:
                return f"{name} with a tensor as value"
        if "index" in name and len(args) > 1 and isinstance(args[1], list | tuple):
            return self._indexing(name, args)
        if not both:
            return ""
        if name == "copy_":
            waits = not (kwargs.get("non_blocking") or True in args[2:])
            return "copy_ between host and device" if waits or args[0] in self._host else ""
        scalars = all(x.dim() == 0 for x in tree_flatten(args)[0] if self._is_host(x))
        if name == "where":
            return "where with a host tensor"
        return "" if scalars else f"{name} of host and device tensors"

    def _indexing(self, name: str, args: tuple[Any, ...]) -> str:
        indices = [x for x in args[1] if x is not None]
        value = args[2] if len(args) > 2 else None
        of_host = isinstance(value, Tensor) and value in self._host
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            filled = len(indices) == 1 and of_host and value.numel() == 1
            return "" if filled else f"{name} by a mask"
        if any(x in self._host for x in indices):
            return f"{name} by host indices"
        return f"{name} of a host value" if of_host else ""

    def _is_host(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x in self._host


def _where() -> str:
    """The innermost line that is in no library."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not any(part in code.co_filename for part in _LIBRARIES):
            file = Path(code.co_filename)
            shown = file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file
            return f"{shown}:{frame.f_lineno} ({code.co_name})"
        frame = frame.f_back  # type: ignore[assignment]
    return "a thread without a caller"
