"""One modality's backbone trained by itself, for a file of weights that later runs take."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from bmnas.backbones import build_backbone, load_weights
from bmnas.features.samples import train_rows, train_samples
from bmnas.machine.checkpoint import Checkpoint, Record, Stateful
from bmnas.machine.distributed import on_rank_zero
from bmnas.machine.errors import UserError
from bmnas.machine.progress import Progress
from bmnas.machine.runtime import Runtime, seed_stage
from bmnas.machine.schema import read
from bmnas.machine.tensor_file import read_tensors, write_tensors
from bmnas.pipeline.backbone_files import backbone_fingerprint
from bmnas.pipeline.config import Config, config_for
from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Existing, Run
from bmnas.pipeline.unimodal import evaluate_unimodal
from bmnas.tasks import FOLDER_TASKS, check_task
from bmnas.tasks.task import Modality, Task
from bmnas.training.fit import fit
from bmnas.training.metrics import Evaluation
from bmnas.training.settings import UnimodalConfig

FORMAT = "bmnas.weights/1"

#: How the networks of papers are trained from nothing: epochs and batches of their programs, and
#: the rate where these use Adam. For SGD and for steps of the rate stands AdamW with a cosine.
RECIPES: Mapping[str, UnimodalConfig] = {
    # Li et al. (2018), HCN-pytorch: Adam.
    "hcn": UnimodalConfig(epochs=400, batch_size=64, max_lr=1e-3),
    # Arevalo et al. (2017), gmu-mmimdb: Adam, and the epoch that validation chooses.
    "maxout": UnimodalConfig(epochs=200, batch_size=128, max_lr=1e-2),
    # Köpüklü et al. (2019), Real-time-GesRec: SGD.
    "resnext101_3d": UnimodalConfig(epochs=60, batch_size=24, max_lr=1e-3),
    # No program was found that trains these two: a choice of ours.
    "inflated_resnet50": UnimodalConfig(epochs=30, batch_size=24, max_lr=1e-3),
    "vgg19": UnimodalConfig(epochs=30, batch_size=64, max_lr=1e-3),
}
#: Of the learning rate, for weights that have learned something already.
_ON = 0.1


@dataclass(frozen=True)
class Pretrained:
    """What a file of weights says of itself: scores as fractions, of the epoch that was kept."""

    owner: str
    metric: str
    epoch: int
    epochs: int
    train: float
    validation: float
    seconds: float


def recipe_for(modality: Modality, config: Config) -> UnimodalConfig:
    """Return how the backbone of ``modality`` is trained: by ``RECIPES``, else by ``config``.

    From weights on, a network of a paper learns at a tenth of the rate.
    """
    known = RECIPES.get(modality.backbone) if isinstance(modality.backbone, str) else None
    if known is None:
        return config.unimodal
    if modality.weights is None:
        return known
    return dataclasses.replace(known, max_lr=_ON * known.max_lr)


def weights_folder(task: Task, modality: Modality) -> Path | None:
    """Return where the task looks for the weights of ``modality``; None where it does not."""
    if task.source.get("task") in FOLDER_TASKS and modality.backbone is not None:
        return Path(task.source["data"]) / "weights"
    return None


def pretrain(
    task: Task,
    name: str,
    *,
    run: str | Path | None = None,
    out: str | Path | None = None,
    config: Config | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    seed: int = 0,
    existing: Existing = "refuse",
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Pretrained]:
    """Train the backbone of modality ``name`` on train; return its file and what that says.

    All of it is trained, from the modality's ``weights`` on if it has some. ``config.unimodal``
    says how; without ``config`` it is ``recipe_for``. There are no folds and no early stopping.
    ``settings`` are values that win over those. The weights of the epoch with the best validation
    score are kept. ``run`` (default: ``runs/<task>-<name>``) holds the checkpoint and a line for
    each epoch, ``out`` is the file, by default in ``weights_folder``, else in ``run``. Reads no
    test data. Raises UserError when something given cannot be used.
    """
    modality = task.modality(name)
    check_task(task)
    folder = Run(Path("runs") / f"{task.name}-{name}" if run is None else Path(run))
    if out is None:
        out = (weights_folder(task, modality) or folder.path) / f"{name}.safetensors"
    path = Path(out)
    if modality.weights is not None and modality.weights.resolve() == path.resolve():
        # The result of an earlier training is no start.
        modality = dataclasses.replace(modality, weights=None)
    if config is None:
        config = config_for(task)
        config = dataclasses.replace(config, unimodal=recipe_for(modality, config))
    # Neither changes what is trained here.
    config = config.override("unimodal", **settings, folds=0, early_stopping=False, linear=False)
    context = RunContext(
        folder, task, config, seed, backbones=folder.path, runtime=runtime, progress=progress
    ).alone(modality)
    owner = backbone_fingerprint(context, modality)
    checkpoint = _Judging(context, name, folder.path / f"{name}-checkpoint.pt", owner)

    def prepare() -> None:
        _prepare(path, folder.path / f"{name}-checkpoint.pt", modality, owner, existing)

    context.work(path, prepare, lambda: _work(context, modality, checkpoint, path, owner))
    return path, _described(path)


def _prepare(
    path: Path, checkpoint: Path, modality: Modality, owner: str, existing: Existing
) -> None:
    """Raise UserError when there is something else where the weights or the checkpoint belong."""
    given = modality.weights
    if given is not None and given.resolve().with_suffix("") == path.resolve().with_suffix(""):
        raise UserError(
            f"{given}: would start the training and stand beside its result, where one file a "
            "modality is expected: move it and name it with --weights, or write elsewhere with "
            "--out"
        )
    there = [file for file in (path, checkpoint) if file.exists()]
    if there and existing == "refuse":
        raise UserError(
            f"{there[0]}: there is one already; go on with --resume, or start anew with --overwrite"
        )
    if path.exists() and _described(path).owner != owner and existing == "resume":
        raise UserError(
            f"{path}: was trained with other settings, weights, seed or data; start anew with "
            "--overwrite, or write elsewhere with --out"
        )
    if existing == "overwrite":
        for file in there:
            file.unlink()


def _work(
    context: RunContext, modality: Modality, checkpoint: _Judging, path: Path, owner: str
) -> None:
    task, recipe = context.task, context.config.unimodal.recipe
    seed_stage(context.backbone_seed, f"backbone {modality.name}")
    backbone = build_backbone(modality, classes=task.outputs, rows=train_rows(task, modality))
    if modality.weights is not None:
        load_weights(backbone, modality.weights)
    backbone.to(context.runtime.device)
    fit(
        backbone,
        lambda inputs: backbone(inputs[0]),
        train_samples(task, modality, backbone, task.having(modality, "train")),
        context.head,
        recipe,
        checkpoint=checkpoint,
        progress=context.progress,
        stage=f"backbone {modality.name}",
    )
    best, record = checkpoint.best, checkpoint.best.record
    backbone.load_state_dict(best.network)
    found = Pretrained(
        owner,
        context.head.metric,
        record["epoch"],
        recipe.epochs,
        record["train_score"],
        record["validation_score"],
        checkpoint.seconds,
    )
    description = {"format": FORMAT, **dataclasses.asdict(found)}
    on_rank_zero(
        lambda: write_tensors(path, backbone.cpu().weights_module().state_dict(), description)
    )
    checkpoint.remove()


def _described(path: Path) -> Pretrained:
    """Return what a file says of itself; raises UserError where ``pretrain`` did not write it."""
    description, _ = read_tensors(path, described=FORMAT, tensors=False)
    del description["format"]
    return read(Pretrained, description, str(path))


class _Best:
    """The weights and the record of the epoch that does best on validation."""

    def __init__(self) -> None:
        self.network: dict[str, Any] = {}
        self.record: Record = {}
        self.worth = (-math.inf, -math.inf)

    def judge(self, network: nn.Module, found: Evaluation, record: Record) -> None:
        """Take ``network`` where its score is better, or equal with a lower loss."""
        worth = (found.score, -found.loss)
        if worth > self.worth:
            self.worth, self.record = worth, dict(record)
            self.network = {n: tensor.clone() for n, tensor in network.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        vars(self).update(state_dict)


class _Judging(Checkpoint):
    """A checkpoint of a backbone's training that has validation judge every epoch."""

    def __init__(self, context: RunContext, name: str, path: Path, owner: str) -> None:
        super().__init__(path, owner, journal=path.with_name(f"{name}.jsonl"))
        self._context, self._name = context, name
        self.best = _Best()

    @property
    def due(self) -> bool:
        """Always: to save is to judge."""
        return True

    def restore(self, parts: Mapping[str, Stateful]) -> list[Record]:
        return super().restore({**parts, "best": self.best})

    def save(self, parts: Mapping[str, Stateful], records: list[Record]) -> None:
        backbone: Any = parts["network"]
        found = evaluate_unimodal(self._context, self._name, backbone, "validation")
        records[-1]["validation_score"] = found.score
        self.best.judge(backbone, found, records[-1])
        super().save({**parts, "best": self.best}, records)
