"""A ``task.toml`` for a table that nobody has described yet, with questions where it is a guess."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bmnas_serve.sources import MISSING, number_of

from bmnas.machine.errors import UserError, few
from bmnas.tasks.class_labels import alike_but_capitals, names_nothing
from bmnas.tasks.columns import Columns
from bmnas.tasks.kinds import Array
from bmnas.tasks.media import picture_facts, sound_facts, told_pictures, told_sounds
from bmnas.tasks.sources import ENDINGS, MOST_CATEGORIES, ending_of, read_all
from bmnas.tasks.task import ModalityType
from bmnas.tasks.task_file import PART_NAMES

_LABELS = ("label", "labels", "class", "target", "category", "diagnosis", "tags", "answer", "y")
_GROUP = re.compile(
    r"patient|subject|speaker|user|person|session|group|family|customer|author|site|device", re.I
)
_ID = re.compile(r"(^|_)(id|uuid|key|index|row|nr|number|file_?name)$", re.I)
_DATE = re.compile(
    r"(\d{4}-\d\d?-\d\d?|\d{4}/\d\d?/\d\d?|\d\d?([./])\d\d?\2\d{2,4})([T ]\d\d?:\d\d.*)?"
    r"|(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
)
#: Numbers that people read and float() does not.
_DRESSED = re.compile(r"[^\w\s]?\s*[+-]?\d[\d.,' ]*\s*[^\d\s]{0,4}")
_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,4}")
_ELSEWHERE = re.compile(r"/|[A-Za-z]:")  # how a path begins that is no part of a folder
_CONTROL = r"[\x00-\x1f\x7f]"  # TOML has none in comments
_MOST_CLASSES = 200
_MOST_NUMBERS = 20  # different ones that may be classes; more are amounts
_OFTEN = 5  # rows of a class, on average
_LOOKED_AT = 200  # files of a column
_SIDE, _LEAST_SIDE, _RATE, _SECONDS = 64, 16, 16_000, 10.0
_OUTPUTS = {"logits", "probabilities"}  # of a served model: no modality may be called so


@dataclass
class _Found:
    """What was seen of a column: its ``role``, keys of its table and what to tell."""

    name: str
    role: str
    told: str
    keys: dict[str, Any] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wishes:
    """What is known of a table: its columns of labels and groups, and files of other parts."""

    labels: str | None = None
    group: str | None = None
    validation: Path | None = None
    test: Path | None = None


def guessed_task(table: Path, out: Path, wishes: Wishes) -> str:
    """Return a commented ``task.toml``, to lie at ``out``, for ``table``.

    Lines with a question mark behind the ``#`` are what to decide. Raises UserError for a table
    that cannot be read, and where no column can be the labels.
    """
    columns = Columns([table])
    names, unread = _readable(columns)
    for wished in (wishes.labels, wishes.group):
        if wished is not None:
            columns.get(wished)  # raises UserError where there is none
    labels, questions = _labels(columns, names, wishes.labels)
    rows = len(columns.get(labels))
    found = [
        _look(columns, name, rows, wishes) for name in names if name not in (labels, wishes.group)
    ]
    found += unread
    for one in found:
        if one.role == "vector" and _tells(columns, one.name, labels):
            one.role, one.told = "left out", "has a value for each label: it gives the answer away"
    group = wishes.group or next((one.name for one in found if one.role == "group"), None)
    lines = [
        _comment(f"Written by bmnas init from {table.name}, {rows:,} rows."),
        "# Lines that begin with '# ?' are questions: what was guessed, and what else it could be.",
        f"name = {_toml(re.sub(r'[^A-Za-z0-9_-]+', '-', table.stem).strip('-') or 'task')}",
        *_kind(columns.get(labels), rows, labels, questions),
        *_parts(table, out, wishes, found, group, rows),
    ]
    if any("broken" in one.keys for one in found):
        lines.append('broken = "skip"            # leaves out rows whose files cannot be read')
    taken: set[str] = set(_OUTPUTS)
    modalities = [one for one in found if one.role in ("files", "text", "array")]
    for one in modalities:
        lines += ["", f"[modality.{_name(one.name, taken)}]", _comment(one.told)]
        lines += [_comment(f"? {question}") for question in one.questions]
        lines += [f"{key} = {_toml(value)}" for key, value in one.keys.items() if key != "broken"]
    vector = [one for one in found if one.role == "vector"]
    if vector:
        lines += ["", f"[modality.{_name('table', taken)}]"]
        lines += [_comment(f"{one.name}: {one.told}") for one in vector]
        lines += [f"columns = {_toml([one.name for one in vector])}", 'type = "vector"']
    lines.append("")
    if len(modalities) + bool(vector) < 2:
        lines.append("# ? Fewer than two modalities were found: add a [modality.<name>].")
    lines += [
        _comment(": ".join([f"? Left out: {one.name} ({one.told})", *one.questions]))
        for one in found
        if one.role == "left out"
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _readable(columns: Columns) -> tuple[list[str], list[_Found]]:
    """Return the columns that can be read, and what is to be told of the others."""
    names, unread = [], []
    for name in columns.names():
        try:
            columns.get(name)
            names.append(name)
        except UserError as error:
            unread.append(_Found(name, "left out", str(error)))
    return names, unread


def _labels(columns: Columns, names: Sequence[str], wished: str | None) -> tuple[str, list[str]]:
    """Return the column of the labels, and what is to be asked about it."""
    if wished is not None:
        return wished, []
    by_name = [name for known in _LABELS for name in names if name.lower() == known]
    if by_name:
        return by_name[0], [f"or {other}" for other in by_name[1:]]
    classes = {
        name: len(np.unique(columns.get(name, text=True)))
        for name in names
        if columns.get(name).ndim == 1
    }
    few_values = [
        n for n, count in classes.items() if 2 <= count <= 20 and not _is_split(columns, n)
    ]
    if not few_values:
        raise UserError(
            f"no column can be the labels: name it with --labels: one of {few(names, 20)}"
        )
    return few_values[-1], [f"guessed: or {few(few_values[:-1], 8)}"] if few_values[:-1] else []


def _is_split(columns: Columns, name: str) -> bool:
    values = {str(value).strip() for value in columns.get(name, text=True).tolist()}
    return values <= set(PART_NAMES) and len(values) > 1


def _kind(labels: Array, rows: int, name: str, questions: list[str]) -> Iterator[str]:
    """Yield the lines of kind and labels."""
    if labels.ndim == 2 and labels.dtype.kind == "U":
        yield 'kind = "multilabel"        # lists of tags'
    elif labels.ndim == 2:
        yield f'kind = "multilabel"        # {labels.shape[1]} numbers a row'
    else:
        texts = [str(value).strip() for value in labels.tolist()]
        told = [text for text in texts if text.lower() not in MISSING]
        numbers = all(number_of(text) is not None for text in told)
        separator = None if numbers else _separator(texts)
        counts = Counter(text for text in texts if not names_nothing(text))
        if len(counts) < 2:
            raise UserError(
                f"column {name!r}: received {few(map(repr, counts)) or 'nothing'} in all rows, "
                "expected labels of two classes or more: name another column with --labels"
            )
        blank = 0
        if numbers and len(set(told)) > _MOST_NUMBERS and _are_ids(told):
            blank = len(texts) - counts.total()
            yield f'kind = "multiclass"        # {_counted(counts)}'
            yield '# ? Numbers of classes: or are they amounts? Then kind = "regression".'
        elif numbers and len(set(told)) > _MOST_NUMBERS:
            yield 'kind = "regression"'
            yield '# ? Numbers: or is each a class of its own? Then kind = "multiclass".'
            blank = len(texts) - len(told)
        elif separator is not None:
            tags = Counter(t.strip() for text in texts for t in text.split(separator))
            yield f'kind = "multilabel"        # {_counted(tags)}'
            yield f"separator = {_toml(separator)}"
            yield "# ? Lists of tags: or is each a class of its own? Then kind = 'multiclass'."
        elif len(counts) > min(_MOST_CLASSES, rows // 2):
            raise UserError(
                f"column {name!r}: {len(counts)} different values in {rows} rows, expected labels: "
                "name another column with --labels"
            )
        else:
            yield f'kind = "multiclass"        # {_counted(counts)}'
            blank = len(texts) - counts.total()
            if alike := alike_but_capitals(counts):
                yield _comment(f"? Classes that differ by capitals only: {few(alike, 8)}")
            rare = [value for value, count in counts.items() if count < 3]
            if rare:
                yield _comment(
                    f"? Classes of fewer than three rows, too few for all parts: {few(rare, 8)}"
                )
        if blank:
            yield f'unlabelled = "skip"        # leaves out {blank} rows without a label'
    yield f"labels = {_toml(name)}"
    yield from (_comment(f"? Labels: {question}?") for question in questions)


def _are_ids(texts: Sequence[str]) -> bool:
    """Tell whether whole numbers look like those of classes: all of 0 or 1 to K, each often.

    Amounts, such as ages, are rare at their ends.
    """
    if not all(re.fullmatch(r"\d{1,6}", text) for text in texts):
        return False
    counts = Counter(map(int, texts))
    least, most = min(counts), max(counts)
    usual = len(texts) / len(counts)
    dense = least in (0, 1) and most - least + 1 == len(counts) <= _MOST_CLASSES
    return dense and usual >= _OFTEN and min(counts.values()) >= usual / 4


def _comment(text: str) -> str:
    """Return a line of TOML that says ``text``, in which a name or value may break lines."""
    return f"# {' '.join(re.sub(_CONTROL, ' ', text).split())}"


def _separator(texts: Sequence[str]) -> str | None:
    """Return what stands between tags: where there are fewer tags than lists of them."""
    for separator in "|;,":
        parted = [text.split(separator) for text in texts]
        tags = {tag.strip() for tags in parted for tag in tags}
        several = sum(len(tags) > 1 for tags in parted)
        if several > len(texts) / 20 and len(tags) < len(set(texts)) and len(tags) > 1:
            return separator
    return None


def _counted(counts: Counter[str]) -> str:
    told = [
        f"{' '.join(re.sub(_CONTROL, ' ', value).split())[:30]} {count}"
        for value, count in counts.most_common(6)
    ]
    return f"{len(counts)} classes: {', '.join(told)}{', …' if len(counts) > 6 else ''}"


def _parts(
    table: Path, out: Path, wishes: Wishes, found: list[_Found], group: str | None, rows: int
) -> Iterator[str]:
    """Yield the lines of data and split."""
    own = [one.name for one in found if one.role == "split"]
    grouped = "" if group is None else f", group = {_toml(group)}"
    if wishes.test is not None:
        held = "0.2" if wishes.validation is None else _relative(wishes.validation, out)
        yield (
            f"data = {{train = {_relative(table, out)}, validation = {held}, "
            f"test = {_relative(wishes.test, out)}{grouped}}}"
        )
        return
    yield f"data = {_relative(table, out)}"
    if own:
        yield f"split = {_toml(own[0])}"
        return
    fractions = (0.6, 0.2, 0.2) if rows < 5000 else (0.8, 0.1, 0.1)
    parts = ", ".join(
        f"{name} = {part}"
        for name, part in zip(("train", "validation", "test"), fractions, strict=True)
    )
    yield f"split = {{{parts}, seed = 0{grouped}}}"
    candidates = [one for one in found if one.role == "group" or "group" in one.told]
    if group is not None:
        yield _comment(
            f"? Rows of the same {group} stay in one part: is it that by which they depend?"
        )
    elif candidates:
        yield _comment(
            "? Do rows with the same value depend on each other? Then add to split: "
            + " or ".join(f"group = {_toml(one.name)}" for one in candidates)
        )


def _relative(path: Path, out: Path) -> str:
    return _toml(Path(os.path.relpath(path.absolute(), out.absolute().parent)).as_posix())


def _look(columns: Columns, name: str, rows: int, wishes: Wishes) -> _Found:
    """Return what a column seems to be."""
    fields = columns.get(name)
    if fields.ndim > 1:
        if fields.dtype.kind in "UT":
            return _Found(name, "left out", "lists of strings")
        keys = {"array": name, "type": "vector" if fields.ndim == 2 else "sequence"}
        return _Found(name, "array", f"numbers of shape {fields.shape[1:]} a row", keys)
    texts = [str(value).strip() for value in columns.get(name, text=True).tolist()]
    told = [text for text in texts if text.lower() not in MISSING]
    if not told:
        return _Found(name, "left out", "empty")
    if wishes.test is None and _is_split(columns, name):
        return _Found(name, "split", "the part of each row")
    if not name:
        return _Found(name, "left out", "a column without a name")
    type_ = ending_of(told)
    if type_ is not None:
        files = _files(columns, name, type_, [text.replace("\\", "/") for text in told])
        _may_lack(files, rows - len(told))
        return files
    if (unread := _unread_files(told)) is not None:
        return _Found(name, "left out", unread)
    different, gaps = len(set(told)), rows - len(told)
    missing = f", {gaps} missing" if gaps else ""
    numbers = all(number_of(text) is not None for text in told)
    shared = 10 < different <= len(told) / 1.5
    if shared and _GROUP.search(name):
        return _Found(name, "group", f"{different} different values, a group")
    if different == 1:
        return _Found(name, "left out", f"always {told[0][:30]!r}")
    if all(map(_DATE.fullmatch, told)):
        advice = "store what counts of them as numbers, such as days since or the month"
        return _Found(name, "left out", f"dates: {advice}")
    if not numbers and different > 20 and all(map(_DRESSED.fullmatch, told)):
        advice = "take units and thousands separators away"
        return _Found(name, "left out", f"numbers such as {told[0][:30]!r}: {advice}")
    whole = numbers and all(re.fullmatch(r"[+-]?\d+", text) for text in told)
    if whole and not gaps and (np.diff([int(text) for text in told]) == 1).all():
        return _Found(name, "left out", "counts the rows")
    if different == len(told) and (_ID.search(name) or not (numbers or " " in "".join(told))):
        return _Found(name, "left out", "another value in each row, as a name has")
    if numbers:
        if whole and shared and _ID.search(name):
            return _Found(name, "left out", f"{different} numbers of something, perhaps a group")
        return _Found(name, "vector", f"numbers{missing}")
    words = np.mean([len(text.split()) for text in told])
    if different <= min(MOST_CATEGORIES, max(rows // 5, 2)) and words < 5:
        return _Found(name, "vector", f"{different} categories{missing}")
    if words >= 1.5:
        told_of = f"texts of {words:.0f} words on average"
        found = _Found(name, "text", told_of, {"array": name, "type": "text"})
        _may_lack(found, texts.count(""))
        return found
    what = "perhaps a group" if shared else "neither text nor categories"
    return _Found(name, "left out", f"{different} different strings, {what}")


def _tells(columns: Columns, name: str, labels: str) -> bool:
    """Tell whether each value of a column has one label, and there are hardly more of them."""
    own, label = (columns.get(each, text=True) for each in (name, labels))
    if label.ndim != 1 or len(label) != len(own):
        return False
    pairs = set(zip(own.tolist(), label.tolist(), strict=True))
    values, classes = len({value for value, _ in pairs}), len({of for _, of in pairs})
    return values == len(pairs) and classes <= values <= min(2 * classes, len(own) // 4)


def _unread_files(told: Sequence[str]) -> str | None:
    """Return what is wrong with values that name files of several types, or unknown ones."""
    endings = Counter(Path(value.split("\n")[0]).suffix.lower() for value in told)
    if len(endings) > 8 or not all(map(_ENDING.fullmatch, endings)):
        return None
    known = {ending: type_ for type_, own in ENDINGS.items() for ending in own}
    counted = ", ".join(f"{ending} {count}" for ending, count in endings.most_common())
    if other := [ending for ending in endings if ending not in known]:
        return f"files {counted}: {few(other)} cannot be read: convert them, or take their rows out"
    return f"files of several types, {counted}: give each type a column of its own"


def _may_lack(found: _Found, gaps: int) -> None:
    """Say of a modality of which ``gaps`` rows are empty that rows may lack it."""
    if gaps:
        found.keys["missing"] = True
        found.questions.append(
            f"{gaps} rows are empty: the network learns to do without, and may be asked without. "
            "Or take these rows out."
        )


def _files(columns: Columns, name: str, type_: ModalityType, values: list[str]) -> _Found:
    """Return the modality of a column of paths, some of whose files were looked at."""
    keys: dict[str, Any] = {"array": name, "type": type_}
    base = columns.folder(name)
    inside = sorted(path for path in base.iterdir() if path.is_dir())
    place = next((p for p in (base, *inside) if (p / values[0]).is_file()), None)
    endings = ", ".join(sorted({Path(value).suffix.lower() for value in values}))
    found = _Found(name, "files", f"files {endings}", keys)
    if place is None:
        found.questions.append(_not_there(values[0], base))
    elif place != base:
        keys["folder"] = place.relative_to(base).as_posix()
    chosen = np.unique(np.linspace(0, len(values) - 1, _LOOKED_AT).astype(int)).tolist()
    paths = [(place or base) / values[row] for row in chosen]
    facts_of = {"image": picture_facts, "waveform": sound_facts}.get(type_)
    if place is None or facts_of is None:
        facts: list[Any] = []
    else:
        read, wrong = read_all(facts_of, paths)
        facts = [one for one in read if one is not None]
        if wrong:
            keys["broken"] = True
            found.questions.append(
                f"{len(wrong)} of {len(paths)} files cannot be read: {few(wrong.values())}"
            )
    if type_ == "image":
        _picture_keys(found, facts)
    elif type_ == "waveform":
        _sound_keys(found, facts)
    elif type_ == "clip":
        keys |= {"size": _SIDE, "frames": 8}
        found.questions.append("More frames tell more of movement, and cost as much more.")
    return found


def _not_there(path: str, base: Path) -> str:
    """Return what to do about a column of paths whose first is not below ``base``."""
    if "://" in path:
        return f"{path!r} is an address: download the files, and name them in the table."
    if _ELSEWHERE.match(path):
        return (
            f"There is no {path!r}, which is a path of another machine: copy the files beside the "
            f"table, and name them from there, such as {'/'.join(path.split('/')[-2:])!r}."
        )
    alike = [
        other.name
        for other in (base / path).parent.glob("*")
        if other.name.casefold() == Path(path).name.casefold()
    ]
    if alike:
        return f"There is no {path!r} in {base}, but {alike[0]!r}: names differ by capitals too."
    return f"There is no {path!r} in {base} or a folder in it: write folder = '…'."


def _picture_keys(found: _Found, facts: list[Any]) -> None:
    sides = np.array([(one["height"], one["width"]) for one in facts] or [(_SIDE, _SIDE)])
    side = int(min(_SIDE, max(np.median(sides.min(1)), _LEAST_SIDE)))
    found.keys["size"] = side
    if not facts:
        return
    found.told += f", {told_pictures(facts)}"
    if not {one["mode"] for one in facts} - {"L", "1", "I;16", "I", "LA"}:
        found.keys["grey"] = True
    if np.median(sides.min(1)) >= 2 * side:
        found.questions.append(
            f"size = {side} is quick to learn; details need more, published networks 224."
        )
    shapes = sides[:, 0] / sides[:, 1]
    if shapes.max() > 1.8 or shapes.min() < 1 / 1.8:
        found.questions.append(
            "Some are much longer than wide or wider than long: they are cut to the middle; "
            "fit = 'pad' or 'squeeze' keeps all of them."
        )


def _sound_keys(found: _Found, facts: list[Any]) -> None:
    rates = Counter(one["rate"] for one in facts)
    seconds = np.array([one["seconds"] for one in facts] or [1.0])
    length = min(float(np.ceil(np.quantile(seconds, 0.95) * 10) / 10), _SECONDS)
    common = rates.most_common(1)[0][0] if rates else _RATE
    found.keys |= {"sample_rate": min(common, _RATE), "seconds": max(length, 0.1)}
    if not facts:
        return
    found.told += f", {told_sounds(facts)}"
    longer = int((seconds > length).sum())
    if longer:
        found.questions.append(
            f"{longer} of {len(seconds)} are longer than seconds = {length} and are cut."
        )
    if common > _RATE:
        found.questions.append(
            f"Most have {common} Hz: speech needs no more than {_RATE}, music and machines may."
        )


def _name(column: str, taken: set[str]) -> str:
    """Return a name for the modality of a column that no other has."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", column).strip("_") or "modality"
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _toml(value: Any) -> str:
    """Return a string, number, boolean or list of strings as TOML has it."""
    # JSON may hold the control character 127 as it is, TOML may not.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
