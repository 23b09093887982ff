"""Figures for people: before, after and difference; spectra with the checkerboard marked; training curves.

Figures are matplotlib ``Figure`` objects with a canvas of their own: nothing global, no display, safe in
threads.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pixelize.files import write_bytes
from pixelize.measure.checkerboard import frequencies, frequency_name
from pixelize.measure.spectrum import PictureSpectrum, power_spectrum
from pixelize.pages.shown_pictures import (
    ShownPictures,
    check_columns,
    difference_caption,
    enlarged,
    shown_pictures,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

# line colours that read on white and on near-black, also for colour-blind eyes
COLOURS = ("#2586c9", "#d55e00", "#009e73", "#cc79a7", "#8a8a00", "#56b4e9")
LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
INK = {False: "#1b1b1f", True: "#e6e6ea"}
Period = int | tuple[int, int]
Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""Points (step, value) by quantity and run: ``{"loss": {"iPixelDCL": [(0, 0.9), (100, 0.4)]}}``."""
PAPER = {False: "#ffffff", True: "#17181c"}


def comparison_figure(
    columns: Mapping[str, Tensor],
    reference: str,
    path: str | os.PathLike[str],
    period: Period = 2,
    *,
    rows: int = 3,
    title: str | None = None,
) -> Path:
    """Draws pictures before and after: each variant with a zoom, the amplified difference, and its spectrum.

    Args:
        columns: the same pictures by variant, ``(N, C, H, W)`` each, e.g.
            ``{"before": x, "after": y}``. The spectra are means over all N.
        reference: the variant that the others are compared with.
        path: the PNG file to write; written whole or not at all.
        period: of the checkerboard that is marked in the spectra.
        rows: how many of the pictures are shown.

    Returns:
        ``path``.

    Raises:
        ArgumentError: no such reference, shapes that differ or are no pictures, NaN or inf.
    """
    parts = shown_pictures(columns, reference, period=period, rows=rows)
    shown = len(parts.boxes)
    across = 2 * len(columns) + len(parts.differences)
    aspect = parts.pictures[reference].shape[1] / parts.pictures[reference].shape[2]
    picture_height = shown * 1.75 * min(max(aspect, 1.0), 2.0) + 0.4
    width = max(1.75 * across, 8.0)
    figure = _figure(width, picture_height + 3.6)
    if title:
        figure.suptitle(title, color=INK[False])
    halves: Any = figure.subfigures(2, 1, height_ratios=(picture_height, 3.4))
    top, bottom = halves
    _draw_shown(top, parts)
    _draw_spectra(bottom, _spectra(columns), period, False)
    return save_png(figure, path)


def spectrum_figures(
    columns: Mapping[str, Tensor], period: Period = 2, *, dark: bool = False
) -> dict[str, Figure]:
    """Each variant's full spectrum by its name, the checkerboard marked; by ``""`` all radial ones.

    Raises ArgumentError as :func:`comparison_figure`.
    """
    spectra = _spectra(columns)
    figures = {}
    for name, spectrum in spectra.items():
        figure = _figure(3.6, 3.4, dark)
        axes = figure.add_subplot()
        image = _draw_full(axes, spectrum, _scale_of(spectra), period, dark)
        _colour_bar(figure, image, axes, dark)
        axes.set_title(name, fontsize=9, color=INK[dark])
        figures[name] = figure
    figure = _figure(3.6, 3.4, dark)
    _draw_radial(figure.add_subplot(), spectra, period, dark)
    return {**figures, "": figure}


def curves_figure(curves: Curves, *, dark: bool = False) -> Figure:
    """Training curves, a plot for each quantity with a line for each run."""
    across = min(len(curves), 3)
    down = -(-len(curves) // across)
    figure = _figure(3.2 * across, 2.6 * down, dark)
    for i, (quantity, lines) in enumerate(curves.items()):
        axes = figure.add_subplot(down, across, i + 1)
        for k, (run, points) in enumerate(lines.items()):
            steps, values = zip(*points, strict=True)
            style: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "linestyle": LINES[k % len(LINES)]}
            axes.plot(steps, values, marker="o" if len(steps) < 12 else "", markersize=3, label=run, **style)
        axes.set_title(quantity, fontsize=9, color=INK[dark])
        axes.set_xlabel("step", fontsize=8, color=INK[dark])
        if i == 0 and any(lines):
            _legend(axes, dark)
        _ink(axes, dark)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file's contents."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor=figure.get_facecolor())
    return stream.getvalue()


def save_png(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes the figure whole or not at all; returns ``path``."""
    return write_bytes(path, png_bytes(figure))


def spectrum_image(spectrum: PictureSpectrum) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The spectrum in dB, frequency zero in the middle, and its extent (left, right, bottom, top).

    For even sizes -1/2 and +1/2 are the same frequency: it is drawn at both ends, so that the picture is
    symmetric.
    """
    power = spectrum.power
    for axis in (0, 1):
        if power.shape[axis] % 2 == 0:
            power = torch.cat([power, power.narrow(axis, 0, 1)], axis)
    half = [(n // 2 + 0.5) / m for n, m in zip(power.shape, spectrum.power.shape, strict=True)]
    return power.numpy(), (-half[1], half[1], half[0], -half[0])


def marked(period: Period) -> list[tuple[float, float]]:
    """Where the checkerboard's frequencies (vertical, horizontal) are in [-1/2, 1/2], mirror images too."""
    places = set()
    for f in frequencies(period):
        for v in _ends(f[0]):
            for h in _ends(f[1]):
                places.add((v, h))
                places.add((-v, -h))
    return sorted(places)


def _ends(f: float) -> tuple[float, ...]:
    centred = (f + 0.5) % 1 - 0.5
    return (-0.5, 0.5) if centred == -0.5 else (centred,)


def _figure(width: float, height: float, dark: bool = False) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor=PAPER[dark])
    FigureCanvasAgg(figure)
    return figure


def _draw_shown(figure: SubFigure, parts: ShownPictures) -> None:
    across = 2 * len(parts.pictures) + len(parts.differences)
    grid = figure.subplots(len(parts.boxes), across, squeeze=False)
    for i, (top, left, size) in enumerate(parts.boxes):
        at = iter(grid[i])
        for name, pictures in parts.pictures.items():
            axes = next(at)
            _show(axes, pictures[i], name if i == 0 else None)
            axes.add_patch(_box(left, top, size))
            _show(next(at), parts.zooms[name][i], f"{name}, zoom" if i == 0 else None)
            if name in parts.differences:
                caption = difference_caption(parts, name) if i == 0 else None
                _show(next(at), parts.differences[name][i], caption)


def _box(left: int, top: int, size: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left - 0.5, top - 0.5), size, size, fill=False, edgecolor="#ffb000", linewidth=1)


def _show(axes: Any, picture: np.ndarray, caption: str | None) -> None:
    height, width = picture.shape[:2]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(enlarged(picture, 512), extent=extent, interpolation="hanning")
    axes.set_axis_off()
    if caption:
        axes.set_title(caption, fontsize=8, color=INK[False])


def _spectra(columns: Mapping[str, Tensor]) -> dict[str, PictureSpectrum]:
    check_columns(columns, next(iter(columns), ""))
    return {name: power_spectrum(batch.float()) for name, batch in columns.items()}


def _scale_of(spectra: Mapping[str, PictureSpectrum]) -> tuple[float, float]:
    """Lowest and highest dB of the colours: the first variant's; what a later one removes may leave them."""
    low, high = np.percentile(next(iter(spectra.values())).power.numpy(), (1, 99.7))
    return float(low) - 6, float(high)


def _draw_spectra(
    figure: Figure | SubFigure, spectra: Mapping[str, PictureSpectrum], period: Period, dark: bool
) -> None:
    ratios = [1.0] * len(spectra) + [1.35]
    axes = figure.subplots(1, len(spectra) + 1, width_ratios=ratios, squeeze=False)[0]
    image: Any = None
    for i, (plot, (name, spectrum)) in enumerate(zip(axes, spectra.items(), strict=False)):
        image = _draw_full(plot, spectrum, _scale_of(spectra), period, dark)
        plot.set_title(name, fontsize=9, color=INK[dark])
        if i:
            plot.tick_params(labelleft=False)
    _colour_bar(figure, image, list(axes[:-1]), dark)
    _draw_radial(axes[-1], spectra, period, dark)


def _draw_full(
    axes: Any, spectrum: PictureSpectrum, scale: tuple[float, float], period: Period, dark: bool
) -> Any:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    power, extent = spectrum_image(spectrum)
    image = axes.imshow(
        power, extent=extent, cmap="magma", vmin=scale[0], vmax=scale[1], interpolation="nearest"
    )
    vertical, horizontal = zip(*marked(period), strict=True)
    axes.scatter(horizontal, vertical, s=90, facecolors="none", edgecolors="#4dd8ff", clip_on=False, zorder=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([-0.5, 0, 0.5]))
        axis.set_major_formatter(FuncFormatter(lambda v, _: {-0.5: "-1/2", 0.0: "0", 0.5: "1/2"}[v]))
    _ink(axes, dark)
    return image


def _colour_bar(figure: Figure | SubFigure, image: Any, axes: Any, dark: bool) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.7, pad=0.02)
    bar.ax.tick_params(labelsize=7, colors=INK[dark])
    bar.set_label("dB", fontsize=8, color=INK[dark])


def _draw_radial(axes: Any, spectra: Mapping[str, PictureSpectrum], period: Period, dark: bool) -> None:
    for i, (name, spectrum) in enumerate(spectra.items()):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i % len(LINES)]}
        axes.plot(spectrum.radius, spectrum.radial_power, label=name, **style)
    names: dict[float, list[str]] = {}
    for f in frequencies(period):
        names.setdefault(_radius(f), []).append(frequency_name(f))
    for radius, told in names.items():
        axes.axvline(radius, color=INK[dark], linewidth=0.7, linestyle=(0, (2, 3)))
        axes.annotate(
            "\n".join(told), (radius, 1), xycoords=("data", "axes fraction"), xytext=(-2, -2),
            textcoords="offset points", fontsize=6, color=INK[dark], va="top", ha="right",
        )  # fmt: skip
    axes.set_ylim(float(next(iter(spectra.values())).radial_power.min()) - 25)
    axes.set_xlabel("distance from frequency 0 (cycles per pixel)", fontsize=8, color=INK[dark])
    axes.set_ylabel("mean power, dB", fontsize=8, color=INK[dark])
    _legend(axes, dark)
    _ink(axes, dark)


def _legend(axes: Any, dark: bool) -> None:
    for text in axes.legend(fontsize=7, frameon=False).get_texts():
        text.set_color(INK[dark])


def _radius(f: tuple[float, float]) -> float:
    vertical, horizontal = ((v + 0.5) % 1 - 0.5 for v in f)
    return round(float(np.hypot(vertical, horizontal)), 6)


def _ink(axes: Any, dark: bool) -> None:
    axes.set_facecolor(PAPER[dark])
    axes.tick_params(colors=INK[dark], labelsize=7)
    for spine in axes.spines.values():
        spine.set_color(INK[dark])
        spine.set_linewidth(0.6)
