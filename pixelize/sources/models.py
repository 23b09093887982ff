"""Models by name: what the command line's MODEL means.

================================  ==========================================================================
``demo``                          the face generator that ships with the package
``smp:Unet?encoder_name=vgg11``   a class of segmentation_models_pytorch; no encoder weights unless asked
for ``timm:cpubone_b0``               a name that timm.create_model knows; untrained unless
``?pretrained=true`` ``diffusers:PATH_OR_ID``          a folder or hub id that diffusers reads
(``?subfolder=vae``), or a class ``transformers:PATH_OR_ID``       the same for transformers
``torchvision:NAME``              a name that torchvision.models.get_model knows; untrained unless
``?weights=`` ``package.module:callable``       whatever that returns; also ``path/to/file.py:callable``
``FOLDER``                        one that ``pixelize.save``, diffusers or transformers wrote
================================  ==========================================================================

Options follow a ``?`` as ``key=value&key=value``; values are Python literals, anything else is text.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import json
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from pixelize.conversion.saved import load
from pixelize.conversion.saved_folder import read_plan
from pixelize.conversion.saved_plan import PLAN
from pixelize.errors import ArgumentError, LoadError, PixelizeError
from pixelize.extras import MODULES, require
from pixelize.sources.trust import WEIGHTS, check_config, refused_part

_FORMS = (
    "demo, smp:NAME, timm:NAME, torchvision:NAME, diffusers:PATH_OR_ID, transformers:PATH_OR_ID, "
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
    if Path(name).is_dir():
        return _saved(Path(name), source).eval()
    if source is not None:
        raise ArgumentError(f"source is for folders that pixelize.save wrote; {name!r} is none")
    return _named(name).eval()


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
    if scheme in ("smp", "timm", "torchvision"):
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
        scheme, rest = _library_of(Path(target)) or "", target
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
    if not colon or not scheme or not rest:
        raise ArgumentError(f"no model is named {name!r}{_suggest(name, ['demo'])}; MODEL is {_FORMS}")
    if scheme in _LIBRARIES:
        with _quiet():
            return _LIBRARIES[scheme](_package(scheme, name), rest, options)
    return _from_code(name, scheme, rest, options)


def _saved(folder: Path, source: str | None) -> nn.Module:
    if not (folder / PLAN).is_file():
        library = _library_of(folder)
        hint = f"; did you mean {library}:{folder}?" if library else "; is it one that pixelize.save wrote?"
        raise LoadError(f"{folder}: a folder without {PLAN}{hint}")
    if source is None:
        library = _library_of(folder)
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
    if scheme not in _LIBRARIES:
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


def _library_of(folder: Path) -> str | None:
    """The library that a folder's ``config.json`` or ``model_index.json`` belongs to."""
    try:
        if (folder / "model_index.json").is_file():
            return "diffusers"
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    return "diffusers" if "_class_name" in config else "transformers" if "architectures" in config else None


def _package(scheme: str, name: str) -> ModuleType:
    require(scheme, name)
    module = MODULES[scheme][0]
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise PixelizeError(f"{name}: {module} cannot be imported ({_short(error)})") from error


def _smp(smp: Any, name: str, options: dict[str, Any]) -> nn.Module:
    classes = {n: c for n, c in vars(smp).items() if _is_class(c, smp.base.SegmentationModel)}
    if name not in classes:
        raise ArgumentError(
            f"segmentation_models_pytorch has no model {name!r}{_suggest(name, classes)}; it has "
            f"{', '.join(sorted(classes))}"
        )
    encoder = options.get("encoder_name")
    if isinstance(encoder, str) and ":" not in encoder and not encoder.startswith("tu-"):
        known = smp.encoders.get_encoder_names()
        if encoder not in known:
            raise ArgumentError(f"smp:{name}: no encoder is named {encoder!r}{_suggest(encoder, known)}")
    return _make(f"smp:{name}", classes[name], {"encoder_weights": None, **options})


def _timm(timm: Any, name: str, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        raise ArgumentError(f"timm has no model {name!r}{_suggest(name, timm.list_models())}")
    return _make(
        f"timm:{name}", lambda **given: timm.create_model(name, **given), {"pretrained": False, **options}
    )


def _diffusers(diffusers: Any, name: str, options: dict[str, Any]) -> nn.Module:
    told = f"diffusers:{name}"
    if not Path(name).exists() and _is_class(getattr(diffusers, name, None), nn.Module):
        return _make(told, getattr(diffusers, name), options)
    folder = Path(name, options.get("subfolder", ""))
    if Path(name).is_dir():
        if (folder / "model_index.json").is_file():
            parts = [f"{told}?subfolder={p.parent.name}" for p in sorted(folder.glob("*/config.json"))]
            raise ArgumentError(f"{told}: a whole pipeline; name the model in it: {', '.join(parts)}")
        if _library_of(folder) != "diffusers":
            raise ArgumentError(f"{told}: {folder} has no config.json that diffusers wrote")
    elif "/" not in name:
        known = _suggest(name, dir(diffusers))
        raise ArgumentError(f"{told}: no such folder, and diffusers has no such class{known}")
    return _pretrained(told, name, diffusers.AutoModel.from_pretrained, options)


def _transformers(transformers: Any, name: str, options: dict[str, Any]) -> nn.Module:
    told = f"transformers:{name}"
    if not Path(name).exists():
        cls: Any = getattr(transformers, name, None) if name.isidentifier() else None
        if _is_class(cls, nn.Module):
            return _make(told, lambda **given: cls(cls.config_class(**given)), options)
        if name.isidentifier() and name[0].isupper():
            known = _suggest(name, dir(transformers))
            raise ArgumentError(f"{told}: transformers has no such class{known}")
    elif not Path(name, "config.json").is_file():
        raise ArgumentError(f"{told}: no config.json in {name}")

    def load_named(name: str, **given: Any) -> nn.Module:
        given = {"trust_remote_code": False, **given}  # unless told, transformers asks on the terminal
        if not given["trust_remote_code"]:
            check_config(Path(name, given.get("subfolder") or ""))
        config = transformers.AutoConfig.from_pretrained(name, **given)
        named = (getattr(config, "architectures", None) or ["AutoModel"])[0]
        cls = getattr(transformers, str(named), None)
        if cls is None:
            raise ArgumentError(f"{told}: transformers has no class {named!r}, which its config.json names")
        return cls.from_pretrained(name, **given)

    return _pretrained(told, name, load_named, options)


def _pretrained(told: str, name: str, factory: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    """What a library loads by folder or hub id; a hub out of reach would be tried for minutes."""
    offline = not Path(name).is_dir() and not _hub_in_reach()
    if offline:
        options = {"local_files_only": True, **options}
    try:
        return _make(told, lambda **given: factory(name, **given), options)
    except ArgumentError as error:
        if offline:
            raise ArgumentError(
                f"{told}: no such folder, and the hub cannot be reached, nor is it in the local cache"
            ) from error
        raise


def _hub_in_reach() -> bool:
    from huggingface_hub import constants

    if any(os.environ.get(n) for n in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _torchvision(torchvision: Any, name: str, options: dict[str, Any]) -> nn.Module:
    known = torchvision.models.list_models()
    if name.lower() not in known:
        raise ArgumentError(f"torchvision has no model {name!r}{_suggest(name.lower(), known)}")
    bare = {"weights": None, **({"weights_backbone": None} if "/" in _module_of(torchvision, name) else {})}
    return _make(
        f"torchvision:{name}",
        lambda **given: torchvision.models.get_model(name, **given),
        {**bare, **options},
    )


def _module_of(torchvision: Any, name: str) -> str:
    """Where a model's builder is defined, ``segmentation/fcn`` say."""
    module = torchvision.models.get_model_builder(name).__module__
    return module.removeprefix("torchvision.models.").replace(".", "/")


_LIBRARIES: dict[str, Callable[[Any, str, dict[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "smp": _smp,
    "timm": _timm,
    "diffusers": _diffusers,
    "transformers": _transformers,
}


def _from_code(name: str, place: str, attribute: str, options: dict[str, Any]) -> nn.Module:
    found: Any = _module(name, place)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ArgumentError(f"{name}: {place} has no {attribute!r}{_suggest(part, dir(found))}") from None
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise ArgumentError(f"{name}: a {type(found).__name__}, neither a model nor something that makes one")
    return _make(name, found, options)


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
        known = [*_LIBRARIES, "demo"]
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise ArgumentError(
                f"{name}: there is no module {error.name!r} here{_suggest(place, known)}; MODEL is {_FORMS}"
            ) from None
        raise PixelizeError(f"{name}: {place} needs {error.name}, which is not installed") from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise PixelizeError(f"{name}: importing {place} failed ({_short(error)})") from error


def _make(name: str, factory: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ArgumentError(f"{name}: {error}; options follow a '?', as in {name}?key=value") from None
    except ValueError:
        pass  # a builtin without a signature
    try:
        model = factory(**options)
    except PixelizeError:
        raise
    except Exception as error:
        raise ArgumentError(f"{name}: could not be built ({_short(error)})") from error
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{name}: gave a {type(model).__name__}, not a torch.nn.Module")
    return model


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


def _is_class(value: Any, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _short(error: BaseException) -> str:
    """The error's kind and the beginning of its message, on one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:240]}{'...' if len(text) > 240 else ''}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without a library's own warnings and progress bars while it builds a model."""
    names = ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
    for name, value in zip(names, ("1", "error", "error"), strict=True):
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
