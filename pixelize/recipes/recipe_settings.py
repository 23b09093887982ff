"""The settings of each recipe: plain data, so that ``pixelize finetune --help`` needs none of the recipes'
libraries.
"""

from __future__ import annotations

from dataclasses import dataclass

from pixelize.recipes.training.settings import Settings, option

_PICTURES = "portraits (drawn), celeba:ROOT, or a folder or zip of pictures."


@dataclass(frozen=True)
class SegmentationSettings(Settings):
    """Segmentation: the paper's U-Net from scratch with different up-samplers, or a trained model, converted
    or not.
    """

    out: str = option("runs/segmentation", "Folder for checkpoints, curves, tables and models.")
    data: str = option(
        "scenes",
        "scenes (drawn), voc:ROOT, coco:ROOT, or a folder or zip (CamVid's layouts, images/ and masks/).",
    )
    classes: int = option(0, "Classes in the masks of a folder (0: CamVid's eleven); 255 is void.")
    model: str = option("unet", "unet (the paper's), smp:NAME?option=value, or module:callable?option=value.")
    width: int = option(16, "Channels of the U-Net's first block.", least=1)
    weights: str = option("", "safetensors file of a trained model, from which the arms start.")
    base_steps: int = option(
        0, "Train the unconverted model for so many steps first; the arms start from it."
    )
    arms: str = option("dcl-k4,ipixeldcl,pixeldcl", "What to train side by side, separated by commas.")
    loss: str = option("ce", "ce, or with smp: dice, focal, lovasz, ce+dice.")
    eval_batch: int = option(16, "Samples at a time in evaluations.", least=1)


@dataclass(frozen=True)
class VaeSettings(Settings):
    """Variational auto-encoder: the paper's, from scratch with different up-samplers, or a trained one of
    diffusers, converted or not.
    """

    out: str = option("runs/vae", "Folder for checkpoints, curves, tables and models.")
    data: str = option("portraits", _PICTURES)
    channels: int = option(3, "1 for grey, 3 for colour.", least=1)
    model: str = option(
        "vae", "vae (the paper's), diffusers:AutoencoderKL?option=value, or module:callable?option=value."
    )
    width: int = option(32, "Channels of the VAE's first convolution.", least=1)
    latents: int = option(64, "Size of the VAE's latent vector.", least=1)
    weights: str = option("", "safetensors file of a trained model, from which the arms start.")
    base_steps: int = option(
        0, "Train the unconverted model for so many steps first; the arms start from it."
    )
    arms: str = option("dcl-k4,ipixeldcl,pixeldcl", "What to train side by side, separated by commas.")
    kl: float = option(
        1.0, "Weight of the Kullback-Leibler term against the squared error, both summed over a picture."
    )
    samples: int = option(256, "Pictures to sample for the checkerboard measure.", least=1)


@dataclass(frozen=True)
class GanSettings(Settings):
    """DCGAN: from scratch with different up-samplers."""

    out: str = option("runs/gan", "Folder for checkpoints, curves, tables and models.")
    data: str = option("portraits", _PICTURES)
    channels: int = option(3, "1 for grey, 3 for colour.", least=1)
    width: int = option(32, "Channels of the generator's last hidden layer.", least=1)
    latents: int = option(64, "Size of the latent vector.", least=1)
    arms: str = option("dcl-k4,ipixeldcl,pixeldcl", "What to train side by side, separated by commas.")
    lr: float = option(2e-4, "Learning rate of Adam (betas 0.5, 0.999) at its highest, for both networks.")
    ema: float = option(
        0.0,
        "Decay of the running mean of the generator's weights, which is then what is evaluated (0: none).",
    )
    weights: str = option(
        "", "safetensors file of a trained generator (this recipe's), from which the arms start."
    )
    samples: int = option(256, "Pictures to sample for the measures.", least=1)


@dataclass(frozen=True)
class RepairSettings(Settings):
    """Repair a trained generator without labels: the original is the teacher, the artifact is the loss."""

    out: str = option("runs/repair", "Folder for checkpoints, curves, tables and models.")
    model: str = option("demo", "demo (the package's), gan-face-generate, or module:callable?option=value.")
    weights: str = option("", "safetensors file for the model.")
    inputs: str = option(
        "", "What it takes: a shape of normal noise, as 100x1x1, or a folder or zip of pictures."
    )
    channels: int = option(
        3, "Channels of the pictures that --data names: 1 for grey, 3 for colour.", least=1
    )
    data: str = option(
        "", "Real pictures (folder or zip) whose spectrum is aimed at; without them, typical figures are."
    )
    arms: str = option(
        "control,ipixeldcl",
        "control, adapter, dcl, ipixeldcl, pixeldcl (-masked, -2x2, -dw after it: other dependencies); with "
        "-repaired after it: from what pixelize.repair makes.",
    )
    include: str = option("*", "Pattern of the names of the up-samplers that are converted.")
    steps: int = option(300, "Optimizer steps.", least=1)
    batch: int = option(32, "Pictures in a step.", least=1)
    lr: float = option(3e-4, "Learning rate of Adam at its highest.")
    warmup: int = option(30, "Steps over which the rate rises; after them it falls by a cosine to 0.")
    eval_every: int = option(50, "Steps between evaluations.", least=1)
    period: int = option(2, "The up-sampling factor whose pattern is to go.", least=2)
    fidelity: float = option(
        1000.0, "Weight of the squared error to the original away from the artifact's frequencies."
    )
    samples: int = option(256, "Fresh pictures to measure on, and as many to choose the weights by.", least=1)
