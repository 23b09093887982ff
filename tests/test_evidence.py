"""The evidence page says what the raw rows say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("scipy")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("evidence")
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_pages_tables_are_those_of_the_raw_rows(evidence: ModuleType) -> None:
    page = evidence.PAGE.read_text()
    for name, table in evidence.TABLES.items():
        assert f"<!-- {name} -->\n\n{table()}\n<!-- end -->" in page, f"{name}: run benchmarks/evidence.py"


def test_seeds_are_enough_for_two_standard_errors(evidence: ModuleType) -> None:
    for deviation, effect in ((0.01, 0.003), (0.01, 0.01), (0.02, 0.011)):
        n = evidence.seeds_to_see(deviation, effect)
        assert 2 * deviation / n**0.5 <= effect < 2 * deviation / (n - 1) ** 0.5
    assert evidence.seeds_to_see(0.001, 1.0) == 2
