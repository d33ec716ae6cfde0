from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import GENOTYPE, METRICS, epoch, manifest, write_run
from tiny_runs import svg_texts as texts

from bmnas.machine.errors import UserError
from bmnas.report.comparison import comparison_page, comparison_rows
from bmnas.report.history import history_parts, weights_parts
from bmnas.report.record import Record, load_bundle, load_run
from bmnas.report.style import figure_of
from bmnas.report.tables import html_tables, markdown, run_tables
from bmnas.report.view import draw_record, record_page, record_tables
from bmnas.spaces.cells.operations import OPERATIONS, Operation

Make = Callable[..., Path]


def _weights(run: Record) -> Any:
    return figure_of(*weights_parts(run))


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda name="run", **parts: write_run(tmp_path / name, **parts)


def test_weights_are_written_into_the_heat_maps(make: Make) -> None:
    changed = {"alpha": [[0.625, 0.375]], "gamma": [[[0.125, 0.2, 0.4, 0.2, 0.075]] * 2]}
    history = [epoch(1, 0.8), epoch(2, 0.9, best=True, **changed)]
    shown = texts(_weights(load_run(make(history=history))))
    assert {"left.1", "right.1", "Cell 1, step 2", "Concat FC"} <= set(shown)
    assert shown.count("0.625") == 1
    assert shown.count("0.125") == 2
    assert shown.count("0.700") == 1


@pytest.mark.parametrize("more", [2, 9])
def test_further_operations_have_columns_of_their_own(
    make: Make, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    before = load_run(make("before"))
    for n in range(more):
        operation = Operation(f"more_{n}", f"More {n}", "{0} more {1}", module=None)
        monkeypatch.setitem(OPERATIONS, f"more_{n}", operation)
    lines = [epoch(n, 0.9, gamma=[[[1 / (5 + more)] * (5 + more)] * 2]) for n in (1, 2)]
    shown = texts(_weights(load_run(make("after", history=lines))))
    assert {"Sum", "More 0", f"More {more - 1}"} <= set(shown)
    # A run from before knows nothing of them.
    assert "More 0" not in texts(_weights(before))


def test_weights_of_a_strategy_without_weights_are_refused_but_its_run_is_drawn(
    make: Make,
) -> None:
    lines = [{"epoch": n, "validation_score": 0.5, "cells": None} for n in (1, 2)]
    run = load_run(make(history=lines))
    assert weights_parts(run) == []
    shown = texts(draw_record(run))
    assert "Search" in shown
    assert not [text for text in shown if "alpha" in text]


def test_history_marks_the_best_epoch_and_shows_the_training(make: Make) -> None:
    folder = make()
    line = {"epoch": 1, "learning_rate": 0.1, "train_loss": 0.5, "train_score": 0.9, "seconds": 1}
    (folder / "train.jsonl").write_text(json.dumps(line) + "\n")
    run = load_run(folder)
    shown = texts(figure_of(*history_parts(run)))
    assert "best: epoch 2, 0.9000" in shown
    assert {"Search", "Training", "learning rate"} <= set(shown)
    assert "accuracy, validation" in shown


def test_run_without_any_file_to_draw_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected a genotype or history\.jsonl to draw"):
        draw_record(load_run(tmp_path))
    with pytest.raises(UserError, match="expected a run folder with one of"):
        load_run(tmp_path / "nothing")


def test_tables_leave_out_what_no_stage_has_measured(make: Make) -> None:
    seconds = {"search": 20.0, "gpu_hours": 0}
    metrics = {"search": METRICS["search"], "seconds": seconds}
    tables = {
        table.title: table.rows for table in run_tables(load_run(make(metrics=metrics)).metrics)
    }
    assert set(tables) == {"Scores, score", "Search", "Time"}
    assert tables["Scores, score"] == (("fused", "0.9700"),)
    assert tables["Time"] == (("search", "20.0"),)
    assert dict(tables["Search"]) == {"validation": "0.97", "strategy": "bmnas", "best epoch": "2"}


def test_tables_say_where_the_time_and_the_memory_went(make: Make) -> None:
    seconds = {"backbones": 8.0, "compile": 0.0, "search_weights": 7.25, "rerank": 3.0,
               "other": 0.25, "search": 10.5, "train_compile": 40.0, "train": 99.0}  # fmt: skip
    metrics = {
        "seconds": seconds,
        "samples_per_second": {"search_weights": 1234.5, "train": 10.0},
        "peak_memory": {"search": {"resident_bytes": 3 << 20, "device_bytes": 5 << 30}},
    }
    tables = {table.title: table for table in run_tables(load_run(make(metrics=metrics)).metrics)}
    assert tables["Time"].columns == ("stage", "seconds", "samples/s")
    assert tables["Time"].rows == (
        ("backbones", "8.0", "–"),
        ("search weights", "7.2", "1,234.5"),
        ("rerank", "3.0", "–"),
        ("other", "0.2", "–"),
        ("search", "10.5", "–"),
        ("train compile", "40.0", "–"),
        ("train", "99.0", "10.0"),
    )
    assert tables["Peak memory"].rows == (
        ("search resident bytes", "3,145,728"),
        ("search device bytes", "5,368,709,120"),
    )


def test_markdown_and_html_escape_what_files_say(make: Make) -> None:
    tables = run_tables(load_run(make()).metrics)
    assert r"a \| b &lt;script&gt;" in markdown(tables)
    assert "| torch batch 1 median ms | 1.5 |" in markdown(tables)
    assert "<script>" not in html_tables(tables)


def test_any_manifest_is_shown(tmp_path: Path) -> None:
    odd = {"inputs": 3, "outputs": [3, {"name": ["<b>"]}], "class_names": "a", "<task>": {"x": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps(odd))
    record = load_bundle(tmp_path)
    assert record_tables(record)[0].rows[0] == ("inputs", "3")
    assert "&lt;b&gt;" in record_page(record)
    assert "<b>" not in record_page(record)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        assert "src" not in values


def test_pages_are_self_contained_and_their_ids_differ(make: Make) -> None:
    run = make()
    (run / "bundle").mkdir()
    (run / "bundle" / "manifest.json").write_text(json.dumps(manifest()))
    record = load_run(run)
    assert record.manifest
    pages = [
        record_page(record),
        record_page(load_bundle(run / "bundle")),
        record_page(Record(Path("<script>alert(1)<"), "genotype", GENOTYPE)),
        comparison_page(comparison_rows([record])),
    ]
    for page in pages:
        parsed = _Page()
        parsed.feed(page)
        assert len(parsed.ids) == len(set(parsed.ids))
        assert not {"script", "link", "img", "iframe", "b"} & set(parsed.tags)
        assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(parsed.ids)
        assert "prefers-color-scheme: dark" in page
        assert "svg" in parsed.tags
    assert "Architecture weights" in pages[0]
    assert "0.9600" in pages[0]
    assert "&lt;b&gt;half&lt;/b&gt;" in pages[1]
