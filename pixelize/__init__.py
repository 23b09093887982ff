"""pixelize: take the checkerboard out of trained PyTorch models.

``pixelize.convert(model)`` replaces the up-sampling layers of a trained model by pixel deconvolutions (Gao et
al., *Pixel Deconvolutional Networks*) that inherit its weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pixelize.adapters import connect as _connect
from pixelize.calibrate import calibrate
from pixelize.checkerboard import checkerboard
from pixelize.convert import convert, converted_modules, inspect, revert
from pixelize.errors import (
    ArgumentError,
    ConversionError,
    LoadError,
    NothingToConvertError,
    PixelizeError,
    PixelizeWarning,
)
from pixelize.fold import fold
from pixelize.functional import ipixel_dcl2d, pixel_dcl2d
from pixelize.gate import GateSchedule, harden, set_input_gate
from pixelize.layers import PixelDCL2d, iPixelDCL2d
from pixelize.parameters import param_groups
from pixelize.partial_layer import PartialPixelDCL2d
from pixelize.repair import repair
from pixelize.repair_report import RepairReport, repair_report
from pixelize.report import Report, report
from pixelize.serialization import load, save
from pixelize.whitened_adam import WhitenedAdam

if TYPE_CHECKING:
    from pixelize.html_report import write_report

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
    "calibrate",
    "checkerboard",
    "convert",
    "fold",
    "harden",
    "iPixelDCL2d",
    "inspect",
    "ipixel_dcl2d",
    "load",
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
        from pixelize.html_report import write_report

        return write_report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# save_pretrained and from_pretrained of converted models: at once, or when their library is imported
_connect(save, load, lambda model: bool(converted_modules(model)))
