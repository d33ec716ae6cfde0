from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from many_ranks import run_ranks

SUPPORT = Path(__file__).parents[1] / "support"


def test_several_ranks_train_several_seeds_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(SUPPORT)]))
    first, second = run_ranks(tmp_path, SUPPORT / "rank_several.py")
    assert (first.status, second.status) == (0, 0), first.err + second.err
    # Another mask in one place moves a loss by a hundred times as much.
    assert float(first.out) < 1e-5
    assert second.out == ""
