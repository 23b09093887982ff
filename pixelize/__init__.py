"""pixelize: take the checkerboard out of trained PyTorch models.

``pixelize.convert(model)`` replaces the up-sampling layers of a trained model by pixel deconvolutions (Gao et
al., *Pixel Deconvolutional Networks*) that inherit its weights.
"""

from __future__ import annotations

import warnings as _warnings
from pathlib import Path as _Path
from typing import Any as _Any

if not (_Path(__file__).parent / "rewrites").is_dir():
    # imported from a checkout, in which rewrites/ and adapters/ lie beside this folder
    __path__.append(str(_Path(__file__).parent.parent))

from pixelize.conversion.adapter import adapter_state_dict, load_adapter
from pixelize.conversion.calibrate import calibrate
from pixelize.conversion.convert import convert
from pixelize.conversion.fold import fold
from pixelize.conversion.harden import harden
from pixelize.conversion.inspect import inspect
from pixelize.conversion.report import Report, report
from pixelize.conversion.revert import revert
from pixelize.conversion.saved import connect_pretrained, load, save
from pixelize.diagnosis.diagnose import diagnose
from pixelize.diagnosis.report import Diagnosis
from pixelize.errors import (
    ArgumentError,
    ConversionError,
    LoadError,
    MissingExtraError,
    NothingToConvertError,
    PixelizeError,
    PixelizeWarning,
)
from pixelize.layers.functional import (
    ipixel_dcl1d,
    ipixel_dcl2d,
    ipixel_dcl3d,
    pixel_dcl1d,
    pixel_dcl2d,
    pixel_dcl3d,
)
from pixelize.layers.functional_conv import (
    ipixel_conv1d,
    ipixel_conv2d,
    ipixel_conv3d,
    pixel_conv1d,
    pixel_conv2d,
    pixel_conv3d,
)
from pixelize.layers.gate import GateSchedule, set_input_gate
from pixelize.layers.parameter_groups import param_groups
from pixelize.layers.pixel_conv import (
    PixelConv1d,
    PixelConv2d,
    PixelConv3d,
    iPixelConv1d,
    iPixelConv2d,
    iPixelConv3d,
)
from pixelize.layers.pixel_dcl import (
    PartialPixelDCL2d,
    PixelDCL1d,
    PixelDCL2d,
    PixelDCL3d,
    iPixelDCL1d,
    iPixelDCL2d,
    iPixelDCL3d,
)
from pixelize.measure.any_axes import checkerboard_nd
from pixelize.measure.checkerboard import checkerboard
from pixelize.measure.notch import notch
from pixelize.pages.page import write_report
from pixelize.refit.repair import repair
from pixelize.refit.report import RepairReport, repair_report
from pixelize.version import __version__ as __version__

__all__ = [
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
]


def __getattr__(name: str) -> _Any:
    """Names that were public once."""
    if name == "WhitenedAdam":
        _warnings.warn(
            "pixelize.WhitenedAdam is an experiment that calibrate(joint_steps=...) uses: import it from "
            "pixelize.calibration.whitened_adam, where it may change without notice",
            DeprecationWarning,
            stacklevel=2,
        )
        from pixelize.calibration.whitened_adam import WhitenedAdam

        return WhitenedAdam
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a person finds by tab: the public names, without the rooms that they live in."""
    return sorted([*__all__, "__version__"])
