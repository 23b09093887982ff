"""``pixelize repair`` and ``apply`` as a person with a file meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelize.checkpoints.checkpoint import same_bits
from pixelize.checkpoints.formats import read_checkpoint
from pixelize.command_line import repair as command
from pixelize.errors import ArgumentError
from pixelize.measure.checkerboard import checkerboard
from pixelize.refit.report import RepairedSite, RepairReport
from pixelize.sources import inputs, pictures
from pixelize.sources.inputs import read_inputs
from pixelize.sources.opened import open_model
from pixelize.sources.pictures import drawn
from pixelize.sources.preparation import Preparation

CODE = '''
import torch
from torch import nn

class Net(nn.Sequential):
    """Up-samples bilinearly, with one phase brighter than the others."""
    def __init__(self, excess=0.15):
        line = torch.tensor([1.0, 3, 3, 1]) / 4
        up = nn.ConvTranspose2d(3, 3, 4, 2, 1)
        with torch.no_grad():
            up.weight.zero_()
            for c in range(3):
                up.weight[c, c] = line * line[:, None]
                up.weight[c, c, 1::2, 1::2] *= 1 + excess
            up.bias.zero_()
        super().__init__(nn.Identity(), up)
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with an architecture, two checkpoints of it, and pictures of two sizes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.py").write_text(CODE)
    for name, options in (("w.pth", ""), ("clean.pth", "?excess=0.0")):
        state = open_model(f"grid.py:Net{options}").model.state_dict()
        torch.save({"params_ema": state, "iter": 7}, tmp_path / name)
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(drawn(12, 72, 3, 0)):
        array = (255 * picture[:, : 72 - 8 * (number % 2)]).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


@pytest.fixture
def run(here, command_line):
    return command_line


REPAIR = ("--arch", "grid.py:Net", "--data", "photos", "--count", "24", "--crop", "32")


def test_a_file_goes_in_and_the_same_kind_of_file_comes_out(run, here):
    code, out, err = run("repair", "w.pth", *REPAIR, "--out", "new/r.pth")
    assert code == 0 and err == ""
    assert max(map(len, out.splitlines())) <= 80
    for told in ("Repaired 1: 3 frequencies", "params_ema/1.weight", "before", "after", "wrote new/r.pth"):
        assert told in out
    assert sorted(p.name for p in (here / "new").iterdir()) == ["r.html", "r.patch.safetensors", "r.pth"]
    before, after = (read_checkpoint(p) for p in ("w.pth", "new/r.pth"))
    assert [n for n in before.tensors if not same_bits(before.tensors[n], after.tensors[n])] == [
        "params_ema/1.weight"
    ]
    assert torch.load("new/r.pth", weights_only=True)["iter"] == 7
    pictures = torch.stack(list(drawn(8, 48, 3, 99)))  # others than it was fitted on
    levels = []
    for name in ("w.pth", "new/r.pth"):
        with torch.no_grad():
            levels.append(checkerboard(open_model(name, arch="grid.py:Net").model(pictures))["worst"])
    assert levels[1] < levels[0] - 6
    assert run("apply", "new/r.patch.safetensors", "w.pth", "-o", "applied.pth")[0] == 0
    assert Path("applied.pth").read_bytes() == Path("new/r.pth").read_bytes()
    code, _, err = run("apply", "new/r.patch.safetensors", "clean.pth", "-o", "other.pth")
    assert code == 1 and "another model" in err and len(err.splitlines()) == 1
    assert not Path("other.pth").exists()
    page = Path("new/r.html").read_text()
    assert "before" in page and "repaired" in page and "data:image/png" in page


def test_nothing_to_repair_writes_nothing(run, here):
    was = sorted(here.iterdir())
    code, out, _ = run("repair", "clean.pth", *REPAIR, "--out", "r.pth", "--json")
    told = json.loads(out)
    assert code == 3 and told["exit_code"] == 3 and told["verdict"].startswith("Nothing to repair")
    assert "files" not in told and sorted(here.iterdir()) == was


def test_verdicts_tell_why_and_what_it_would_take():
    levels = {"global": {"(1/2,1/2)": 20.0}}
    left = RepairedSite("up", "left", "no refit was good enough")
    told, code = command._verdict(RepairReport([left], levels, levels, samples=4))
    assert code == 4 and "no refit was good enough" in told and "more pictures" in told
    told, code = command._verdict(RepairReport(notes=["the model's output holds no picture"]))
    assert code == 3 and "no picture" in told
    done = RepairedSite("up", "repaired")
    told, code = command._verdict(RepairReport([done], levels, {"global": {"(1/2,1/2)": 0.5}}))
    assert code == 0 and "from +20.0 to +0.5 dB" in told


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_leaves_nothing(run, here, monkeypatch, raised):
    Path("r.pth").write_bytes(b"old")
    was = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}

    def stop(*_, **__):
        raise raised

    for target in ("repair", "write_repaired"):
        with monkeypatch.context() as patch:
            patch.setattr(command, target, stop)
            if target == "write_repaired":
                patch.setattr(command, "_verdict", lambda found: ("", 0))
                patch.setattr(command, "repair", lambda model, *_, **__: model)
                patch.setattr(command, "repair_report", lambda model: RepairReport())
            assert run("repair", "w.pth", *REPAIR, "--out", "r.pth")[0] != 0
        assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == was


BAD = {
    "another kind": (("w.pth", *REPAIR, "-o", "r.safetensors"), "end --out with .pth"),
    "nowhere to write": (("w.pth", *REPAIR, "-o", "grid.py/r.pth"), "nothing can be written there"),
    "a wrong file": (("photos/0.png", *REPAIR, "-o", "r.pth"), "--arch belongs to"),
    "no such file": (("none.pth", *REPAIR, "-o", "r.pth"), "no such file"),
    "no pictures": (("w.pth", "--arch", "grid.py:Net", "-d", "grid.py", "-o", "r.pth"), "readable picture"),
    "an unknown range": (("w.pth", *REPAIR, "--scale", "x", "-o", "r.pth"), "auto, unit, signed"),
    "another's weights": (("w.pth", "--arch", "demo", "-o", "r.pth"), "do not fit"),
    "wrong channels": (("w.pth", "--arch", "grid.py:Net", "-d", "4x5x16x16", "-o", "r.pth"), "3 channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_at_once_in_a_sentence(run, here, case):
    was = sorted(here.rglob("*"))
    arguments, told = BAD[case]
    code, out, err = run("repair", *arguments)
    assert out == ""  # what is to be repaired is told before it is begun
    assert code == 1 and told in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert sorted(p for p in here.rglob("*") if "__pycache__" not in p.parts) == was


def test_data_of_any_kind_makes_batches_of_one_size(here):
    photos = [str(p) for p in sorted((here / "photos").iterdir())]
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in photos:
            archive.write(path, f"inside/{Path(path).name}")
    np.save("x.npy", np.zeros((5, 3, 8, 8), np.float32))
    for names in (["photos"], ["photos.zip"], photos):
        found = read_inputs(names, crop=32, count=20)
        assert sum(len(b) for b in found) == 20 and {b.shape[1:] for b in found} == {(3, 32, 32)}
        again = read_inputs(names, crop=32, count=20)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert {tuple(b.shape[1:]) for b in read_inputs(["photos"], crop=512, count=6)} == {(3, 64, 72)}
    one = read_inputs([photos[0]], crop=32, count=8)  # a single picture, in crops
    assert sum(len(b) for b in one) == 8
    assert read_inputs(["x.npy"], crop=32)[0].shape == (5, 3, 8, 8)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "float.tif"])
def test_grey_pictures_of_more_than_8_bits_keep_their_values(here, name):
    values = np.linspace(0, 1, 40 * 36).reshape(40, 36)
    array = values.astype(np.float32) if "float" in name else (values * 65535).round().astype(np.uint16)
    Image.fromarray(array).save(name)
    for options in ({}, {"crop": 36}):
        (found,) = read_inputs([name], count=1, **options)
        assert found.shape[1] == 3 and torch.equal(found[:, 0], found[:, 2])
        assert len(found[0, 0].unique()) > 1000  # 8 bits would leave 256
    (small,) = read_inputs([name], preparation=Preparation(channels=1), size=(20, 18))
    assert small.shape == (1, 1, 20, 18) and abs(float(small.mean()) - 0.5) < 1e-3
    Image.fromarray(array.astype(np.float32) * 300 + 2).save("beyond.tif")
    with pytest.raises(ArgumentError, match=r"beyond 0 \.\.\. 1; give them as an \.npy"):
        read_inputs(["beyond.tif"])


def test_large_pictures_are_cut_one_at_a_time(here, monkeypatch):
    held = []

    def frames(*place, **options):
        (picture,) = (p for p in pictures.frames(*place, **options))
        held.append(weakref.ref(picture.untyped_storage()))
        assert sum(reference() is not None for reference in held) <= 2  # the one before may still be named
        yield picture

    monkeypatch.setattr(inputs, "frames", frames)
    found = read_inputs(["photos"], crop=16, count=30)
    assert sum(len(b) for b in found) == 30 and len(held) == 12
    for number, crop in enumerate(torch.cat(found)[:12]):  # the crops are of the pictures in turn
        picture = read_inputs([str(sorted((here / "photos").iterdir())[number])])[0][0]
        windows = picture.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4)
        assert (windows == crop).flatten(2).all(2).any()
    monkeypatch.setattr(pictures, "LARGEST_PICTURE", 1000)
    with pytest.raises(ArgumentError, match=r"72x72 pixels.*cut it"):
        read_inputs(["photos"], crop=16)


@pytest.mark.parametrize(
    ("levels", "period"),
    [({"(1/2,1/4)": 9.0, "(1/8,0)": 0.0}, 4), ({"(1/3,1/2)": 9.0}, 6), ({"(1/2,0)": 1.0}, None),
     ({"(1/16,0)": 9.0}, None)],
)  # fmt: skip
def test_the_page_measures_the_period_that_was_noticed(levels, period):
    assert command._page_period(RepairReport([], {"global": levels})) == period


def test_the_first_use_without_a_terminal(here):
    """The installed command in a process of its own, its output in a pipe: no traceback, no control codes."""
    code = "from pixelize.command_line import main; main()"
    arguments = ["repair", "clean.pth", *REPAIR, "-o", "r.pth"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3 and "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_diagnose_names_the_layer_or_says_that_there_is_none(run, here):
    options = ("--arch", "grid.py:Net", "--data", "photos", "--count", "12", "--crop", "48")
    code, out, err = run("diagnose", "w.pth", *options)
    assert code == 0 and err == "" and max(map(len, out.splitlines())) <= 80
    assert "1 makes it" in out and "repair" in out
    told = json.loads(run("diagnose", "w.pth", *options, "--json")[1])
    assert told["sources"][0]["kind"] == "up-sampler" and told["sources"][0]["names"] == ["1"]
    assert run("diagnose", "clean.pth", *options)[0] == 3


def test_a_program_is_no_model_to_repair(here, run):
    """Whole it is refused, a part of a model is told; nothing is called clean."""
    code = """
def whole(): return torch.jit.script(Net())
def frozen(): return torch.jit.freeze(torch.jit.script(Net().eval()))
def exported(): return torch.export.export(Net(), (torch.rand(1, 3, 16, 16),)).module()
def part(): return nn.Sequential(nn.Identity(), torch.jit.script(Net()))
"""
    (here / "programs.py").write_text(CODE + code)
    torch.jit.script(open_model("grid.py:Net").model).save(here / "program.pt")
    for name, told in (
        ("programs.py:whole", "a TorchScript program.*fill it"),
        ("programs.py:frozen", "a TorchScript program"),
        ("programs.py:exported", r"a program of torch\.export"),
        ("program.pt", "a TorchScript archive.*--arch"),
        ("program.pt2", "no model is named"),
        ("programs.py", "programs.py:callable"),
    ):
        code, _, err = run("repair", name, *REPAIR[2:], "--out", "new.pth")
        assert code == 1 and re.search(told, err), err
    (here / "program.pt2").write_bytes(b"PK")
    assert "give the Python model" in run("repair", "program.pt2", *REPAIR[2:], "--out", "new.pth")[2]
    code, out, _ = run("repair", "programs.py:part", *REPAIR[2:], "--out", "new.pth")
    assert code == 4 and "1: a TorchScript program" in " ".join(out.split())
    assert not (here / "new.pth").exists()
