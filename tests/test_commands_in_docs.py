"""Every ``pixelize`` command of the README, the documentation and ``--help`` runs, as it stands there, where
there are such files; on little data."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_docs import PAGES
from test_repair_command import CODE
from test_repair_files import _squared, original
from test_repair_forms import QUICK, super_resolution
from torch import nn

from pixelize.sources.pictures import drawn

FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```$", re.M | re.S)
EXAMPLE = re.compile(r"^ *(?:- |Example: )`pixelize ([^`]+)`", re.M)
LITTLE = {
    "repair": ["--count", "8", "--crop", "24", "--no-page"],
    "diagnose": ["--count", "8"], "report": ["--count", "8", "--no-png"],
    "bench": ["--seconds", "0.05"], "convert": ["--count", "8"],
}  # fmt: skip
ELSEWHERE = ("demo", "bench smp:")
"""What takes long, and has tests of its own."""


def commands() -> list[str]:
    """Without the word ``pixelize``, in their order, once each."""
    app = pytest.importorskip("pixelize.command_line.app")
    found = []
    for page in PAGES:
        for block in FENCE.findall(page.read_text()):
            found += [
                line.removeprefix("pixelize ") for line in block.splitlines() if line.startswith("pixelize ")
            ]
    for text in (app.app.info.help, *(inspect.getdoc(c) for c in app._COMMANDS.values())):
        found += EXAMPLE.findall(text)
    return list(dict.fromkeys(" ".join(shlex.split(c, comments=True)) if "#" in c else c for c in found))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All files that the commands name, small ones."""
    spandrel, diffusers = pytest.importorskip("spandrel"), pytest.importorskip("diffusers")
    smp = pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for name in ("photos", "pages", "samples", "faces"):
        Path(name).mkdir()
        for number, picture in enumerate(drawn(6, 64, 3, 0)):
            image = Image.fromarray((255 * picture).byte().permute(1, 2, 0).numpy())
            image.save(f"{name}/{number}.png")
    image.save("frame.png")
    image.save("video.gif", save_all=True, append_images=[image.rotate(90)])
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in Path("photos").iterdir():
            archive.write(path)
    compact = spandrel.architectures.Compact.Compact(num_feat=8, num_conv=1, upscale=2)
    for name in ("model.pth", "4x_mine.pth"):
        torch.save({"params_ema": compact.state_dict()}, name)
    Path("networks.py").write_text(CODE.replace("class Net", "class Generator"))
    scope: dict[str, Any] = {}
    exec(Path("networks.py").read_text(), scope)
    torch.save(scope["Generator"]().state_dict(), "netG.pth")
    Path("my_models.py").write_text(
        "from torch import nn\ngenerator = lambda: nn.Sequential(nn.ConvTranspose2d(8, 3, 4, 2, 1))\n"
    )
    np.save("latents.npy", np.random.default_rng(0).normal(size=(8, 8, 16, 16)).astype(np.float32))
    _sounds_and_volumes()
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=2, latent_channels=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.save_pretrained("sd/vae")
    torch.save({"state_dict": {original(k): _squared(k, v) for k, v in vae.state_dict().items()}}, "vae.ckpt")
    super_resolution(Path("detector.onnx"), "ConvTranspose", 13, False)
    torch.save(smp.Linknet(encoder_weights=None).state_dict(), "trained.pt")
    Path("before.pt").hardlink_to("trained.pt")
    return tmp_path


def _sounds_and_volumes() -> None:
    """Models of them, by the files' names that the commands have."""
    soundfile, rng = pytest.importorskip("soundfile"), np.random.default_rng(0)
    for folder in ("speech", "volumes"):
        Path(folder).mkdir()
        for number in range(6):
            if folder == "speech":
                soundfile.write(f"speech/{number}.wav", rng.normal(size=2400) / 9, 16000)
            else:
                np.save(f"volumes/{number}.npy", rng.normal(size=(1, 1, 18, 18, 18)).astype(np.float32))
    soundfile.write("speech.wav", rng.normal(size=2400) / 9, 16000)
    np.save("volumes.npy", rng.normal(size=(2, 18, 18, 18)))
    for file, name, n in (("codec", "Codec", 1), ("networks", "UNet3d", 3)):
        with open(f"{file}.py", "a") as code:
            code.write(
                f"\nclass {name}(nn.Sequential):\n    def __init__(self):\n        super().__init__("
                f"nn.AvgPool{n}d(2), nn.ConvTranspose{n}d(1, 1, 4, 2, 1))\n"
            )
    Path("codec.py").write_text("from torch import nn\n" + Path("codec.py").read_text())
    torch.save(nn.Sequential(nn.AvgPool1d(2), nn.ConvTranspose1d(1, 1, 4, 2, 1)).state_dict(), "codec.pth")
    torch.save(nn.Sequential(nn.AvgPool3d(2), nn.ConvTranspose3d(1, 1, 4, 2, 1)).state_dict(), "unet3d.pth")


@pytest.mark.slow
def test_commands_run(folder, command_line, monkeypatch):
    from pixelize.command_line import repair, report

    for module in (repair, report):
        monkeypatch.setattr(module, "repair", partial(module.repair, limits=QUICK))
    asked = commands()
    assert len(asked) > 25
    # what others read is made first
    asked.sort(key=lambda c: not c.startswith(("convert", "repair 4x_mine")))
    shutil.copytree(_finetuned(command_line), "finetuned")
    for told in asked:
        name, *rest = shlex.split(told, comments=True)
        if told.startswith(ELSEWHERE):
            continue
        rest = [re.sub(r"256(x256)?$", "64x64" if "x" in word else "64", word) for word in rest]
        code, out, err = command_line(name, *rest, *(LITTLE.get(name, []) if "--help" not in rest else []))
        # 3: nothing to repair, or a level above; 4: it could not be
        assert code in (0, 3, 4), f"pixelize {told}\n{out}{err}"
        assert "Traceback" not in err
        outputs = [rest[n + 1] for n, word in enumerate(rest) if word in ("--out", "-o")]
        assert code or all(Path(path).exists() for path in outputs), told


def _finetuned(command_line) -> str:
    assert command_line("convert", "smp:Linknet", "--weights", "before.pt", "--out", "made")[0] == 0
    return "made"
