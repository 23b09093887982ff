"""What third-party libraries need beyond the generic rewrites: inputs to see a model with, how it is run,
saved and loaded."""

from __future__ import annotations

from pixelize.adapters.adapter import Adapter, Pretrained, adapters, call, comes_from, find, register
from pixelize.adapters.diffusers import DIFFUSERS
from pixelize.adapters.generic import GENERIC
from pixelize.adapters.guessed_inputs import runs
from pixelize.adapters.pretrained import connect
from pixelize.adapters.smp import SMP
from pixelize.adapters.timm import TIMM
from pixelize.adapters.torchvision import TORCHVISION
from pixelize.adapters.transformers import TRANSFORMERS

# the last registered is asked first
for _adapter in (GENERIC, TORCHVISION, TIMM, TRANSFORMERS, DIFFUSERS, SMP):
    register(_adapter)

__all__ = ["Adapter", "Pretrained", "adapters", "call", "comes_from", "connect", "find", "register", "runs"]
