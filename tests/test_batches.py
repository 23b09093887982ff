"""Data is read as often as need be, whatever it is, and never without end."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pixelize
from pixelize.errors import ArgumentError, PixelizeWarning
from pixelize.refit.limits import RepairLimits
from pixelize.refit.samples import take
from pixelize.running.batches import rereadable

ITEMS = list(torch.arange(12.0).reshape(6, 2, 1))


class Once:
    """A stream: one pass, and it is no iterator."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.left = iter(items)

    def __iter__(self) -> Iterator[Any]:
        yield from self.left


class OnceStream(Once, IterableDataset):
    pass


class Again:
    """Can be iterated again, and cannot be indexed."""

    def __iter__(self) -> Iterator[Any]:
        return iter(ITEMS)


class Stream(IterableDataset):
    def __init__(self, items: Callable[[], Iterable[Any]]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items())


class Indexed(Dataset):
    """Has a length, and gives something for any index."""

    def __len__(self) -> int:
        return len(ITEMS)

    def __getitem__(self, index: int) -> Tensor:
        return ITEMS[index % len(ITEMS)]


DATA: dict[str, Callable[[], Any]] = {
    "list": lambda: ITEMS,
    "tuple": lambda: tuple(ITEMS),
    "dataset": Indexed,
    "generator": lambda: (x for x in ITEMS),
    "map": lambda: map(Tensor.clone, ITEMS),
    "once": lambda: Once(ITEMS),
    "again": Again,
    "loader": lambda: DataLoader(torch.cat(ITEMS), batch_size=2),
    "loader of a stream": lambda: DataLoader(Stream(lambda: torch.cat(ITEMS)), batch_size=2),
    "loader of a stream read once": lambda: DataLoader(OnceStream(torch.cat(ITEMS)), batch_size=2),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("looked_at", [0, 1, 3])
def test_every_pass_begins_at_the_first_batch(kind: str, looked_at: int) -> None:
    data = rereadable(DATA[kind]())
    first = list(itertools.islice(iter(data), looked_at))
    passes = [first, *([*data] for _ in range(3))]
    for found in passes:
        expected = ITEMS[: len(found)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [len(p) for p in passes] == [looked_at, 6, 6, 6]


@pytest.mark.parametrize("kind", ["generator", "once", "again", "loader of a stream"])
def test_endless_data_is_cut_and_that_is_said(kind: str) -> None:
    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            return itertools.cycle(ITEMS)

    endless = {
        "generator": itertools.cycle(ITEMS),
        "once": Once(itertools.cycle(ITEMS)),
        "again": Endless(),
        "loader of a stream": DataLoader(Stream(lambda: itertools.cycle(torch.cat(ITEMS))), batch_size=2),
    }[kind]
    data = rereadable(endless, most_samples=7)
    with pytest.warns(PixelizeWarning, match="first 8 samples"):
        first = list(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = list(data)
    assert len(first) == len(second) == 4


def test_bytes_are_counted_in_any_container() -> None:
    data = rereadable(({"x": [torch.zeros(1, 20)]} for _ in range(9)), most_bytes=100)
    with pytest.warns(PixelizeWarning, match="first 2 samples"):
        assert len(list(data)) == 2


def test_an_endless_sampler_is_no_length() -> None:
    class Endless(torch.utils.data.Sampler):
        def __iter__(self) -> Iterator[int]:
            return itertools.cycle(range(4))

    loader = DataLoader(TensorDataset(torch.zeros(4, 1)), sampler=Endless())
    assert len(list(itertools.islice(rereadable(loader), 9))) == 9


def test_data_that_can_be_read_again_is_new_in_each_pass() -> None:
    class New:
        passes = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.passes += 1
            return iter([torch.full((1,), float(self.passes))] * 2)

    data = rereadable(New())
    assert [float(x) for _ in range(3) for x in data] == [1, 1, 2, 2, 3, 3]


def test_a_tensor_is_one_batch_and_what_is_no_data_is_refused() -> None:
    (batch,) = rereadable(torch.zeros(3, 1, 4, 4))
    assert batch.shape == (3, 1, 4, 4)
    for wrong in ("a path", {"x": torch.zeros(1)}, 3, None, nn.Identity()):
        with pytest.raises(ArgumentError, match=type(wrong).__name__):
            rereadable(wrong)  # type: ignore[arg-type]


def test_every_layer_is_fitted_on_data_that_can_be_read_but_once() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1)
        ).eval()

    items = list(torch.randn(6, 16, 4, 4, 4))
    models = []
    for data in (items, Once(items), iter(items)):
        model = pixelize.convert(network(), "pixeldcl")
        models.append(pixelize.calibrate(model, data, progress=False).state_dict())
        chosen = pixelize.convert(network(), "auto", data=Once(items))
        assert pixelize.report(chosen).converted
    assert all(torch.equal(models[0][k], m[k]) for m in models[1:] for k in m)


def test_repair_takes_arrays_and_says_what_else_it_would_need():
    model = torch.nn.ConvTranspose2d(3, 3, 4, 2, 1)
    pictures = torch.rand(4, 3, 16, 16)
    for data in (pictures.numpy(), [pictures.numpy()], [(pictures.numpy(), 3)], list(pictures.numpy())):
        taken, _ = take(model, data, RepairLimits())
        assert len(taken) == 4 and torch.equal(taken[0], pictures[:1])
    for data, told in (
        ("photos/", "data is a str"),
        ({"a": pictures}, "data is a dict"),
        (["photos/1.png"], r"holds no tensor \(str\)"),
        ([(pictures * 255).byte()], r"uint8.*x / 255"),
        (torch.rand(2, 5, 16, 16), "does not run"),
    ):
        with pytest.raises(ArgumentError, match=told):
            take(model, data, RepairLimits())
