"""Which icon belongs to which name and tags: a matching task of 1,699 icons.

bmnas search --strategy mmnas --task examples.icon_matching:icon_matching --data DIR/icon-tags
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bmnas.tasks import Modality, Task


def icon_matching(data: Path) -> Task:
    """Return the icons of the folder ``data`` with their names and tags; equal texts are one."""
    lines = (data / "icons.jsonl").read_text(encoding="utf-8").splitlines()
    texts = np.array([" ".join([row["text"], *row["tags"]]) for row in map(json.loads, lines)])
    with np.load(data / "icons.npz", allow_pickle=False) as file:
        images, part = file["images"], file["part"]
    return Task(
        name="icon-matching",
        kind="matching",
        modalities=(
            Modality("text", "text", texts),
            Modality("image", "image", images),
        ),
        labels=np.unique(texts, return_inverse=True)[1],
        part=part,
        class_names=("match",),
        licence="ISC (Lucide), parts MIT (Feather)",
    )
