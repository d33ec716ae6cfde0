"""Settings of strategy ``mfas``: section ``[mfas]`` of a preset. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

#: Layers of an architecture at most: more would be a file made to overflow something.
DEEPEST = 200


@dataclass(frozen=True)
class MFASConfig:
    """The search of MFAS; the defaults are those of the authors' program.

    ``sweeps`` times ``levels`` steps; each trains ``kept`` candidates (K) for ``epochs`` epochs,
    the first one all architectures of one layer. Candidates have fusion layers of ``inner_size``
    units, the final network of ``final_inner_size``. ``scalars`` weighs the modalities of a layer
    by learned scalars. Up to ``together`` candidates are trained as one network, which takes less
    time than one by one, as the authors do.
    """

    sweeps: int = 3
    levels: int = 4
    kept: int = 15
    epochs: int = 3
    batch_size: int = 20
    dropout: float = 0.5
    max_lr: float = 1e-3
    min_lr: float = 1e-6
    weight_decay: float = 1e-4
    inner_size: int = 16
    final_inner_size: int = 256
    scalars: bool = False
    together: int = 32

    def problems(self) -> list[tuple[str, str]]:
        """Return name and what is wrong of every value out of range."""
        bounds = {
            **{name: (getattr(self, name) >= 1, "at least 1") for name in _COUNTS},
            "levels": (1 <= self.levels <= DEEPEST, f"from 1 to {DEEPEST}"),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "dropout": (0 <= self.dropout < 1, "from 0 to below 1"),
            **{name: (0 <= getattr(self, name) < float("inf"), "0 or more") for name in _RATES},
            **{name: (1 <= getattr(self, name) <= 65536, "from 1 to 65536") for name in _SIZES},
        }
        return [
            (name, f"received {getattr(self, name)}, expected {wanted}")
            for name, (good, wanted) in bounds.items()
            if not good
        ]


_COUNTS = ("sweeps", "kept", "epochs", "together")
_RATES = ("max_lr", "min_lr", "weight_decay")
_SIZES = ("inner_size", "final_inner_size")
