"""Enlarged parts of pictures: what is fitted and judged beside the pictures themselves."""

import torch
from torch import nn

import pixelize
from pixelize.refit.cutting import enlarged


def test_a_part_of_a_picture_fills_its_size_and_no_more_than_its_range() -> None:
    picture = torch.randn(1, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([4])
    for wide, same in enlarged([(picture, label)] * 5, 2):
        assert wide.shape == picture.shape and same is label
        assert picture.amin() <= wide.amin() and wide.amax() <= picture.amax()
        assert wide.diff(dim=-1).square().mean() < 0.2 * picture.diff(dim=-1).square().mean()


def test_waveforms_volumes_and_latents_have_none() -> None:
    assert enlarged([torch.rand(1, 1, 64)], 1) == []
    assert enlarged([torch.rand(1, 2, 17, 20, 16)], 3) == []
    assert enlarged([torch.randn(1, 100, 1, 1)], 2) == []


def test_half_precision_parts_keep_their_type() -> None:
    assert enlarged([torch.rand(1, 3, 32, 32).half()], 2)[0].dtype == torch.float16


def test_what_is_smooth_is_mended_by_textures_too() -> None:
    """Fitted to textures alone, where a pattern hides, a repair holds for smooth pictures."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 8, 3, 2, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 1, 3, padding=1),
    ).eval()
    textures = torch.rand(48, 1, 40, 40)
    smooth = nn.functional.interpolate(torch.rand(16, 1, 4, 4), (40, 40), mode="bicubic")

    def worst(model: nn.Module) -> float:
        with torch.no_grad():
            return max(pixelize.checkerboard(model(smooth), 2)["global"].values())

    before = worst(net)
    repaired = pixelize.repair(net, textures, progress=False)
    assert before > 20 and worst(repaired) < before - 18
