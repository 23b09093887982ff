"""The small face generator that ``pixelize demo`` repairs: a DCGAN trained on 64x64 grey faces.

It is an ordinary trained model with an ordinary defect: four transposed convolutions (k4 s2 p1), and the
checkerboard they left in the pictures when ``examples/train_face_generator.py`` trained it. Its own pictures
measure 16.4, 9.9 and 22.8 dB at (0,1/2), (1/2,0) and (1/2,1/2) (256 latents); the faces it was trained on
(13,165 of the SMILEs set, of which 1,000 were measured) 0.1, 1.2 and -0.5 dB.
"""

from __future__ import annotations

from importlib import resources

import torch
from safetensors.torch import load
from torch import Tensor, nn

LATENT_CHANNELS = 64
WIDTH = 32
ASSET = "face_generator.safetensors"


class FaceGenerator(nn.Module):
    """DCGAN generator (Radford et al., arXiv 1511.06434) of 64x64 grey pictures.

    The first transposed convolution (k4 s1 p0) makes 4x4 pixels of the latent vector, not an up-sampling;
    each of the other four (k4 s2 p1) doubles the side.

    Shapes: latent ``(N, latent_channels)`` or ``(N, latent_channels, 1, 1)``, drawn from the standard normal
    distribution, to pictures ``(N, 1, 64, 64)`` in [-1, 1].
    """

    def __init__(self, latent_channels: int = LATENT_CHANNELS, width: int = WIDTH) -> None:
        super().__init__()
        self.latent_channels = latent_channels
        self.project = nn.ConvTranspose2d(latent_channels, 8 * width, 4, stride=1, padding=0, bias=False)
        self.norm0 = nn.BatchNorm2d(8 * width)
        self.up1 = nn.ConvTranspose2d(8 * width, 4 * width, 4, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.up3 = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.up4 = nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        x = latent.reshape(latent.shape[0], self.latent_channels, 1, 1)
        x = torch.relu(self.norm0(self.project(x)))
        x = torch.relu(self.norm1(self.up1(x)))
        x = torch.relu(self.norm2(self.up2(x)))
        x = torch.relu(self.norm3(self.up3(x)))
        return torch.tanh(self.up4(x))


def load_demo_model() -> FaceGenerator:
    """Return the trained :class:`FaceGenerator` that ships with the package: float32, CPU, eval mode.

    The file stores float16 to stay small; the weights are widened on loading.
    """
    stored = load(resources.files("pixelize.demo").joinpath(ASSET).read_bytes())
    model = FaceGenerator()
    model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in stored.items()})
    return model.eval()
