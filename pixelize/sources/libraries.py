"""Models of third-party libraries by name: a class or function, or a folder or hub id that they load."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import json
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from pixelize.errors import ArgumentError, PixelizeError
from pixelize.extras import MODULES, require
from pixelize.sources.trust import check_config


def library_of(folder: Path) -> str | None:
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


def package(scheme: str, name: str) -> ModuleType:
    require(scheme, name)
    module = MODULES[scheme][0]
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise PixelizeError(f"{name}: {module} cannot be imported ({short(error)})") from error


def _smp(smp: Any, name: str, options: dict[str, Any]) -> nn.Module:
    classes = {n: c for n, c in vars(smp).items() if is_class(c, smp.base.SegmentationModel)}
    if name not in classes:
        raise ArgumentError(
            f"segmentation_models_pytorch has no model {name!r}{suggest(name, classes)}; it has "
            f"{', '.join(sorted(classes))}"
        )
    encoder = options.get("encoder_name")
    if isinstance(encoder, str) and ":" not in encoder and not encoder.startswith("tu-"):
        known = smp.encoders.get_encoder_names()
        if encoder not in known:
            raise ArgumentError(f"smp:{name}: no encoder is named {encoder!r}{suggest(encoder, known)}")
    return make(f"smp:{name}", classes[name], {"encoder_weights": None, **options})


def _monai(monai: Any, name: str, options: dict[str, Any]) -> nn.Module:
    nets = importlib.import_module("monai.networks.nets")
    classes = {n: c for n, c in vars(nets).items() if is_class(c, nn.Module)}
    if name not in classes:
        raise ArgumentError(f"monai.networks.nets has no model {name!r}{suggest(name, classes)}")
    return make(f"monai:{name}", classes[name], options)


def _timm(timm: Any, name: str, options: dict[str, Any]) -> nn.Module:
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        raise ArgumentError(f"timm has no model {name!r}{suggest(name, timm.list_models())}")
    return make(
        f"timm:{name}", lambda **given: timm.create_model(name, **given), {"pretrained": False, **options}
    )


def _diffusers(diffusers: Any, name: str, options: dict[str, Any]) -> nn.Module:
    told = f"diffusers:{name}"
    if not Path(name).exists() and is_class(getattr(diffusers, name, None), nn.Module):
        return make(told, getattr(diffusers, name), options)
    folder = Path(name, options.get("subfolder", ""))
    if Path(name).is_dir():
        if (folder / "model_index.json").is_file():
            parts = [f"{told}?subfolder={p.parent.name}" for p in sorted(folder.glob("*/config.json"))]
            raise ArgumentError(f"{told}: a whole pipeline; name the model in it: {', '.join(parts)}")
        if library_of(folder) != "diffusers":
            raise ArgumentError(f"{told}: {folder} has no config.json that diffusers wrote")
    elif "/" not in name:
        known = suggest(name, dir(diffusers))
        raise ArgumentError(f"{told}: no such folder, and diffusers has no such class{known}")
    return _pretrained(told, name, diffusers.AutoModel.from_pretrained, options)


def _transformers(transformers: Any, name: str, options: dict[str, Any]) -> nn.Module:
    told = f"transformers:{name}"
    if not Path(name).exists():
        cls: Any = getattr(transformers, name, None) if name.isidentifier() else None
        if is_class(cls, nn.Module):
            return make(told, lambda **given: cls(cls.config_class(**given)), options)
        if name.isidentifier() and name[0].isupper():
            known = suggest(name, dir(transformers))
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
        return make(told, lambda **given: factory(name, **given), options)
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
        raise ArgumentError(f"torchvision has no model {name!r}{suggest(name.lower(), known)}")
    bare = {"weights": None, **({"weights_backbone": None} if "/" in _module_of(torchvision, name) else {})}
    return make(
        f"torchvision:{name}",
        lambda **given: torchvision.models.get_model(name, **given),
        {**bare, **options},
    )


def _module_of(torchvision: Any, name: str) -> str:
    """Where a model's builder is defined, ``segmentation/fcn`` say."""
    module = torchvision.models.get_model_builder(name).__module__
    return module.removeprefix("torchvision.models.").replace(".", "/")


LIBRARIES: dict[str, Callable[[Any, str, dict[str, Any]], nn.Module]] = {
    "torchvision": _torchvision,
    "smp": _smp,
    "timm": _timm,
    "monai": _monai,
    "diffusers": _diffusers,
    "transformers": _transformers,
}


def make(name: str, factory: Callable[..., Any], options: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        bare = name.partition("?")[0]
        raise ArgumentError(f"{name}: {error}; options follow a '?', as in {bare}?key=value") from None
    except ValueError:
        pass  # a builtin without a signature
    try:
        model = factory(**options)
    except PixelizeError:
        raise
    except Exception as error:
        raise ArgumentError(f"{name}: could not be built ({short(error)})") from error
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{name}: gave a {type(model).__name__}, not a torch.nn.Module")
    return model


def is_class(value: Any, parent: type) -> bool:
    return isinstance(value, type) and issubclass(value, parent)


def suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def short(error: BaseException) -> str:
    """The error's kind and the beginning of its message, on one line."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text[:240]}{'...' if len(text) > 240 else ''}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without a library's own warnings and progress bars while it builds a model."""
    names = ("HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY")
    for name, value in zip(names, ("1", "error", "error"), strict=True):
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
