# ruff: noqa: E501  (configurations read best as tables)
"""Models of waveforms, films and volumes: what pixelize finds in them, and what converting it changes.

    python benchmarks/coverage_nd.py                   # all, about three minutes on one CPU core
    python benchmarks/coverage_nd.py --only monai/     # those whose name contains the text

Every model is small and has random weights; nothing is downloaded. Vocoders and audio codecs of transformers
and diffusers, diffusers' video autoencoders, MONAI's networks, nnU-Net's (``dynamic-network-architectures``).
For each one: the sites by kind, the relative
error of the outputs after ``pixelize.convert`` in float64 at the captured size, at another, odd one, and with
two samples; and what up-samples and is not converted, with the reason. Writes ``results/coverage_nd.json`` and
``.md``.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pixelize
from pixelize.errors import NothingToConvertError
from pixelize.running.outputs import relative_error

RESULTS = Path(__file__).parent / "results"
Size = tuple[int, ...]
Case = tuple[Callable[[], nn.Module], Size, Size]
"""How a model is built, and two shapes of its input."""


def catalogue() -> dict[str, Case]:
    """Every model by ``library/name``."""
    return {**_transformers(), **_diffusers(), **_monai(), **_nnunet()}


def _transformers() -> dict[str, Case]:
    def build(name: str, config: str, module: str = "", **settings: Any) -> nn.Module:
        import importlib

        import transformers

        home = importlib.import_module(module) if module else transformers
        return getattr(home, name)(getattr(transformers, config)(**settings))

    vocoder: dict[str, Any] = {"model_in_dim": 8, "upsample_initial_channel": 32}
    codec = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 16}
    mimi = {
        "num_filters": 4, "hidden_size": 32, "vector_quantization_hidden_dimension": 16, "codebook_dim": 16, "codebook_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32,
        "upsample_groups": 32,
    }  # fmt: skip
    univnet = {
        "model_hidden_channels": 8,
        "num_mel_bins": 8,
        "model_in_channels": 8,
        "kernel_predictor_hidden_channels": 8,
    }
    vits = {"flow_size": 8, "upsample_initial_channel": 32}
    return {
        "transformers/SpeechT5HifiGan": (partial(build, "SpeechT5HifiGan", "SpeechT5HifiGanConfig", **vocoder), (1, 13, 8), (1, 9, 8)),
        "transformers/FastSpeech2ConformerHifiGan": (
            partial(build, "FastSpeech2ConformerHifiGan", "FastSpeech2ConformerHifiGanConfig", **vocoder), (1, 13, 8), (1, 9, 8),
        ),
        "transformers/VITS decoder": (
            partial(build, "VitsHifiGan", "VitsConfig", "transformers.models.vits.modeling_vits", **vits), (1, 8, 13), (1, 8, 9),
        ),
        "transformers/UnivNet": (partial(build, "UnivNetModel", "UnivNetConfig", **univnet), (1, 9, 8), (1, 7, 8)),
        "transformers/EnCodec": (partial(build, "EncodecModel", "EncodecConfig", **codec), (1, 1, 2001), (1, 1, 1503)),
        "transformers/DAC": (
            partial(build, "DacModel", "DacConfig", encoder_hidden_size=4, decoder_hidden_size=64, codebook_size=16), (1, 1, 4096), (1, 1, 3001),
        ),
        "transformers/Mimi": (partial(build, "MimiModel", "MimiConfig", **mimi), (1, 1, 7683), (1, 1, 5761)),
    }  # fmt: skip


def _diffusers() -> dict[str, Case]:
    def build(name: str, **settings: Any) -> nn.Module:
        import diffusers

        return getattr(diffusers, name)(in_channels=settings.pop("in_channels", 3), **settings)

    def oobleck() -> nn.Module:
        import diffusers

        return diffusers.AutoencoderOobleck(
            encoder_hidden_size=8, channel_multiples=[1, 2, 4], decoder_channels=8, decoder_input_channels=4, downsampling_ratios=[2, 4, 8],
        )  # fmt: skip

    def kvae_audio() -> nn.Module:
        import diffusers

        return diffusers.AutoencoderKLKVAEAudio(
            encoder_dim=4, encoder_rates=[2, 4], latent_dim=16, codebook_dim=4, decoder_dim=16, decoder_rates=[4, 2], attn_num_heads=2,
        )  # fmt: skip

    def minimax_audio() -> nn.Module:
        import diffusers

        return diffusers.AutoencoderKLMiniMaxH3Audio(
            encoder_dim=4, encoder_rates=(2, 5), latent_dim=16, latent_channels=4, num_attention_heads=2, decoder_dim=32, decoder_rates=(5, 2),
            decoder_kernel_sizes=(9, 4),
        )  # fmt: skip

    def allegro() -> nn.Module:  # the whole model decodes in tiles only
        import diffusers

        return diffusers.AutoencoderKLAllegro(**{**four, **blocks("Allegro"), "norm_num_groups": 4}).decoder

    film, other = (1, 3, 9, 32, 32), (1, 3, 5, 48, 32)
    four: dict[str, Any] = {
        "out_channels": 3,
        "block_out_channels": (8,) * 4,
        "layers_per_block": 1,
        "latent_channels": 4,
    }
    three: dict[str, Any] = {
        **four,
        "block_out_channels": (8,) * 3,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 2,
    }

    def blocks(name: str, first: str = "") -> dict[str, Any]:
        return {
            f"{way}_block_types": (f"{first or name}{kind}Block3D", *(f"{name}{kind}Block3D",) * 3)
            for way, kind in (("down", "Down"), ("up", "Up"))
        }

    magvit = {
        f"{way}_block_types": [f"Spatial{way.title()}Block3D", *[f"SpatialTemporal{way.title()}Block3D"] * 3] for way in ("down", "up")
    }  # fmt: skip
    ltx = {
        **four, "latent_channels": 8, "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5, "decoder_block_out_channels": (8,) * 4,
        "spatio_temporal_scaling": (True, True, False, False), "decoder_spatio_temporal_scaling": (True, True, False, False), "patch_size": 1,
        "decoder_causal": False,
    }  # fmt: skip
    mochi = {
        "in_channels": 15, "out_channels": 3, "latent_channels": 4, "encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4,
        "layers_per_block": (1,) * 5,
    }  # fmt: skip
    cosmos = {
        "out_channels": 3, "latent_channels": 4, "encoder_block_out_channels": (8,) * 4, "decode_block_out_channels": (8,) * 4,
        "attention_resolutions": (8,), "resolution": 64, "num_layers": 2, "patch_size": 4, "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 4,
    }  # fmt: skip
    wan = {
        "base_dim": 3,
        "z_dim": 16,
        "dim_mult": [1] * 4,
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    }
    named: dict[str, dict[str, Any]] = {
        "AutoencoderKLLTXVideo": ltx,
        "AutoencoderKLWan": wan,
        "AutoencoderKLHunyuanVideo": {**four, **blocks("HunyuanVideo"), "norm_num_groups": 4},
        "AutoencoderKLHunyuanVideo15": three,
        "AutoencoderKLHunyuanImageRefiner": three,
        "AutoencoderKLCogVideoX": {
            **four,
            **blocks("CogVideoX"),
            "norm_num_groups": 2,
            "temporal_compression_ratio": 4,
        },
        "AutoencoderKLMochi": mochi,
        "AutoencoderKLCosmos": cosmos,
        "AutoencoderKLMagvit": {**four, **magvit, "block_out_channels": [8] * 4, "norm_num_groups": 8},
    }
    ltx2 = {
        "out_channels": 3, "latent_channels": 8, "block_out_channels": (8, 16, 32, 64), "decoder_block_out_channels": (8, 16, 32), "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4, "patch_size": 1,
    }  # fmt: skip
    cases: dict[str, Case] = {
        "diffusers/AutoencoderOobleck": (oobleck, (1, 2, 448), (1, 2, 320)),
        "diffusers/AutoencoderKLKVAEAudio": (kvae_audio, (1, 1, 344), (1, 1, 200)),
        "diffusers/AutoencoderKLMiniMaxH3Audio": (minimax_audio, (1, 1, 350), (1, 1, 210)),
        "diffusers/AutoencoderKLLTX2Video": (
            partial(build, "AutoencoderKLLTX2Video", **ltx2),
            film,
            (1, 3, 17, 64, 32),
        ),
        "diffusers/AutoencoderKLLTX2Video zeros": (
            partial(build, "AutoencoderKLLTX2Video", **ltx2, decoder_spatial_padding_mode="zeros"),
            film,
            (1, 3, 17, 64, 32),
        ),
        "diffusers/AutoencoderKLAllegro decoder": (allegro, (1, 4, 3, 5, 7), (1, 4, 4, 6, 5)),
    }
    return {
        **cases,
        **{
            f"diffusers/{name}": (partial(build, name, **settings), film, other)
            for name, settings in named.items()
        },
    }


def _monai() -> dict[str, Case]:
    def build(name: str, **settings: Any) -> nn.Module:
        import monai.networks.nets as nets

        return getattr(nets, name)(**settings)

    plain: dict[str, Any] = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
    unet = {**plain, "channels": (4, 8, 16), "strides": (2, 2)}
    basic = {**plain, "features": (4, 4, 8, 8, 8, 4)}
    dyn = {
        **plain,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, (1, 2, 2)],
        "upsample_kernel_size": [2, (1, 2, 2)],
        "filters": [4, 8, 8],
    }
    named: dict[str, tuple[str, dict[str, Any]]] = {
        "UNet": ("UNet", unet),
        "UNet 2-D": ("UNet", {**unet, "spatial_dims": 2}),
        "AttentionUnet": ("AttentionUnet", unet),
        "BasicUNet": ("BasicUNet", basic),
        "BasicUNet pixelshuffle": ("BasicUNet", {**basic, "upsample": "pixelshuffle"}),
        "BasicUNet nontrainable": ("BasicUNet", {**basic, "upsample": "nontrainable"}),
        "DynUNet": ("DynUNet", dyn),
        "SegResNet": ("SegResNet", {**plain, "init_filters": 8}),
        "SegResNet deconv": ("SegResNet", {**plain, "init_filters": 8, "upsample_mode": "deconv"}),
        "SegResNet pixelshuffle": ("SegResNet", {**plain, "init_filters": 8, "upsample_mode": "pixelshuffle"}),
        "SegResNetDS": ("SegResNetDS", {**plain, "init_filters": 8}),
        "VNet": ("VNet", plain),
        "SwinUNETR": ("SwinUNETR", {"in_channels": 1, "out_channels": 2, "feature_size": 12}),
        "FlexibleUNet": ("FlexibleUNet", {**plain, "in_channels": 3, "backbone": "efficientnet-b0"}),
        "AutoencoderKL": (
            "AutoencoderKL",
            {**plain, "channels": (4, 8, 8), "latent_channels": 3, "num_res_blocks": 1, "norm_num_groups": 4, "attention_levels": (False,) * 3},
        ),
    }  # fmt: skip
    cases: dict[str, Case] = {}
    for name, (network, settings) in named.items():
        n, deep = settings.get("spatial_dims", 3), network in ("SwinUNETR", "VNet", "FlexibleUNet")
        first, second = ((32, 64, 32), (64, 32, 32)) if deep else ((16, 32, 16), (32, 16, 48))
        channels = settings["in_channels"]
        cases[f"monai/{name}"] = (
            partial(build, network, **settings),
            (1, channels, *first[:n]),
            (1, channels, *second[:n]),
        )
    return cases


def _nnunet() -> dict[str, Case]:
    def build(name: str, n: int, **settings: Any) -> nn.Module:
        import dynamic_network_architectures.architectures.unet as nets

        conv, norm = ((nn.Conv2d, nn.InstanceNorm2d), (nn.Conv3d, nn.InstanceNorm3d))[n - 2]
        each = "n_blocks_per_stage" if "Residual" in name else "n_conv_per_stage"
        return getattr(nets, name)(
            input_channels=1, num_classes=3, n_stages=4, features_per_stage=(4, 8, 8, 8), conv_op=conv, kernel_sizes=3, n_conv_per_stage_decoder=1,
            conv_bias=True, norm_op=norm, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, **{each: 1}, **settings,
        )  # fmt: skip

    even, uneven = (1, 2, 2, 2), (1, (1, 2, 2), 2, (1, 2, 2))
    named: dict[str, tuple[str, int, dict[str, Any]]] = {
        "PlainConvUNet 2-D": ("PlainConvUNet", 2, {"strides": even}),
        "PlainConvUNet": ("PlainConvUNet", 3, {"strides": uneven}),
        "PlainConvUNet deep supervision": ("PlainConvUNet", 3, {"strides": even, "deep_supervision": True}),
        "ResidualEncoderUNet": ("ResidualEncoderUNet", 3, {"strides": uneven}),
        "ResidualUNet": ("ResidualUNet", 3, {"strides": even}),
    }
    return {
        f"nnU-Net/{name}": (partial(build, network, n, **settings), (1, 1, 16, 24, 40)[: n + 2], (1, 1, 8, 56, 24)[: n + 2])
        for name, (network, n, settings) in named.items()
    }  # fmt: skip


def built(build: Callable[[], nn.Module]) -> nn.Module:
    """A model with random weights, the same at each call, in float64."""
    torch.manual_seed(0)
    return build().double().eval()


def measure(case: Case) -> dict[str, Any]:
    """One row of the table."""
    build, shape, other = case
    model = built(build)
    x = torch.randn(shape, dtype=torch.float64)
    try:
        converted = pixelize.convert(model, example_inputs=x)
        report = pixelize.report(converted)
    except NothingToConvertError:
        converted, report = model, pixelize.inspect(model, x)
    samples = {
        "captured": x,
        "another": torch.randn(other, dtype=x.dtype),
        "two": torch.randn(2, *shape[1:], dtype=x.dtype),
    }
    return {
        "sites": dict(Counter(s.kind for s in report.converted)),
        "errors": {name: error_between(model, converted, sample) for name, sample in samples.items()},
        "left": [[s.name, s.type, s.reason] for s in report.skipped] + [[s.name, s.type, "on request"] for s in report.found],
    }  # fmt: skip


def error_between(model: nn.Module, converted: nn.Module, sample: Tensor) -> float | str:
    """The relative error between two models of the same random draws; the name of what the first one raises."""
    outputs = []
    for m in (model, converted):
        torch.manual_seed(1)
        try:
            with torch.no_grad():
                outputs.append(m(sample))
        except Exception as error:  # a size that the model itself does not take
            if m is converted:
                raise
            return type(error).__name__
    return relative_error(outputs[0], outputs[1])


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Models of waveforms, films and volumes",
        "",
        "Small, random weights, float64. Relative error of the outputs after `pixelize.convert`. Made by `benchmarks/coverage_nd.py`.",
        "The name of an exception: the model itself does not take these inputs. Linear layers whose output is unfolded into pixels",
        "(as in AutoencoderKLMochi) count as pixel shuffles.",
        "",
        "| model | converted | at the captured size | at another size | two samples | seen to up-sample, and left |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        sites = ", ".join(f"{count} {kind}" for kind, count in row["sites"].items()) or "none"
        errors = (
            [f"{e:.1e}" if isinstance(e, float) else e for e in row["errors"].values()]
            if row["sites"]
            else ["-"] * 3
        )
        left = Counter(reason for _, _, reason in row["left"])
        lines.append(
            f"| {name} | {sites} | {' | '.join(errors)} | {'; '.join(f'{n}: {r}' for r, n in left.items()) or 'nothing'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the benchmark as the command line asks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="only models whose name contains one of these")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = options.out / "coverage_nd.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    models = catalogue()
    for name, case in models.items():
        if options.only and not any(text in name for text in options.only):
            continue
        rows[name] = measure(case)
        print(name, json.dumps(rows[name])[:300], flush=True)
        rows = {known: rows[known] for known in models if known in rows}
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "coverage_nd.md").write_text(table(rows))


if __name__ == "__main__":
    main()
