"""A user's own network as a backbone: features are the outputs of modules named by paths."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bmnas.backbones.base import PooledHead
from bmnas.backbones.tap import (
    Reader,
    TappedBackbone,
    evaluating,
    first_tensor,
    rehearsing,
    without_fast_paths,
)
from bmnas.machine.errors import UserError, few, one_line
from bmnas.tasks.load import imported
from bmnas.tasks.task import MODALITY_TYPES, ModalityType

_LAST = ":channels_last"
_APART = 1e-3  # of the largest number: sums of another order differ by less


class ModuleBackbone(TappedBackbone):
    """A user's module, tapped at ``features``, module paths such as ``"layer3"``.

    The module gets what ``Reader.prepare`` makes of the modality: channels-first images in
    [0, 1], everything else with its axes as stored. A path may end in ``:channels_last`` when
    its output is (B, *rest, C_raw). Of a tuple or mapping the first tensor is taken. The
    module's own output is the unimodal logits if it is (B, K); else a pooled head on the last
    feature is. ``network`` is copied: hooks and pruning do not touch the user's object.

    ``target`` is the ``"module:Class"`` that it was made from, for the record. With ``pooled`` the
    module's own output is not used. Raises UserError without features, for a path that is not
    there, or a module that is not called exactly once, or whose output is no batch of features.
    """

    family: ClassVar[str] = "module"
    types: ClassVar[tuple[ModalityType, ...]] = MODALITY_TYPES

    def __init__(
        self,
        *,
        network: nn.Module,
        classes: int,
        features: Sequence[str],
        reader: Mapping[str, Any],
        target: str | None = None,
        pooled: bool = False,
    ) -> None:
        super().__init__(Reader(reader), classes=classes, reader=dict(reader), target=target)
        self.prepare = self.reader.prepare()
        if not features:
            raise UserError(
                f"received no features, expected module paths of {type(network).__name__} to tap: "
                f"features = {few(_paths(network))}"
            )
        network = copy.deepcopy(network)
        without_fast_paths(network)
        self.tap(network, {feature: _tapped(network, feature) for feature in features})
        recorded, output = self._first_pass()
        # Truncating keeps the first features: they must be the ones that run first.
        ordered = [feature for feature, _ in recorded]
        for feature in features:
            if ordered.count(feature) != 1:
                raise UserError(
                    f"feature {feature!r}: its module is called {ordered.count(feature)} times in "
                    "a forward pass, expected once: name a module that is called once"
                )
        self.config["features"] = ordered
        self.recorder.wanted = tuple(ordered)
        self.feature_names = tuple(feature.removesuffix(_LAST) for feature in ordered)
        made = self.arranged(recorded, self.example())
        for path, found in zip(self.feature_names, made, strict=True):
            if found.dtype != torch.float32 or len(found) != 2 or not 2 <= found.dim() <= 5:
                raise UserError(
                    f"feature {path!r}: for a batch of 2 the module returned {found.dtype} of "
                    f"shape {tuple(found.shape)}, expected float32 of (2, C), (2, C, T), "
                    "(2, C, H, W) or (2, C, T, H, W)"
                )
        self.feature_channels = tuple(found.shape[1] for found in made)
        own = first_tensor(output)
        answers = own is not None and own.shape == (2, classes) and own.is_floating_point()
        if own is not None and answers and not pooled:
            if own.dtype != torch.float32:
                raise UserError(f"the output: the module returned {own.dtype}, expected float32")
            self.head = nn.Identity()
        else:
            self.renew_head()

    def renew_head(self) -> None:
        """Take a new head on the last feature in place of the module's own output.

        That one is as it was made, and may lie anywhere in the module.
        """
        self.head = PooledHead(self.feature_channels[-1], self.config["classes"])
        self.config["pooled"] = True

    def run(self, x: Tensor) -> object:
        """Return what the user's module makes of the raw input ``x`` (B, *shape)."""
        prepared = self.prepare(x)
        # The module may write into what it gets.
        return self.network(prepared.clone() if prepared is x else prepared)

    def rehearse(self) -> None:
        """Raise UserError unless batches of 1, 2 and 3 give a row of each feature for each input.

        And logits, and in evaluation the same of an input alone as among others. Batches of one
        are for evaluation alone, as BatchNorm cannot learn from them.
        """
        for mode, name, counts in ((evaluating, "evaluation", 3), (rehearsing, "training", 2)):
            for count in (1, 2, 3)[-counts:]:
                found = self._tried(self.example(count), mode)
                for feature, x in found.items():
                    channels = dict(zip(self.feature_names, self.feature_channels, strict=True))
                    wanted = (count, channels.get(feature, self.config["classes"]))
                    if x.shape[:2] != wanted:
                        of = f"feature {feature!r}" if feature else "the output"
                        raise UserError(
                            f"{of}: for a batch of {count} in {name} the module returned the shape "
                            f"{tuple(x.shape)}, expected {', '.join(map(str, wanted))}, …: a "
                            "squeeze() without an axis or a fixed batch size loses the batch"
                        )
        self._rehearse_alone()

    def _rehearse_alone(self) -> None:
        if (some := self._varied(3)) is None:
            return
        together = self._tried(some, evaluating)
        for number in range(len(some)):
            for feature, alone in self._tried(some[number : number + 1], evaluating).items():
                row = together[feature][number : number + 1]
                scale = float(row.nan_to_num().abs().max()) or 1.0
                apart = float((row - alone).nan_to_num().abs().max()) / scale
                if apart > _APART:
                    what = f"feature {feature!r}" if feature else "the output"
                    raise UserError(
                        f"{what}: an input gives other values among three than by itself, apart by "
                        f"{apart:.2g} of the largest: in evaluation nothing may be random, and no "
                        "input may depend on those beside it"
                    )

    def _varied(self, count: int) -> Tensor | None:
        """Return ``count`` inputs that differ; None for numbers that stand for something."""
        zeros, draw = self.example(count), torch.Generator().manual_seed(0)
        if zeros.dtype == torch.int64:
            return None
        low, high = (0, 256) if zeros.dtype == torch.uint8 else (-3000, 3000)
        whole = torch.randint(low, high, zeros.shape, generator=draw)
        values = whole / 3000 if zeros.is_floating_point() else whole
        return values.to(zeros)

    def _tried(self, x: Tensor, mode: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
        """Return the features by name, and the module's own logits as ``""``."""
        try:
            with mode(self):
                features, logits = self.features_and_logits(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            name = "evaluation" if mode is evaluating else "training"
            raise UserError(
                f"{type(self.network).__name__} cannot take a batch of {len(x)} in {name}: "
                f"{one_line(error, 200)}"
            ) from error
        found = dict(zip(self.feature_names, features, strict=True))
        return {**found, "": logits} if isinstance(self.head, nn.Identity) else found

    def arrange(self, name: str, output: Tensor, x: Tensor) -> Tensor:
        """Return the output with its channels first, (B, C_raw, *rest)."""
        return output.movedim(-1, 1) if name.endswith(_LAST) and output.dim() > 2 else output

    def features_and_logits(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the features, and the module's own logits (B, K) or those of the pooled head."""
        if not isinstance(self.head, nn.Identity):
            return super().features_and_logits(x)
        recorded, output = self.recorder.run(lambda: self.run(x), stops=False)
        logits = first_tensor(output)
        if logits is None:
            raise TypeError(f"the module returned a {type(output).__name__}, no tensor")
        return self.arranged(recorded, x), logits

    def drop_unused(self) -> None:
        """Drop modules after the last feature, unless their output is the logits."""
        if not isinstance(self.head, nn.Identity):
            self.prune()

    def _first_pass(self) -> tuple[list[tuple[str, object]], object]:
        """Return what the taps record of two inputs of zeros, and what the network returns."""
        try:
            with evaluating(self):
                return self.recorder.run(lambda: self.run(self.example()), stops=False)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shape = tuple(self.prepare(self.example()).shape)
            raise UserError(
                f"{type(self.network).__name__} cannot take a batch of {self.reader.type}s of "
                f"shape {shape}: {one_line(error, 200)}"
            ) from error


def user_module(wanted: object, classes: int) -> nn.Module:
    """Return a user's module: ``wanted`` itself, or made from a class or ``"module:Class"``.

    The class, or a function, is called without arguments, or with ``num_classes`` if it has a
    parameter of that name. A named module is looked for in the current directory first. Raises
    UserError when there is no such module or class, or when it cannot be called so.
    """
    if isinstance(wanted, nn.Module):
        return wanted
    name, factory = getattr(wanted, "__name__", str(wanted)), wanted
    if isinstance(wanted, str):
        factory = imported(wanted)
    if not callable(factory):
        raise UserError(f"{name}: received a {type(factory).__name__}, expected a module class")
    try:
        signature = inspect.signature(factory)
        keywords = {"num_classes": classes} if "num_classes" in signature.parameters else {}
        signature.bind(**keywords)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name}: {error}, expected a class that needs no argument but num_classes"
        ) from error
    made = factory(**keywords)
    if not isinstance(made, nn.Module):
        raise UserError(f"{name}: made a {type(made).__name__}, expected a torch.nn.Module")
    return made


def _tapped(network: nn.Module, feature: str) -> nn.Module:
    """Return the module of ``network`` that ``feature`` names."""
    path, paths = feature.removesuffix(_LAST), _paths(network)
    if ":" in path:
        path = path.partition(":")[0]
        raise UserError(f"received feature {feature!r}, expected {path} or {path}{_LAST}")
    if path not in paths:
        near = difflib.get_close_matches(path, paths, n=4, cutoff=0.4) or paths
        raise UserError(
            f"received feature {path!r}, expected a module path of {type(network).__name__} "
            f"such as {few(near)}"
        )
    return network.get_submodule(path)


def _paths(network: nn.Module) -> list[str]:
    return [path for path, _ in network.named_modules() if path]
