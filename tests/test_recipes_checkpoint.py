"""A checkpoint is the old one or the new one, whole, and carries an optimizer exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("accelerate")

import torch
from torch import nn

from pixelize.errors import LoadError, PixelizeError
from pixelize.recipes.training.checkpoint import (
    check_room,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def test_tensors_and_plain_data_come_back(tmp_path: Path) -> None:
    tied = torch.randn(3)
    save_checkpoint(tmp_path / "c", {"a": tied, "b": tied, "c": torch.tensor(3)}, {"step": 7, "best": None})
    tensors, state = load_checkpoint(tmp_path / "c")
    assert state == {"step": 7, "best": None} and torch.equal(tensors["b"], tied) and tensors["c"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, full_disk: Any) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.zeros(2)}, {"step": 1})
    with full_disk(300), pytest.raises(PixelizeError, match=r"could not be written.*is untouched"):
        save_checkpoint(path, {"a": torch.ones(200)}, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_too_little_room_is_said_before_training(tmp_path: Path) -> None:
    huge = torch.empty(1, dtype=torch.float64).expand(10**15)
    with pytest.raises(PixelizeError, match="MiB free, and checkpoints need about"):
        check_room(tmp_path / "new", {"a": huge})
    (tmp_path / "file").write_text("")
    with pytest.raises(PixelizeError, match="cannot be made"):
        check_room(tmp_path / "file" / "new", {"a": torch.zeros(1)})


def test_something_else_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\x00" * 100)
    with pytest.raises(LoadError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "c")


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)])
def test_an_optimizer_goes_on_as_if_never_stopped(kind: type) -> None:
    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
        for x in inputs:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model, inputs = nn.Linear(3, 2), torch.randn(6, 4, 3)
    optimizer = kind(model.parameters())
    steps(model, optimizer, inputs[:3])
    other = nn.Linear(3, 2)
    other.load_state_dict(model.state_dict())
    resumed = kind(other.parameters())
    restore_optimizer(resumed, {n: t.clone() for n, t in optimizer_tensors(optimizer).items()})
    steps(model, optimizer, inputs[3:])
    steps(other, resumed, inputs[3:])
    assert torch.equal(model.weight, other.weight)
