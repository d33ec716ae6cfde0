"""What is measured: the supernet step, and the networks of every way to fuse.

The step is that of BM-NAS's NTU configuration: 8 features of two modalities, C 128, L 8, N 2,
M 2, batch 96, 60 classes, dropout 0.2. Its input is random; time does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bmnas.lab.suite import SuiteTask
from bmnas.machine.runtime import Runtime
from bmnas.spaces.fusions.table import FUSIONS
from bmnas.strategies import STRATEGIES
from bmnas.tasks.task import Task
from tests.support.plain_supernet import PlainSupernet

#: The embedded task, with settings that train every way in moments.
PRESET = "digits-quick"
TASK = SuiteTask("digits", preset=PRESET)
SEARCHES = tuple(f"search {name}" for name in STRATEGIES)
WAYS = (*SEARCHES, *(f"fusion {name}" for name in FUSIONS))


@dataclass(frozen=True)
class Finished:
    """A run folder with trained network and bundle, and the folder of its backbones."""

    task: Task
    run: Path
    bundle: Path
    backbones: Path


@dataclass(frozen=True)
class StepCase:
    """The shape of a supernet and its input."""

    channels_raw: tuple[int, ...] = (512, 1024, 2048, 2048, 128, 256, 1024, 512)
    channels: int = 128
    length: int = 8
    cells: int = 2
    steps: int = 2
    batch: int = 96
    classes: int = 60
    dropout: float = 0.2


NTU = StepCase()
#: Small enough that hardly a number lies so near a ReLU's corner that rounding moves it across.
SMALL = StepCase(channels_raw=(64, 96, 32), channels=32, batch=12, classes=10)
#: For a quick look at whether everything runs.
TINY = StepCase(channels_raw=(16, 32, 24), channels=16, batch=8, classes=5)


def supernet(case: StepCase, form: type[nn.Module]) -> nn.Module:
    """Return the ``Supernet`` or its ``PlainSupernet`` reference."""
    return form(
        list(case.channels_raw),
        cells=case.cells,
        steps=case.steps,
        channels=case.channels,
        length=case.length,
        classes=case.classes,
        dropout=case.dropout,
    )


def step(
    case: StepCase, form: type[nn.Module], runtime: Runtime, *, bfloat16: bool = False
) -> Callable[[], None]:
    """Return a call that runs one step: forward, backward, Adam; it does not wait for a device.

    With ``bfloat16`` the forward pass is under autocast, which leaves the products to bfloat16.
    Both forms get the features as the cache stores them, (B, L, C_raw); the plain one looks at
    them channels-first. Both have the same Adam, the fused one.
    """
    torch.manual_seed(0)
    device = runtime.device
    network = supernet(case, form).to(device)
    features = [
        torch.randn(case.batch, case.length, channels, device=device)
        for channels in case.channels_raw
    ]
    if form is PlainSupernet:
        features = [x.transpose(1, 2) for x in features]
    labels = torch.randint(case.classes, (case.batch,), device=device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    forward = runtime.compiled(network)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            loss = F.cross_entropy(forward(features), labels)
        loss.backward()
        optimizer.step()

    return run


def products(
    case: StepCase, device: torch.device, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """Return a call that computes the matrix products of a step and nothing else: its floor.

    The forward product of every linear layer and the one for its weights' gradient; the one for
    its input's gradient too, except for the features, which need none. It does not wait for a
    device.
    """
    rows, wide = case.batch * case.length, case.channels
    layers = [(channels, wide, False) for channels in case.channels_raw]
    for _ in range(case.cells):
        layers += [(wide, 3 * wide, True)] * case.steps
        if case.steps > 1:
            layers.append((case.steps * wide, wide, True))
    made = [_Product.of(rows, *layer, device, dtype) for layer in layers]
    flat = case.length * case.cells * wide
    made.append(_Product.of(case.batch, flat, case.classes, True, device, dtype))

    def run() -> None:
        with torch.no_grad():
            for product in made:
                product.run()

    return run


def synchronise(device: torch.device) -> None:
    """Wait for an accelerator to finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class _Product:
    x: Tensor
    weight: Tensor
    gradient: Tensor
    needs_input_gradient: bool

    @classmethod
    def of(
        cls,
        rows: int,
        inputs: int,
        outputs: int,
        needed: bool,
        device: torch.device,
        dtype: torch.dtype,
    ) -> _Product:
        return cls(
            torch.randn(rows, inputs, device=device, dtype=dtype),
            torch.randn(outputs, inputs, device=device, dtype=dtype),
            torch.randn(rows, outputs, device=device, dtype=dtype),
            needed,
        )

    def run(self) -> None:
        F.linear(self.x, self.weight)
        torch.mm(self.x.T, self.gradient)
        if self.needs_input_gradient:
            torch.mm(self.gradient, self.weight)
