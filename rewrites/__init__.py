"""Finding up-sampling in any model, and splicing a replacement in. Knows torch and nothing else."""

from __future__ import annotations

from pixelize.rewrites.functional import outline
from pixelize.rewrites.idioms import canonical, replacement
from pixelize.rewrites.site import (
    SITE_KINDS,
    Geometry,
    Site,
    SiteKind,
    Skipped,
    Survey,
    TransposedConv,
    geometry_of,
)
from pixelize.rewrites.splice import become, state_of
from pixelize.rewrites.survey import survey

__all__ = [
    "SITE_KINDS",
    "Geometry",
    "Site",
    "SiteKind",
    "Skipped",
    "Survey",
    "TransposedConv",
    "become",
    "canonical",
    "geometry_of",
    "outline",
    "replacement",
    "state_of",
    "survey",
]
