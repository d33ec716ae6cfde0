"""Networks that are not ours: how they read a modality, and features from modules inside them.

Features are recorded by forward hooks, which leave the pass when all is recorded. Hooks run under
``torch.export`` as in plain Python, so the exported graph holds exactly what the features need.
Legend: B batch, T time, H height, W width, D columns, C colours or channels.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bmnas.backbones.base import Backbone, InputSpec, cast_rows, has_colour, row_dtype
from bmnas.backbones.conv import Floats, Pixels
from bmnas.backbones.texts import TextEncoder, TextTokenizer, text_encoder
from bmnas.tasks.task import Array, Modality, ModalityType


class Reader:
    """Turns rows of a modality into raw input, and raw input into what a foreign network expects.

    ``encode`` does the first outside the graph, the module that ``prepare`` returns the second
    inside. ``config`` is plain JSON data, kept in the backbone's file. Networks get what their
    authors expect: images (B, C, H, W) and clips (B, C, T, H, W) in [0, 1] for uint8, as
    torchvision makes them, waveforms (B, T) in [-1, 1] for int16, sequences (B, T, D), vectors
    (B, D), token numbers (B, T) as int64.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self.type: ModalityType = config["type"]
        self.dtype = str(config["dtype"])
        self.shape = tuple(config["shape"])
        self.vocabulary: TextEncoder | None = None
        if "words" in config:  # files of earlier versions
            self.vocabulary = text_encoder(self.shape[0], words=config["words"])
        elif "text" in config:
            self.vocabulary = text_encoder(**config["text"])

    @classmethod
    def from_rows(cls, modality: Modality, rows: Array) -> Reader:
        """Read the train ``rows`` (n, *axes) of ``modality``."""
        dtype, shape = row_dtype(modality.type, rows), list(rows.shape[1:])
        config: dict[str, Any] = {"type": modality.type, "dtype": dtype, "shape": shape}
        if modality.type == "text":
            vocabulary = TextTokenizer.from_texts(rows, length=modality.length)
            config.update(shape=[vocabulary.length], text=vocabulary.config())
        elif modality.sample_rate is not None:
            config["sample_rate"] = modality.sample_rate
        return cls(config)

    def prepare(self) -> nn.Module:
        """Return the module that turns the raw input into the network's tensor."""
        if self.dtype == "int64":
            return nn.Identity()
        if self.type in ("image", "clip"):
            return Pixels(colour=has_colour(self.type, self.shape), dtype=self.dtype)
        return Floats(scale=1 / 32768 if self.dtype == "int16" else 1.0)

    def encode(self, rows: Array) -> Array:
        """Return the raw input (n, *shape); raises UserError for rows of another shape."""
        if self.vocabulary is not None:
            return self.vocabulary.encode(rows)
        return cast_rows(rows, self.shape, self.dtype)

    def input_spec(self) -> InputSpec:
        """Return what the graph expects: the modality's rows as they are stored."""
        note: dict[str, Any] = {"type": self.type, "scaling": "none: the network scales its input"}
        if "sample_rate" in self.config:
            note["sample_rate"] = self.config["sample_rate"]
        if self.vocabulary is not None:
            note = self.vocabulary.rule()
        meaning = f"one {self.type} of shape {self.shape}, as {self.dtype}"
        return InputSpec(self.shape, self.dtype, meaning, note)


class TappedBackbone(Backbone):
    """A backbone around a ``network`` whose features are outputs of modules inside it.

    Subclasses call ``tap`` in ``__init__`` and say in ``run`` how the network is called and in
    ``arrange`` how a module's output becomes a feature (B, C_raw, *rest).
    """

    network: nn.Module
    recorder: Recorder

    def __init__(self, reader: Reader, /, **config: Any) -> None:
        super().__init__(reader.input_spec(), **config)
        self.reader = reader

    def tap(self, network: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """Record the outputs of ``modules`` by name, parts of ``network``."""
        self.network, self.recorder = network, Recorder(modules)
        for name, module in modules.items():
            # Not a closure: a deep copy of the module must copy the recorder with it.
            module.register_forward_hook(partial(self.recorder.record, name))

    def run(self, x: Tensor) -> object:
        """Call the network on the raw input ``x`` (B, *shape) and return what it returns."""
        raise TypeError(f"{type(self).__name__} does not call its network")

    def arrange(self, name: str, output: Tensor, x: Tensor) -> Tensor:
        """Return a feature (B, C_raw, *rest) from the output tapped as ``name`` and the input."""
        raise TypeError(f"{type(self).__name__} does not arrange its features")

    def example(self, count: int = 2) -> Tensor:
        """Return raw inputs (count, *shape) of zeros, to see what the network does with them."""
        parameter = next(self.parameters(), None)
        device = None if parameter is None else parameter.device
        dtype = getattr(torch, self.input_spec.dtype)
        return torch.zeros((count, *self.input_spec.shape), dtype=dtype, device=device)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the features that are kept; nothing after the last of them is run."""
        recorded, _ = self.recorder.run(lambda: self.run(x), stops=True)
        return self.arranged(recorded, x)

    def arranged(self, recorded: Sequence[tuple[str, object]], x: Tensor) -> list[Tensor]:
        """Return the features (B, C_raw, *rest) of the outputs recorded for ``x``."""
        outputs = []
        for name, output in recorded:
            tensor = first_tensor(output)
            if tensor is None:
                raise TypeError(f"a tapped module returned a {type(output).__name__}, no tensor")
            outputs.append(self.arrange(name, tensor, x))
        return outputs

    def encode(self, rows: Array) -> Array:
        """Return the raw input (n, *shape); raises UserError for rows of another shape."""
        return self.reader.encode(rows)

    def nothing(self) -> Array:
        """Return the raw input (*shape) of no content: zeros, or that of an empty text."""
        text = self.reader.vocabulary is not None
        return self.encode(np.array([""]))[0] if text else super().nothing()

    def longer(self, rows: Array) -> int:
        """Count the texts in ``rows`` (n,) that are cut."""
        vocabulary = self.reader.vocabulary
        return 0 if vocabulary is None else vocabulary.longer(rows)

    def weights_module(self) -> nn.Module:
        """Return the network inside: a file of its weights has its own names."""
        return self.network

    def truncate(self, count: int) -> None:
        """Keep the first ``count`` features; drop the head and the modules they do not need."""
        self.recorder.wanted = self.recorder.wanted[:count]
        self.feature_names = self.feature_names[:count]
        self.feature_channels = self.feature_channels[:count]
        self.head = None
        self.prune()

    def prune(self) -> None:
        """Drop the weights and buffers of modules that no feature needs.

        The modules stay where they are, for others read their attributes, or count them.
        """
        _drop_tensors(self.network, self.used())

    def beyond_features(self) -> frozenset[str]:
        """Return the names in the network of the tensors that no feature needs."""
        bare = copy.deepcopy(self)
        bare.prune()
        kept = bare.network.state_dict()
        return frozenset(name for name in self.network.state_dict() if name not in kept)

    def used(self) -> set[int]:
        """Return the ids of the modules and tensors that features need, in either mode.

        A module is needed when it or one inside it is called, or when a tensor of it is used: some
        modules use the weights of others without calling them.
        """
        used: set[int] = set()

        def note(module: nn.Module, inputs: object) -> None:
            used.add(id(module))

        example = self.example()
        for mode in (evaluating, rehearsing):
            with mode(self), _UsedTensors(used), register_module_forward_pre_hook(note):
                self.features(example)
        return used


class Recorder:
    """The outputs of tapped modules during one forward pass, with their names.

    Only those of ``wanted`` are recorded.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.wanted = tuple(names)
        self.stops = self.running = False
        self.recorded: list[tuple[str, object]] = []

    def record(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        """Note the output tapped as ``name``, as its hook; leave the pass when all are there."""
        # A layer whose gradient needs it again is run again in the backward pass.
        if self.running and name in self.wanted:
            tensor = first_tensor(output)
            # A copy: what runs next may write into it, and does not run where the pass is left.
            self.recorded.append((name, output if tensor is None else tensor.clone()))
            if self.stops and len(self.recorded) == len(self.wanted):
                raise _EverythingRecorded

    def run(
        self, call: Callable[[], object], *, stops: bool
    ) -> tuple[list[tuple[str, object]], object]:
        """Return what ``call`` made the taps record, and its result, None if left early."""
        self.recorded, self.stops, self.running = [], stops, True
        result: object = None
        try:
            with _kept_module_stack():
                result = call()
        except _EverythingRecorded:
            pass
        finally:
            # Nothing may keep the activations alive until the next pass.
            recorded, self.recorded, self.running = self.recorded, [], False
        return recorded, result


def first_tensor(output: object) -> Tensor | None:
    """Return ``output`` if it is a tensor, else the first tensor of a tuple, list or mapping."""
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return output if isinstance(output, Tensor) else None


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Compute in eval mode and without gradients; afterwards every module has its own mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def rehearsing(module: nn.Module) -> Iterator[None]:
    """Compute in training mode without gradients; modes, buffers and draws stay as they were."""
    modes = [(part, part.training) for part in module.modules()]
    buffers = [
        (part, name, buffer, buffer.clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    devices = {x.device for x in (*module.parameters(), *module.buffers())}
    module.train()
    try:
        with torch.no_grad(), torch.random.fork_rng([d for d in devices if d.type == "cuda"]):
            yield
    finally:
        for part, training in modes:
            part.training = training
        with torch.no_grad():
            for part, name, buffer, kept in buffers:
                buffer.copy_(kept)
                setattr(part, name, buffer)


def without_fast_paths(network: nn.Module) -> None:
    """Make torch's transformers compute in evaluation mode as they do in training.

    Their fast paths call no module inside, give nested tensors, and are not exported.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0


class _EverythingRecorded(Exception):  # noqa: N818 - not an error: it leaves a forward pass early
    """Leaves a forward pass whose rest nothing needs."""


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


class _UsedTensors(TorchFunctionMode):
    """Adds to ``used`` the ids of all tensors that torch's functions are given."""

    def __init__(self, used: set[int]) -> None:
        super().__init__()
        self.used = used

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.used.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        return function(*args, **kwargs)


def _drop_tensors(owner: nn.Module, used: set[int]) -> None:
    for child in owner.children():
        parts = (*child.modules(), *child.parameters(), *child.buffers())
        if not used.isdisjoint(id(part) for part in parts):
            _drop_tensors(child, used)
        elif not any(isinstance(part, torch.jit.ScriptModule) for part in child.modules()):
            for part in child.modules():
                part._parameters.update(dict.fromkeys(part._parameters))
                part._buffers.update(dict.fromkeys(part._buffers))
                if isinstance(part, _NormBase):
                    # Else it asks every file without it for the number of its batches.
                    part.track_running_stats = False
