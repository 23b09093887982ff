"""What the package promises: its public names, and that importing it brings and changes nothing else."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings this one
    import tomli as tomllib

import pixelize
from pixelize.extras import MODULES, require

ROOT = Path(__file__).parent.parent
# A name leaves this list one minor release after it began to warn; see CONTRIBUTING.md.
PUBLIC = {
    "ArgumentError",
    "ConversionError",
    "Diagnosis",
    "GateSchedule",
    "LoadError",
    "MissingExtraError",
    "NothingToConvertError",
    "PartialPixelDCL2d",
    "PixelConv1d",
    "PixelConv2d",
    "PixelConv3d",
    "PixelDCL1d",
    "PixelDCL2d",
    "PixelDCL3d",
    "PixelizeError",
    "PixelizeWarning",
    "RepairReport",
    "Report",
    "adapter_state_dict",
    "calibrate",
    "checkerboard",
    "checkerboard_nd",
    "connect_pretrained",
    "convert",
    "diagnose",
    "fold",
    "harden",
    "iPixelConv1d",
    "iPixelConv2d",
    "iPixelConv3d",
    "iPixelDCL1d",
    "iPixelDCL2d",
    "iPixelDCL3d",
    "inspect",
    "ipixel_conv1d",
    "ipixel_conv2d",
    "ipixel_conv3d",
    "ipixel_dcl1d",
    "ipixel_dcl2d",
    "ipixel_dcl3d",
    "load",
    "load_adapter",
    "notch",
    "param_groups",
    "pixel_conv1d",
    "pixel_conv2d",
    "pixel_conv3d",
    "pixel_dcl1d",
    "pixel_dcl2d",
    "pixel_dcl3d",
    "repair",
    "repair_report",
    "report",
    "revert",
    "save",
    "set_input_gate",
    "write_report",
}
DEPRECATED = ("WhitenedAdam",)


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_names():
    assert set(pixelize.__all__) == PUBLIC
    assert all(hasattr(pixelize, name) for name in PUBLIC)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pixelize.nonsense


@pytest.mark.parametrize("name", DEPRECATED)
def test_deprecated_names_work_and_warn(name):
    with pytest.warns(DeprecationWarning, match=name):
        assert isinstance(getattr(pixelize, name), type)


def test_an_import_brings_no_extra_and_changes_nothing():
    extras = sorted({module for modules in MODULES.values() for module in modules})
    code = (
        "import logging, sys, warnings, torch\n"
        "def state():\n"
        "    return (list(sys.meta_path), list(sys.path_hooks), list(sys.path), list(warnings.filters),\n"
        "            torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(),\n"
        "            logging.getLogger().handlers[:], sys.excepthook, warnings.showwarning)\n"
        "before = state()\n"
        "import pixelize\n"
        "assert state() == before\n"
        "slow = [m for m in ('sympy', 'triton', 'torch._dynamo', 'torch._inductor') if m in sys.modules]\n"
        "assert not slow, slow\n"
        f"print([m for m in {extras} if m in sys.modules])\n"
    )
    assert fresh(code).strip() == "[]"


def test_one_version():
    try:
        installed = version("torch-pixelize")
    except PackageNotFoundError:
        pytest.skip("run from a checkout that is not installed")
    assert pixelize.__version__ == installed


def test_each_extra_is_one_of_the_packages_own():
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(MODULES) <= set(stated)


@pytest.mark.parametrize("extra", sorted(MODULES))
def test_a_missing_library_is_named_with_its_extra(extra, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULES[extra][-1], None)
    told = rf"^this needs .*not installed: pip install 'torch-pixelize\[{extra}\]'"
    with pytest.raises(pixelize.MissingExtraError, match=told):
        require(extra, "this")
    with pytest.raises(ImportError):
        require(extra, "this")


@pytest.mark.parametrize(
    "extra, call",
    [
        ("pages", "pixelize.write_report(torch.nn.Identity(), 'page.html', inputs=torch.zeros(1, 3, 8, 8))"),
        ("cli", "importlib.import_module('pixelize.command_line').main()"),
    ],
)
def test_without_extras_the_core_works_and_errors_say_what_to_install(extra, call, tmp_path, monkeypatch):
    """In an interpreter that finds none of the extras' libraries."""
    monkeypatch.chdir(tmp_path)
    missing = sorted({module for modules in MODULES.values() for module in modules})
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({missing}))\n"
        "import torch, pixelize\n"
        "model = torch.nn.Sequential(torch.nn.ConvTranspose2d(3, 3, 4, 2, 1))\n"
        "print(pixelize.report(pixelize.convert(model, example_inputs=torch.zeros(1, 3, 8, 8))))\n"
        "try:\n"
        f"    {call}\n"
        "except (pixelize.MissingExtraError, SystemExit) as error:\n"
        "    print(error)\n"
    )
    out = fresh(code)
    assert "1 converted" in out and f"pip install 'torch-pixelize[{extra}]'" in out
    assert not list(tmp_path.iterdir())


def test_tab_finds_the_public_names_alone():
    assert dir(pixelize) == sorted([*pixelize.__all__, "__version__"])
