"""Which up-samplers of which models does pixelize find, and what does converting them change? A table over
whole libraries.

    python benchmarks/coverage.py                      # all models, about twenty minutes on one CPU core
    python benchmarks/coverage.py --only smp/Unet      # those whose name contains the text

Every model is small and has random weights; nothing is downloaded. For each one: the capture that saw it, the
sites by kind, what was converted and what was skipped and why; the relative error of the outputs after
``pixelize.convert`` in float32 and float64, at the captured size and batch, at another size and batch, and in
train mode, and in float64 at sizes that are no multiples (:data:`GROWN`); parameters and multiply-adds of the
sites before, after, and as plain transposed convolutions (``layer="dcl"``); seconds. An interrupted run goes
on with ``--missing``. ``--abilities`` then checks, for one model of each family, that it can still be
trained, copied, saved, compiled, exported and halved. Writes ``results/coverage.json`` and
``results/coverage.md`` beside this file.
"""

from __future__ import annotations

import argparse
import copy
import gc
import io
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from coverage_models import catalogue
from torch import Tensor, nn

import pixelize
from pixelize import adapters
from pixelize.rewrites.seeing.apart import copied_inputs
from pixelize.rewrites.seeing.other_size import RATIOS, resized_inputs
from pixelize.running.outputs import relative_error, tensors

RESULTS = Path(__file__).parent / "results"
GROWN = ((1, 1), (4, 4), (2, 6), (0, 32), (16, 0), (3, 5))
"""By how many rows and columns the example inputs grow: multiples of the usual factors plus one, plus a half,
other aspect ratios."""
FAMILIES = (
    "generator/DCGAN",
    "generator/pix2pix U-Net",
    "generator/ESPCN x3",
    "generator/functional",
    "generator/CycleGAN resize",
    "diffusers/AutoencoderTiny",
    "transformers/Swin2SR",
    "transformers/DPT depth",
    "smp/Unet resnet18",
    "diffusers/AutoencoderKL",
    "diffusers/AutoencoderDC",
    "timm/lowformer_b0",
    "smp/Linknet resnet18",
    "diffusers/UNet2DConditionModel",
    "transformers/Sam",
    "torchvision/Mask R-CNN",
)


def main() -> None:
    """Runs the benchmark as the command line asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="only models whose name contains one of these")
    parser.add_argument(
        "--abilities", action="store_true", help="only the checks of one model of each family"
    )
    parser.add_argument("--missing", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = options.out / "coverage.json"
    found = json.loads(path.read_text()) if path.exists() else {"models": {}, "abilities": {}}
    models = catalogue()
    for name in FAMILIES if options.abilities else models:
        build = models[name]
        if options.only and not any(text in name for text in options.only):
            continue
        if options.missing and name in found["abilities" if options.abilities else "models"]:
            continue
        if options.abilities:
            found["abilities"][name] = abilities(build)
            print(name, found["abilities"][name], flush=True)
        else:
            found["models"][name] = measure(build)
            print(name, json.dumps(found["models"][name])[:400], flush=True)
        found["environment"] = environment()
        found["models"] = {known: found["models"][known] for known in models if known in found["models"]}
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        gc.collect()
        (options.out / "coverage.md").write_text(table(found))


def environment() -> dict[str, str]:
    """The versions that the figures belong to."""
    from importlib.metadata import version

    packages = (
        "torch",
        "torchvision",
        "segmentation_models_pytorch",
        "diffusers",
        "timm",
        "transformers",
        "monai",
        "spandrel",
        "torch-pixelize",
    )
    return {package: version(package) for package in packages}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """A model with random weights and, so that norms do something, random running statistics; the same at
    each call."""
    torch.manual_seed(0)
    model = build().eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    return model


def measure(build: Callable[[], nn.Module]) -> dict[str, Any]:
    """One row of the table."""
    start = time.perf_counter()
    row: dict[str, Any] = {}
    try:
        model = built(build)
        adapter = adapters.find(model)
        inputs = adapter.example_inputs(model) if adapter is not None else None
        row["adapter"] = adapter.name if adapter is not None else None
        row["up_samplers"] = sum(
            isinstance(m, nn.ConvTranspose2d) and max(m.stride) > 1 for m in model.modules()
        )
        try:
            converted = pixelize.convert(model, example_inputs=inputs)
            report = pixelize.report(converted)
            row.update(_compare(model, converted, inputs))
        except pixelize.NothingToConvertError:
            report = pixelize.inspect(model, inputs)
        row["capture"], row["notes"] = report.capture, report.notes
        row["skipped"] = [[s.name, s.kind, s.reason] for s in report.skipped]
    except Exception as error:
        row["exception"] = f"{type(error).__name__}: {str(error)[:300]}"
    row["seconds"] = round(time.perf_counter() - start, 1)
    return row


def _compare(model: nn.Module, converted: nn.Module, inputs: Any) -> dict[str, Any]:
    report = pixelize.report(converted)
    if all(s.kind == "conv_transpose" for s in report.converted):  # plain transposed convolutions already
        plain = pixelize.Report(parameters_after=report.parameters_before)
    else:
        plain = pixelize.report(pixelize.convert(model, layer="dcl", example_inputs=inputs))
    row: dict[str, Any] = {
        "converted": dict(Counter(s.kind for s in report.converted)),
        "parameters": [report.parameters_before, report.parameters_after, plain.parameters_after],
        "multiply_adds": [report.multiply_adds_before, report.multiply_adds_after, plain.multiply_adds_after],
        "error": relative_error(output(model, inputs), output(converted, inputs)),
        "error_dcl": plain.error,
    }
    row.update(_elsewhere(model, converted, inputs, ""))
    row["error_train"] = _compared(model, converted, doubled(inputs), train=True)
    wide, wide_inputs = copy.deepcopy(model).double(), cast(inputs, torch.float64)
    try:
        output(wide, wide_inputs)
    except Exception as error:
        return {**row, "error_float64": f"the original refuses: {_first_line(error)}"}
    exact = pixelize.convert(wide, example_inputs=wide_inputs)
    row["error_float64"] = relative_error(output(wide, wide_inputs), output(exact, wide_inputs))
    row.update(_elsewhere(wide, exact, wide_inputs, "_float64"))
    row["other_sizes_float64"] = {
        f"+{add[0]} x +{add[1]}": _compared(wide, exact, grown(wide_inputs, add)) for add in GROWN
    }
    row["error_train_float64"] = _compared(wide, exact, doubled(wide_inputs), train=True)
    return row


def _elsewhere(model: nn.Module, converted: nn.Module, inputs: Any, suffix: str) -> dict[str, Any]:
    """Errors at another batch size and at another picture size, or what the original says to that."""
    row: dict[str, Any] = {f"error_batch{suffix}": _compared(model, converted, doubled(inputs))}
    for ratio in RATIOS:
        row[f"error_size{suffix}"] = _compared(model, converted, resized_inputs(inputs, ratio))
        if isinstance(row[f"error_size{suffix}"], float):
            break
    return row


def _compared(model: nn.Module, converted: nn.Module, inputs: Any, train: bool = False) -> float | str:
    try:
        before = output(model, inputs, train)
    except Exception as error:
        return f"the original refuses: {_first_line(error)}"
    return relative_error(before, output(converted, inputs, train))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"


def output(model: nn.Module, inputs: Any, train: bool = False) -> Any:
    """What a copy of ``model`` gives for a copy of the inputs, with a fixed random state."""
    model, inputs = copy.deepcopy(model).train(train), copied_inputs(inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        return adapters.call(model, inputs)


def doubled(inputs: Any) -> Any:
    """The same inputs as a batch twice as large, the second half different."""
    if isinstance(inputs, Tensor):
        if inputs.dim() == 0:
            return inputs
        return torch.cat([inputs, inputs.flip(-1) if inputs.dim() > 1 else inputs])
    if isinstance(inputs, Mapping):
        return {k: doubled(v) for k, v in inputs.items()}
    if isinstance(inputs, list):  # pictures of a detector
        return [*inputs, *(t.flip(-1) for t in inputs)]
    return tuple(doubled(v) for v in inputs) if isinstance(inputs, tuple) else inputs


def grown(inputs: Any, add: tuple[int, int]) -> Any:
    """The same inputs with every picture, a floating-point tensor (N, C, H, W), larger by so many rows and
    columns."""
    if isinstance(inputs, Tensor):
        if inputs.dim() != 4 or not inputs.is_floating_point() or min(inputs.shape[-2:]) < 2:
            return inputs
        size = [d + a for d, a in zip(inputs.shape[-2:], add, strict=True)]
        return F.interpolate(inputs, size, mode="nearest")
    if isinstance(inputs, Mapping):
        return {k: grown(v, add) for k, v in inputs.items()}
    if isinstance(inputs, list) and all(isinstance(v, Tensor) and v.dim() == 3 for v in inputs):
        return [grown(v[None], add)[0] for v in inputs]  # pictures of a detector
    return type(inputs)(grown(v, add) for v in inputs) if isinstance(inputs, list | tuple) else inputs


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Floating-point inputs in another type."""
    if isinstance(inputs, Tensor):
        return inputs.to(dtype) if inputs.is_floating_point() else inputs
    if isinstance(inputs, Mapping):
        return {k: cast(v, dtype) for k, v in inputs.items()}
    return type(inputs)(cast(v, dtype) for v in inputs) if isinstance(inputs, list | tuple) else inputs


def abilities(build: Callable[[], nn.Module]) -> dict[str, str]:
    """What a converted model can still do: ``"yes"``, or what went wrong, or that the original cannot
    either."""
    model = built(build)
    adapter = adapters.find(model)
    assert adapter is not None
    inputs = adapter.example_inputs(model)
    converted = pixelize.convert(model, example_inputs=inputs)
    checks: dict[str, Callable[[nn.Module], None]] = {
        "backward": lambda m: _backward(m, inputs),
        "deepcopy": lambda m: _same(m, copy.deepcopy(m), inputs),
        "state dict": lambda m: _state_dict(m, inputs),
        "compile": lambda m: _compile(m, inputs, fullgraph=True),
        "compile with breaks": lambda m: _compile(m, inputs, fullgraph=False),
        "export": lambda m: _export(m, inputs),
        "half": lambda m: _half(m, inputs),
        "bfloat16": lambda m: _half(m, inputs, torch.bfloat16),
    }
    found = {}
    for name, check in checks.items():
        found[name] = _attempt(check, converted)
        if found[name] != "yes":
            original = _attempt(check, model)
            if original != "yes":
                found[name] = "nor can the original"
    return found


def _attempt(check: Callable[[nn.Module], None], model: nn.Module) -> str:
    torch.compiler.reset()
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            check(copy.deepcopy(model))
    except Exception as error:
        return _first_line(error)
    return "yes"


def _backward(model: nn.Module, inputs: Any) -> None:
    torch.manual_seed(0)
    result = adapters.call(model, inputs)
    sum(t.square().mean() for t in tensors(result) if t.requires_grad).backward()  # type: ignore[union-attr]
    new = [m for m in model.modules() if hasattr(m, "dependency_kernels")]
    for layer in new:
        for parameter in layer.parameters():
            if parameter.grad is None or not parameter.grad.isfinite().all():
                raise AssertionError("a new parameter has no finite gradient")


def _same(model: nn.Module, other: nn.Module, inputs: Any) -> None:
    error = relative_error(output(model, inputs), output(other, inputs))
    if error > 1e-5:
        raise AssertionError(f"the outputs differ by {error:.2g}")


def _state_dict(model: nn.Module, inputs: Any) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    _same(model, other, inputs)


def _compile(model: nn.Module, inputs: Any, fullgraph: bool) -> None:
    compiled = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
    with torch.no_grad():
        torch.manual_seed(0)
        after = adapters.call(compiled, inputs)
    error = relative_error(output(model, inputs), after)
    if error > 1e-4:
        raise AssertionError(f"the outputs differ by {error:.2g}")


def _export(model: nn.Module, inputs: Any) -> None:
    args, kwargs = (
        ((), dict(inputs))
        if isinstance(inputs, Mapping)
        else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    program = torch.export.export(model, args, kwargs, strict=False)
    with torch.no_grad():
        torch.manual_seed(0)
        after = program.module()(*args, **kwargs)
    error = relative_error(output(model, inputs), after)
    if error > 1e-4:
        raise AssertionError(f"the outputs differ by {error:.2g}")


def _half(model: nn.Module, inputs: Any, dtype: torch.dtype = torch.float16) -> None:
    result = output(model.to(dtype), cast(inputs, dtype))
    if not all(t.isfinite().all() for t in tensors(result)):
        raise AssertionError("the output is not finite")


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Coverage",
        "",
        "Written by `benchmarks/coverage.py`; small models with random weights. Errors are relative, "
        "max |after - before| / max |before|; parameters are the model's, "
        "multiply-adds those of its converted sites.",
        "",
        ", ".join(f"{k} {v}" for k, v in found.get("environment", {}).items()),
        "",
        *summary(found["models"]),
        "",
        "| model | capture | converted | skipped | float32 | float64 | other size | odd sizes | other batch "
        "| train | parameters | multiply-adds | as dcl | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in found["models"].items():
        if "exception" in row:
            lines.append(f"| {name} | {row['exception']} |" + " |" * 12)
            continue
        counts = row.get("converted", {})
        skipped = Counter(f"{kind}: {reason}" for _, kind, reason in row["skipped"])
        cells = [
            name,
            row["capture"],
            ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "none",
            "<br>".join(f"{n} x {why}" for why, n in skipped.items()),
            *(_number(row.get(key)) for key in ("error", "error_float64", "error_size")),
            _sizes(row.get("other_sizes_float64", {})),
            *(_number(row.get(key)) for key in ("error_batch", "error_train")),
            _change(row.get("parameters"), 1),
            _change(row.get("multiply_adds"), 1),
            _change(row.get("multiply_adds"), 2),
            str(row["seconds"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if found["abilities"]:
        columns = list(next(iter(found["abilities"].values())))
        lines += [
            "",
            "## After conversion each family still does",
            "",
            "| model | " + " | ".join(columns) + " |",
        ]
        lines.append("| --- |" + " --- |" * len(columns))
        for name, can in found["abilities"].items():
            lines.append(f"| {name} | " + " | ".join(can[c] for c in columns) + " |")
    return "\n".join(lines) + "\n"


def summary(models: dict[str, Any]) -> list[str]:
    """The figures over all models, a line each."""
    rows = models.values()
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.get("converted", {}))
    largest = {
        wide: max(
            (v for row in rows for k, v in row.items() if _is_error(k, wide) and isinstance(v, float)),
            default=0.0,
        )
        for wide in (False, True)
    }
    refusing = [
        name
        for name, row in models.items()
        if row.get("converted") and isinstance(row.get("error_size"), str)
    ]
    return [
        f"- {len(models)} models, {sum('exception' in row for row in rows)} exceptions; seen through "
        + ", ".join(f"{kind} {n}" for kind, n in Counter(row.get("capture") for row in rows).items()),
        f"- converted: {', '.join(f'{n} {kind}' for kind, n in counts.items())}; "
        f"{sum(row.get('up_samplers', 0) for row in rows)} ConvTranspose2d modules with stride over 1 in all",
        f"- largest relative error, over eval and train, other sizes and batches: {largest[False]:.1e} in "
        f"float32, {largest[True]:.1e} in float64",
        f"- taking one picture size only, before as after: {', '.join(refusing) or 'none'}",
    ]


def _is_error(key: str, wide: bool) -> bool:
    return key.startswith("error") and key.endswith("float64") == wide


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def _sizes(errors: dict[str, float | str]) -> str:
    """The largest error at all sizes that the original takes, and how many those are."""
    taken = [error for error in errors.values() if isinstance(error, float)]
    return f"{max(taken):.1e} ({len(taken)} of {len(errors)})" if taken else "none" if errors else ""


def _change(values: list[int | None] | None, after: int) -> str:
    if not values or values[0] is None or values[after] is None:
        return ""
    return f"{values[0]:,} > {values[after]:,} ({values[after] / values[0]:.2f}x)"  # type: ignore[operator]


if __name__ == "__main__":
    main()
