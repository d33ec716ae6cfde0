"""Features out of any module: forward hooks that record, and stop when all is recorded.

Hooks run under ``torch.export`` as in plain Python, so the exported graph holds exactly what the
recorded features need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils.hooks import RemovableHandle

from bmnas.backbones.base import Backbone


class _EverythingRecorded(Exception):  # noqa: N818 - not an error: it leaves a forward pass early
    """Leaves a forward pass whose rest nothing needs."""


class Recorder:
    """The outputs of the tapped modules during one forward pass, with their numbers.

    Only the first ``count`` taps are recorded.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.stops = False
        self.recorded: list[tuple[int, object]] = []

    def record(self, number: int, module: nn.Module, inputs: object, output: object) -> None:
        """Note the output of tap ``number``, as its hook; leave the pass when all are there."""
        if number < self.count:
            self.recorded.append((number, output))
            if self.stops and len(self.recorded) == self.count:
                raise _EverythingRecorded

    def run(
        self, call: Callable[[], object], *, stops: bool
    ) -> tuple[list[tuple[int, object]], object]:
        """Return what ``call`` made the taps record, and its result, None if left early."""
        self.recorded, self.stops = [], stops
        result: object = None
        try:
            with _kept_module_stack():
                result = call()
        except _EverythingRecorded:
            pass
        finally:
            # Nothing may keep the activations alive until the next pass.
            recorded, self.recorded = self.recorded, []
        return recorded, result


@contextlib.contextmanager
def _kept_module_stack() -> Iterator[None]:
    # The tracer of torch.export notes which module it is in, and does not clean up its note
    # when the module is left by an exception.
    mode = get_proxy_mode()
    stack = {} if mode is None else mode.tracer.module_stack
    depth = len(stack)
    try:
        yield
    finally:
        while len(stack) > depth:
            stack.popitem()


def first_tensor(output: object) -> Tensor | None:
    """Return ``output`` if it is a tensor, else the first tensor of a tuple, list or mapping."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return output if isinstance(output, Tensor) else None


class TappedBackbone(Backbone):
    """A backbone around a ``network`` whose features are outputs of modules inside it.

    Subclasses call ``tap`` in ``__init__`` and say in ``run`` how the network is called and in
    ``arrange`` how a module's output becomes a feature (B, C_raw, *rest).
    """

    network: nn.Module
    recorder: Recorder

    def tap(self, network: nn.Module, modules: Sequence[nn.Module]) -> list[RemovableHandle]:
        """Record the outputs of ``modules``, parts of ``network`` in the order they run in."""
        self.network, self.recorder = network, Recorder(len(modules))
        # Not a closure: a deep copy of the module must copy the recorder with it.
        return [
            module.register_forward_hook(partial(self.recorder.record, number))
            for number, module in enumerate(modules)
        ]

    def run(self, x: Tensor) -> object:
        """Call the network on the raw input ``x`` (B, *shape) and return what it returns."""
        raise TypeError(f"{type(self).__name__} does not call its network")

    def arrange(self, number: int, output: Tensor, x: Tensor) -> Tensor:
        """Return feature ``number`` (B, C_raw, *rest) from a tapped output and the raw input."""
        raise TypeError(f"{type(self).__name__} does not arrange its features")

    def example(self) -> Tensor:
        """Return two raw inputs (2, *shape) of zeros, to see what the network does with them."""
        spec = self.input_spec()
        parameter = next(self.parameters(), None)
        device = None if parameter is None else parameter.device
        return torch.zeros((2, *spec.shape), dtype=getattr(torch, spec.dtype), device=device)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features that are kept; nothing after the last of them is run."""
        recorded, _ = self.recorder.run(lambda: self.run(x), stops=True)
        return self.arranged(recorded, x)

    def arranged(self, recorded: Sequence[tuple[int, object]], x: Tensor) -> list[Tensor]:
        """Return the features (B, C_raw, *rest) of the outputs recorded for ``x``."""
        outputs = []
        for number, output in recorded:
            tensor = first_tensor(output)
            if tensor is None:
                raise TypeError(f"a tapped module returned a {type(output).__name__}, no tensor")
            outputs.append(self.arrange(number, tensor, x))
        return outputs

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` features; drop the head and the modules they do not need."""
        self.recorder.count = count
        self.feature_names = self.feature_names[:count]
        self.feature_channels = self.feature_channels[:count]
        self.head = None
        self.prune()

    def prune(self) -> None:
        """Replace the modules that no feature needs by ``nn.Identity``, which has no weights.

        A module is needed when it or one inside it is called, or when a feature depends on one
        of its parameters: some modules use the weights of others without calling them.
        """
        _replace_unneeded(self.network, self._called_modules() | self._modules_with_gradient())

    def _called_modules(self) -> set[nn.Module]:
        called: set[nn.Module] = set()
        with contextlib.ExitStack() as stack:
            for module in self.network.modules():
                handle = module.register_forward_pre_hook(lambda module, _: called.add(module))
                stack.callback(handle.remove)
            self._dry_run()
        return called

    def _modules_with_gradient(self) -> set[nn.Module]:
        parameters = [p for p in self.network.parameters() if p.is_floating_point()]
        frozen = [p for p in parameters if not p.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            with torch.enable_grad():
                total = sum((f.float().sum() for f in self._dry_run()), torch.zeros(()))
                if not total.requires_grad:
                    return set()
                gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)
        used = {id(p) for p, g in zip(parameters, gradients, strict=True) if g is not None}
        own = {m: m.parameters(recurse=False) for m in self.network.modules()}
        return {module for module, found in own.items() if any(id(p) in used for p in found)}

    def _dry_run(self) -> list[Tensor]:
        with inference_mode_of(self):
            return self.features(self.example())


def _replace_unneeded(owner: nn.Module, needed: set[nn.Module]) -> None:
    for name, child in list(owner.named_children()):
        if needed.isdisjoint(child.modules()):
            setattr(owner, name, nn.Identity())
        else:
            _replace_unneeded(child, needed)


@contextlib.contextmanager
def inference_mode_of(module: nn.Module) -> Iterator[None]:
    """Put ``module`` into eval mode, and every module in it back into its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
