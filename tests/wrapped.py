"""A decoder with transposed convolutions of every common make, and the ways in which models carry them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations


class Doubled(nn.ConvTranspose2d):
    """A subclass with a forward of its own, that goes through the original's."""

    def forward(self, input, output_size=None):
        return 2 * super().forward(input, output_size)


class Plain(nn.ConvTranspose2d):
    """A subclass with a method of its own."""

    def channels(self):
        return self.in_channels, self.out_channels


class Deaf(nn.ConvTranspose2d):
    """A subclass whose forward passes the original's by."""

    def forward(self, input):
        return nn.functional.interpolate(input, scale_factor=2)


class Decoder(nn.Module):
    """encode/decode, an attribute, a list that torch does not see, and one up-sampler used twice."""

    def __init__(self, wrap=lambda m: m):
        super().__init__()
        self.version = "1"
        self.first = nn.ConvTranspose2d(3, 6, 4, 1)
        self.up = wrap(nn.ConvTranspose2d(6, 4, 4, 2, 1))
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1)
        self.again = self.twice
        self.last = nn.ConvTranspose2d(4, 2, 2, 2, groups=2, bias=False)
        self.unseen = [self.last]

    def encode(self, x):
        return self.first(x)

    def decode(self, x):
        x = torch.relu(self.norm(self.up(x)))
        x = self.again(torch.relu(self.twice(x)))
        return self.unseen[0](torch.relu(x))

    def forward(self, x):
        return self.decode(self.encode(x))


WRAPPERS = {
    "plain": lambda m: m,
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "subclass": lambda m: Plain(6, 4, 4, 2, 1),
    "subclass with forward": lambda m: Doubled(6, 4, 4, 2, 1),
    "parametrized subclass": lambda m: parametrizations.spectral_norm(Doubled(6, 4, 4, 2, 1)),
}
