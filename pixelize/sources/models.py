"""Models by name: what the command line's MODEL means.

- ``demo``: the face generator that ships with the package.
- ``smp:Unet?encoder_name=vgg11``: a class of segmentation_models_pytorch, without encoder weights
  unless asked for.
- ``timm:cpubone_b0``: a name that timm.create_model knows; untrained unless ``?pretrained=true``.
- ``torchvision:NAME``: a name that torchvision.models.get_model knows; untrained unless ``?weights=`` says
  otherwise.
- ``monai:UNet?spatial_dims=3&in_channels=1``: a class of monai.networks.nets.
- ``diffusers:PATH_OR_ID``: a folder or hub id that diffusers reads (``?subfolder=vae``), or a class.
- ``transformers:PATH_OR_ID``: the same for transformers.
- ``package.module:callable``: whatever that returns; also ``path/to/file.py:callable``.
- ``FOLDER``: one that ``pixelize.save``, diffusers or transformers wrote.

Options follow a ``?`` as ``key=value&key=value``; values are Python literals, anything else is text.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pixelize.checkpoints.formats import SUFFIXES
from pixelize.conversion.saved import load
from pixelize.conversion.saved_folder import read_plan
from pixelize.conversion.saved_plan import PLAN
from pixelize.errors import ArgumentError, LoadError, PixelizeError
from pixelize.running.models import check_changeable
from pixelize.sources.libraries import LIBRARIES, library_of, make, package, quiet, short, suggest
from pixelize.sources.trust import WEIGHTS, refused_part

_FORMS = (
    "demo, smp:NAME, timm:NAME, monai:NAME, torchvision:NAME, diffusers:PATH_OR_ID, transformers:PATH_OR_ID, "
    "module.path:callable, file.py:callable, a file of weights, or a folder that pixelize.save wrote"
)


def build_model(name: str, *, source: str | None = None) -> nn.Module:
    """The model that ``name`` stands for, in evaluation mode.

    ``source``: for a folder, what its model is built from before the weights are loaded, in place of what the
    folder itself notes. A folder may have come from a stranger: code that it names (``module:callable``), and
    options of a library that might run or fetch code (``trust_remote_code=True``), count only if ``source``
    repeats them.

    Raises:
        ArgumentError: nothing has that name, or its options do not fit.
        LoadError: a folder that cannot be read, or notes no source.
        PixelizeError: a package is not installed; the message names the pip command.
    """
    if Path(name).is_dir() and (name != "demo" or (Path(name) / PLAN).is_file()):
        return _saved(Path(name), source).eval()
    if source is not None:
        raise ArgumentError(f"source is for folders that pixelize.save wrote; {name!r} is none")
    model = _named(name)
    try:
        return model.eval()
    except NotImplementedError:  # a program of torch.export
        check_changeable(model)
        raise


def portable_source(name: str) -> str:
    """``name`` as it may be noted in a saved folder: its paths made absolute, to mean the same elsewhere."""
    scheme, _, rest = name.partition(":")
    target, mark, options = rest.partition("?")
    if scheme in ("diffusers", "transformers") and Path(target).is_dir():
        return f"{scheme}:{Path(target).resolve()}{mark}{options}"
    if scheme.endswith(".py") and Path(scheme).is_file():
        return f"{Path(scheme).resolve()}:{rest}"
    return name


def has_weights(name: str) -> bool:
    """Whether a model built by ``name`` may have been trained: a library's bare classes are not."""
    target, _, query = name.partition("?")
    scheme, _, rest = target.partition(":")
    if scheme in ("smp", "timm", "monai", "torchvision"):
        given = _options(name, query)
        return any(
            given.get(option) for option in ("encoder_weights", "pretrained", "checkpoint_path", "weights")
        )
    return scheme not in ("diffusers", "transformers") or "/" in rest or Path(rest).exists()


def library_folder(name: str) -> tuple[str, str, Path, dict[str, Any]] | None:
    """Of a name that stands for a folder of diffusers or transformers: the name in full, its library, the
    folder of the model itself and the options; None for other names.

    The library of a bare folder is told by its ``config.json``. Of a diffusers pipeline, the ``vae`` is meant
    unless ``?subfolder=`` names another part. A hub id stands for its folder in the local cache.
    """
    target, _, query = name.partition("?")
    scheme, _, rest = target.partition(":")
    if Path(target).is_dir() and not Path(target, PLAN).is_file():
        scheme, rest = library_of(Path(target)) or "", target
    if scheme not in ("diffusers", "transformers"):
        return None
    options = _options(name, query)
    root = Path(rest) if Path(rest).is_dir() else _cached(rest)
    if root is None:
        return None
    if "subfolder" not in options and (root / "model_index.json").is_file() and (root / "vae").is_dir():
        options["subfolder"] = "vae"
    listed = "&".join(f"{key}={value}" for key, value in options.items())
    folder = root / str(options.get("subfolder", ""))
    return f"{scheme}:{rest}{'?' if listed else ''}{listed}", scheme, folder, options


def _cached(name: str) -> Path | None:
    """The folder of a hub id in the local cache."""
    if "/" not in name:
        return None
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # not there, or not an id
        return None


def _named(name: str) -> nn.Module:
    target, _, query = name.partition("?")
    options = _options(name, query)
    if target == "demo":
        from pixelize.demo.generator import load_demo_model

        if options:
            raise ArgumentError("the demo model takes no options")
        return load_demo_model()
    scheme, colon, rest = target.partition(":")
    if Path(name).is_file():
        told = f"not one of weights by its ending ({', '.join(SUFFIXES)}); of a program give the Python model"
        if name.endswith(".py"):
            told = f"name what makes the model in it: {name}:callable"
        raise ArgumentError(f"{name}: a file, {told}")
    if not colon or not scheme or not rest:
        raise ArgumentError(f"no model is named {name!r}{suggest(name, ['demo'])}; MODEL is {_FORMS}")
    if scheme in LIBRARIES:
        with quiet():
            return LIBRARIES[scheme](package(scheme, name), rest, options)
    return _from_code(name, scheme, rest, options)


def _saved(folder: Path, source: str | None) -> nn.Module:
    if not (folder / PLAN).is_file():
        library = library_of(folder)
        hint = f"; did you mean {library}:{folder}?" if library else "; is it one that pixelize.save wrote?"
        raise LoadError(f"{folder}: a folder without {PLAN}{hint}")
    if source is None:
        library = library_of(folder)
        noted = read_plan(folder).source
        source = noted or (f"{library}:{folder}" if library in ("diffusers", "transformers") else None)
        if not isinstance(source, str):
            raise LoadError(
                f"{folder}: it does not note what its model is built from; give --source, a model's name "
                "such as smp:Linknet or module.path:callable"
            )
        source = _checked(folder, source)
    if Path(source).is_dir():
        raise ArgumentError(f"{source}: a source is the name of a model to build, not a folder")
    return load(folder, into=_named(source))


def _checked(folder: Path, source: str) -> str:
    """A source that a folder notes, without what only chooses weights. Raises LoadError if it could run or
    fetch code.
    """
    target, _, query = source.partition("?")
    scheme, _, name = target.partition(":")
    if target == "demo":
        return source
    if scheme not in LIBRARIES:
        raise LoadError(
            f"{folder}: its model is built by running {source!r}; if you trust that code, repeat it: "
            f"--source '{source}'"
        )
    options = _options(source, query)
    kept = {key: value for key, value in options.items() if key not in WEIGHTS}
    if part := refused_part(scheme, name, kept):
        raise LoadError(
            f"{folder}: its model is built by {source!r}, and {part} might run or fetch code; if you trust "
            f"it, repeat it: --source '{source}'"
        )
    items = (item for item in query.split("&") if item.partition("=")[0] in kept)
    return "?".join(filter(None, (target, "&".join(items))))


def _from_code(name: str, place: str, attribute: str, options: dict[str, Any]) -> nn.Module:
    maker: Any = _module(name, place)
    for part in attribute.split("."):
        try:
            maker = getattr(maker, part)
        except AttributeError:
            raise ArgumentError(f"{name}: {place} has no {attribute!r}{suggest(part, dir(maker))}") from None
    if isinstance(maker, nn.Module):
        return maker
    if not callable(maker):
        raise ArgumentError(f"{name}: a {type(maker).__name__}, neither a model nor something that makes one")
    return make(name, maker, options)


def _module(name: str, place: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not Path(place).is_file():
            raise ArgumentError(f"{name}: no file {place}")
        spec = importlib.util.spec_from_file_location(f"pixelize_model_{Path(place).stem}", place)
        assert spec is not None and spec.loader is not None  # the name ends with .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except PixelizeError:
        raise
    except ModuleNotFoundError as error:
        known = [*LIBRARIES, "demo"]
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise ArgumentError(
                f"{name}: there is no module {error.name!r} here{suggest(place, known)}; MODEL is {_FORMS}"
            ) from None
        raise PixelizeError(f"{name}: {place} needs {error.name}, which is not installed") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise PixelizeError(f"{name}: importing {place} failed ({short(error)})") from error


def _options(name: str, query: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in query.split("&") if query else ():
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise ArgumentError(f"{name}: {item!r} is no option; write key=value&key=value after the '?'")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
