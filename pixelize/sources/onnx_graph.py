"""An ONNX graph as a PyTorch model, with the name that each of its parameters has in the graph."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.errors import LoadError
from pixelize.extras import require
from pixelize.sources.preparation import Preparation

_TYPES = {"tensor(float16)": torch.float16, "tensor(double)": torch.float64}
OPSETS = (13, 11, 16)
"""Tried one after the other for a graph with operators that onnx2torch does not know in the graph's own."""


def onnx_model(path: Path) -> tuple[nn.Module, dict[str, str], Preparation]:
    """The model of a graph, initializers' names by those of its parameters, and how its pictures must be.

    Initializers that several nodes read are one shared parameter.

    Raises:
        MissingExtraError: onnx or onnx2torch is not installed.
        LoadError: an operator that neither knows, or a graph of several inputs.
    """
    require("onnx", str(path))
    import onnx
    import onnx2torch

    graph = onnx.load(path)
    _lift_constants(onnx, graph)
    fed = {t.name for t in graph.graph.initializer}
    inputs = [value for value in graph.graph.input if value.name not in fed]
    if len(inputs) != 1:
        listed = ", ".join(value.name for value in inputs)
        raise LoadError(f"{path}: a graph of {len(inputs)} inputs ({listed}); only those of one are repaired")
    model, used = _converted(onnx, onnx2torch, graph, path)
    names = _names(model, used)
    return model.eval(), names, _preparation(inputs[0])


def run_onnx(path: Path, inputs: Tensor) -> list[Tensor] | None:
    """The graph's outputs in onnxruntime, None where that is not installed. Raises LoadError if it fails."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        first = session.get_inputs()[0]
        kind = _TYPES.get(first.type, torch.float32)
        outputs = session.run(None, {first.name: inputs.to(kind).numpy()})
    except Exception as error:  # onnxruntime's own errors
        text = " ".join(str(error).split())[:160]
        raise LoadError(f"{path}: onnxruntime cannot run it ({text})") from error
    return [torch.from_numpy(value) for value in outputs]


def _lift_constants(onnx: Any, graph: Any) -> None:
    """Constant nodes become initializers: some exporters keep weights in them, onnx2torch looks for none."""
    kept = []
    for node in graph.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type != "Constant" or value is None:
            kept.append(node)
            continue
        lifted = onnx.TensorProto()
        lifted.CopyFrom(value)
        lifted.name = node.output[0]
        graph.graph.initializer.append(lifted)
    del graph.graph.node[:]
    graph.graph.node.extend(kept)


def _converted(onnx: Any, onnx2torch: Any, graph: Any, path: Path) -> tuple[nn.Module, Any]:
    failure: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for opset in (None, *OPSETS):
            try:
                used = graph if opset is None else onnx.version_converter.convert_version(graph, opset)
                return onnx2torch.convert(_depth_first(onnx, used)), used
            except Exception as error:  # NotImplementedError of an operator, KeyError of an odd graph, ...
                failure = failure or error
    text = " ".join(str(failure).split())[:160]
    raise LoadError(f"{path}: cannot be read as a PyTorch model ({type(failure).__name__}: {text})")


def _depth_first(onnx: Any, graph: Any) -> Any:
    """``graph`` with every DepthToSpace of mode DCR (channel (i b + j) C + c is phase (i, j) of c) as a
    Gather into the order of mode CRD (c b^2 + i b + j) and one of that, which is all that onnx2torch knows.
    """
    shuffles = [n for n in graph.graph.node if n.op_type == "DepthToSpace" and "CRD" not in str(n.attribute)]
    if not shuffles or all(o.version < 11 for o in graph.opset_import if o.domain in ("", "ai.onnx")):
        return graph
    known = onnx.shape_inference.infer_shapes(graph).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*known.value_info, *known.input)}
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    del made.graph.node[:]
    for node in graph.graph.node:
        dims = shapes.get(node.input[0]) if node in shuffles else None
        if not dims or len(dims) != 4 or not dims[1].dim_value:
            made.graph.node.append(node)
            continue
        size = next(a.i for a in node.attribute if a.name == "blocksize")
        order = torch.arange(dims[1].dim_value).view(size**2, -1).T.reshape(-1)
        name, ordered = f"{node.output[0]}_order", f"{node.output[0]}_ordered"
        made.graph.initializer.append(onnx.numpy_helper.from_array(order.numpy(), name))
        made.graph.node.append(onnx.helper.make_node("Gather", [node.input[0], name], [ordered], axis=1))
        made.graph.node.append(
            onnx.helper.make_node(
                "DepthToSpace", [ordered], node.output, node.name, blocksize=size, mode="CRD"
            )
        )
    return made


def _names(model: nn.Module, graph: Any) -> dict[str, str]:
    """Initializers by the parameters of convolutions; parameters of the same initializer become one."""
    from onnx2torch.onnx_graph import OnnxGraph

    names: dict[str, str] = {}
    shared: dict[str, nn.Parameter] = {}
    for name, node in OnnxGraph(graph.graph).nodes.items():
        if node.operation_type not in ("Conv", "ConvTranspose"):
            continue
        for place, module in model.get_submodule(name).named_modules():
            if not isinstance(getattr(module, "weight", None), nn.Parameter):
                continue
            for parameter, initializer in zip(("weight", "bias"), node.input_values[1:], strict=False):
                value = getattr(module, parameter)
                setattr(module, parameter, shared.setdefault(initializer, value))
                names[".".join(part for part in (name, place, parameter) if part)] = initializer
    return names


def _preparation(value: Any) -> Preparation:
    """From the input's declared shape (N, C, H, W); what is named and not numbered is free."""
    dims = [d.dim_value or 0 for d in value.type.tensor_type.shape.dim]
    if len(dims) != 4:
        return Preparation()
    batch, channels, height, width = dims
    size = (height, width) if height > 0 and width > 0 else None
    return Preparation(channels=max(channels, 0) or None, size=size, single=batch == 1)
