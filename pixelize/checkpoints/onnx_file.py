"""``.onnx``: the initializers, and constants, of a graph; nothing but their bytes differs in what is written.

Operators, opset, names and metadata are the old file's. A tensor stays in the field it was in. Tensors in
files of their own ("external data") are written over in copies of those files: of the same names, or, where
other data lie under these (in the graph's own folder its own), of names made of the new graph's.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelize.checkpoints.checkpoint import Checkpoint, bytes_of
from pixelize.errors import LoadError
from pixelize.extras import require
from pixelize.files import replacing

_FIELDS = {torch.float32: "float_data", torch.float64: "double_data"}


def read_onnx(path: Path) -> Checkpoint:
    """Raises LoadError if the file is no graph or is damaged; MissingExtraError if onnx is not installed."""
    onnx = _package(path)
    graph = _graph(onnx, path)
    places = dict(_tensors(graph.graph))
    tensors = {}
    for name, proto in places.items():
        tensor = _read(onnx, proto, path)
        if tensor is not None:
            tensors[name] = tensor

    def replace(out: Path, values: Mapping[str, Tensor]) -> list[Path]:
        new = _graph(onnx, path)
        protos = dict(_tensors(new.graph))
        overwritten = set() if out.resolve() == path.resolve() else _data_files(onnx, out)
        renamed = {
            old: f"{out.name}.{Path(old).name}"
            if (out.parent / old).exists() and old not in overwritten
            else old
            for old in dict.fromkeys(_locations(new))
        }
        with ExitStack() as stack:
            target = stack.enter_context(replacing(out))  # takes its place last, when its data is there
            written = []
            for old, name in renamed.items():
                staged = stack.enter_context(replacing(out.parent / name))
                shutil.copyfile(path.parent / old, staged)
                written.append(out.parent / name)
                for key, value in values.items():
                    if protos[key].external_data and _external(protos[key])["location"] == old:
                        with staged.open("r+b") as file:
                            file.seek(int(_external(protos[key]).get("offset", 0)))
                            file.write(bytes_of(value))
            for key, value in values.items():
                if not protos[key].external_data:
                    _fill(protos[key], value)
            for proto in protos.values():
                for entry in proto.external_data:
                    if entry.key == "location":
                        entry.value = renamed[entry.value]
            target.write_bytes(new.SerializeToString())
        return [out, *written]

    return Checkpoint(path, tensors, graph, replace)


def _package(path: Path) -> Any:
    require("onnx", str(path))
    import onnx

    return onnx


def _graph(onnx: Any, path: Path) -> Any:
    """The graph without its external data."""
    try:
        graph = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors
        raise LoadError(f"{path}: not a readable ONNX file ({type(error).__name__})") from error
    if not graph.graph.node:
        raise LoadError(f"{path}: an ONNX file without a graph")
    return graph


def _tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    """Initializers and constants of the main graph, by name."""
    for proto in graph.initializer:
        yield proto.name, proto
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _locations(graph: Any) -> Iterator[str]:
    """The files that tensors of a graph lie in."""
    for _, proto in _tensors(graph.graph):
        if proto.external_data:
            yield _external(proto)["location"]


def _data_files(onnx: Any, path: Path) -> set[str]:
    """Those of what lies at ``path``, if it is a graph."""
    try:
        return set(_locations(_graph(onnx, path))) if path.is_file() else set()
    except LoadError:
        return set()


def _external(proto: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in proto.external_data}


def _read(onnx: Any, proto: Any, path: Path) -> Tensor | None:
    """None for types that torch does not know."""
    try:
        if proto.external_data:
            where = _external(proto)
            file = (path.parent / where["location"]).resolve()
            if not file.is_relative_to(path.parent.resolve()):
                raise LoadError(f"{path}: {proto.name} lies in {where['location']!r}, outside of its folder")
            copy = onnx.TensorProto()
            copy.CopyFrom(proto)
            del copy.external_data[:]
            copy.data_location = onnx.TensorProto.DEFAULT
            with file.open("rb") as opened:
                opened.seek(int(where.get("offset", 0)))
                copy.raw_data = opened.read(int(where["length"]) if "length" in where else -1)
            proto = copy
        array = onnx.numpy_helper.to_array(proto)
    except OSError as error:
        raise LoadError(f"{path}: the data of {proto.name} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path}: {proto.name} is damaged ({type(error).__name__})") from error
    if array.dtype.kind not in "fiub":
        return None
    return torch.from_numpy(np.array(array))


def _fill(proto: Any, value: Tensor) -> None:
    """The value into the field in which the tensor lies already."""
    field = _FIELDS.get(value.dtype, "int32_data")
    if proto.HasField("raw_data"):
        proto.raw_data = bytes_of(value)
    elif value.dtype == torch.float16:
        proto.int32_data[:] = value.reshape(-1).view(torch.int16).int().bitwise_and(0xFFFF).tolist()
    elif value.dtype in _FIELDS:
        getattr(proto, field)[:] = value.reshape(-1).tolist()
    else:
        raise LoadError(f"{proto.name}: a {value.dtype} tensor in {field} is not written")
