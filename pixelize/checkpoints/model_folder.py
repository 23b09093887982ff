"""A folder that diffusers or transformers wrote: its weights, in one file or in shards, and the rest."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pixelize.checkpoints.checkpoint import Checkpoint
from pixelize.checkpoints.safetensors_file import read_safetensors
from pixelize.checkpoints.torch_file import read_torch
from pixelize.errors import LoadError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".index.json",
    ".pth",
    ".pt",
    ".ckpt",
    ".onnx",
    ".msgpack",
    ".h5",
    ".gguf",
)


def read_folder(folder: Path, variant: str | None = None) -> Checkpoint:
    """The weights that the folder's library reads: safetensors before ``.bin``, one file before shards.

    ``replace`` writes a whole folder of the same files, less other copies of the weights. Raises LoadError.
    """
    files = _weight_files(folder, variant)
    parts = [read_safetensors(f) if f.suffix == ".safetensors" else read_torch(f) for f in files]
    home = {name: part for part in parts for name in part.tensors}
    tensors = {name: part.tensors[name] for name, part in home.items()}
    used = {f.name for f in files}

    def replace(out: Path, values: Mapping[str, Tensor]) -> list[Path]:
        check_no_other_weights(folder, out)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
            whole = Path(staging, out.name)
            whole.mkdir()
            for file in sorted(folder.iterdir()):
                if file.name in used or file.is_dir() or _is_other_weights(file.name, files):
                    continue
                shutil.copyfile(file, whole / file.name)
            for part in parts:
                own = {name: value for name, value in values.items() if home[name] is part}
                part.replace(whole / part.path.name, own)
            names = sorted(os.listdir(whole))
            if out.exists():
                for name in names:
                    os.replace(whole / name, out / name)
            else:
                os.rename(whole, out)
        return [out / name for name in names]

    return Checkpoint(folder, tensors, tensors, replace)


def _is_other_weights(name: str, files: list[Path]) -> bool:
    """Whether a file holds weights that were not read: their copy would be the weights as they were."""
    if name.endswith(".index.json"):  # the index of the shards that were read stays
        return len(files) == 1 or not files[0].name.startswith(name.split(".")[0])
    return name.endswith(_WEIGHTS)


def check_no_other_weights(folder: Path, out: Path) -> None:
    """Raises LoadError if ``out`` is there and holds weights that writing ``folder`` to it would leave."""
    there = sorted(os.listdir(out)) if out.is_dir() else []
    others = [name for name in there if name.endswith(_WEIGHTS) and not (folder / name).is_file()]
    if others:
        raise LoadError(
            f"{out}: holds {', '.join(others)}, which might be read in place of what is written; name "
            "another folder"
        )


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    for suffix in (".safetensors", ".bin"):
        for stem in STEMS:
            middle = f".{variant}" if variant else ""
            single = folder / f"{stem}{middle}{suffix}"
            if single.is_file():
                return [single]
            index = folder / f"{stem}{suffix}.index{middle}.json"
            if index.is_file():
                try:
                    names = set(json.loads(index.read_text())["weight_map"].values())
                except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                    raise LoadError(f"{index}: not a readable index ({type(error).__name__})") from error
                if any(not isinstance(n, str) or Path(n).name != n for n in names):
                    raise LoadError(f"{index}: names a shard outside of its folder")
                return [folder / name for name in sorted(names)]
    raise LoadError(f"{folder}: no file of weights ({', '.join(f'{s}.safetensors' for s in STEMS)}, or .bin)")
