"""What networks do, as calls of torch functions, found by running each of them once.

A network runs on zeros. Its own Python decides what it calls, and shapes, modes and settings become
constants of the calls; what would depend on the numbers cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from bmnas.features.reshape import MASK

_EACH = """abs add clamp clamp_max clamp_min detach div elu exp expm1 gelu hardtanh leaky_relu log
    log1p maximum minimum mul neg ones_like pow relu rsqrt rsub sigmoid sign silu softplus sqrt
    square sub tanh true_divide where zeros_like"""
_NOT_RANDOM = """arange cat dropout_mask eye flatten full linspace matmul mean ones permute reshape
    softmax stack sum tensor transpose unsqueeze view zeros"""
_TELL = "allclose bool complex contains equal float index int is_nonzero item numpy tolist"
_COUNT = "argwhere masked_select nonzero unique unique_consecutive"

#: Functions of each element alone, by the names of torch.
ELEMENTWISE = frozenset(_EACH.split())
#: Functions that draw nothing: without weights among their inputs one result does for all networks.
_PURE = ELEMENTWISE | frozenset(_NOT_RANDOM.split())
#: Functions that tell what a tensor holds, and those whose result has a shape that hangs on it.
_TELLING, _COUNTING = frozenset(_TELL.split()), frozenset(_COUNT.split())


class Slot:
    """Stands for a tensor among the arguments of a call."""

    def __repr__(self) -> str:
        return "SLOT"


SLOT = Slot()


class ApartError(Exception):
    """A network does what cannot be merged with others: it is computed by itself."""


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of a network, or the columns from one to another of it."""

    network: int
    name: str
    trained: bool
    columns: tuple[int, int] | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the columns in ``tensor``, which is the whole, as a view."""
        return tensor if self.columns is None else tensor[..., slice(*self.columns)]


@dataclass(eq=False)
class Value:
    """A tensor that a call returns, its ``index``-th."""

    call: Call
    index: int
    shape: torch.Size
    dtype: torch.dtype


@dataclass(eq=False)
class Call:
    """A call of ``func``, or something given: a weight, or a feature by its name.

    ``arguments`` are positional ones and those by name, with SLOT for each of ``inputs``.
    Calls of one ``kind`` can be merged. A ``shared`` result is the same for all networks.
    """

    kind: tuple[Any, ...]
    func: Callable[..., Any] | None = None
    inputs: tuple[Value, ...] = ()
    arguments: Any = ()
    shared: bool = False
    given: Weight | str | None = None
    outputs: list[Value] = field(default_factory=list)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the calls before it."""
        self.depth = 1 + max((value.call.depth for value in self.inputs), default=0)

    def give(self, results: Sequence[Any]) -> None:
        """Take the values of ``results``."""
        self.outputs = [
            Value(self, n, x.shape, x.dtype) for n, x in enumerate(results) if isinstance(x, Tensor)
        ]


def dropout_mask(shape: Sequence[int], dtype: torch.dtype, keep: float, number: int) -> Tensor:
    """Stands for the mask of a network's dropout ``number``."""
    return torch.ones(shape, dtype=dtype)


def walked(x: Any, visit: Callable[[Any], Any]) -> Any:
    """Return nested arguments with what ``visit`` makes of each that is no tuple, list or dict."""
    if isinstance(x, dict):
        return {name: walked(own, visit) for name, own in x.items()}
    if isinstance(x, tuple):
        return tuple([walked(own, visit) for own in x])
    if isinstance(x, list):
        return [walked(own, visit) for own in x]
    return visit(x)


def name_of(func: Any) -> str:
    """Return the name of a torch function without underscores around it."""
    return str(getattr(func, "__name__", func)).strip("_")


def arguments_of(reads: Sequence[str], named: Mapping[str, Tensor]) -> tuple[list[Tensor], ...]:
    """Return what a network that ``reads`` these features takes: them, and masks of tokens."""
    inputs, masks = [named[n] for n in reads], [named[n + MASK] for n in reads if n + MASK in named]
    return (inputs, masks) if masks else (inputs,)


class Recorder(TorchFunctionMode):
    """Records networks, one after the other; what they share once."""

    def __init__(self, features: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._features = {name: torch.zeros_like(x) for name, x in features.items()}
        self._device = next(iter(features.values())).device
        self._shared: dict[Any, Call] = {}
        self._number = self._dropouts = 0
        #: The value of a tensor; the tensor as well, so that its id is not given to another.
        self._known: dict[int, tuple[Value, Tensor]] = {}
        self._tensors: dict[Value, Tensor] = {}
        self._read: set[Value] = set()
        for name, x in self._features.items():
            self._give(name, x)
        self._given = dict(self._known)

    def record(self, number: int, network: nn.Module, reads: Sequence[str]) -> list[Value]:
        """Return what the network ``number`` gives in its mode, the logits first.

        Raises ApartError where that cannot be recorded.
        """
        self._known, self._tensors, self._read = dict(self._given), {}, set()
        self._number, self._dropouts = number, 0
        weights: dict[str, Tensor] = {}
        for name, x in (*network.named_parameters(), *network.named_buffers()):
            copy = not isinstance(x, nn.Parameter)  # a buffer may change
            weights[name] = x.detach().to(self._device, copy=copy)
            self._give(Weight(number, name, x.requires_grad), weights[name])
        with torch.enable_grad(), self:
            found = functional_call(network, weights, arguments_of(reads, self._features))
        return [self._value(x) for x in (found if isinstance(found, tuple) else (found,))]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call ``func`` and record it."""
        kwargs = kwargs or {}
        if name_of(func) == "dropout":
            return self._dropout(*args, **kwargs)
        split = self._split_linear(*args) if func is F.linear and not kwargs else None
        if split is not None:
            return split
        tensors: list[Tensor] = []
        walked((args, kwargs), lambda x: tensors.append(x) if isinstance(x, Tensor) else None)
        before = [x._version for x in tensors]
        result = _run(func, args, kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        changed = [x for x, n in zip(tensors, before, strict=True) if x._version != n]
        if any(not x.is_floating_point() for x in changed):
            return result  # how many batches a BatchNorm has seen
        again = any(self._known[id(x)][0] in self._read for x in changed)
        if changed and (again or func is not F.batch_norm):
            raise ApartError("it changes a tensor that others may read")
        if not any(isinstance(x, Tensor) for x in results):
            if name_of(func) in _TELLING:
                raise ApartError("it asks for the value of a tensor")
            return result
        by_truth = name_of(func) == "getitem" and any(x.dtype == torch.bool for x in tensors)
        if by_truth or name_of(func) in _COUNTING:
            raise ApartError("it may choose by the value of a tensor")
        self._record(func, args, kwargs, results)
        return result

    def _record(self, func: Any, args: Any, kwargs: Any, results: Sequence[Any]) -> None:
        if not torch.is_grad_enabled():
            raise ApartError("it has a backward pass of its own, or none")
        inputs: list[Value] = []

        def slot(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            inputs.append(self._value(x))
            return SLOT

        arguments = walked((args, kwargs), slot)
        shared = name_of(func) in _PURE and all(value.call.shared for value in inputs)
        kind = (func, repr(arguments), *map(_form, inputs))
        call = Call(kind, func, tuple(inputs), arguments, shared)
        if shared:
            call = self._shared.setdefault(kind, call)
        if not call.outputs:
            call.give(results)
        for value, x in zip(
            call.outputs, (x for x in results if isinstance(x, Tensor)), strict=True
        ):
            self._known[id(x)], self._tensors[value] = (value, x), x

    def _value(self, x: Tensor) -> Value:
        if id(x) not in self._known:
            raise ApartError("it reads a tensor that is neither its parameter nor its buffer")
        value = self._known[id(x)][0]
        self._read.add(value)
        return value

    def _give(self, what: Weight | str, x: Tensor) -> None:
        call = Call((), given=what, shared=isinstance(what, str))
        call.give([x])
        self._known[id(x)] = call.outputs[0], x

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """Record the product of ``x`` and a mask, one for all networks."""
        if not training or p == 0:
            return x
        self._dropouts += 1
        args = tuple(x.shape), x.dtype, 1 - p, self._dropouts
        mask = dropout_mask(*args)
        self._record(dropout_mask, args, {}, (mask,))
        return cast(Tensor, self.__torch_function__(Tensor.mul, (), (x, mask)))

    def _split_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """Record W [x; h] + b as W_x x + b + W_h h where networks share x; None elsewhere.

        What all networks make of x is then one product, whatever h is.
        """
        value, whole = self._value(x), self._known[id(weight)][0]
        parts = value.call.inputs
        widths = [part.shape[-1] for part in parts]
        joined = value.call.func is torch.cat and sum(widths) == x.shape[-1]
        if not joined or not any(part.call.shared for part in parts):
            return None
        if not isinstance(whole.call.given, Weight) or whole in self._read:
            return None
        total, stop = None, 0
        for part, width in zip(parts, widths, strict=True):
            start, stop = stop, stop + width
            own = replace(whole.call.given, columns=(start, stop))
            columns = own.of(weight)
            self._give(own, columns)
            args = self._tensors[part], columns, bias
            added, bias = self.__torch_function__(F.linear, (), args), None
            total = (
                added if total is None else self.__torch_function__(Tensor.add, (), (total, added))
            )
        del self._known[id(weight)]  # its columns are apart: who reads all of it is not merged
        return total


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the result, of a product its shape alone: it would take most of the time."""
    if func is F.linear and len(args) > 1:
        x, weight = args[:2]
        return x.new_zeros((*x.shape[:-1], len(weight)))
    return func(*args, **kwargs)


def _form(value: Value) -> Any:
    """Return what inputs have in common that can be stacked: those shared are the same one."""
    given = value.call.given
    trained = given.trained if isinstance(given, Weight) else None
    return id(value) if value.call.shared else (value.shape, value.dtype, trained)
