"""Tables and reports for people: at every width nothing is cut, and notebooks get HTML."""

from __future__ import annotations

import html
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import pixelize
from pixelize.refit.report import RepairedSite, RepairReport
from pixelize.tables import Table, wrapped

ROWS = [("decoder.blocks.0.up", "512>256", "131,136"), ("head", "256>3", "8,208"), ("", "", "")]


@pytest.mark.parametrize("width", [20, 30, 45, 60, 80, 200])
def test_no_cell_is_cut_at_any_width(width: int) -> None:
    table = Table(("site", "channels", "parameters"), ROWS)
    text = table.text(width)
    words = set(text.split())
    for row in ROWS:
        assert all(set(cell.split()) <= words for cell in row)
    if width >= 45:
        assert max(map(len, text.splitlines())) <= width


def test_columns_that_fit_are_aligned() -> None:
    lines = Table(("site", "channels", "parameters"), ROWS).text(80).splitlines()
    ends = [line.index(cell) + len(cell) for line, cell in zip(lines[2:4], ("131,136", "8,208"), strict=True)]
    assert ends[0] == ends[1] == len(lines[0])


def test_html_is_escaped() -> None:
    text = Table(("<a>", "b"), [("<script>", "&")]).html()
    assert "<script>" not in text and "&lt;script&gt;" in text and "&amp;" in text


def test_long_words_stay_whole_and_continuations_are_indented() -> None:
    name = "a" * 50
    lines = wrapped([f"skipped: {name} for a reason that takes some room"], 30).splitlines()
    assert any(name in line for line in lines) and lines[1].startswith("    ")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(64, 3, 4, 2, 1))


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_reports_fit_the_terminal_with_every_digit(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    converted = pixelize.convert(network(), example_inputs=torch.randn(1, 128, 4, 4))
    report = pixelize.report(converted)
    text = str(report)
    assert max(map(len, text.splitlines())) <= columns
    words = set(re.split(r"\s+", text))
    for row in report.table().rows:
        assert all(set(cell.split()) <= words for cell in row)


def test_reports_have_a_short_repr_and_html() -> None:
    converted = pixelize.convert(network(), example_inputs=torch.randn(1, 128, 4, 4))
    report = pixelize.report(converted)
    assert len(repr(report)) < 120 and "2 converted" in repr(report)
    page = report._repr_html_()
    for row in report.table().rows:
        assert all(html.escape(cell) in page for cell in row)
    assert "relative error" in page


def test_str_is_the_same_inside_a_notebook() -> None:
    """Whatever displays output in a notebook, ``str(report)`` is text."""
    code = (
        "import sys, types\n"
        "class Shell: pass\n"
        "sys.modules['IPython'] = types.ModuleType('IPython')\n"
        "import builtins; Shell.__name__ = 'ZMQInteractiveShell'\n"
        "builtins.get_ipython = lambda: Shell()\n"
        "import torch, pixelize\n"
        "print(pixelize.inspect(torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 3, 4, 2, 1))))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "1 convertible" in run.stdout and "conv_transpose" in run.stdout


def test_an_inexact_conversion_is_called_so() -> None:
    x = torch.randn(1, 128, 4, 4)
    exact, fitted = (
        str(pixelize.report(pixelize.convert(network(), layer, example_inputs=x)))
        for layer in ("ipixeldcl", "pixeldcl")
    )
    assert "to rounding" in exact and "NOT the model before" not in exact
    assert "NOT the model before" in " ".join(fitted.split()) and "calibrate" in fitted


def test_import_brings_in_nothing_for_pages() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import pixelize\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new & {'matplotlib', 'jinja2', 'PIL', 'rich', 'typer', 'triton', 'torchvision'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_repairs_report_has_a_verdict_and_every_level() -> None:
    before = {"global": {"(0,1/2)": 3.0, "(1/2,1/2)": 13.84}, "windowed": {"(0,1/2)": -1.5, "(1/2,1/2)": 8.2}}
    after = {"global": {"(0,1/2)": 0.5, "(1/2,1/2)": 1.25}, "windowed": {"(0,1/2)": -1.4, "(1/2,1/2)": 0.3}}
    sites = [RepairedSite("up", "repaired"), RepairedSite("down", "left", "it has <no> pattern")]
    report = RepairReport(sites, before, after, psnr=41.2, samples=64)
    for width in (40, 60, 100):
        text = report.text(width)
        assert max(map(len, text.splitlines())) <= width
        assert {"+13.8", "+1.2", "-1.5", "-1.4"} <= set(text.split())
    told = " ".join(str(report).split())
    assert "Repaired up: 2 frequencies stood out by 3 dB or more, none now." in told
    assert "(1/2,1/2), the worst, went from +13.8 to +1.2 dB. " in told
    assert "&lt;no&gt;" in report._repr_html_() and "<table" in report._repr_html_()
    assert len(repr(report)) < 200
    little = {"global": {"(0,1/2)": -9.0, "(1/2,1/2)": 13.5}, "windowed": {"(0,1/2)": -9.0, "(1/2,1/2)": 8.2}}
    told = RepairReport(sites, before, little, samples=64).verdict()
    assert "1 now" in told and "(0,1/2) fell most, from +3.0 to -9.0 dB" in told
    assert "(1/2,1/2), the worst, went from +13.8 to +13.5 dB." in told
    other = {"global": {"(0,1/2)": 1.0, "(1/2,1/2)": -2.0}}
    assert RepairReport(sites, before, other).verdict().endswith(", and now (0,1/2) is, with +1.0 dB.")
    unchanged = RepairReport([RepairedSite("up", "left", "clean")], before, before, samples=64)
    assert (
        unchanged.verdict() == "Could not be repaired although a pattern stands out by +13.8 dB: up: clean."
    )
    assert str(RepairReport(notes=["no picture"])) == "Nothing to repair: no picture."
    blind = RepairReport([RepairedSite("up", "repaired")])
    assert "from the weights alone" in str(blind)


def test_a_reason_that_layers_share_is_told_once_and_long_tables_are_cut() -> None:
    many = {f"({n}/64,1/2)": float(n) for n in range(64)}
    same = [RepairedSite(f"up{n}", "left", "it makes little") for n in range(9)]
    report = RepairReport([RepairedSite("last", "repaired"), *same], {"global": many}, {"global": many})
    for told in (str(report), report._repr_html_()):
        assert "up0, up1, up2 and 6 more: it makes little" in told and told.count("makes little") == 1
        assert "48 frequencies more: +47.0 dB at most" in told
        assert "(63/64,1/2)" in told and "(48/64,1/2)" in told and "(47/64,1/2)" not in told
    assert len(report.table().rows) == 64
