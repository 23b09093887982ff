"""Sounds and volumes on the command line: models of them repaired and diagnosed, files of them measured."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_measure_pictures import sound

from pixelize.checkpoints.formats import read_checkpoint
from pixelize.errors import ArgumentError, PixelizeWarning
from pixelize.sources.inputs import read_inputs
from pixelize.sources.opened import open_model
from pixelize.sources.preparation import Preparation

soundfile = pytest.importorskip("soundfile")
CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    # enlarges linearly, the first phase of the first axis louder than the others
    def __init__(self, axes=1, excess=0.3):
        line = torch.tensor([1.0, 3, 3, 1]) / 4
        pool, up = getattr(nn, f"AvgPool{axes}d")(2), getattr(nn, f"ConvTranspose{axes}d")(1, 1, 4, 2, 1)
        weight = torch.ones(())
        for _ in range(axes):
            weight = weight[..., None] * line
        weight[1::2] *= 1 + excess
        up.weight.data, up.bias.data = weight[None, None], torch.zeros(1)
        super().__init__(pool, up)
"""
OPTIONS = {1: ("--data", "speech"), 3: ("--data", "volumes")}


def volume(size: int, seed: int) -> torch.Tensor:
    """(1, 1, D, H, W), smooth."""
    x = torch.randn(1, 1, *(size,) * 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool3d(x, 3, 1, 1) * 3 + 1


@pytest.fixture
def run(tmp_path, monkeypatch, command_line):
    """The command line in a folder with models, sounds and volumes."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(CODE)
    for n in (1, 3):
        torch.save(open_model(f"nets.py:Net?axes={n}").model.state_dict(), f"w{n}.pth")
    for folder in ("speech", "volumes"):
        Path(folder).mkdir()
        for number in range(8):
            if folder == "speech":
                wave = sound(1, 4000 + 300 * (number % 2), number)[0, 0]
                soundfile.write(f"speech/{number}.wav", (0.4 * wave / wave.abs().max() + 0.1).numpy(), 16000)
            else:
                np.save(f"volumes/{number}.npy", volume(18, number).numpy())
    return command_line


@pytest.mark.parametrize("n", [1, 3])
def test_a_file_is_repaired_and_diagnosed_by_a_folder(run, n):
    model = (f"w{n}.pth", "--arch", f"nets.py:Net?axes={n}", *OPTIONS[n])
    code, out, err = run("diagnose", *model)
    made = {1: "waveforms", 3: "volumes"}[n]
    assert code == 0 and err == "" and f"8 {made}" in out and "1 makes it" in out
    code, out, err = run("repair", *model, "--out", "new/r.pth", "--json")
    told = json.loads(out)
    assert code == 0 and err == "" and told["repair"]["made"] == made
    assert sorted(p.name for p in Path("new").iterdir()) == ["r.patch.safetensors", "r.pth"]
    before, after = (read_checkpoint(Path(p)) for p in (f"w{n}.pth", "new/r.pth"))
    weights = [c.tensors["1.weight"].reshape(4, -1).sum(1) for c in (before, after)]
    uneven = [float((w[1::2].sum() / w[::2].sum()).log().abs()) for w in weights]
    assert uneven[1] < uneven[0] / 3
    if n == 3:
        assert run("diagnose", "new/r.pth", *model[1:])[0] == 3
        return
    # of so smooth sounds a tone stands out however faint it is; it has to be fainter
    found = [json.loads(run("diagnose", w, *model[1:], "--json")[1]) for w in (model[0], "new/r.pth")]
    tones = [next(p["tone"] for p in d["levels"]["patterns"] if p["frequency"] == "(1/2)") for d in found]
    assert tones[1] < tones[0] - 12


def test_sounds_and_arrays_are_measured(run):
    assert "no pattern" in run("measure", "speech")[1]
    t = np.arange(6000)
    for number in range(4):
        wave = sound(1, 6000, number)[0, 0].numpy()
        wave = 0.3 * wave / np.abs(wave).max() + 0.02 * np.cos(2 * np.pi * 3 * t / 8)
        soundfile.write(f"tone{number}.flac", np.stack([wave, wave], 1), 8000)
    files = [f"tone{number}.flac" for number in range(4)]
    code, out, err = run("measure", *files, "--fail-above", "9")
    assert code == 3 and err == "" and "a pattern of 8 samples at (3/8)" in out and "below the sound" in out
    with zipfile.ZipFile("tones.zip", "w") as archive:
        for file in files:
            archive.write(file)
    assert json.loads(run("measure", "tones.zip", "--json")[1])["patterns"][0].keys() >= {"tone", "levels"}
    np.save("one.npy", np.tile(wave, 3))  # one axis: a waveform
    assert "1 waveform of 1 file" in run("measure", "one.npy", "--period", "8")[1]
    board = (-1.0) ** np.arange(24)
    np.savez("three.npz", a=volume(24, 0).numpy() + board, b=volume(24, 1).numpy()[0] + board)
    assert (
        "2 volumes of 1 file: a pattern of 2 voxels at (0,0,1/2)"
        in run("measure", "three.npz", "--axes", "3")[1]
    )
    np.save("two.npy", np.random.default_rng(0).random((5, 32, 32)))
    assert "1 picture of 1 file" in run("measure", "two.npy", "--axes", "2")[1]


def test_what_is_read_of_sounds(run):
    mono = read_inputs(["speech"], preparation=Preparation(channels=1), count=5)
    assert sum(len(x) for x in mono) == 5 and {x.shape[1] for x in mono} == {1}
    soundfile.write("two.wav", np.stack([np.ones(9), np.zeros(9)], 1) / 2, 16000, subtype="FLOAT")
    (both,) = read_inputs(["two.wav"])
    assert torch.equal(both, torch.tensor([0.5, 0.0])[None, :, None].expand(1, 2, 9))
    (mixed,) = read_inputs(["two.wav"], preparation=Preparation(channels=1))
    assert torch.equal(mixed, torch.full((1, 1, 9), 0.25))
    Path("speech/9.wav").write_bytes(b"RIFF nothing")
    with pytest.warns(PixelizeWarning, match=r"passed over: .*9\.wav: not a readable sound"):
        assert sum(len(x) for x in read_inputs(["speech"])) == 8
    np.save("speech/a.npy", np.zeros(3))  # beside sounds no arrays are looked for, beside pictures no sounds
    assert len(read_inputs(["volumes"], count=3)) == 3


BAD = {
    "damaged": (["broken.wav"], "not a readable sound"),
    "rates": (["speech", "other.wav"], "ffmpeg"),
    "empty": (["silent.wav"], "0 samples"),
    "kinds": (["speech", "volumes"], "arrays and sounds: measure them apart"),
    "unclear": (["two.npy"], "--axes says"),
    "axes of sounds": (["speech", "--axes", "1"], "--axes belongs to array files"),
    "nothing": (["nothing"], "without pictures"),
    "short": (["short.wav"], "too small"),
    "in an archive": (["arrays.zip", "--axes", "3"], "unpack arrays"),
    "NaN": (["nan.wav"], "NaN or inf"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_measured_is_told_in_a_sentence(run, case):
    Path("broken.wav").write_bytes(b"RIFF" + bytes(40))
    Path("nothing").mkdir()
    for name, rate, wave in (
        ("other", 8000, np.zeros(4000)), ("silent", 16000, np.zeros(0)), ("short", 16000, np.ones(40)),
        ("nan", 16000, np.full(4000, np.nan)),
    ):  # fmt: skip
        soundfile.write(f"{name}.wav", wave, rate, subtype="FLOAT")
    with zipfile.ZipFile("arrays.zip", "w") as archive:
        archive.write("volumes/0.npy")
    np.save("two.npy", np.zeros((5, 32, 32)))
    arguments, told = BAD[case]
    code, out, err = run("measure", *arguments)
    assert code == 1 and out == "" and told in err and len(err.splitlines()) == 1


def test_the_rate_that_a_model_takes_is_asked_for(run):
    with pytest.raises(ArgumentError, match=r"16000 samples a second, and 24000 are needed.*-ar 24000"):
        read_inputs(["speech"], preparation=Preparation(rate=24000))
    np.save("whole.npy", np.zeros((2, 1, 4000), np.int16))
    code, _, err = run("diagnose", "w1.pth", "--arch", "nets.py:Net", "--data", "whole.npy")
    assert code == 1 and "its numbers are whole" in err
