"""The command line as a user meets it: what is printed and written, and how it fails."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelize import load, save
from pixelize.demo.generator import load_demo_model
from pixelize.measure.checkerboard import checkerboard
from pixelize.sources.models import build_model

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, up=True):
        torch.manual_seed(0)
        last = nn.ConvTranspose2d(4, 3, 4, 2, 1) if up else nn.ReLU()
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), last)

class Odd(Net):
    def parameters(self, recurse=True):
        raise ZeroDivisionError("odd")

class Nan(Net):
    def forward(self, x):
        return super().forward(x) * float("nan")
"""


@pytest.fixture
def run(tmp_path, monkeypatch, command_line):
    """Runs the command line in a folder with ``nets.py``: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(CODE)
    yield command_line
    sys.modules.pop("nets", None)


def test_inspect_fits_the_terminal(run):
    code, out, err = run("inspect", "demo")
    assert code == 0 and err == ""
    assert max(map(len, out.splitlines())) <= 80
    for told in ("up1", "256>128 k4 s2", "524k", "skipped: project", "stride 1"):
        assert told in out


def test_a_folder_named_demo_hides_no_model(run, tmp_path):
    """`pixelize demo --out demo/` makes one."""
    (tmp_path / "demo").mkdir()
    assert run("inspect", "demo")[0] == 0
    assert run("inspect", "demo/")[0] == 1


def test_what_to_run_next_can_be_run(run, tmp_path):
    """With all that belongs to the model, as a shell takes it."""
    torch.save(build_model("nets.py:Net").state_dict(), tmp_path / "my weights.pth")
    given = ["my weights.pth", "--arch", "nets.py:Net", "--data", "1x3x16x16"]
    _, out, _ = run("inspect", *given)
    told = shlex.split(out.split("pixelize report ")[-1])
    assert told == given and run("inspect", *told)[0] == 0


def test_random_weights_are_drawn_from_the_seed(run):
    def levels(*more):
        return json.loads(run("report", "some.py:net", "none", *given, *more)[1])["variants"]

    Path("some.py").write_text("from torch import nn\ndef net(): return nn.ConvTranspose2d(3, 3, 4, 2, 1)\n")
    np.save("x.npy", np.random.default_rng(0).random((4, 3, 32, 32), np.float32))
    given = ("--data", "x.npy", "--no-png", "--json")
    assert levels() == levels() != levels("--seed", "1")


def test_as_a_module():
    """For where the script is not on the path."""
    told = subprocess.run([sys.executable, "-m", "pixelize", "--version"], capture_output=True, text=True)
    assert told.returncode == 0 and told.stdout.startswith("pixelize ")


def test_without_its_extra_every_recipe_says_what_to_install():
    without = """
import importlib.util, sys
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "accelerate" else there(name, *more)
from pixelize.command_line import main
main()
"""
    command = [sys.executable, "-c", without, "finetune", "repair", "--out", "x"]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 1 and "pip install 'torch-pixelize[recipes]'" in told.stderr


def test_an_autoencoder_is_looked_at_whole(run, tmp_path):
    """Its data are latents, which its decoder alone takes."""
    diffusers = pytest.importorskip("diffusers")
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(tmp_path / "vae")  # fmt: skip
    vae = str(tmp_path / "vae")
    code, out, err = run("inspect", vae)
    assert (code, err) == (0, "") and "decoder.up_blocks.0.upsamplers.0.conv" in out
    assert "1 convertible" in out and "multiply-adds of these sites" in out
    latents = ("--data", "2x4x16x16")
    assert run("convert", vae, *latents, "--out", str(tmp_path / "out"))[0] == 0
    assert run("report", vae, "converted", *latents, "-o", str(tmp_path / "r.html"))[0] == 0


def test_inspect_as_json(run):
    code, out, _ = run("inspect", "nets.py:Net", "--input", "1x3x16x16", "--json")
    told = json.loads(out)
    assert code == 0 and told["model"] == "nets.py:Net"
    (site,) = told["sites"]
    assert (site["name"], site["status"], site["stride"]) == ("1", "found", [2, 2])
    assert site["multiply_adds_before"] == 16 * 16 * 4 * 3 * 16


def test_a_converted_folder_is_the_model(run):
    code, out, err = run("convert", "demo", "--out", "folder")
    assert code == 0 and "iPixelDCL2d" in out and "wrote folder" in err
    assert max(map(len, out.splitlines())) <= 80
    latent = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    expected = load_demo_model()(latent)
    torch.testing.assert_close(load("folder", into=load_demo_model())(latent), expected)
    torch.testing.assert_close(build_model("folder")(latent), expected)
    code, out, _ = run("inspect", "folder")
    assert code == 0 and "4 converted" in out
    code, _, err = run("convert", "folder", "--out", "again")
    assert code == 1 and "converted already" in err


def test_convert_passes_its_options_on(run):
    options = ["--dependency-groups", "-1", "--schedule", "sequential", "--include", "1", "--json"]
    code, out, _ = run("convert", "nets.py:Net", "-o", "c", "-i", "1x3x16x16", *options)
    assert code == 0 and json.loads(out)["sites"][0]["layer"] == "iPixelDCL2d"
    (site,) = json.loads(Path("c/pixelize.json").read_text())["sites"]
    assert (site["design"]["groups"], site["design"]["schedule"]) == (-1, "sequential")


def test_report_measures_and_writes(run):
    np.save("x.npy", np.random.default_rng(0).standard_normal((12, 3, 16, 16)))
    code, out, _ = run("report", "nets.py:Net", "--input", "x.npy", "--out", "deep/r.html", "--json")
    assert code == 0
    told = json.loads(out)
    with torch.no_grad():
        pictures = build_model("nets.py:Net")(torch.from_numpy(np.load("x.npy")).float())
    assert told["variants"][0]["checkerboard"]["worst"] == pytest.approx(checkerboard(pictures)["worst"])
    assert [v["name"] for v in told["variants"]] == ["before", "repaired"]
    assert told["diagnosis"]["sentences"] and set(told["unevenness"]) == {"1"}
    assert told["files"] == ["deep/r.html", "deep/r.png"]
    assert "data:image/png" in Path("deep/r.html").read_text()


def test_report_in_words(run):
    run("convert", "demo", "-o", "folder")
    code, out, err = run("report", "demo", "folder", "-o", "r.html", "--count", "16", "--no-png")
    assert code == 0 and err == ""
    assert "A clear checkerboard" in out and "up4" in out and "folder, windowed" in out
    assert max(map(len, out.splitlines())) <= 80


def test_report_fails_above_a_level(run):
    options = ("demo", "none", "-o", "r.html", "--count", "8", "--no-png", "--fail-above")
    assert run("report", *options, "3")[0] == 3
    assert run("report", *options, "90")[0] == 0


def test_report_draws_training_curves(run):
    arm = {"seeds": [0], "histories": [[{"step": 0, "loss": 1.0, "seconds": 1}, {"step": 9, "loss": 0.5}]]}
    Path("results.json").write_text(json.dumps({"arms": {"iPixelDCL": arm}}))
    options = ("nets.py:Net", "none", "-i", "8x3x16x16", "-o", "r.html")
    assert run("report", *options, "--training", "results.json")[0] == 0
    assert ">loss<" in Path("r.html").read_text()
    assert Path("r-training.png").read_bytes().startswith(b"\x89PNG")


BAD = {
    "a name": (["inspect", "dmo"], "did you mean demo"),
    "a callable": (["inspect", "nets.py:Nett"], "did you mean Net"),
    "an unreadable picture": (["report", "nets.py:Net", "-i", "bad.png"], "bad.png"),
    "no such picture": (["report", "nets.py:Net", "-i", "none.png"], "none.png"),
    "a wrong shape": (["report", "nets.py:Net", "-i", "2x4x16x16"], "3 channels"),
    "a wrong shape to inspect": (["inspect", "nets.py:Net", "-i", "2x4x16x16"], "3 channels"),
    "NaN": (["report", "nets.py:Nan", "-i", "2x3x16x16"], "NaN"),
    "nothing to convert": (["convert", "nets.py:Net?up=False", "-o", "made"], "nothing to convert"),
    "a wrong layer": (["convert", "nets.py:Net", "-o", "made", "--layer", "x"], "ipixeldcl"),
    "a file for a folder": (["convert", "nets.py:Net", "-o", "nets.py"], "--out names a folder"),
    "no page": (["report", "nets.py:Net", "-o", "page.txt"], ".html"),
    "a device": (["inspect", "nets.py:Net", "--device", "nowhere"], "nowhere"),
    "weights": (["inspect", "nets.py:Net", "--weights", "bad.png"], "checkpoint"),
    "a period": (["report", "nets.py:Net", "-i", "2x3x16x16", "--period", "1"], "period"),
    "curves": (["report", "nets.py:Net", "--training", "nets.py"], "results.json"),
    "a bench of nothing": (["bench", "nets.py:Net?up=False", "-i", "2x3x16x16"], "nothing to convert"),
    "a bench of a wrong shape": (["bench", "nets.py:Net", "-i", "2x4x16x16"], "2x4x16x16"),
    "two ways": (["report", "nets.py:Net", "none", "converted"], "stands alone"),
    "a count": (["report", "nets.py:Net", "--fail-above", "1", "-i", "2x3x4x4"], "could not be measured"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_is_told_in_a_sentence(run, tmp_path, case):
    (tmp_path / "bad.png").write_text("no picture")
    arguments, told = BAD[case]
    if arguments[0] == "report" and "-o" not in arguments:
        arguments = [*arguments, "-o", "made/r.html"]
    code, out, err = run(*arguments)
    assert code == 1 and told in err and err.startswith("error: ") and "Traceback" not in err
    if case != "a count":
        assert out == "" and sorted(p.name for p in tmp_path.iterdir() if p.suffix != "") == [
            "bad.png",
            "nets.py",
        ]
        assert not (tmp_path / "made").exists()


def test_bench_times_layers_and_models(run):
    options = ("--seconds", "0.1", "--json")
    code, out, _ = run("bench", "--channels", "4", "--pixels", "8", *options)
    rows = json.loads(out)["cases"][0]["rows"]
    assert code == 0 and rows[0]["contender"] == "ConvTranspose2d" and rows[0]["ratio"] == 1
    code, out, _ = run("bench", "nets.py:Net", "-i", "1x3x16x16", *options)
    rows = json.loads(out)["rows"]
    contenders = ["as it came", "ipixeldcl", "pixeldcl", "ipixeldcl, depthwise"]
    assert code == 0 and [r["contender"] for r in rows] == contenders
    assert json.loads(out)["verdict"].startswith("Converted to ipixeldcl the model takes ")
    assert all(r["median"] > 0 and r["rounds"] >= 5 for r in rows)
    assert rows[1]["parameters"] > rows[0]["parameters"]
    code, out, _ = run("bench", "nets.py:Net", "-i", "1x3x16x16", "--dependency-groups", "-1", *options)
    depthwise = json.loads(out)["rows"]
    assert code == 0 and rows[0]["parameters"] < depthwise[1]["parameters"] < rows[1]["parameters"]
    code, out, _ = run("bench", "nets.py:Net", "-i", "1x3x16x16", "--seconds", "0.1")
    assert code == 0 and "pixeldcl" in out and max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("ratios", "ends"),
    [
        ((1.04, 1.0, 0.9), "its parameters: it gets no slower."),
        (
            (1.3, 1.05, 1.0),
            "To get no slower ask for --layer pixeldcl, which is fitted and not exact, (1.05 times) or "
            "--layer ipixeldcl --dependency-groups -1 (1.00 times).",
        ),
        ((1.3, 1.2, 1.1), "as fast: --layer ipixeldcl --dependency-groups -1 comes nearest (1.10 times)."),
    ],
)
def test_bench_says_in_a_line_whether_a_model_gets_slower(ratios, ends):
    from pixelize.command_line.bench import _verdict

    names = ("as it came", "ipixeldcl", "pixeldcl", "ipixeldcl, depthwise")
    rows = [
        {"contender": name, "ratio": ratio, "parameters": parameters}
        for name, ratio, parameters in zip(names, (1.0, *ratios), (100, 150, 120, 101), strict=True)
    ]
    told = _verdict(rows)
    assert told.endswith(ends) and f"takes {ratios[0]:.2f} times its time and has 1.50 times" in told


def test_measure_finds_a_pattern_and_none(run, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    plain = [np.clip(128 + 20 * rng.standard_normal((48, 64)), 0, 255) for _ in range(12)]
    board = 12 * (1 - 2 * (np.add.outer(np.arange(48), np.arange(64)) % 2))
    for folder, pattern in (("clean", 0), ("grid", board)):
        (tmp_path / folder).mkdir()
        frames = [Image.fromarray(np.clip(p + pattern, 0, 255).astype(np.uint8)) for p in plain]
        frames[0].save(tmp_path / folder / "a.png")
        frames[1].save(tmp_path / folder / "b.gif", save_all=True, append_images=frames[2:])
    code, out, _ = run("measure", "clean", "--fail-above", "30", "--period", "2")
    assert code == 0 and "12 pictures of 2 files: no pattern" in out
    code, out, _ = run("measure", "grid", "--fail-above", "3", "--period", "2")
    assert code == 3 and "(1/2,1/2)" in out and "where in the first picture" in out
    assert max(map(len, out.splitlines())) <= 80
    told = json.loads(run("measure", "grid", "--json")[1])
    assert told["patterns"][0]["period"] == 2 and len(told["where"]) == 8 and told["worst"] > 15
    code, _, err = run("measure", "nets.py")
    assert code == 1 and "not a readable picture" in err


def test_fold_tells_the_cost_first(run):
    run("convert", "nets.py:Net", "-o", "c", "-d", "1x3x16x16")
    options = ("-d", "2x3x16x16", "--source", "nets.py:Net")
    code, out, _ = run("fold", "c", "-o", "f.pth", *options)
    assert code == 0 and "times as long" in out and out.index("relative error") < out.index("wrote")
    assert max(map(len, out.splitlines())) <= 80
    state = torch.load("f.pth", weights_only=True)
    assert state["1.weight"].shape[-1] == 4  # its dependencies are zero yet
    converted = build_model("c", source="nets.py:Net")
    with torch.no_grad():
        for p in converted.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 3)
    save(converted, "trained", source="nets.py:Net")
    code, out, _ = run("fold", "trained", "-o", "far.pt2", *options)
    assert code == 4 and "not written" in out and not Path("far.pt2").exists()
    code, out, _ = run("fold", "trained", "-o", "far.pt2", *options, "--anyway", "--json")
    assert code == 0 and json.loads(out)["psnr"] < 40 and torch.export.load("far.pt2")


def test_export_runs_in_onnxruntime_at_other_sizes(run):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run("convert", "nets.py:Net", "-o", "c", "-d", "1x3x16x16")
    code, out, _ = run("export", "c", "-o", "m.onnx", "-d", "1x3x16x16", "--source", "nets.py:Net")
    assert code == 0 and "any number and size" in out
    x = torch.randn(3, 3, 11, 20)
    session = runtime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        expected = build_model("nets.py:Net")(x)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("columns", [60, 80])
def test_tables_keep_their_digits_at_any_width(run, monkeypatch, columns):
    """What a wide terminal shows, a narrow one shows too: every number, none cut off."""
    commands = (
        ("inspect", "demo"),
        ("report", "nets.py:Net", "converted", "-d", "8x3x16x16", "-o", "r.html", "--no-png"),
    )
    for command in commands:
        monkeypatch.setenv("COLUMNS", "300")
        wide = run(*command)[1]
        monkeypatch.setenv("COLUMNS", str(columns))
        narrow = run(*command)[1]
        assert max(map(len, narrow.splitlines())) <= columns
        assert {w for w in wide.split() if any(c.isdigit() for c in w)} <= set(narrow.split())


def test_older_spellings_are_understood(run):
    new = run("inspect", "nets.py:Net", "--data", "1x3x16x16", "--json")
    assert new[0] == 0
    for old in ("--input", "-i", "--inputs"):
        assert run("inspect", "nets.py:Net", old, "1x3x16x16", "--json") == new
    assert "--input" not in run("inspect", "--help")[1]


def test_a_missing_extra_names_its_pip_command(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    code, _, err = run("inspect", "smp:Linknet")
    assert code == 1 and "pip install 'torch-pixelize[smp]'" in err


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["report"], ["convert", "demo"], ["inspect", "--seed", "x", "demo"]]
)
def test_wrong_usage(run, arguments):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "Usage" in err


@pytest.mark.parametrize(
    "command",
    [
        "repair",
        "apply",
        "measure",
        "diagnose",
        "fold",
        "export",
        "inspect",
        "convert",
        "report",
        "demo",
        "bench",
    ],
)
def test_help_teaches_by_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and f"pixelize {command} " in out.replace("Usage: pixelize", "")
    assert max(map(len, out.splitlines())) <= 80


def test_general_help_and_version(run):
    code, out, _ = run("--help")
    assert code == 0 and "Exit codes" in out and "pixelize repair" in out
    for command in (
        "repair",
        "apply",
        "diagnose",
        "measure",
        "fold",
        "export",
        "demo",
        "inspect",
        "convert",
        "finetune",
        "report",
        "bench",
    ):
        assert command in out
    assert run("--version") == (0, "pixelize 0.1.0\n", "")


def test_an_unexpected_error_is_a_sentence_too(run):
    code, _, err = run("inspect", "nets.py:Odd", "-i", "1x3x8x8")
    assert code == 1 and err.startswith("error: ZeroDivisionError: odd") and "Traceback" not in err
