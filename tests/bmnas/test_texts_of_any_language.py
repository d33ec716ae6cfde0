"""What decides is a vowel sign, two characters in a clause, a sign, or a word late in the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.random import Generator
from tiny_tasks import CONFIG

from bmnas.pipeline.context import RunContext
from bmnas.pipeline.run_folder import Run
from bmnas.pipeline.unimodal import evaluate_unimodal, unimodal_networks
from bmnas.tasks import Modality, Task

CHINESE = list("天地人日月山水火木金土大小上下左右中东西南北春夏秋冬风雨雪花草鸟鱼虫")
THAI = ["บ้าน", "น้ำ", "หนังสือ", "ถนน", "คน", "งาน", "ชื่อ", "แมว"]
HINDI = ["यह", "वह", "घर", "पानी", "किताब", "सड़क", "लोग", "बात", "काम", "नाम"]
ENGLISH = [
    "the",
    "court",
    "heard",
    "the",
    "parties",
    "and",
    "read",
    "papers",
    "of",
    "both",
    "again",
]
SAMPLES = 240


def among(draw: Generator, fill: list[str], key: str, blank: str, before: int, after: int) -> str:
    return blank.join([*draw.choice(fill, before), key, *draw.choice(fill, after)])


@pytest.mark.parametrize(
    ("fill", "keys", "blank", "before"),
    [
        (HINDI, ("दिन", "दीन"), " ", 4),
        (CHINESE, ("喜欢", "讨厌"), "", 5),
        (THAI, ("ดี", "เลว"), "", 3),
        (ENGLISH, ("C++", "C#"), " ", 4),
        (ENGLISH, ("👍🏽", "👎🏽"), " ", 4),
        (ENGLISH, (":)", ":("), " ", 4),
        (ENGLISH, ("dismissed", "allowed"), " ", 160),
    ],
    ids=["hindi", "chinese", "thai", "signs", "emoji", "smileys", "late"],
)
def test_what_decides_is_read(
    tmp_path: Path, fill: list[str], keys: tuple[str, str], blank: str, before: int
) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, SAMPLES)
    texts = [among(draw, fill, keys[label], blank, before, 3) for label in labels]
    text = Modality("text", "text", np.array(texts))
    part = np.arange(SAMPLES) % 3
    task = Task("told", "multiclass", (text,), labels, part, ("no", "yes"))
    context = RunContext(Run(tmp_path), task, CONFIG.override("unimodal", epochs=4, linear=True), 0)
    backbone = unimodal_networks(context)["text"].backbone
    assert evaluate_unimodal(context, "text", backbone, "test").score > 0.97
