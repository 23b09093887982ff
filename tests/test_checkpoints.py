"""Files of weights: what is written differs where it was replaced alone; patches fit one model alone."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pixelize.checkpoints.checkpoint import same_bits
from pixelize.checkpoints.formats import read_checkpoint
from pixelize.checkpoints.match import changed_tensors
from pixelize.checkpoints.patch import patched, write_patch
from pixelize.errors import LoadError, PixelizeError

onnx = pytest.importorskip("onnx")
NEW = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "z.weight": torch.randn(4, 5, 3, 3, generator=g).to(dtype),
        "up.weight": torch.randn(5, 3, 4, 4, generator=g).to(dtype),
        "up.bias": torch.zeros(3, dtype=dtype),
        "a.bias": torch.zeros(3, dtype=dtype),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, dtype=dtype),
        "odd": torch.tensor([float("nan"), -0.0, float("inf")], dtype=dtype),
    }


def onnx_graph(external: bool, folder: Path) -> Path:
    """up(relu(x + constant)), its weights in the fields that exporters use."""
    h, g = onnx.helper, torch.Generator().manual_seed(0)
    first, up = torch.randn(1, 5, 1, 1, generator=g), torch.randn(5, 3, 4, 4, generator=g)
    constant = h.make_node("Constant", [], ["shift"], value=onnx.numpy_helper.from_array(first.numpy()))
    listed = h.make_tensor("bias", onnx.TensorProto.FLOAT, [3], [0.5, 1.0, -2.0])
    nodes = [
        constant,
        h.make_node("Add", ["x", "shift"], ["y"]),
        h.make_node("ConvTranspose", ["y", "up.w", "bias"], ["z"], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    value = lambda name, c: h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", c, "h", "w"])  # noqa: E731
    graph = h.make_graph(
        nodes,
        "g",
        [value("x", 5)],
        [value("z", 3)],
        [onnx.numpy_helper.from_array(up.numpy(), "up.w"), listed],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 13)], producer_name="somebody")
    model.ir_version = 8
    h.set_model_props(model, {"licence": "theirs"})
    path = folder / "net.onnx"
    options = {"save_as_external_data": True, "location": "net.data", "size_threshold": 0} if external else {}
    onnx.save(model, path, **options)
    return path


def written(kind: str, folder: Path) -> tuple[Path, str]:
    """A file of the kind, and the name of the tensor that the tests replace."""
    state = OrderedDict(weights())
    if kind == "safetensors":
        save_file(weights(), folder / "w.safetensors", metadata={"by": "somebody", "format": "pt"})
        return folder / "w.safetensors", "up.weight"
    if kind == "half safetensors":
        save_file(weights(torch.bfloat16), folder / "w.safetensors")
        return folder / "w.safetensors", "up.weight"
    if kind in ("nested", "old"):
        state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
        tree = {
            "epoch": 3, "params": weights(), "params_ema": state, "opt": [{"m": (torch.ones(2), None)}],
            "tied": state["up.weight"], "hyper": {"lr": 1e-3, "name": "x"},
        }  # fmt: skip
        torch.save(tree, folder / "w.pth", _use_new_zipfile_serialization=kind == "nested")
        return folder / "w.pth", "params_ema/up.weight"
    if kind == "ddp":
        torch.save({f"module.{k}": nn.Parameter(v, False) for k, v in state.items()}, folder / "w.ckpt")
        return folder / "w.ckpt", "module.up.weight"
    if kind == "onnx":
        return onnx_graph(False, folder), "up.w"
    if kind == "external onnx":
        return onnx_graph(True, folder), "up.w"
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"_class_name": "Net"}')
    if kind == "shards":
        first, second = (
            {k: v for k, v in weights().items() if (k[0] == "u") == part} for part in (True, False)
        )
        save_file(first, model / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
        save_file(second, model / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
        index = dict.fromkeys(first, "model-00001-of-00002.safetensors") | dict.fromkeys(
            second, "model-00002-of-00002.safetensors"
        )
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        torch.save(weights(), model / "pytorch_model.bin")
        save_file(weights(), model / "model.safetensors", metadata={"format": "pt"})
    return model, "up.weight"


KINDS = (
    "safetensors", "half safetensors", "nested", "old", "ddp", "onnx", "external onnx", "folder", "shards",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_differs_in_the_replaced_tensor_alone(kind, tmp_path):
    source, name = written(kind, tmp_path)
    file = read_checkpoint(source)
    out = tmp_path / "out" / source.name
    listed = file.write(out, {name: NEW})
    again = read_checkpoint(out)
    assert list(again.tensors) == list(file.tensors) and all(p.exists() for p in listed)
    for n, old in file.tensors.items():
        expected = NEW.to(old.dtype) if n == name else old
        assert same_bits(again.tensors[n], expected), n
        assert type(again.tensors[n]) is type(old) and again.tensors[n].stride() == old.stride()
    # put back, it is the file that it was: nothing else was lost or added
    back = tmp_path / "back" / source.name
    again.write(back, {name: file.tensors[name]})
    for path in [source] if source.is_file() else sorted(source.iterdir()):
        twin = back if source.is_file() else back / path.name
        if path.suffix in (".safetensors", ".json", ".onnx", ".data"):
            assert twin.read_bytes() == path.read_bytes()
        if path.suffix != ".bin":
            (plain := tmp_path / "plain").touch()  # readable by whom new files are
            assert twin.stat().st_mode == plain.stat().st_mode
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize("kind", ["nested", "old"])
def test_containers_stay_what_they_are(kind, tmp_path):
    source, name = written(kind, tmp_path)
    file = read_checkpoint(source)
    file.write(tmp_path / "out.pth", {name: NEW})
    before, after = (torch.load(p, weights_only=True) for p in (source, tmp_path / "out.pth"))
    assert list(after) == list(before) and type(after["params_ema"]) is OrderedDict
    assert after["params_ema"]._metadata == {"": {"version": 2}}
    assert list(after["params_ema"]) == list(before["params_ema"])
    assert (after["epoch"], after["hyper"]) == (3, {"lr": 1e-3, "name": "x"})
    assert type(after["opt"][0]["m"]) is tuple and after["opt"][0]["m"][1] is None
    assert torch.equal(after["tied"], before["tied"])  # of the same storage, and not asked for
    assert (tmp_path / "out.pth").read_bytes()[:2] == source.read_bytes()[:2]  # zip or the old format


def test_two_graphs_with_data_of_one_name_may_lie_in_one_folder(tmp_path):
    sources = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        source, name = written("external onnx", tmp_path / str(number))
        sources.append(source)

    def up(file):
        return onnx.numpy_helper.to_array({t.name: t for t in onnx.load(file).graph.initializer}[name])

    out = tmp_path / "out"
    for number, source in enumerate(sources, 1):
        for _ in range(2):  # the second time over what the first one wrote
            read_checkpoint(source).write(out / f"{number}.onnx", {name: number * NEW})
    assert sorted(os.listdir(out)) == ["1.onnx", "2.onnx", "2.onnx.net.data", "net.data"]
    for number in (1, 2):
        assert (up(out / f"{number}.onnx") == (number * NEW).numpy()).all()
    (out / "3.onnx").write_bytes(b"no graph")
    read_checkpoint(sources[0]).write(out / "3.onnx", {name: 3 * NEW})
    assert (up(out / "1.onnx") == NEW.numpy()).all() and (up(out / "3.onnx") == (3 * NEW).numpy()).all()


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_folder_is_there_whole_and_beside_no_other_weights(kind, tmp_path, monkeypatch):
    source, name = written(kind, tmp_path)
    checkpoint, out = read_checkpoint(source), tmp_path / "out" / "new"

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched_os, pytest.raises(KeyboardInterrupt):
        patched_os.setattr(os, "rename", interrupted)  # what puts it in its place
        checkpoint.write(out, {name: NEW})
    assert os.listdir(out.parent) == []
    for _ in range(2):
        checkpoint.write(out, {name: NEW})
        assert os.listdir(out.parent) == ["new"] and same_bits(read_checkpoint(out).tensors[name], NEW)
    (out / "tf_model.h5").touch()
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(LoadError, match=r"tf_model\.h5.*another folder"):
        checkpoint.write(out, {name: 2 * NEW})
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_a_graph_with_external_data_keeps_it_beside_the_new_one(tmp_path):
    source, name = written("external onnx", tmp_path)
    was = {p: p.read_bytes() for p in tmp_path.iterdir()}
    read_checkpoint(source).write(tmp_path / "new.onnx", {name: NEW})
    assert {p: p.read_bytes() for p in was} == was
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "net.data",
        "net.onnx",
        "new.onnx",
        "new.onnx.net.data",
    ]
    found = {t.name: t for t in onnx.load(tmp_path / "new.onnx").graph.initializer}
    assert (onnx.numpy_helper.to_array(found["up.w"]) == NEW.numpy()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_write_leaves_what_was_there(kind, tmp_path, monkeypatch):
    source, name = written(kind, tmp_path)
    file = read_checkpoint(source)
    out = tmp_path / "out" / source.name
    file.write(out, {name: NEW})
    was = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        file.write(out, {name: NEW * 2})
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == was


@pytest.mark.parametrize("kind", ["safetensors", "nested", "onnx"])
def test_a_full_disk_is_an_os_error(kind, tmp_path):
    pytest.importorskip("resource")  # a limit on the size of a file stands for the disk's end
    source, name = written(kind, tmp_path)
    out = tmp_path / f"out{source.suffix}"
    out.write_bytes(b"old")
    code = (
        "import resource, signal, sys, torch; from pathlib import Path\n"
        "from pixelize.checkpoints.formats import read_checkpoint\n"
        "file = read_checkpoint(sys.argv[1]); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "try: file.write(Path(sys.argv[2]), {sys.argv[3]: torch.ones(5, 3, 4, 4)})\n"
        "except OSError as error: print(type(error).__name__, error.errno)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(out), name], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("OSError"), done.stderr
    assert out.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_a_type_that_cannot_hold_it_rounds_and_shapes_must_fit(tmp_path):
    source, name = written("half safetensors", tmp_path)
    file = read_checkpoint(source)
    file.write(tmp_path / "out.safetensors", {name: NEW})
    assert same_bits(load_file(tmp_path / "out.safetensors")[name], NEW.bfloat16())
    with pytest.raises(LoadError, match="cannot become"):
        file.write(tmp_path / "other.safetensors", {name: NEW[:2]})
    with pytest.raises(LoadError, match="holds no tensor 'nothing'"):
        file.write(tmp_path / "other.safetensors", {"nothing": NEW})
    assert not (tmp_path / "other.safetensors").exists()


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("owned",))


def hostile(kind: str, folder: Path) -> Path:
    path = folder / "bad.pth"
    if kind == "pickle":
        torch.save({"w": Evil()}, path)
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif kind == "a program":
        torch.jit.script(nn.Linear(2, 2)).save(path)
    elif kind == "half a zip":
        torch.save(weights(), path)
        path.write_bytes(path.read_bytes()[:900])
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "a header that lies":
        path = folder / "bad.safetensors"
        header = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    elif kind == "an enormous header":
        path = folder / "bad.safetensors"
        path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    elif kind == "no graph":
        path = folder / "bad.onnx"
        path.write_bytes(b"\x08\x08nonsense")
    elif kind == "data elsewhere":
        source = onnx_graph(True, folder)
        model = onnx.load(source, load_external_data=False)
        for entry in model.graph.initializer[0].external_data:
            if entry.key == "location":
                entry.value = "../secret"
        (folder.parent / "secret").write_bytes(b"x" * 4096)
        path = folder / "bad.onnx"
        path.write_bytes(model.SerializeToString())
    elif kind == "a shard elsewhere":
        path = folder / "model"
        path.mkdir()
        (path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../secret"}}')
    elif kind == "an empty folder":
        path = folder / "model"
        path.mkdir()
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "pickle", "plain pickle", "a program", "half a zip", "nothing", "a header that lies",
        "an enormous header", "no graph", "data elsewhere", "a shard elsewhere", "an empty folder",
        "not there",
    ],
)  # fmt: skip
def test_damaged_and_hostile_files_are_refused_in_a_sentence(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = tmp_path / "inside"
    inside.mkdir()
    path = hostile(kind, inside)
    with pytest.raises(LoadError) as refused:
        read_checkpoint(path)
    assert str(path.parent) in str(refused.value) and "\n" not in str(refused.value)
    assert not Path("owned").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_makes_of_its_model_what_it_was_made_from(kind, tmp_path):
    source, name = written(kind, tmp_path)
    file = read_checkpoint(source)
    patch = write_patch(tmp_path / "p.safetensors", file, {name: NEW})
    file.write(tmp_path / "direct" / source.name, {name: NEW})
    file.write(tmp_path / "applied" / source.name, patched(patch, file))
    for path in (tmp_path / "direct").rglob("*"):
        if path.is_file() and path.suffix in (".safetensors", ".onnx", ".data"):
            twin = tmp_path / "applied" / path.relative_to(tmp_path / "direct")
            assert twin.read_bytes() == path.read_bytes()
    direct, applied = (read_checkpoint(tmp_path / d / source.name) for d in ("direct", "applied"))
    assert all(same_bits(direct.tensors[n], applied.tensors[n]) for n in direct.tensors)
    with pytest.raises(LoadError, match="applied already"):
        patched(patch, applied)
    assert patch.stat().st_size < sum(f.nbytes for f in file.tensors.values()) + 3000


def test_a_patch_finds_its_model_under_other_names_and_no_other(tmp_path):
    source, name = written("nested", tmp_path)
    file = read_checkpoint(source)
    used = [n for n in file.tensors if n.startswith("params_ema/")]
    patch = write_patch(tmp_path / "p.safetensors", file, {name: NEW}, used)
    save_file(weights(), tmp_path / "w.safetensors")
    plain = read_checkpoint(tmp_path / "w.safetensors")
    assert list(patched(patch, plain)) == ["up.weight"]
    for other in ("up.weight", "z.weight"):  # what it changes, and what it only relies on
        save_file({**weights(), other: weights()[other] + 1e-6}, tmp_path / "other.safetensors")
        with pytest.raises(LoadError, match="another model"):
            patched(patch, read_checkpoint(tmp_path / "other.safetensors"))
    with pytest.raises(LoadError, match="no patch"):
        patched(tmp_path / "w.safetensors", plain)
    (tmp_path / "cut.safetensors").write_bytes(patch.read_bytes()[:-7])
    with pytest.raises(LoadError, match="not a readable patch"):
        patched(tmp_path / "cut.safetensors", plain)


NORMS = (
    nn.utils.weight_norm, nn.utils.parametrizations.weight_norm,
    nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm,
)  # fmt: skip


def net(norm=None) -> nn.Sequential:
    torch.manual_seed(1)
    up = nn.ConvTranspose2d(4, 3, 4, 2, 1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), norm(up) if norm else up, nn.ConvTranspose2d(3, 3, 2, 2))


@pytest.mark.parametrize("norm", [None, *NORMS])
def test_what_changed_is_told_in_the_files_own_terms(norm, tmp_path):
    before, after = net(norm).eval(), net().eval()
    after[0].weight.data.copy_(before[0].weight)  # a norm's constructor draws no numbers, but be sure
    for i in (1, 2):
        after[i].bias.data.copy_(before[i].bias)
    after[2].weight.data.copy_(before[2].weight)
    after[1].weight.data.mul_(1.5).add_(0.1)
    torch.save({"state_dict": {f"netG.{k}": v for k, v in before.state_dict().items()}}, tmp_path / "w.pth")
    file = read_checkpoint(tmp_path / "w.pth")
    values = changed_tensors(before, after, file)
    assert all(name.startswith("state_dict/netG.1.") for name in values)
    file.write(tmp_path / "out.pth", values)
    again = net(norm).eval()
    state = torch.load(tmp_path / "out.pth", weights_only=True)["state_dict"]
    again.load_state_dict({k.removeprefix("netG."): v for k, v in state.items()})
    x = torch.randn(1, 2, 9, 9)
    torch.testing.assert_close(again(x), after(x))
    with pytest.raises(PixelizeError, match="computed from them"):
        changed = net()
        changed[0].weight.data += 1
        changed_tensors(changed, after, file)
    with pytest.raises(PixelizeError, match="does not fit the file"):
        changed_tensors(before, nn.Sequential(*after[:2], nn.ConvTranspose2d(3, 3, 4, 2, 1)), file)
    with pytest.raises(PixelizeError, match="no such parameter"):
        changed_tensors(before, after[:2], file)
