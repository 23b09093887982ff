"""What every recipe can be told. A recipe's own settings extend this dataclass; the command line is made from
its fields.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pixelize.errors import ArgumentError


def option(default: Any, help: str, least: int = 0) -> Any:
    """A dataclass field with its help text and, for a number, the least that means something."""
    return field(default=default, metadata={"help": help, "least": least})


@dataclass(frozen=True)
class Settings:
    """Settings that all recipes share."""

    out: str = option("runs", "Folder for checkpoints, curves, tables and models.")
    data: str = option("", "Where the data is.")
    size: int = option(64, "Side of the pictures in pixels.", least=1)
    limit: int = option(0, "Use only so many samples of each set (0: all).")
    download: bool = option(False, "Let torchvision fetch its data set.")
    arms: str = option("", "What to train side by side, separated by commas.")
    seeds: str = option("0", "One run of every arm for each of these numbers.")
    steps: int = option(1000, "Optimizer steps.", least=1)
    batch: int = option(
        16, "Samples in a step, over all processes and accumulated micro-batches together.", least=1
    )
    lr: float = option(1e-3, "Learning rate of Adam at its highest.")
    dependency_lr: float = option(
        0.0, "Rate of converted layers' new weights (0: lr/20; lr when from scratch)."
    )
    weight_decay: float = option(0.0, "Of AdamW.")
    warmup: int = option(50, "Steps over which the rate rises; after them it falls by a cosine to 0.")
    clip: float = option(0.0, "Largest gradient norm (0: no limit).")
    freeze: str = option("", "Patterns of parameter names that are not trained, separated by commas.")
    ema: float = option(
        0.0, "Decay of the running mean of the weights, which is then what is evaluated (0: none)."
    )
    eval_every: int = option(200, "Steps between evaluations.", least=1)
    patience: int = option(0, "Stop after so many evaluations without improvement (0: never).")
    save_every: int = option(100, "Steps between checkpoints.", least=1)
    accumulate: int = option(1, "Micro-batches to a step.", least=1)
    precision: str = option("no", "no, fp16 or bf16: mixed precision.")
    compile: bool = option(False, "torch.compile the model.")
    channels_last: bool = option(False, "Keep activations as NHWC.")
    cpu: bool = option(False, "Stay on the CPU.")
    threads: int = option(0, "CPU threads (0: torch's choice).")
    workers: int = option(0, "Processes that load data.")
    fresh: bool = option(False, "Begin anew, whatever is in the folder.")

    def check(self) -> None:
        """Raises ArgumentError for a setting that means nothing."""
        for f in fields(self):
            value, least = getattr(self, f.name), f.metadata["least"]
            if isinstance(value, int | float) and not value >= least:  # nan is refused, too
                raise ArgumentError(f"--{f.name.replace('_', '-')} is {value}; it must be at least {least}")
        if self.ema >= 1:
            raise ArgumentError(f"--ema is {self.ema}; it must be less than 1")
        if self.precision not in ("no", "fp16", "bf16"):
            raise ArgumentError(f"--precision is {self.precision!r}; it is one of no, fp16, bf16")
        self.seed_list()

    def seed_list(self) -> list[int]:
        """The seeds as numbers. Raises ArgumentError if they are none."""
        try:
            seeds = [int(s) for s in str(self.seeds).split(",") if s.strip()]
        except ValueError:
            seeds = []
        if not seeds or min(seeds) < 0:
            raise ArgumentError(f"--seeds {self.seeds}: whole numbers from 0 on, separated by commas")
        return seeds

    def frozen(self) -> list[str]:
        """The patterns of ``freeze``."""
        return [p.strip() for p in self.freeze.split(",") if p.strip()]

    def decisive(self) -> dict[str, Any]:
        """The settings that decide a run's result: a checkpoint goes on only under the same."""
        idle = {"out", "arms", "seeds", "save_every", "threads", "workers", "fresh", "cpu", "download"}
        return {name: value for name, value in asdict(self).items() if name not in idle}


def read_yaml(path: str, known: Iterable[str]) -> dict[str, Any]:
    """The settings of a YAML file, with ``-`` or ``_`` in their names, as one would write them on the command
    line: YAML's ``no`` is a word here, not a boolean, and a list is its parts with commas between. A name
    without a value keeps its default.

    Raises ArgumentError if there is no such file, it is no YAML mapping, or holds a name that is not
    ``known`` or a value that is a mapping.
    """
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            lines = yaml.load(file, yaml.BaseLoader) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ArgumentError(f"--config {path}: {error}") from error
    if not isinstance(lines, dict):
        raise ArgumentError(
            f"--config {path}: it must hold lines `name: value`, not a {type(lines).__name__}"
        )
    given = {str(name).replace("-", "_"): value for name, value in lines.items()}
    wrong = sorted(given.keys() - set(known))
    if wrong:
        raise ArgumentError(f"--config {path}: no setting {wrong[0]!r}; there are {', '.join(sorted(known))}")
    for name, value in given.items():
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str) for part in parts):  # a few lines of aliases hold a million lists
            raise ArgumentError(
                f"--config {path}: {name} holds a mapping or lists in lists; give it a value or a list"
            )
    return {n: ",".join(map(str, v)) if isinstance(v, list) else v for n, v in given.items() if v != ""}


def names_of(kind: type) -> list[str]:
    """The names of a settings class's fields."""
    return [f.name for f in fields(kind)]
