"""Files among somebody's data that cannot be read: passed over, and told."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pixelize.errors import ArgumentError, PixelizeWarning

NAMED = 3
"""Files named in a warning, before the others are counted."""
Place = tuple[str, str | None]
"""A file of data: a path, and the place in it if that is a zip archive."""


class UnreadableError(ArgumentError):
    """A file that is not of the kind that its name promises, a damaged one, or one that is too large."""


class PassedOver:
    """The files that could not be read so far, with the reasons."""

    def __init__(self) -> None:
        self.reasons: dict[Place, str] = {}

    @contextmanager
    def over(self, place: Place) -> Iterator[None]:
        """In this a file may turn out not to be readable."""
        try:
            yield
        except UnreadableError as error:
            self.reasons[place] = str(error)

    def tell(self, some_read: bool) -> None:
        """Warns of the files passed over. Raises ArgumentError if they are all that there were."""
        told = list(self.reasons.values())
        more = f"; and {len(told) - NAMED} more" if len(told) > NAMED else ""
        listing = "; ".join(told[:NAMED]) + more
        if told and not some_read:
            raise ArgumentError(listing)
        if told:
            warnings.warn(f"passed over: {listing}", PixelizeWarning, stacklevel=3)
