"""The package's own exceptions. Every one of them leaves the model as it was."""

from __future__ import annotations


class PixelizeError(Exception):
    """Anything that pixelize refuses to do. The message names the module and says what to do next."""


class ArgumentError(PixelizeError, ValueError):
    """An argument that means nothing: a wrong ``layer``, a pattern that matches no site, data nobody
    needs.
    """


class NothingToConvertError(PixelizeError):
    """The model has no site that the given arguments would convert; the message lists what was found."""


class ConversionError(PixelizeError):
    """A site could not be converted; the model is left as it was."""


class LoadError(PixelizeError):
    """A folder that is not what :func:`pixelize.save` wrote, is damaged, or belongs to another model."""


class MissingExtraError(PixelizeError, ImportError):
    """A library is needed that is not installed; the message names the extra that brings it."""


class PixelizeWarning(UserWarning):
    """Something the user should know that is no error: a no-op, a site left out, an approximation."""
