"""pixelize: take the checkerboard out of trained PyTorch models."""

from __future__ import annotations

from pixelize.errors import PixelizeError, PixelizeWarning

__version__ = "0.1.0"
__all__ = ["PixelizeError", "PixelizeWarning"]
