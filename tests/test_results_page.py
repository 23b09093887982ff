"""The page of a training: escaped, complete, in the one style of all pages."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("scipy")
from pixelize.recipes.training.results import ArmResult, write_results


def test_the_results_page_holds_everything_and_fetches_nothing(tmp_path) -> None:
    history = [{"step": 0, "seconds": 0.0, "loss": 1.0}, {"step": 5, "seconds": 1.0, "loss": 0.25}]
    arms = [
        ArmResult(name, [0, 1], [{"loss": 0.25}, {"loss": 0.5}], [history, history], {"parameters": 131136.0})
        for name in ("control", "<b>arm</b>")
    ]
    write_results(tmp_path, "A <title> & more", arms, {"rate": "<1e-3>"})
    page = (tmp_path / "report.html").read_text()
    assert "131,136" in page and "&lt;b&gt;arm&lt;/b&gt;" in page and "&lt;1e-3&gt;" in page
    assert "<b>arm" not in page and "A &lt;title&gt; &amp; more" in page
    assert not re.search(r'(src|href)="(?!data:)', page) and "prefers-color-scheme: dark" in page
    assert json.loads((tmp_path / "results.json").read_text())["arms"].keys() == {"control", "<b>arm</b>"}
