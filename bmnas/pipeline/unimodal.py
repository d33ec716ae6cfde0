"""The unimodal stage: a trained backbone for every modality, and its own score.

A backbone without weights is trained on the train part, for the task or for words of its texts. One
that comes with weights stays as it is; where its head is new (the weights know other classes), the
head alone is trained.

A backbone answers its own train samples nearly without error, so nothing is left there for a fusion
to learn. With ``folds`` K, features of train samples come from backbones that have not seen them:

1. a common start, trained on all of train for a tenth of the epochs;
2. K backbones that go on from it, each without one part in K of the rows;
3. the mean of their weights, trained on with all of train for two fifths of the epochs: the
   backbone of the final network. Backbones with a common start keep a common basis, and their mean
   is a good one (Wortsman et al., 2022, arXiv 2203.05482).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmnas.backbones import (
    BACKBONES,
    Backbone,
    build_backbone,
    check_finite,
    load_backbone,
    load_weights,
    save_backbone,
)
from bmnas.features.cache import Folds
from bmnas.features.samples import (
    FeatureSamples,
    RawInput,
    RawSamples,
    Samples,
    label_tensor,
    train_rows,
    train_samples,
)
from bmnas.machine.checkpoint import Checkpoint
from bmnas.machine.costs import count_parameters
from bmnas.machine.distributed import broadcast, on_rank_zero
from bmnas.machine.errors import UserError, few
from bmnas.machine.files import read_json, write_json
from bmnas.machine.runtime import seed_stage, stage_seed
from bmnas.machine.schema import read
from bmnas.pipeline.backbone_files import backbone_fingerprint, backbone_path, checkpoint_path
from bmnas.pipeline.bag import add_bag
from bmnas.pipeline.context import RunContext
from bmnas.tasks.rows import Rows
from bmnas.tasks.task import Array, Modality, Part, Task
from bmnas.training.fit import fit
from bmnas.training.heads import head_of
from bmnas.training.metrics import Evaluation, Forward, evaluate, predict
from bmnas.training.settings import Recipe

_COMMON = 0.1  # of the epochs: later, backbones know their train samples by heart already
_LAST = 0.4  # of the epochs, with a part of the learning rate
_LAST_RATE = 0.3
_ROWS_A_FOLD = 20
#: Parts of the epochs after which a training may end, the least number of them worth a try.
_SHORTER, _LEAST_EPOCHS = (1 / 8, 1 / 4, 1 / 2, 1), 2
_SEEN: tuple[Part, ...] = ("train", "validation")

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Unimodal:
    """A modality's backbone with its validation score as a fraction.

    ``pretrained`` tells that its weights were given; ``seconds`` is what training it took.
    """

    backbone: Backbone
    validation: float
    pretrained: bool
    seconds: float
    folds: Folds | None = None

    @property
    def parameters(self) -> int:
        """The number of weights of the whole unimodal network."""
        return count_parameters(self.backbone)


@dataclass(frozen=True)
class _Extra:
    """What a backbone's file says of it; ``threshold`` is what its score was measured with."""

    owner: str
    validation: float
    pretrained: bool
    seconds: float
    threshold: float | None = None


@dataclass(frozen=True)
class _Piece:
    """What the file of a part of a training says of it."""

    owner: str
    seconds: float


def unimodal_networks(context: RunContext) -> dict[str, Unimodal]:
    """Return the backbone of every modality, from the folder for them or trained and kept there.

    Raises UserError when that folder holds a backbone of another task, other data or settings, and
    when torch does not allow a modality's name.
    """
    found = {}
    _try_given(context)
    for modality in context.task.modalities:
        name = modality.name
        if hasattr(nn.ModuleDict, name):
            # The final network holds its backbones in one; refused now, not after the search.
            raise UserError(
                f"received the modality name {name!r}, which torch keeps for itself, "
                "expected another: rename the modality"
            )
        own = context.alone(modality)
        path, fingerprint = backbone_path(own, modality), backbone_fingerprint(own, modality)
        if broadcast(not path.exists()):
            _make(own, modality, path, fingerprint)
        # Read back even when just made, so that a resumed run goes on from the very same state.
        backbone, extra = _read(path, modality, fingerprint)
        validation = extra.validation
        if extra.threshold != own.head.threshold:
            # The weights do not depend on it, so they stay; the score does.
            validation = evaluate_unimodal(context, name, backbone, "validation").score
        folds, fold_of_row = None, _fold_of_row(context, modality)
        if fold_of_row is not None:
            files = _fold_files(context, path)
            each = tuple(load_backbone(file, module=modality.backbone)[0] for file in files)
            folds = Folds(each, fold_of_row)
        found[name] = Unimodal(backbone.cpu(), validation, extra.pretrained, extra.seconds, folds)
    return found


def _try_given(context: RunContext) -> None:
    """Build what is not ours before anything is trained, and tell what of its weights is left out.

    Raises UserError for a network that cannot be used, or weights that do not fit or are NaN.
    """
    task = context.task
    for modality in task.modalities:
        ours = modality.backbone is None or modality.backbone in BACKBONES
        if (ours and modality.weights is None) or backbone_path(context, modality).exists():
            continue
        backbone = build_backbone(modality, classes=task.outputs, rows=train_rows(task, modality))
        check_finite(backbone, f"modality {modality.name}")
        if modality.weights is None:
            continue
        _, left_out = load_weights(backbone, modality.weights)
        if left_out:
            context.progress.note(
                f"{modality.name}: left out of {modality.weights.name}: {few(left_out)}"
            )


def folds_of(networks: Mapping[str, Unimodal]) -> dict[str, Folds]:
    """Return the folds of the modalities that have some."""
    return {name: found.folds for name, found in networks.items() if found.folds is not None}


def remove_stale(context: RunContext) -> None:
    """Delete backbones that ``unimodal_networks`` would refuse, and unfinished trainings."""
    for modality in context.task.modalities:
        path = backbone_path(context, modality)
        for file in path.parent.glob(f"{path.stem}*-checkpoint.pt"):
            file.unlink()
        if path.exists():
            try:
                _read(path, modality, backbone_fingerprint(context.alone(modality), modality))
            except UserError:
                path.unlink()


def evaluate_unimodal(context: RunContext, name: str, backbone: Backbone, part: Part) -> Evaluation:
    """Return how the backbone ``name`` with its own head does on a part of what it learns.

    Samples that lack the modality are left out. Of test none are used to choose a threshold: what
    suits validation decides there.
    """
    own = context.alone(context.task.modality(name))
    task, device, head = own.task, own.runtime.device, own.head
    modality = task.modality(name)
    if part == "test" and head.lacks_threshold:
        seen = evaluate_unimodal(context, name, backbone, "validation")
        assert seen.labels is not None
        head = head_of(task, head.best_threshold(seen.logits, seen.labels))
    chosen = task.having(modality, part)
    source = RawInput(modality, backbone, chosen)
    samples = RawSamples([source], label_tensor(task, chosen))
    return evaluate(backbone.to(device), _call(backbone), samples, head, device)


def of_all_samples(task: Task, name: str, part: Part, logits: Tensor) -> Tensor:
    """Return logits (n, …) of all samples of ``part``, zeros for those that lack the modality."""
    lacking = torch.from_numpy(task.modality(name).lacking(task.samples(part)))
    whole = logits.new_zeros(len(lacking), *logits.shape[1:])
    whole[~lacking] = logits
    return whole


def feature_names(task: Task) -> list[str]:
    """Return the names of all features of ``task``, ``<modality>.<feature>``, in order."""
    return [
        f"{modality.name}.{feature}"
        for modality in task.modalities
        for feature in _new_backbone(task, modality)[0].feature_names
    ]


def _new_backbone(task: Task, modality: Modality) -> tuple[Backbone, nn.Module | None]:
    """Return a modality's backbone before its training, and what of it is to be trained.

    That is the whole backbone, its new head (the rest is then frozen), or None where all weights
    were given.
    """
    # A task of regions has no classes: its backbones learn words, from another task.
    classes = max(1, task.outputs)
    backbone = build_backbone(modality, classes=classes, rows=train_rows(task, modality))
    whole = modality.weights is not None and load_weights(backbone, modality.weights)[0]
    wanted, head = modality.backbone, backbone.head
    backbone.eval()
    if isinstance(wanted, Backbone):
        return backbone, None
    hub = isinstance(wanted, str) and wanted.startswith("hf:")
    if modality.weights is None and not hub and not isinstance(wanted, nn.Module):
        return backbone, backbone
    if whole or head is None or count_parameters(head) == 0:
        return backbone, None
    backbone.requires_grad_(False)
    head.requires_grad_(True)
    return backbone, head


def _make(context: RunContext, modality: Modality, path: Path, fingerprint: str) -> None:
    """Train the backbone of ``modality``, where needed, and write its file."""
    task, recipe = context.task, context.config.unimodal.recipe
    train, fold_of_row = task.having(modality, "train"), _fold_of_row(context, modality)
    seconds, start = 0.0, None
    once: list[FeatureSamples] = []
    if context.config.unimodal.early_stopping and _new_backbone(task, modality)[1] is not None:
        epochs, seconds = _chosen_epochs(context, modality, path, fingerprint, once)
        recipe = dataclasses.replace(recipe, epochs=epochs)
    if fold_of_row is not None:
        common, apart, last = fold_epochs(recipe.epochs)
        constant = dataclasses.replace(recipe, epochs=common, min_lr=recipe.max_lr)
        first = path.with_name(f"{path.stem}-start.safetensors")
        start, spent = _piece(context, modality, first, fingerprint, train, constant, None)
        seconds += spent
        rest = dataclasses.replace(recipe, epochs=apart)
        states, fold = [], fold_of_row[modality.rows_of(train)]
        for number, file in enumerate(_fold_files(context, path)):
            seen = train[fold != number]
            state, spent = _piece(context, modality, file, fingerprint, seen, rest, start)
            states.append(state)
            seconds += spent
        start = _mean(states)
        rate = _LAST_RATE * recipe.max_lr
        recipe = dataclasses.replace(recipe, epochs=last, max_lr=max(rate, recipe.min_lr))
    started, checkpoint = time.perf_counter(), Checkpoint(checkpoint_path(path), fingerprint)
    backbone, trained = _trained(context, modality, checkpoint, train, recipe, start, once)
    if trained is not None:
        started = time.perf_counter() - checkpoint.seconds
    found = evaluate_unimodal(context, modality.name, backbone, "validation")
    votes = context.config.unimodal.linear and trained is backbone
    if votes and add_bag(backbone.cpu(), task, modality, context.head, found.logits):
        found = evaluate_unimodal(context, modality.name, backbone, "validation")
    seconds += time.perf_counter() - started
    extra = _Extra(
        fingerprint, found.score, trained is not backbone, seconds, context.head.threshold
    )
    on_rank_zero(lambda: save_backbone(path, backbone.cpu(), dataclasses.asdict(extra)))
    checkpoint.remove()
    if fold_of_row is not None:
        on_rank_zero(lambda: first.unlink(missing_ok=True))


def fold_epochs(whole: int) -> tuple[int, int, int]:
    """Return the epochs of the common start, of the folds' backbones and of the last part."""
    common = max(1, round(_COMMON * whole))
    return common, max(1, whole - common), max(1, round(_LAST * whole))


def tried_epochs(most: int) -> list[int]:
    """Return the lengths of training that early stopping tries; none for large data."""
    lengths = [round(part * most) for part in _SHORTER]
    return lengths if lengths[0] >= _LEAST_EPOCHS else []


def useful_epochs(lengths: Sequence[int], judge: Callable[[int], Evaluation]) -> int:
    """Return the first of ``lengths`` after which a longer training no longer scores better.

    ``judge`` trains for so many epochs, with a cosine cycle of that length; of equal scores the
    lower loss is better, but nothing is better than a score of 1.
    """
    best, chosen = (-math.inf, -math.inf), lengths[0]
    for epochs in lengths:
        found = judge(epochs)
        if (worth := (found.score, -found.loss)) <= best:
            break
        best, chosen = worth, epochs
        if found.score >= 1:
            break
    return chosen


def _chosen_epochs(
    context: RunContext, modality: Modality, path: Path, owner: str, once: list[FeatureSamples]
) -> tuple[int, float]:
    """Return after how many epochs the training of a backbone does best on validation.

    And the seconds of the trainings that told it. One that learns its few samples by heart is no
    use to what fuses; large data is seen too few times for that. What was found is kept beside it.
    """
    file = path.with_name(f"{path.stem}-epochs.json")
    kept = read_json(file) if file.is_file() else {}
    if broadcast(kept.get("owner") == owner):
        # Files of earlier versions hold no seconds.
        return int(kept["epochs"]), float(kept.get("seconds", 0))
    recipe, train = context.config.unimodal.recipe, context.task.having(modality, "train")
    seconds: list[float] = []

    def judge(epochs: int) -> Evaluation:
        shorter = dataclasses.replace(recipe, epochs=epochs)
        checkpoint = Checkpoint(checkpoint_path(file.with_stem(f"{path.stem}-{epochs}")), owner)
        backbone, _ = _trained(context, modality, checkpoint, train, shorter, None, once)
        seconds.append(checkpoint.seconds)
        checkpoint.remove()
        return evaluate_unimodal(context, modality.name, backbone, "validation")

    lengths = tried_epochs(recipe.epochs)
    chosen = useful_epochs(lengths, judge) if lengths else recipe.epochs
    found = {"owner": owner, "epochs": chosen, "seconds": sum(seconds)}
    on_rank_zero(lambda: write_json(file, found))
    return chosen, sum(seconds)


def _piece(
    context: RunContext,
    modality: Modality,
    path: Path,
    owner: str,
    samples: Array,
    recipe: Recipe,
    start: State | None,
) -> tuple[State, float]:
    """Return the weights after a part of a training, and its seconds, from ``path`` if there."""
    own = modality.backbone
    kept = load_backbone(path, module=own)[1] if path.exists() else {}
    if broadcast(kept.get("owner") != owner):
        checkpoint = Checkpoint(checkpoint_path(path), owner)
        backbone, _ = _trained(context, modality, checkpoint, samples, recipe, start, [])
        extra = {"owner": owner, "seconds": checkpoint.seconds}
        on_rank_zero(lambda: save_backbone(path, backbone.cpu(), extra))
        checkpoint.remove()
    # Read back even when just made, so that a resumed run goes on from the very same state.
    backbone, found = load_backbone(path, module=own)
    return backbone.state_dict(), read(_Piece, found, str(path)).seconds


def _trained(
    context: RunContext,
    modality: Modality,
    checkpoint: Checkpoint,
    chosen: Array,
    recipe: Recipe,
    start: State | None,
    once: list[FeatureSamples],
) -> tuple[Backbone, nn.Module | None]:
    """Return a new backbone, trained on ``chosen`` from ``start`` on, and what of it was.

    ``once`` keeps what a frozen network gives to its head, for further trainings on these samples.
    """
    task = context.task
    seed_stage(context.backbone_seed, f"backbone {modality.name}")
    backbone, trained = _new_backbone(task, modality)
    if start is not None:
        backbone.load_state_dict(start)
    backbone.to(context.runtime.device)
    if trained is not None:
        samples: Samples = train_samples(task, modality, backbone, chosen)
        forward, linear = _call(backbone), getattr(trained, "linear", None)
        varies = isinstance(modality.data, Rows) and modality.data.varies
        if trained is not backbone and isinstance(linear, nn.Linear) and not varies:
            if not once:
                once.append(_before(linear, context, modality, backbone, chosen))
            samples, forward = once[0], _last_layer(trained)
        fit(
            trained,
            forward,
            samples,
            context.head,
            recipe,
            checkpoint=checkpoint,
            progress=context.progress,
            stage=f"backbone {modality.name}",
        )
        backbone.requires_grad_(True)
    return backbone, trained


def _before(
    linear: nn.Linear, context: RunContext, modality: Modality, backbone: Backbone, chosen: Array
) -> FeatureSamples:
    """Return what the layer ``linear`` of a head reads of the samples ``chosen`` (n,).

    Before it a frozen network gives the same in every epoch: each row is computed once.
    """
    _, first, place = np.unique(modality.rows_of(chosen), return_index=True, return_inverse=True)
    source = RawInput(modality, backbone, chosen[first])
    rows = RawSamples([source], label_tensor(context.task, chosen[first]))
    read: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))

    def vectors(inputs: Sequence[Tensor]) -> Tensor:
        backbone(inputs[0])
        return read.pop()

    try:
        found, _ = predict(backbone, vectors, rows, context.runtime.device)
    finally:
        hook.remove()
    name = f"{modality.name}.head"
    numbers = {modality.name: torch.from_numpy(place)}
    labels = label_tensor(context.task, chosen)
    return FeatureSamples((name,), {name: found[:, None]}, numbers, labels)


def _last_layer(head: Any) -> Forward:
    """Return dropout and linear layer of ``head`` as they follow what ``_before`` read."""
    return lambda inputs: head.linear(head.dropout(inputs[0][:, 0]))


def _mean(states: Sequence[State]) -> State:
    """Return the mean of the weights; of counts the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }


def _fold_of_row(context: RunContext, modality: Modality) -> Array | None:
    """Return which fold a row is in, -1 for all but train; None for a modality without folds.

    There are none for a backbone that is not trained here, for too few rows, and where validation
    shows rows of train again: the final network meets those as it has learned them.
    """
    folds, wanted = context.config.unimodal.folds, modality.backbone
    ours = wanted is None or (isinstance(wanted, str) and not wanted.startswith("hf:"))
    if folds < 2 or modality.weights is not None or not ours:
        return None
    train, validation = (
        np.unique(modality.rows_of(context.task.having(modality, part))) for part in _SEEN
    )
    if len(train) < _ROWS_A_FOLD * folds or np.isin(validation, train).mean() > 0.5:
        return None
    fold = np.full(len(modality.data), -1)
    draw = np.random.default_rng(stage_seed(context.backbone_seed, f"folds {modality.name}"))
    fold[draw.permutation(train)] = np.arange(len(train)) % folds
    return fold


def _fold_files(context: RunContext, path: Path) -> list[Path]:
    numbers = range(1, context.config.unimodal.folds + 1)
    return [path.with_name(f"{path.stem}-fold{number}.safetensors") for number in numbers]


def _call(backbone: Backbone) -> Forward:
    return lambda inputs: backbone(inputs[0])


def _read(path: Path, modality: Modality, fingerprint: str) -> tuple[Backbone, _Extra]:
    backbone, found = load_backbone(path, module=modality.backbone)
    if found.get("owner") != fingerprint:
        raise UserError(
            f"{path}: was trained for another task, other data, settings or seed; choose another "
            "folder with --backbones, or delete it to train it again"
        )
    return backbone, read(_Extra, found, str(path), ignore_unknown=True)
