"""Finds, on the CPU, where a step would wait for a GPU, and its collectives.

On a GPU the CPU only enqueues operations, until it needs a value, or a size that depends on values
(``nonzero``), or copies between host and device. Then it waits for everything enqueued.
``torch.cuda.set_sync_debug_mode`` reports that on a GPU. :func:`watch` does so on the CPU: it sees
every operation that PyTorch dispatches, in the backward pass, too.

Some tensors of a run on a GPU are in host memory, such as a seed, and are free to read. Here all
tensors are on the CPU, so provenance decides. *Host* tensors are those that

- come from Python numbers, NumPy, or a factory (``torch.rand``) without ``device=`` or with
  ``device="cpu"``; code that follows its inputs passes a ``torch.device``;
- are results of ``.cpu()``, or of operations on host tensors alone.

All others, among them those made before, are *device* tensors. Host scalars may be arguments of
most operations on device tensors. Any other mix is a copy, which waits unless ``non_blocking``, or
would be an error on a GPU; both are reported.

``devices.reads_are_free`` is patched accordingly, so our code takes its path for a GPU. The backend
of a loss must be ``dense`` or ``chunked``: ``auto`` may choose numba, which reads everything.

Not seen: threads, Triton and CUDA kernels, memory allocation, and code under ``tensor.is_cuda``.
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

from solo_hardneg import devices

_ROOT = Path(__file__).parent.parent
_LIBRARIES = ("site-packages", sysconfig.get_path("stdlib"), "<", __file__)
# Operations that read values of a device tensor.
_READS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    *("bincount", "histc", "_linalg_check_errors"),
}
# Position of the argument that may be a host scalar, but not a device one.
_SCALARS = {"masked_fill": 2, "masked_fill_": 2, "index_fill": 3, "index_fill_": 3}
# Functions that copy Python numbers to the device.
_FROM_NUMBERS = ("tensor", "as_tensor", "asarray")
# Not collectives.
_NO_OPERATION = ("wait_tensor", "monitored_barrier_")


@dataclass(frozen=True)
class Event:
    """A wait or a collective.

    Attributes:
        what: Name of the operation.
        where: Innermost line outside libraries.
        numbers: Number of elements that a collective sends.
    """

    what: str
    where: str
    numbers: int = 0

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"


@dataclass
class Seen:
    """Waits and collectives that :func:`watch` has seen."""

    waits: list[Event] = field(default_factory=list)
    collectives: list[Event] = field(default_factory=list)

    def __str__(self) -> str:
        """Lists every wait and collective with its count, for messages of failed tests."""
        counts = Counter(map(str, [*self.waits, *self.collectives]))
        return "\n".join(f"{number} x {event}" for event, number in counts.items()) or "nothing"


@contextmanager
def watch() -> Iterator[Seen]:
    """Records the waits and collectives of the code in the block; see the module.

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
        stack.enter_context(mock.patch.object(devices, "reads_are_free", host.__contains__))
        stack.enter_context(_Operations(seen, host))
        yield seen


class WatchStep(Callback):
    """Watches one training step.

    Attributes:
        seen: Its waits, without those of test code, and its collectives.
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
    """The set of host tensors, and wrappers of PyTorch's functions that keep it up to date."""

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
        """Wraps a function with an argument ``device``."""

        @wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            result = make(*args, **kwargs)
            given = next((t for t in args if isinstance(t, Tensor)), None)
            if not isinstance(result, Tensor) or result is given:
                return result
            device = kwargs.get("device")
            if given is not None and device is None:
                return result  # zeros_like, as_tensor: on the device of their input
            if device is None or device == "cpu":
                return self.add(result)
            if make.__name__ in _FROM_NUMBERS and given is None:
                self.wait(f"{make.__name__} with device=")
            return self.remove(result)

        return made

    def source(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wraps a function whose result is a host tensor."""
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
            to_host = target in self if isinstance(target, Tensor) else target == "cpu"
            if (tensor in self) == to_host:
                return result
            if to_host or not (kwargs.get("non_blocking") or True in args):
                self.wait("to the host" if to_host else "to the device")
            copy = result.view_as(result)
            return self.add(copy) if to_host else self.remove(copy)

        return moved


class _Operations(TorchDispatchMode):
    """Records each dispatched operation that waits, and each collective."""

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
        on_device = [tensor for tensor in given if tensor not in self._host]
        if on_device:
            what = self._wait(name, args, kwargs, len(on_device) < len(given))
            if what:
                self._host.wait(what)
        result = func(*args, **kwargs)
        if (given and not on_device) or name == "lift_fresh":  # of a Python number
            for tensor in tree_flatten(result)[0]:
                if isinstance(tensor, Tensor):
                    self._host.add(tensor)
        return result

    def _wait(self, name: str, args: tuple[Any, ...], kwargs: Any, both: bool) -> str:
        """Describes why an operation on device tensors waits; empty if it doesn't.

        Args:
            name: Name of the operation.
            args, kwargs: Its arguments.
            both: Whether some of them are host tensors.
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
    """The innermost line outside libraries."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not any(part in code.co_filename for part in _LIBRARIES):
            file = Path(code.co_filename)
            shown = file.relative_to(_ROOT) if file.is_relative_to(_ROOT) else file
            return f"{shown}:{frame.f_lineno} ({code.co_name})"
        frame = frame.f_back  # type: ignore[assignment]
    return "unknown"
