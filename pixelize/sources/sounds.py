"""Sounds by name: files of waveforms, read by libsndfile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixelize.errors import ArgumentError
from pixelize.extras import require
from pixelize.sources.passed_over import PassedOver, Place, UnreadableError
from pixelize.sources.pictures import opened, told

SOUNDS = (".wav", ".flac", ".ogg", ".aiff", ".aif")
LARGEST_SOUND = 2**28
"""Samples of a file, of all channels together, at most."""


def waveforms(
    places: Sequence[Place], passed: PassedOver, rate: int | None, mono: bool, count: int
) -> Iterator[Tensor]:
    """The sounds that can be read, ``count`` at most: (channels, samples), float32 in [-1, 1]; the channels'
    mean if ``mono``. ``rate``: samples a second that they must have.

    Raises ArgumentError for sounds of another rate, or of several.
    """
    read = 0
    for place in places:
        if read >= count:
            return
        with passed.over(place), _sound(place) as file:
            if rate is not None and file.samplerate != rate:
                raise ArgumentError(
                    f"{told(place)} has {file.samplerate} samples a second, and {rate} are needed here (as "
                    "the model's configuration or the first file has it): "
                    f"ffmpeg -i {Path(place[0]).name} -ar {rate} resampled.wav"
                )
            rate = file.samplerate
            wave = torch.from_numpy(file.read(dtype="float32", always_2d=True).T.copy())
            read += 1
            yield wave.mean(0, keepdim=True) if mono else wave


@contextmanager
def _sound(place: Place) -> Iterator[Any]:
    """An open file. Raises UnreadableError for one that is damaged, empty or too large."""
    require("audio", told(place))
    import soundfile

    try:
        with opened(*place) as raw, soundfile.SoundFile(raw) as file:
            if not 0 < file.frames * file.channels <= LARGEST_SOUND:
                raise UnreadableError(
                    f"{told(place)}: {file.frames} samples of {file.channels} channels, and from one to "
                    f"{LARGEST_SOUND // 2**20} million are read"
                )
            yield file
    except (soundfile.SoundFileError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise UnreadableError(f"{told(place)}: not a readable sound ({type(error).__name__})") from error
