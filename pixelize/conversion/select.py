"""Which of the sites that were found a request means, and why the others are left."""

from __future__ import annotations

from fnmatch import fnmatchcase

from pixelize.conversion.request import Request, Selection
from pixelize.errors import ArgumentError
from pixelize.rewrites import Site, Survey


def select(survey: Survey, request: Request) -> tuple[Site, ...]:
    """The sites that a request converts, in the order of the survey.

    Raises ArgumentError for a pattern that matches no site.
    """
    for argument, selection in (("include", request.include), ("exclude", request.exclude)):
        for pattern in _patterns(selection):
            if pattern != "*" and not any(_matches(s, pattern) for s in survey.sites):
                listed = ", ".join(site_name(s.name) for s in survey.sites) or "none"
                raise ArgumentError(f"{argument}={pattern!r} matches no site; the model has: {listed}")
    return tuple(
        s
        for s in survey.sites
        if not reason_of_kind(s, request)
        and _selected(s, request.include)
        and not _selected(s, request.exclude)
    )


def reason_of_kind(site: Site, request: Request) -> str:
    """Why the kind of a site keeps it from being converted, or an empty string."""
    if request.layer == "dcl" and site.kind == "conv_transpose":
        return "a plain transposed convolution already"
    return "" if site.kind in request.kinds else f"kind {site.kind!r} is not among sites"


def reason_left(site: Site, request: Request) -> str:
    """Why a site that could be converted is not."""
    return reason_of_kind(site, request) or "left out by include or exclude"


def nothing_selected(model: str, survey: Survey, request: Request) -> str:
    """What to tell somebody whose request converts nothing: all that was found, and what would convert it."""
    lines = [f"nothing to convert in this {model} (seen through: {survey.capture})."]
    for site in survey.sites:
        reason = reason_left(site, request)
        if request.layer == "dcl" and site.kind == "conv_transpose":
            reason += ": layer='ipixeldcl' or 'pixeldcl' would convert it"
        elif site.kind not in request.kinds:
            reason = f"would be converted with sites={(*request.sites, site.kind)!r}"
        lines.append(f"  {site_name(site.name)}: {site.kind}, {reason}")
    lines += [f"  {site_name(s.name)}: {s.kind} ({s.type}), {s.reason}" for s in survey.skipped]
    if not survey.sites and not survey.skipped:
        unseen = survey.capture == "modules"
        where = " among its modules; what else its forward does could not be seen" if unseen else ""
        lines.append(f"  No up-sampling layer was found{where}.")
    if survey.capture == "modules" and all(reason_of_kind(s, request) for s in survey.sites):
        lines.append(
            "  Pass example_inputs=... so that resizes and pixel shuffles in its forward can be seen too."
        )
    return "\n".join(lines + [f"  note: {note}" for note in survey.notes])


def site_name(name: str) -> str:
    """A qualified name, or words for the empty one."""
    return name or "(the model)"


def _patterns(selection: Selection) -> list[str]:
    if callable(selection):
        return []
    return [selection] if isinstance(selection, str) else list(selection)


def _matches(site: Site, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in site.names)


def _selected(site: Site, selection: Selection) -> bool:
    if callable(selection):
        return bool(selection(site))
    return any(_matches(site, pattern) for pattern in _patterns(selection))
