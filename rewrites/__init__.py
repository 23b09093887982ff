"""Finding up-sampling in any model, and splicing a replacement in. Knows torch and nothing else."""

from __future__ import annotations

from pixelize.rewrites.applying.outline import inline, outline
from pixelize.rewrites.finding.survey import survey
from pixelize.rewrites.idioms.registry import canonical, check_site, replacement
from pixelize.rewrites.site import (
    SITE_KINDS,
    Convolutions,
    Geometry,
    Site,
    SiteKind,
    Skipped,
    Survey,
    TransposedConv,
    geometry_of,
)
from pixelize.rewrites.state.splice import become, state_of

__all__ = [
    "SITE_KINDS",
    "Convolutions",
    "Geometry",
    "Site",
    "SiteKind",
    "Skipped",
    "Survey",
    "TransposedConv",
    "become",
    "canonical",
    "check_site",
    "geometry_of",
    "inline",
    "outline",
    "replacement",
    "state_of",
    "survey",
]
