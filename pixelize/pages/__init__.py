"""Pages and figures for people: the extra ``pages`` (matplotlib, jinja2, pillow)."""

from importlib.util import find_spec

from pixelize.errors import PixelizeError

_MISSING = [
    package
    for package, module in (("matplotlib", "matplotlib"), ("jinja2", "jinja2"), ("pillow", "PIL"))
    if find_spec(module) is None
]
if _MISSING:
    raise PixelizeError(
        f"pages and figures need {', '.join(_MISSING)}: pip install 'torch-pixelize[pages]'. "
        "Everything else works without"
    )
