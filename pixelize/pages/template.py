"""Pages from the templates in ``assets/``: one style, whatever is on them, and nothing to be fetched."""

from __future__ import annotations

import base64
from importlib import resources
from typing import Any


def from_template(name: str, **values: Any) -> str:
    """The page as text; ``values`` are escaped. Needs jinja2."""
    import jinja2

    assets = resources.files("pixelize.pages").joinpath("assets")
    pages = {f: assets.joinpath(f).read_text("utf-8") for f in ("base.html", name)}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(pages), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(name).render(**values)


def png_source(contents: bytes) -> str:
    """A PNG file's contents as the source of an image on the page itself."""
    return "data:image/png;base64," + base64.b64encode(contents).decode()
