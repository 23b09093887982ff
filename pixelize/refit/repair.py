"""Take the checkerboard out of a trained model without training: ``pixelize.repair(model, data)``.

Weights that leave a pattern in the model's pictures are refitted together: the least change of the pictures
that brings the power at the artifact's frequencies down to its neighbourhood's level
(:mod:`pixelize.refit.least_change`). No labels, no learning rate, and the same layers as before: nothing gets
slower.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pixelize.errors import ArgumentError
from pixelize.inheritance.record import keep_repair
from pixelize.refit.calls import named_parameters
from pixelize.refit.limits import RepairLimits
from pixelize.refit.other_layers import LAYERS, put_in, with_other_layers
from pixelize.refit.refit import Refit, refit
from pixelize.refit.report import RepairReport
from pixelize.refit.runner import NoPictureError
from pixelize.refit.sample import floated
from pixelize.refit.samples import take
from pixelize.refit.without_data import refit_without_data
from pixelize.rewrites.state.all_or_nothing import all_or_nothing
from pixelize.rewrites.state.change import Change
from pixelize.rewrites.state.evaluation import evaluation
from pixelize.running.models import check_changeable, check_model, copy_model
from pixelize.running.progress import progress_bar

DEFAULT_LIMITS = RepairLimits()


@all_or_nothing
def repair(
    model: nn.Module,
    data: Iterable[Any] | Tensor | None = None,
    *,
    layer: str = "dcl",
    example_inputs: Any = None,
    inplace: bool = False,
    progress: bool = True,
    limits: RepairLimits = DEFAULT_LIMITS,
) -> nn.Module:
    """The same model with the checkerboard of its up-samplers taken out; see :func:`repair_report`.

    With ``data``, the weights whose pattern shows in the pictures are found and refitted together, whatever
    follows them: of transposed convolutions, of convolutions or linear maps before a PixelShuffle or a
    resize, and of convolutions after them; called as modules or functions, parametrized or not. The model
    keeps its layers, keys and shapes. Samples are held back: on these, every level is measured, and a refit
    that does not improve them or changes the pictures by more than the pattern is not taken. A model with
    nothing to repair comes back as it was, to the bit. 256 samples and more are worth it: with fewer the fit
    learns these pictures' patterns and not the model's; the report warns.

    Without ``data``, only the last up-sampler can be helped: its phases are made to answer a constant
    alike. That is refused (the model comes back as it was, the report says why) where it would change the
    layer much, and for waveforms.

    Args:
        model: any model whose output holds a picture: a tensor (N, C, H, W) or (N, H, W), bare or in a
            tuple, list, mapping or dataclass; frames of a film, (N, C, T, H, W) or (N, T, C, H, W), are
            pictures. So are waveforms (N, C, L) or (N, L), where the last convolution has one axis, and
            volumes (N, C, D, H, W), where the last has three and the first of these is enlarged too: they
            are measured as by :func:`pixelize.checkerboard_nd`. A model that a library's adapter runs in a
            way of its own (a diffusers autoencoder by its decoder) is run in that way.
        data: inputs: an iterable of batches (a tensor, a tuple of positional or a mapping of keyword
            arguments each; of (picture, label) the picture is taken), or one tensor of inputs. It is read
            once, as far as is needed; pictures may differ in size, and large ones are cut into pieces.
        layer: "dcl" refits the model's own weights; "3x3" and "5x5" widen the window of each phase of its
            transposed convolutions first, to 3 or 5 taps along each axis; "ipixeldcl" converts these first
            and fits dependency kernels as well.
        example_inputs: one batch; without ``data`` it tells the last up-sampler by its call.
        inplace: change ``model`` itself and not a copy. If anything is raised, Ctrl-C included, it is as it
            was.
        progress: show a progress bar on standard error.
        limits: what the repair may take and how far it goes.

    Raises:
        ArgumentError: a TorchScript or exported program; an unknown ``layer``; no data in ``data``, or data
            that the model does not run on.
    """
    check_model(model)
    check_changeable(model)
    if layer not in LAYERS:
        raise ArgumentError(f"layer={layer!r}: repair knows {', '.join(map(repr, LAYERS))}")
    started = time.perf_counter()
    result = model if inplace else copy_model(model)
    try:
        taken, notes = take(result, data, limits) if data is not None else ([], [])
    except NoPictureError as error:
        keep_repair(result, RepairReport(notes=[str(error)]))
        return result
    with Change(result) as transaction:
        try:
            with (
                progress_bar(progress) as bar,
                evaluation(result),
            ):
                work = result
                replaced: list[str] = []
                if data is None:
                    done = refit_without_data(result, example_inputs)
                else:
                    if _is_half(result):
                        work, taken = copy_model(result).float(), [floated(s) for s in taken]
                    if layer != "dcl":
                        limits = replace(limits, steady=())  # the fit is to be these layers'
                        work, replaced = with_other_layers(work, layer, taken[0])
                        if not replaced:
                            notes.append(
                                f"no layer could become {layer!r}: the model's own taps were refitted"
                            )
                    done = refit(work, taken, limits, bar)
        except NoPictureError as error:
            done, notes, work, replaced = Refit(report=RepairReport(notes=[str(error)])), [], result, []
        transaction.undo()  # what looking may have left on the model
        if done.values:
            put_in(work, result, replaced, done.values, transaction)
        named = named_parameters(result)
        with torch.no_grad():
            for name, value in done.values.items():
                if name in named:
                    transaction.will_write(named[name])
                    named[name].copy_(value)
        seconds = time.perf_counter() - started
        report = replace(done.report, seconds=seconds, notes=[*done.report.notes, *notes])
        keep_repair(result, report)
        return result


def _is_half(model: nn.Module) -> bool:
    return any(p.dtype in (torch.float16, torch.bfloat16) for p in named_parameters(model).values())
