"""The face generator that ``pixelize demo`` repairs: sound, small, and showing the defect it is there for."""

from __future__ import annotations

import io
import runpy
import zipfile
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pixelize.demo.generator import ASSET, FaceGenerator, load_demo_model
from pixelize.measure.checkerboard import checkerboard


def latents(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, FaceGenerator().latent_channels, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def faces(count: int, seed: int = 0) -> Tensor:
    return load_demo_model()(latents(count, seed))


def test_pictures_are_sound() -> None:
    pictures = faces(16)
    assert pictures.shape == (16, 1, 64, 64)
    assert pictures.dtype == torch.float32
    assert pictures.isfinite().all()
    assert pictures.abs().max() <= 1


def test_pictures_differ_from_latent_to_latent() -> None:
    pictures = faces(64)
    assert pictures.std(dim=0).mean() > 0.1  # one face over and over (a collapsed GAN) gives nearly 0


def test_pictures_are_those_of_trained_weights() -> None:
    """Faces are roughly left-right symmetric on average; what untrained weights draw is not."""
    mean = faces(256).mean(dim=(0, 1))
    assert torch.corrcoef(torch.stack([mean.flatten(), mean.flip(-1).flatten()]))[0, 1] > 0.7


def test_pictures_show_a_checkerboard() -> None:
    """256 pictures measure 16.4, 9.9 and 22.8 dB; the real faces 0.1, 1.2 and -0.5 dB."""
    measured = checkerboard(faces(128))["global"]
    assert measured[0.0, 0.5] > 10
    assert measured[0.5, 0.0] > 5
    assert measured[0.5, 0.5] > 15


def test_same_latent_gives_the_same_picture() -> None:
    assert torch.equal(faces(4, seed=3), faces(4, seed=3))


def test_latent_may_be_a_vector_or_a_one_pixel_map() -> None:
    model, latent = load_demo_model(), latents(2)
    with torch.no_grad():
        assert torch.equal(model(latent), model(latent[:, :, None, None]))


def test_asset_is_small() -> None:
    asset = resources.files("pixelize.demo").joinpath(ASSET)
    assert len(asset.read_bytes()) <= 3_000_000


def test_four_layers_up_sample_and_one_does_not() -> None:
    sites = [m for m in load_demo_model().modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [(m.kernel_size[0], m.stride[0], m.padding[0]) for m in sites] == [(4, 1, 0)] + 4 * [(4, 2, 1)]


def test_loaded_model_is_ready_to_use() -> None:
    model = load_demo_model()
    assert not model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def run_training(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, steps: int) -> dict[str, Tensor]:
    script = Path(__file__).parents[1] / "examples" / "train_face_generator.py"
    out = folder / f"{name}.safetensors"
    arguments = ["--data", folder / "noise.zip", "--out", out, "--work", folder / name, "--steps", steps]
    monkeypatch.setattr("sys.argv", [str(a) for a in (script, *arguments, "--batch", 2, "--log-every", 2)])
    runpy.run_path(str(script), run_name="__main__")
    return load_file(out)


def test_interrupted_training_ends_with_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    with zipfile.ZipFile(tmp_path / "noise.zip", "w") as archive:
        for i in range(4):
            encoded = io.BytesIO()
            image.fromarray(torch.randint(256, (64, 64), dtype=torch.uint8).numpy()).save(encoded, "png")
            archive.writestr(f"{i}.png", encoded.getvalue())
    straight = run_training(monkeypatch, tmp_path, "straight", steps=2)
    first = run_training(monkeypatch, tmp_path, "resumed", steps=1)
    resumed = run_training(monkeypatch, tmp_path, "resumed", steps=2)
    assert not torch.equal(first["up4.weight"], straight["up4.weight"])
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert (tmp_path / "resumed" / "step000002.png").exists()
