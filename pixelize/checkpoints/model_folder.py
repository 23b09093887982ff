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
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as staging:
            for file in sorted(folder.iterdir()):
                if file.name in used or file.is_dir() or _is_other_weights(file.name, files):
                    continue
                shutil.copyfile(file, Path(staging, file.name))
            for part in parts:
                own = {name: value for name, value in values.items() if home[name] is part}
                part.replace(Path(staging, part.path.name), own)
            out.mkdir(exist_ok=True)
            names = sorted(os.listdir(staging))
            for name in names:
                os.replace(Path(staging, name), out / name)
        return [out / name for name in names]

    return Checkpoint(folder, tensors, tensors, replace)


def _is_other_weights(name: str, files: list[Path]) -> bool:
    """Whether a file holds weights that were not read: their copy would be the weights as they were."""
    if name.endswith(".index.json"):  # the index of the shards that were read stays
        return len(files) == 1 or not files[0].name.startswith(name.split(".")[0])
    return name.endswith(_WEIGHTS)


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
