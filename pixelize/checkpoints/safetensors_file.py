"""``.safetensors``: the bytes of the tensors that change are written over in a copy of the file.

Header, order, metadata and padding are the old file's own bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pixelize.checkpoints.checkpoint import Checkpoint, bytes_of
from pixelize.errors import LoadError
from pixelize.files import replacing


def read_safetensors(path: Path) -> Checkpoint:
    """Raises LoadError if the file is none or is damaged."""
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())[:120]
        raise LoadError(f"{path}: not a readable safetensors file ({text})") from error

    def replace(out: Path, values: Mapping[str, Tensor]) -> list[Path]:
        with replacing(out) as new:
            shutil.copyfile(path, new)
            with new.open("r+b") as file:
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
                for name, value in values.items():
                    file.seek(8 + size + header[name]["data_offsets"][0])
                    file.write(bytes_of(value))
        return [out]

    return Checkpoint(path, tensors, tensors, replace)
