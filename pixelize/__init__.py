"""pixelize: take the checkerboard out of trained PyTorch models.

``pixelize.convert(model)`` replaces the up-sampling layers of a trained model by pixel deconvolutions (Gao et
al., *Pixel Deconvolutional Networks*) that inherit its weights.
"""

from __future__ import annotations

from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if not (_Path(__file__).parent / "rewrites").is_dir():
    # imported from a checkout, in which rewrites/ and adapters/ lie beside this folder
    __path__.append(str(_Path(__file__).parent.parent))

from pixelize.adapters import connect as _connect
from pixelize.calibration.whitened_adam import WhitenedAdam
from pixelize.conversion.adapter import adapter_state_dict, load_adapter
from pixelize.conversion.calibrate import calibrate
from pixelize.conversion.convert import convert, inspect, revert
from pixelize.conversion.fold import fold
from pixelize.conversion.harden import harden
from pixelize.conversion.report import Report, report
from pixelize.conversion.saved import load, save
from pixelize.errors import (
    ArgumentError,
    ConversionError,
    LoadError,
    NothingToConvertError,
    PixelizeError,
    PixelizeWarning,
)
from pixelize.inheritance.record import converted_modules
from pixelize.layers.functional import ipixel_dcl2d, pixel_dcl2d
from pixelize.layers.gate import GateSchedule, set_input_gate
from pixelize.layers.parameter_groups import param_groups
from pixelize.layers.partial import PartialPixelDCL2d
from pixelize.layers.pixel_dcl import PixelDCL2d, iPixelDCL2d
from pixelize.measure.checkerboard import checkerboard
from pixelize.refit.repair import repair
from pixelize.refit.report import RepairReport, repair_report

if TYPE_CHECKING:
    from pixelize.pages.page import write_report

__version__ = "0.1.0"
__all__ = [
    "ArgumentError",
    "ConversionError",
    "GateSchedule",
    "LoadError",
    "NothingToConvertError",
    "PartialPixelDCL2d",
    "PixelDCL2d",
    "PixelizeError",
    "PixelizeWarning",
    "RepairReport",
    "Report",
    "WhitenedAdam",
    "adapter_state_dict",
    "calibrate",
    "checkerboard",
    "convert",
    "fold",
    "harden",
    "iPixelDCL2d",
    "inspect",
    "ipixel_dcl2d",
    "load",
    "load_adapter",
    "param_groups",
    "pixel_dcl2d",
    "repair",
    "repair_report",
    "report",
    "revert",
    "save",
    "set_input_gate",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """``write_report`` at its first use: matplotlib and jinja2 need not be imported for anything else."""
    if name == "write_report":
        from pixelize.pages.page import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# save_pretrained and from_pretrained of converted models: at once, or when their library is imported
_connect(save, load, lambda model: bool(converted_modules(model)))
