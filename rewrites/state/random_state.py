"""The state of random number generators, kept over whatever runs in between."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch


def keep(devices: Iterable[torch.device]) -> Callable[[], None]:
    """Reads the state of Python's, numpy's, torch's CPU generator and those of ``devices``; returns what puts
    it back. No other device is touched, and none is initialised.
    """
    undo: list[Callable[[], None]] = []

    def read(get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        state = get()
        undo.append(lambda: put(state))

    read(random.getstate, random.setstate)
    if (numpy := sys.modules.get("numpy")) is not None:
        read(numpy.random.get_state, numpy.random.set_state)
    read(torch.get_rng_state, torch.set_rng_state)
    for device, module in _accelerators(devices):
        read(partial(module.get_rng_state, *device), partial(_put, module.set_rng_state, device))

    def put_back() -> None:
        for step in undo:
            step()

    return put_back


def seed(number: int, devices: Iterable[torch.device]) -> None:
    """Seeds torch's CPU generator and those of ``devices``, and no others (``torch.manual_seed`` seeds every
    device there is).
    """
    state = torch.Generator().manual_seed(number).get_state()
    torch.set_rng_state(state)
    for device, module in _accelerators(devices):
        try:
            generator = torch.Generator(device[0] if device else "mps")
        except RuntimeError:  # torch makes none for this device, whose module seeds it
            _seed_in_module(number, device[0], module)
        else:
            module.set_rng_state(generator.manual_seed(number).get_state(), *device)


class random_state_kept:
    """In this, random numbers start from ``number`` (or go on as they were); afterwards all generators are
    as before.
    """

    def __init__(self, devices: Iterable[torch.device], number: int | None = None) -> None:
        self._devices, self._number = list(devices), number

    def __enter__(self) -> None:
        self._put_back = keep(self._devices)
        if self._number is not None:
            seed(self._number, self._devices)

    def __exit__(self, *_: object) -> None:
        self._put_back()


def _seed_in_module(number: int, device: torch.device, module: Any) -> None:
    """``module.manual_seed`` seeds the current device, and is what torch asks a backend for. One without it
    cannot be seeded.
    """
    if not hasattr(module, "manual_seed"):
        return
    current = module.current_device()
    module.set_device(device)
    try:
        module.manual_seed(number)
    finally:
        module.set_device(current)


def _put(put: Callable[..., None], device: tuple[torch.device, ...], state: Any) -> None:
    put(state, *device)


def _accelerators(devices: Iterable[torch.device]) -> Iterator[tuple[tuple[torch.device, ...], Any]]:
    """The module that keeps a device's generator, and what its functions are to be given beside a state: the
    device, and nothing on Apple's, of which there is one.
    """
    for device in devices:
        if device.type in ("cpu", "meta"):
            continue
        module = getattr(torch, device.type, None)
        if hasattr(module, "get_rng_state") and hasattr(module, "set_rng_state"):
            yield (() if device.type == "mps" else (device,)), module
