"""``pixelize finetune RECIPE``: each recipe's settings as command-line options over a YAML file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from pixelize.errors import ArgumentError, PixelizeError
from pixelize.extras import require
from pixelize.recipes.recipe_settings import GanSettings, RepairSettings, SegmentationSettings, VaeSettings
from pixelize.recipes.training.settings import Settings, names_of, read_yaml

app = typer.Typer(
    no_args_is_help=True,
    help="Train and fine-tune models with pixel deconvolutions, each arm beside its control. "
    "Every recipe runs without any data given; the same command goes on after an interruption.",
)

RECIPES: dict[str, type[Settings]] = {
    "segmentation": SegmentationSettings,
    "vae": VaeSettings,
    "gan": GanSettings,
    "repair": RepairSettings,
}


OLDER = ("model", "cpu")
"""Settings whose options are the spellings of earlier versions, still understood: MODEL, --device."""
SPELLED = {"inputs": ("--data",), "data": ("--natural",)}
"""How a recipe that takes inputs spells them, and the real pictures to compare with: as ``report`` does."""


def command_of(recipe: str, kind: type[Settings]) -> Callable[..., None]:
    """A function with one option for each field of ``kind``: runs ``pixelize.recipes.<recipe>``."""

    def configure(context: typer.Context, path: str) -> str:
        if path:
            try:
                context.default_map = {**(context.default_map or {}), **read_yaml(path, names_of(kind))}
            except ArgumentError as error:
                raise typer.BadParameter(str(error)) from error
        return path

    def command(**given: Any) -> None:
        given.pop("config")
        if named := given.pop("MODEL", None):
            given["model"] = named
        if device := given.pop("device"):
            if device not in ("cpu", "auto"):
                raise typer.BadParameter(f"--device {device}: cpu, or auto (whatever is there)")
            given["cpu"] = device == "cpu"
        try:
            require("recipes", "finetune")
            importlib.import_module(f"pixelize.recipes.{recipe}").run(kind(**given))
        except PixelizeError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None

    told = typer.Option(
        help="YAML file of settings; options given beside it win.", is_eager=True, callback=configure
    )
    where = typer.Option(help="cpu, or auto: an accelerator where there is one.")
    options: dict[str, tuple[Any, Any]] = {
        "config": ("", Annotated[str, told]),
        "device": ("", Annotated[str, where]),
    }
    takes_inputs = any(f.name == "inputs" for f in fields(kind))
    for f in fields(kind):
        names = SPELLED.get(f.name, ()) if takes_inputs else ()
        option = typer.Option(*names, help=f.metadata["help"], hidden=f.name in OLDER)
        options[f.name] = (f.default, Annotated[type(f.default), option])
        if f.name == "model":
            target = typer.Argument(metavar="MODEL", help=f.metadata["help"], show_default=str(f.default))
            options["MODEL"] = ("", Annotated[str, target])
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (default, annotation) in options.items()
        ]
    )
    command.__annotations__ = {name: annotation for name, (_, annotation) in options.items()}
    command.__doc__ = kind.__doc__
    return command


for _recipe, _kind in RECIPES.items():
    _takes_inputs = any(f.name == "inputs" for f in fields(_kind))
    _older = {"inputs": "data", "input": "data"} if _takes_inputs else {}
    app.command(
        _recipe,
        context_settings={"token_normalize_func": lambda token, older=_older: older.get(token, token)},
    )(command_of(_recipe, _kind))
