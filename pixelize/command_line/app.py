"""The command line: ``pixelize repair | apply | report | inspect | convert | finetune | bench | demo``."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pixelize.command_line.bench import bench_command
from pixelize.command_line.convert import convert_command, inspect_command
from pixelize.command_line.diagnose import diagnose_command
from pixelize.command_line.export import export_command, fold_command
from pixelize.command_line.options import EXIT_CODES, SETTINGS, check_writable, print_error
from pixelize.command_line.pictures import measure_command
from pixelize.command_line.repair import apply_command, repair_command
from pixelize.command_line.report import report_command
from pixelize.errors import MissingExtraError, PixelizeError, PixelizeWarning
from pixelize.extras import require
from pixelize.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    help=f"""Take the checkerboard out of trained PyTorch models.

**Start with** the file that you have, or with `pixelize repair demo --out repaired.safetensors`:

- `pixelize repair model.pth --data photos/ --out repaired.pth` takes the pattern out and gives the file back

- `pixelize diagnose model.pth --data photos/` tells which layer makes it, if one does

- `pixelize report model.pth --data photos/` measures it and shows it on a page; `pixelize measure` does for
  pictures, sounds and volumes alone

- `pixelize inspect smp:Linknet` finds the layers that up-sample

- `pixelize convert smp:Linknet --out converted/` makes them pixel deconvolutions, to train on

**MODEL** is a file: `.safetensors`, `.pth`, `.pt`, `.ckpt` or `.bin` (its architecture found by spandrel, or
given with `--arch`), or `.onnx`; a folder of diffusers, transformers or `pixelize.save`; or a name: `demo`;
`smp:Unet?encoder_name=resnet18`; `timm:NAME`; `monai:NAME`; `torchvision:NAME`;
`diffusers:FOLDER_OR_ID`; `transformers:FOLDER_OR_ID`; `package.module:callable?key=value`;
`file.py:callable`.

**DATA** is a picture, a sound (`.wav`, `.flac`, `.ogg`), an `.npy` or `.npz` file, a folder of any of these,
a `.zip` of pictures or sounds, or a shape such as `1x3x64x64`.

{EXIT_CODES}""",
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "repair": repair_command,
    "apply": apply_command,
    "diagnose": diagnose_command,
    "measure": measure_command,
    "report": report_command,
    "inspect": inspect_command,
    "convert": convert_command,
    "fold": fold_command,
    "export": export_command,
    "bench": bench_command,
}
for _name, _command in _COMMANDS.items():
    app.command(_name, context_settings=SETTINGS)(_command)


def main() -> None:
    """The entry point of the ``pixelize`` script: an error is one sentence and an exit code, no traceback."""
    warnings.showwarning = _warn
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing half-written is left behind
    try:
        app(prog_name="pixelize")
    except PixelizeError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:
        if os.environ.get("PIXELIZE_TRACEBACK"):
            traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        _fail(f"{type(error).__name__}: {text} (unexpected; PIXELIZE_TRACEBACK=1 shows where it came from)")


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"pixelize {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    pass


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and pictures.")] = Path(
        "pixelize-demo"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Of fine-tuning, for each arm.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the latents and their order.")] = 0,
) -> None:
    """Repair the face generator that ships with the package and show what changed (some minutes).

    Example: `pixelize demo --out demo/`
    """
    from pixelize.demo.run import run_demo

    check_writable(out / "results.json")
    run_demo(out, steps=steps, seed=seed)


def _add_finetune() -> None:
    """The recipes' own commands, or one that tells what to install, whatever is asked of it."""
    try:
        require("recipes", "finetune")
    except MissingExtraError as error:
        told = str(error)
        any_words = {"allow_extra_args": True, "ignore_unknown_options": True}

        @app.command("finetune", context_settings=any_words, add_help_option=False)
        def finetune() -> None:
            """Train converted models beside their controls (needs an extra)."""
            raise MissingExtraError(told)
    else:
        from pixelize.recipes.command import app as recipes

        app.add_typer(recipes, name="finetune")


_add_finetune()


def _warn(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
    """Our own warnings as a line; those of libraries are not for users of a command."""
    if issubclass(category, PixelizeWarning):
        print_error(f"warning: {message}")


def _fail(message: str) -> None:
    print_error(f"error: {message}")
    sys.exit(1)
