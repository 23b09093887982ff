"""One thread and a fixed seed for every test."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.set_num_threads(1)  # the suite runs as one process for each core
    torch.manual_seed(0)


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """``with full_disk(300):`` no file can grow beyond 300 bytes: what a full disk does to who writes."""
    resource = pytest.importorskip("resource")

    @contextmanager
    def full(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full


@pytest.fixture
def command_line(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs ``pixelize`` with arguments, 80 columns wide: exit code, standard output, standard error."""
    cli = pytest.importorskip("pixelize.command_line.app")
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pixelize", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        told = capsys.readouterr()
        return code, told.out, told.err

    return run
