"""``pixelize repair`` on every form in which people keep checkpoints, with repair's own numbers."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_interrupts import AtLine
from test_repair_command import CODE
from test_repair_files import SPANDREL, real_esrgan
from torch import Tensor, nn

from pixelize.checkpoints.patch import read_patch
from pixelize.command_line import repair as command
from pixelize.refit.limits import RepairLimits
from pixelize.refit.repair import repair
from pixelize.running.pictures import run as model_run
from pixelize.sources.inputs import padded
from pixelize.sources.opened import open_model
from pixelize.sources.pictures import drawn

QUICK = RepairLimits(portion=8, first_rounds=0, steps=3, layers=2, patience=2, done=0.5, multiply_adds=1e9)


@pytest.fixture
def repaired(monkeypatch) -> list[nn.Module]:
    """The models that the command repaired; they are fitted less than they would be."""
    found: list[nn.Module] = []

    def quick(model: nn.Module, data: Any, progress: bool) -> nn.Module:
        found.append(repair(model, data, progress=progress, limits=QUICK))
        return found[-1]

    monkeypatch.setattr(command, "repair", quick)
    return found


@pytest.fixture
def run(tmp_path, monkeypatch, command_line, repaired):
    """The command where there are pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.py").write_text(CODE)
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(drawn(6, 48, 3, 0)):
        array = (255 * picture).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / "photos" / f"{number}.png")
    return functools.partial(command_line, "repair")


OPTIONS = ("--data", "photos", "--count", "8", "--crop", "24", "--no-page")


def lightning(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a Trainer of Lightning keeps, with an averaged copy under a callback."""
    return {
        "epoch": 3, "global_step": 120, "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict((f"model.{k}", v) for k, v in state.items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(120.0), "exp_avg": torch.ones(3)}},
                              "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0]}]}],
        "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": {"lr": 1e-3, "layers": [1, 2]},
    }  # fmt: skip


def ema(state: Mapping[str, Tensor]) -> dict[str, Any]:
    other = {k: v + 0.01 for k, v in state.items()}
    return {"state_dict": other, "ema_state_dict": dict(state), "step": 9, "note": None}


# by name: what is kept in the file, and how its own program finds the weights in there
FORMS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], Callable[[Any], dict[str, Tensor]]]] = {
    "plain.pth": (lambda s: s, lambda t: t),
    "plain.bin": (lambda s: OrderedDict(s), lambda t: t),
    "old.pt": (lambda s: {"model": s}, lambda t: t["model"]),
    "float16.pth": (
        lambda s: {k: v.half() for k, v in s.items()}, lambda t: {k: v.float() for k, v in t.items()}
    ),
    "bfloat16.ckpt": (
        lambda s: {"state_dict": {k: v.bfloat16() for k, v in s.items()}},
        lambda t: {k: v.float() for k, v in t["state_dict"].items()},
    ),
    "parallel.pth": (
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda t: {k.removeprefix("module."): v for k, v in t.items()},
    ),
    "parameters.pth": (lambda s: {k: nn.Parameter(v) for k, v in s.items()}, lambda t: t),
    "lightning.ckpt": (
        lightning, lambda t: {k.removeprefix("model."): v for k, v in t["state_dict"].items()}
    ),
    "params_ema.pth": (
        lambda s: {"params": {k: v + 0.01 for k, v in s.items()}, "params_ema": s}, lambda t: t["params_ema"]
    ),
    "ema.pth": (ema, lambda t: t["ema_state_dict"]),
    "nested.pth": (
        lambda s: {"nets": [{"gan": {"G": s, "D": {"w": torch.ones(2)}}}], "args": {"size": (2, 3)}},
        lambda t: t["nets"][0]["gan"]["G"],
    ),
    "plain.safetensors": (lambda s: s, lambda t: t),
    "float16.safetensors": (
        lambda s: {k: v.half() for k, v in s.items()}, lambda t: {k: v.float() for k, v in t.items()}
    ),
    "bfloat16.safetensors": (
        lambda s: {k: v.bfloat16() for k, v in s.items()}, lambda t: {k: v.float() for k, v in t.items()}
    ),
    "float8.pth": (
        lambda s: {k: v.to(torch.float8_e4m3fn) for k, v in s.items()},
        lambda t: {k: v.float() for k, v in t.items()},
    ),
    "parallel.safetensors": (
        lambda s: {f"module.{k}": v for k, v in s.items()} | {"step": torch.tensor(4)},
        lambda t: {k.removeprefix("module."): v for k, v in t.items() if k != "step"},
    ),
}  # fmt: skip


def saved(tree: Any, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({k: v.clone() for k, v in tree.items()}, path, metadata={"by": "somebody", "n": "2"})
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=not path.name.startswith("old"))


def read(path: Path) -> Any:
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def difference(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two trees differ; what is no tensor, and each tensor's type and form, must not."""
    assert type(before) is type(after), place
    if isinstance(before, Tensor):
        for known in ("dtype", "shape", "requires_grad"):
            assert getattr(before, known) == getattr(after, known), place
        assert before.stride() == after.stride(), place
        return [] if torch.equal(before, after) else [place]
    if isinstance(before, Mapping):
        assert list(before) == list(after), place
        return [name for k in before for name in difference(before[k], after[k], f"{place}/{k}")]
    if isinstance(before, list | tuple):
        assert len(before) == len(after), place
        pairs = enumerate(zip(before, after, strict=True))
        return [name for n, (a, b) in pairs for name in difference(a, b, f"{place}/{n}")]
    assert before == after, place
    return []


@pytest.mark.parametrize("name", FORMS)
def test_a_checkpoint_of_any_form_becomes_the_same_but_for_what_was_refitted(
    name, run, tmp_path, command_line
):
    kept, weights_in = FORMS[name]
    model = open_model("grid.py:Net").model
    saved(kept(model.state_dict()), path := tmp_path / name)
    out = tmp_path / "new" / name
    code, told, err = run(name, "--arch", "grid.py:Net", *OPTIONS, "--out", str(out))
    assert (code, err) == (0, ""), told + err
    assert ("rounds that much" in " ".join(told.split())) == name.startswith("float8")
    before, after = read(path), read(out)
    (changed,) = difference(before, after)
    assert changed.endswith("1.weight") and ("ema" in changed) == ("ema" in name)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as a, safe_open(out, "pt") as b:
            assert a.metadata() == b.metadata() == {"by": "somebody", "n": "2"}
    host = open_model("grid.py:Net").model
    host.load_state_dict(weights_in(after))  # as the program does whose file it is
    pictures = torch.stack(list(drawn(4, 32, 3, 9)))
    with torch.no_grad():
        power = [phases_apart(m(pictures)) for m in (model, host)]
    assert power[1] < power[0] / 10
    patch = out.with_name(f"{out.stem}.patch.safetensors")
    assert command_line("apply", str(patch), name, "--out", str(tmp_path / f"applied{path.suffix}"))[0] == 0
    assert difference(after, read(tmp_path / f"applied{path.suffix}")) == []


def phases_apart(pictures: Tensor) -> float:
    """Mean square by which the means of the four phases of each picture differ."""
    means = torch.stack([pictures[..., i::2, j::2].mean((-2, -1)) for i in (0, 1) for j in (0, 1)])
    return (means - means.mean(0)).square().mean().item()


# the forms in which spandrel's users keep them, one after the other
WRAPPINGS: list[tuple[str, Callable[[dict[str, Tensor]], Any]]] = [
    (".pth", lambda s: {"params": {k: v + 1 for k, v in s.items()}, "params_ema": s}),
    (".safetensors", lambda s: s),
    (".pth", lambda s: {f"module.{k}": v for k, v in s.items()}),
    (".ckpt", lambda s: {"epoch": 3, "state_dict": s, "hyper_parameters": {"lr": 1e-3}}),
    (".pt", lambda s: s),
    (".pth", lambda s: {"params": s}),
    (".safetensors", lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}),
    (".pth", lambda s: {"model": {"state_dict": OrderedDict(s)}}),
]  # fmt: skip


# those that so short a fit may leave as they are, and those that it takes long for
HARD, LONG = ("ESRGAN",), ("RealCUGAN", "OmniSR", "SwiftSRGAN", "SCUNet")


@pytest.mark.parametrize(
    "number", [pytest.param(n, id=name) for n, name in enumerate(SPANDREL) if name not in LONG]
)
def test_an_architecture_of_spandrel(number, run, repaired, tmp_path):
    """A small network of random numbers, whose phases differ as they came. What the library itself makes of
    the file is what the repaired model makes, and nothing else in the file has changed."""
    spandrel = pytest.importorskip("spandrel")
    folder = list(SPANDREL)[number]
    name, options = SPANDREL[folder]
    torch.manual_seed(0)
    made = getattr(importlib.import_module(f"spandrel.architectures.{folder}"), name)(**options)
    state = made.state_dict()
    if folder == "ESRGAN":  # the keys of Real-ESRGAN, which spandrel renames when it reads them
        state = {real_esrgan(k): v for k, v in state.items()}
    suffix, wrapping = WRAPPINGS[number % len(WRAPPINGS)]
    saved(wrapping(state), path := tmp_path / f"w{suffix}")
    code, told, err = run(str(path), *OPTIONS, "--out", f"new/w{suffix}")
    if code == 4:
        assert "Could not be repaired although a pattern stands out" in told and folder in HARD
        assert not (tmp_path / "new").exists()
        return
    assert (code, err) == (0, ""), told + err
    before, after = read(path), read(out := tmp_path / "new" / f"w{suffix}")
    changed = difference(before, after)
    assert 1 <= len(changed) <= 4 and not any("eval_conv" in name for name in changed)
    picture = padded(torch.rand(3, 40, 32), open_model(str(path)).preparation)[None]
    with torch.no_grad():
        found = spandrel.ModelLoader().load_from_file(out)(picture.clone())
        half = number % len(WRAPPINGS) == 6
        close = dict(atol=2e-2, rtol=1e-2) if half else dict(atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found, model_run(repaired[0].eval(), picture).clamp(0, 1), **close)


def pages(folder: Path) -> None:
    """Black text on white, slanted over the page."""
    folder.mkdir()
    for number in range(4):
        page = Image.new("RGB", (192, 192), "white")
        for line in range(6):
            font = ImageFont.load_default(14 + 2 * line)
            place = (6 + 7 * line, 6 + 30 * line)
            ImageDraw.Draw(page).text(place, f"page {number}, line {line} of it", "black", font)
        page.save(folder / f"{number}.png")


def test_the_graph_of_a_trained_text_detector(run, tmp_path, monkeypatch):
    """Fitted so little that the pattern may stay or rise; what is written is what was made."""
    runtime = pytest.importorskip("onnxruntime")
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("needs rapidocr-onnxruntime, for its model")
    onnx = pytest.importorskip("onnx")
    (detector,) = Path(spec.origin).parent.glob("models/*_det_infer.onnx")
    pages(tmp_path / "pages")
    made: list[nn.Module] = []
    limits = dataclasses.replace(QUICK, worth=0.0, worse=30.0)

    def quick(model: nn.Module, data: Any, progress: bool) -> nn.Module:
        made.append(repair(model, data, progress=progress, limits=limits))
        return made[-1]

    monkeypatch.setattr(command, "repair", quick)
    options = ("--data", "pages", "--scale", "imagenet", "--count", "8", "--crop", "64", "--no-page")
    code, told, err = run(str(detector), *options, "--out", "new.onnx")
    assert (code, err) == (0, ""), told + err
    picture = torch.rand(1, 3, 96, 160) * 2 - 1
    session = runtime.InferenceSession("new.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: picture.numpy()})
    with torch.no_grad():
        expected = model_run(made[0].eval(), picture)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-3)
    before, after = onnx.load(detector), onnx.load("new.onnx")
    changed = [n for n, (a, b) in enumerate(zip(before.graph.node, after.graph.node, strict=True)) if a != b]
    constants = {before.graph.node[n].op_type for n in changed}
    initial = zip(before.graph.initializer, after.graph.initializer, strict=True)
    assert constants <= {"Constant"} and 1 <= len(changed) + sum(a != b for a, b in initial) <= 6
    assert before.opset_import == after.opset_import


RECOMPUTED = """
class Merged(nn.Module):
    \"""Its convolution's weight is put together from two others whenever it runs.\"""
    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(12, 3, 3, 3) / 5)
        self.second = nn.Parameter(torch.randn(12, 3, 1, 1) / 5)
        self.merged, self.up = nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2)

    def forward(self, x):
        self.merged.weight.data = (self.first + nn.functional.pad(self.second, [1] * 4)).data
        return self.up(self.merged(x))
"""


def test_a_weight_that_is_computed_anew_is_not_what_is_repaired(run, tmp_path):
    (tmp_path / "merged.py").write_text(CODE + RECOMPUTED)
    torch.save(open_model("merged.py:Merged").model.state_dict(), "w.pth")
    code, told, _ = run("w.pth", "--arch", "merged.py:Merged", *OPTIONS, "--out", "r.pth")
    assert code == 4 and "the model computes its weight anew whenever it runs" in " ".join(told.split())


BATCH_OF_ONE = """
class Single(Net):
    def forward(self, x):
        assert len(x) == 1, "one at a time"
        return super().forward(x)
"""


def test_a_model_that_takes_one_picture_at_a_time(run, tmp_path, command_line):
    (tmp_path / "single.py").write_text(CODE + BATCH_OF_ONE)
    torch.save(open_model("single.py:Single").model.state_dict(), "w.pth")
    arch = ("--arch", "single.py:Single")
    assert run("w.pth", *arch, *OPTIONS, "--out", "r.pth")[0] == 0
    assert command_line("diagnose", "w.pth", *arch, "--data", "photos", "--crop", "32")[0] == 0
    code, _, err = run("w.pth", *arch, "--data", "4x5x24x24", "--out", "r.pth")
    assert code == 1 and "4x5x24x24" in err and len(err.splitlines()) == 1


def super_resolution(path: Path, up: str, opset: int, external: bool) -> None:
    """A graph that doubles pictures, by a transposed convolution or by DepthToSpace, one phase brighter."""
    onnx = pytest.importorskip("onnx")
    h, g = onnx.helper, torch.Generator().manual_seed(0)
    weight = torch.randn(12, 8, 3, 3, generator=g) / 9
    weight[slice(3, None, 4) if up == "CRD" else slice(9, 12)] *= 1.5
    tensors = {
        "body.0.weight": torch.randn(8, 3, 3, 3, generator=g) / 5, "body.0.bias": torch.rand(8, generator=g),
        "up.weight": torch.randn(8, 3, 4, 4, generator=g) / 9 if up == "ConvTranspose" else weight,
        "up.bias": torch.rand(3 if up == "ConvTranspose" else 12, generator=g),
    }  # fmt: skip
    nodes = [
        h.make_node("Conv", ["input", "body.0.weight", "body.0.bias"], ["a"], "first", pads=[1] * 4),
        h.make_node("LeakyRelu", ["a"], ["b"], "second", alpha=0.2),
    ]
    if up == "ConvTranspose":
        inputs = ["b", "up.weight", "up.bias"]
        nodes.append(h.make_node(up, inputs, ["output"], "up", strides=[2, 2], pads=[1] * 4))
    else:
        nodes.append(h.make_node("Conv", ["b", "up.weight", "up.bias"], ["c"], "up", pads=[1] * 4))
        mode = {"mode": up} if up else {}  # DCR, before there was a choice
        nodes.append(h.make_node("DepthToSpace", ["c"], ["output"], "shuffle", blocksize=2, **mode))
    protos = [onnx.numpy_helper.from_array(v.numpy(), k) for k, v in tensors.items()]
    ends = [h.make_tensor_value_info(n, 1, ["n", 3, f"{n} h", f"{n} w"]) for n in ("input", "output")]
    made = h.make_model(
        h.make_graph(nodes, "net", ends[:1], ends[1:], protos, doc_string="doubles pictures"),
        opset_imports=[h.make_opsetid("", opset)], producer_name="somebody", producer_version="2",
    )  # fmt: skip
    made.ir_version = 7
    h.set_model_props(made, {"scale": "2", "author": "somebody"})
    more = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 100}
    onnx.save(made, path, **(more if external else {}))


@pytest.mark.parametrize(
    ("up", "opset", "external"),
    [("ConvTranspose", 13, False), ("CRD", 17, True), ("DCR", 11, False), ("", 9, True)],
)
def test_a_graph_that_enlarges_pictures(up, opset, external, run, repaired, tmp_path, command_line):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx2torch")
    super_resolution(path := tmp_path / "sr.onnx", up, opset, external)
    kept = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    code, told, err = run("sr.onnx", *OPTIONS, "--out", "new/sr.onnx")
    assert (code, err) == (0, ""), told + err
    assert {p: p.read_bytes() for p in kept} == kept
    out = tmp_path / "new" / "sr.onnx"
    pictures = torch.rand(2, 3, 19, 26)  # of another size than it was fitted on
    (found,) = runtime.InferenceSession(str(out), providers=["CPUExecutionProvider"]).run(
        None, {"input": pictures.numpy()}
    )
    with torch.no_grad():
        expected = model_run(repaired[0].eval(), pictures)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)
    before, after = (onnx.load(p) for p in (path, out))
    tensors = [{t.name: onnx.numpy_helper.to_array(t) for t in m.graph.initializer} for m in (before, after)]
    assert list(tensors[0]) == list(tensors[1])
    differ = [k for k, v in tensors[0].items() if v.tobytes() != tensors[1][k].tobytes()]
    assert "up.weight" in differ and set(differ) <= {"up.weight", "up.bias", "body.0.weight"}
    before, after = (onnx.load(p, load_external_data=False) for p in (path, out))
    assert external == any(t.external_data for t in after.graph.initializer)
    for model in (before, after):  # all but the numbers: nodes, names, opset, metadata, types, shapes
        for tensor in model.graph.initializer:
            for part in ("raw_data", "float_data", "external_data"):
                tensor.ClearField(part)
    assert before == after
    assert command_line("apply", "new/sr.patch.safetensors", "sr.onnx", "--out", "again/sr.onnx")[0] == 0
    for file in out.parent.iterdir():
        if file.suffix in (".onnx", ".bin", ".data"):
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.fixture
def written(run, repaired, monkeypatch, tmp_path):
    """A folder with what a repair of ``w.pth`` writes, and the same command again, with the model that was
    repaired: what is left of it is reading and writing."""
    torch.save({"params_ema": open_model("grid.py:Net").model.state_dict(), "iter": 7}, "w.pth")
    arguments = ("w.pth", "--arch", "grid.py:Net", *OPTIONS, "--out")
    assert run(*arguments, "whole/r.pth")[0] == 0
    monkeypatch.setattr(command, "repair", lambda *_, **__: repaired[0])
    (tmp_path / "out").mkdir()
    return functools.partial(run, *arguments, "out/r.pth")


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file; of a patch what it says, for safetensors writes metadata in any order."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    patches = {name: read_patch(folder / name) for name in found if name.endswith(".patch.safetensors")}
    return found | {
        name: repr((told, {k: v.tolist() for k, v in tensors.items()})).encode()
        for name, (told, tensors) in patches.items()
    }


def test_interrupted_at_any_moment_the_old_file_stays_or_the_new_one_is_whole(written, tmp_path):
    whole, out = contents(tmp_path / "whole"), tmp_path / "out"
    assert set(whole) == {"r.pth", "r.patch.safetensors"}
    with AtLine(-1, KeyboardInterrupt) as counted:
        assert written()[0] == 0
    assert contents(out) == whole
    moments = [int(counted.count * share) for share in torch.rand(24).tolist()]
    moments += [counted.count - n for n in (5, 20, 40, 80, 120, 160, 200, 300)]  # while it writes
    seen = set()
    for n in moments:
        for path in out.iterdir():
            path.unlink()
        (out / "r.pth").write_bytes(b"old")
        with AtLine(n, KeyboardInterrupt):
            code = written()[0]
        left = contents(out)
        assert code != 0 or left == whole, n
        assert left["r.pth"] in (b"old", whole["r.pth"]) and left.keys() <= whole.keys(), (n, left.keys())
        assert left.get("r.patch.safetensors", whole["r.patch.safetensors"]) == whole["r.patch.safetensors"]
        seen.add(left["r.pth"])
    assert len(seen) == 2  # before and after the moment at which the file takes its place


@pytest.mark.parametrize("size", [0, 100, 700])
def test_on_a_full_disk_the_old_file_stays(size, written, tmp_path, full_disk):
    (tmp_path / "out" / "r.pth").write_bytes(b"old")
    with full_disk(size):
        code, _, err = written()
    assert code == 1 and len(err.splitlines()) == 1 and err.startswith("error: "), err
    assert contents(tmp_path / "out") == {"r.pth": b"old"}


def test_where_nothing_can_be_written_it_is_said_at_once(run, tmp_path):
    torch.save(open_model("grid.py:Net").model.state_dict(), "w.pth")
    (tmp_path / "kept").mkdir(mode=0o555)
    places = ["grid.py/r.pth", "/proc/r.pth"] + ([] if os.geteuid() == 0 else ["kept/r.pth"])
    for place in places:
        code, told, err = run("w.pth", "--arch", "grid.py:Net", *OPTIONS, "--out", place)
        assert code == 1 and told == "" and "nothing can be written there" in err
