"""What a repair takes of somebody's data: single samples, cut to a workable size, some of them held back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pixelize.errors import ArgumentError
from pixelize.refit.limits import RepairLimits
from pixelize.rewrites.state import random_state
from pixelize.rewrites.state.change import change
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.rewrites.state.modules import devices_of
from pixelize.running.batches import samples_of, selected
from pixelize.running.outputs import tensors
from pixelize.running.pictures import pictures_of, run

Sample = Any
"""One input of the model, with a batch axis of length 1: a tensor, a tuple or a mapping."""


@dataclass
class Samples:
    """Samples to fit to and samples to judge by, with what is to be said about them."""

    fit: list[Sample]
    held: list[Sample]
    pictures: int
    notes: list[str] = field(default_factory=list)
    few: bool = False


class Runner:
    """A model's pictures (N, C, h, w), float32, of samples: all of one size, cut from the top left corner.

    A stochastic model is given the same random numbers each time. Models that take one sample at a time are
    given one at a time.
    """

    def __init__(self, model: nn.Module, example: Sample) -> None:
        self.model, self.batched = model, True
        self.size: tuple[int, int] | None = None
        self.devices = devices_of(model)
        one = self([example])
        try:
            two = self([example, example])
            self.batched = two.shape == (2 * len(one), *one.shape[1:]) and torch.allclose(
                two[: len(one)], one, rtol=0.02, atol=0.02 * float(one.abs().max())
            )
        except Exception:
            self.batched = False

    def __call__(self, samples: list[Sample]) -> Tensor:
        if self.batched and len({shape_of(s) for s in samples}) == 1:
            batches = [_together(samples)]
        else:
            batches = samples
        found = []
        for batch in batches:
            random_state.seed(0, self.devices)
            picture = frames_of(run(self.model, batch))
            if picture is None:
                raise NoPictureError("the model's output holds no picture")
            found.append(picture.float() if self.size is None else self._cut(picture).float())
        return torch.cat(found) if len(found) > 1 else found[0]

    def _cut(self, picture: Tensor) -> Tensor:
        assert self.size is not None
        return picture[..., : self.size[0], : self.size[1]]


class NoPictureError(ArgumentError):
    """The model's output has no picture in it."""


def frames_of(output: Any) -> Tensor | None:
    """The picture in a model's output; frames of a film (N, T, C, H, W) or (N, C, T, H, W) as channels."""
    films = [t for t in tensors(output) if t.dim() == 5 and min(t.shape[-2:]) > 1]
    largest = max(films, key=lambda t: t.shape[-2] * t.shape[-1], default=None)
    picture = pictures_of(output)
    if largest is None or (picture is not None and picture[0, 0].numel() >= largest[0, 0, 0].numel()):
        return picture
    return largest.flatten(1, 2)


def take(
    model: nn.Module, data: Iterable[Any] | Tensor, limits: RepairLimits
) -> tuple[list[Sample], list[str]]:
    """The first samples of the data, as the model takes them, and what was left out.

    The data is read once, outside of evaluation mode, as far as is needed.
    """
    taken: list[Sample] = []
    size, notes = 0, []
    feed: Callable[[Any], Any] | None = None
    iterator = iter([data] if isinstance(data, Tensor) else data)
    for batch in iterator:
        if feed is None:
            feed = _feeding(model, batch)
        batch = feed(batch)
        count = samples_of(batch)
        for n in range(count):
            sample = selected(batch, slice(n, n + 1), count)
            taken.append(sample)
            size += sum(t.nbytes for t in _tensors(sample))
            if len(taken) >= limits.samples or size >= limits.input_bytes:
                break
        if len(taken) >= limits.samples or size >= limits.input_bytes:
            notes.append(f"only the first {len(taken)} samples of the data were read")
            break
    if not taken:
        raise ArgumentError("repair needs data: the iterable given was empty (an iterator already read?)")
    return taken, notes


def split(
    runner: Callable[[list[Sample]], Tensor], taken: list[Sample], limits: RepairLimits, period: int
) -> Samples:
    """Pieces of the samples, some held back: whole samples where there are several, else a region of one."""
    cut = _cutting(runner, taken[0], limits, period)
    few = len(taken) < 4
    notes: list[str] = []
    if few and cut is None and len(taken) == 1:
        fit, held = taken, taken
        notes.append("one sample that cannot be cut: nothing is held back, the levels are those fitted")
    elif few and cut is not None:
        fit = [piece for n, s in enumerate(taken) for piece in cut.pieces(s, n, (0.0, 0.72))]
        held = [piece for n, s in enumerate(taken) for piece in cut.pieces(s, n, (0.72, 1.0))]
    else:
        # whole runs of samples: neighbours in a film or a list are alike
        count = max(1, min(limits.held, len(taken) // 4))
        run_length = -(-count // 4)
        at = {
            n
            for k in range(4)
            for n in range((k + 1) * len(taken) // 4 - run_length, (k + 1) * len(taken) // 4)
        }
        at = set(sorted(at)[:count]) if len(at) > count else at
        pieces = [cut.pieces(s, n) if cut else [s] for n, s in enumerate(taken)]
        held = [piece for n in sorted(at) for piece in pieces[n]]
        fit = [piece for n in range(len(taken)) if n not in at for piece in pieces[n]]
    random.Random(0).shuffle(fit)
    random.Random(1).shuffle(held)
    fit, held = fit[: limits.samples], held[: limits.held]
    if _image(fit[0]) is not None:
        fit = fit + _shifted(fit, max(0, limits.portion // 2 - len(fit)), period)
    return Samples(fit, held, len(taken), notes, len(taken) < limits.few)


@dataclass(frozen=True)
class _Cutting:
    """Pieces of (h, w) input pixels."""

    size: tuple[int, int]

    def pieces(self, sample: Sample, seed: int, part: tuple[float, float] = (0.0, 1.0)) -> list[Sample]:
        """As many as fill the sample, at random places, within a part of its longer side."""
        image = _image(sample)
        assert image is not None
        height, width = image.shape[-2:]
        (top, bottom), (left, right) = (0, height), (0, width)
        if part != (0.0, 1.0):
            if height >= width:
                top, bottom = _part(height, part, self.size[0])
            else:
                left, right = _part(width, part, self.size[1])
        if bottom - top < self.size[0] or right - left < self.size[1]:
            return [sample]
        count = round((bottom - top) * (right - left) / (self.size[0] * self.size[1]))
        draw = random.Random(seed)
        found = []
        for _ in range(max(1, min(16, count))):
            y = draw.randint(top, bottom - self.size[0])
            x = draw.randint(left, right - self.size[1])
            found.append(self._piece(sample, image, y, x))
        return found

    def _piece(self, sample: Sample, image: Tensor, y: int, x: int) -> Sample:
        def cut(t: Tensor) -> Tensor:
            if t.dim() == image.dim() and t.shape[-2:] == image.shape[-2:]:
                return t[..., y : y + self.size[0], x : x + self.size[1]].clone()
            return t

        return _mapped(sample, cut)


def _part(length: int, part: tuple[float, float], size: int) -> tuple[int, int]:
    low, high = round(part[0] * length), round(part[1] * length)
    if high - low < size:  # the regions overlap rather than be too small
        low, high = (0, size) if part[0] == 0 else (length - size, length)
    return low, high


def _cutting(
    runner: Callable[[list[Sample]], Tensor], sample: Sample, limits: RepairLimits, period: int
) -> _Cutting | None:
    """How to cut pieces whose pictures are about ``limits.side`` pixels wide: None where the samples are
    small enough as they are, or the model does not make of a piece what it makes of it in the whole."""
    image = _image(sample)
    if image is None:
        return None
    whole = runner([sample])
    scale = whole.shape[-2] / image.shape[-2], whole.shape[-1] / image.shape[-1]
    wanted = max(limits.side, 8 * period)
    size = tuple(
        min(n, max(16, -(-math.ceil(wanted / s) // 16) * 16))
        for n, s in zip(image.shape[-2:], scale, strict=True)
    )
    if size[0] * size[1] > 0.75 * image.shape[-2] * image.shape[-1]:
        return None
    cutting = _Cutting((size[0], size[1]))
    try:
        piece = runner([cutting._piece(sample, image, 0, 0)])
    except Exception:
        return None
    made = round(size[0] * scale[0]), round(size[1] * scale[1])
    if any(abs(piece.shape[n - 2] - made[n]) > 0.25 * made[n] for n in (0, 1)):
        return None
    if min(piece.shape[-2:]) < 8 * period:
        return None
    # what both make in the piece's middle half must be alike
    rows, columns = (slice(n // 4, n // 2) for n in piece.shape[-2:])
    one, other = piece[..., rows, columns], whole[..., rows, columns]
    spread = float(whole.std()) + 1e-12
    return cutting if float((one - other).square().mean().sqrt()) < 0.2 * spread else None


def _shifted(samples: list[Sample], count: int, period: int) -> list[Sample]:
    """More of the same: mirrored, and shifted against the up-samplers' grid (reflected at the border)."""
    draw = random.Random(2)
    found = []
    for n in range(count):
        sample = samples[n % len(samples)]
        image = _image(sample)
        assert image is not None
        reach = min(period, image.shape[-2] // 4, image.shape[-1] // 4)
        y, x, mirrored = draw.randint(0, 2 * reach), draw.randint(0, 2 * reach), n % 2 == 0

        def vary(
            t: Tensor, image: Tensor = image, reach: int = reach, y: int = y, x: int = x, m: bool = mirrored
        ) -> Tensor:
            if t.dim() != image.dim() or t.shape[-2:] != image.shape[-2:] or not t.is_floating_point():
                return t
            wide = F.pad(t, (reach,) * 4, "reflect")[..., y : y + t.shape[-2], x : x + t.shape[-1]]
            return wide.flip(-1) if m else wide.contiguous()

        found.append(_mapped(sample, vary))
    return found


def _feeding(model: nn.Module, batch: Any) -> Callable[[Any], Any]:
    """What of an element of the data the model takes: all of it, its first part (of a picture and its label),
    or a picture that lacks the batch axis."""

    def as_given(given: Any) -> Any:
        return given

    def first(given: Any) -> Any:
        return next(iter(given.values())) if isinstance(given, Mapping) else given[0]

    def batch_of_one(given: Any) -> Any:
        return given[None]

    def first_of_one(given: Any) -> Any:
        return first(given)[None]

    ways: list[Callable[[Any], Any]] = [as_given]
    if isinstance(batch, tuple | list | Mapping) and len(batch) > 1:
        ways += [first, first_of_one]
    if isinstance(batch, Tensor) and batch.dim() in (2, 3):
        ways = [batch_of_one, as_given] if batch.dim() == 3 and _image_like(model, batch) else ways
    if isinstance(batch, list) and len(batch) == 1:
        ways.append(first)
    trouble: Exception | None = None
    with change(model) as transaction, evaluation(model):
        for way in ways:
            try:
                fed = way(batch)
                found = frames_of(run(model, selected(fed, slice(0, 1), samples_of(fed))))
            except Exception as error:
                trouble = trouble or error
            else:
                if found is not None:
                    transaction.undo()
                    return way
        transaction.undo()
    if trouble is not None:
        raise ArgumentError(
            f"the model does not run on the data's first element ({type(trouble).__name__}: {trouble})"
        ) from trouble
    raise NoPictureError("the model's output holds no picture")


def _image_like(model: nn.Module, given: Tensor) -> bool:
    """Whether (C, H, W) is one picture: its first axis is what a convolution of the model reads."""
    from pixelize.refit.calls import named_parameters

    shapes = [p.shape for p in named_parameters(model).values() if p.dim() == 4]
    return any(given.shape[0] in shape[:2] for shape in shapes[:1])


def _image(sample: Sample) -> Tensor | None:
    """The largest picture (1, C, h, w) among a sample's tensors, if there is one that can be cut."""
    found = [t for t in _tensors(sample) if t.dim() == 4 and min(t.shape[-2:]) >= 16]
    return max(found, key=lambda t: t.shape[-2] * t.shape[-1], default=None)


def _tensors(sample: Sample) -> Iterator[Tensor]:
    if isinstance(sample, Tensor):
        yield sample
    elif isinstance(sample, Mapping):
        for value in sample.values():
            yield from _tensors(value)
    elif isinstance(sample, tuple | list):
        for value in sample:
            yield from _tensors(value)


def _mapped(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    if isinstance(sample, Tensor):
        return change(sample)
    if isinstance(sample, Mapping):
        return {k: _mapped(v, change) for k, v in sample.items()}
    if type(sample) in (tuple, list):
        return type(sample)(_mapped(v, change) for v in sample)
    return sample


def floated(sample: Sample) -> Sample:
    """Half-precision tensors as float32."""
    return _mapped(sample, lambda t: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t)


def shape_of(sample: Sample) -> tuple[Any, ...]:
    return tuple(tuple(t.shape) for t in _tensors(sample))


def _together(samples: list[Sample]) -> Any:
    """Samples as one batch."""
    first = samples[0]
    if len(samples) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(samples) if first.dim() and len(first) == 1 else first
    if isinstance(first, Mapping):
        return {k: _together([s[k] for s in samples]) for k in first}
    if type(first) in (tuple, list):
        return type(first)(_together([s[n] for s in samples]) for n in range(len(first)))
    return first
