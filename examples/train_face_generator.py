"""Train the small face generator that the package ships for ``pixelize demo``.

    python examples/train_face_generator.py --data faces64.zip --out face_generator.safetensors

A plain DCGAN (Radford et al., arXiv 1511.06434) with the non-saturating loss, on 64x64 grey pictures: a zip
of image files, decoded once into memory. Nothing here asks for a checkerboard and nothing fights it: the
transposed convolutions make it by themselves, and each log line says how strong it is, in dB. The last
weights are kept as they are, as DCGANs commonly do: a running mean of them would hide much of the pattern.

The pattern wanders while a GAN trains: looked at every 250 steps up to 3,000, the strongest of its three
frequencies was between about 12 and 24 dB, now this one, now that. The shipped file is step 2,750 (19 minutes
on one busy core), picked among the last few because all three show, (1/2,1/2) most.

Everything under ``--work`` is safetensors and PNG. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pixelize.demo.generator import FaceGenerator
from pixelize.measure.checkerboard import checkerboard, frequency_name


def load_faces(archive: Path) -> Tensor:
    """Return every picture of a zip as uint8 ``(N, 1, 64, 64)``, in the order of their names."""
    with zipfile.ZipFile(archive) as pictures:
        names = sorted(name for name in pictures.namelist() if name.lower().endswith((".jpg", ".png")))
        faces = [np.asarray(Image.open(io.BytesIO(pictures.read(name))).convert("L")) for name in names]
    return torch.from_numpy(np.stack(faces)).unsqueeze(1)


def discriminator(width: int) -> nn.Sequential:
    """Return the DCGAN discriminator: 64x64 pictures to one logit each, shape ``(N, 1, 1, 1)``."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for channels in (width, 2 * width, 4 * width):
        layers += [
            nn.Conv2d(channels, 2 * channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4))


def dcgan_weights(module: nn.Module) -> None:
    """Draw the weights as the DCGAN paper does: N(0, 0.02), norms around one."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Return an Adam optimizer's state as a flat dictionary, ``prefix.<parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{i}.{key}": value for i, values in state.items() for key, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value.contiguous() for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix + "."): v for n, v in tensors.items() if n.startswith(prefix + ".")}


def save_grid(pictures: Tensor, path: Path, columns: int = 8) -> None:
    """Write pictures ``(N, 1, H, W)`` in [-1, 1] side by side as one PNG."""
    rows = [torch.cat(list(row), dim=-1) for row in pictures[:, 0].split(columns)]
    grid = torch.cat(rows).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    Image.fromarray(grid.numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the small face generator that the demo repairs.")
    parser.add_argument("--data", type=Path, default=Path("faces64.zip"), help="zip of 64x64 pictures")
    parser.add_argument("--out", type=Path, default=Path("face_generator.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("runs/faces"), help="for checkpoint and samples")
    parser.add_argument("--steps", type=int, default=2_750)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-4, help="of Adam, for both networks")
    parser.add_argument("--log-every", type=int, default=250, help="steps between samples and checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.work / "checkpoint.safetensors"
    faces = load_faces(args.data)

    generator = FaceGenerator().apply(dcgan_weights)
    critic = discriminator(width=32).apply(dcgan_weights)
    adam_g = torch.optim.Adam(generator.parameters(), args.lr, betas=(0.5, 0.999))
    adam_c = torch.optim.Adam(critic.parameters(), args.lr, betas=(0.5, 0.999))
    networks = {"generator": generator, "critic": critic}
    step, seconds = 0, 0.0
    fixed = torch.randn(64, generator.latent_channels, generator=torch.Generator().manual_seed(1))

    if checkpoint.exists():
        tensors = load_file(checkpoint)
        for name, network in networks.items():
            network.load_state_dict(without_prefix(name, tensors))
        restore_optimizer(adam_g, "adam_g", tensors)
        restore_optimizer(adam_c, "adam_c", tensors)
        torch.set_rng_state(tensors["rng"])
        step, seconds = int(tensors["step"]), float(tensors["seconds"])

    def save_checkpoint() -> None:
        tensors = {"rng": torch.get_rng_state(), "step": torch.tensor(step), "seconds": torch.tensor(seconds)}
        for name, network in networks.items():
            tensors |= with_prefix(name, network.state_dict())
        tensors |= optimizer_tensors(adam_g, "adam_g") | optimizer_tensors(adam_c, "adam_c")
        unfinished = checkpoint.with_suffix(".part")
        save_file(tensors, unfinished)
        unfinished.replace(checkpoint)

    def look() -> tuple[Tensor, str]:
        """Return the pictures of the fixed latents and their checkerboard, in words."""
        with torch.no_grad():
            pictures = generator.eval()(fixed)
        generator.train()
        measured = checkerboard(pictures)["global"]
        return pictures, "  ".join(f"{frequency_name(f)} {value:+.1f}" for f, value in measured.items())

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=args.steps, completed=step)
        while step < args.steps:
            started = time.perf_counter()
            real = faces[torch.randint(len(faces), (args.batch,))].float() / 127.5 - 1
            real = torch.where(torch.rand(args.batch, 1, 1, 1) < 0.5, real, real.flip(-1))
            fake = generator(torch.randn(args.batch, generator.latent_channels))

            loss_c = F.softplus(-critic(real)).mean() + F.softplus(critic(fake.detach())).mean()
            adam_c.zero_grad()
            loss_c.backward()
            adam_c.step()

            loss_g = F.softplus(-critic(fake)).mean()
            adam_g.zero_grad()
            loss_g.backward()
            adam_g.step()

            step += 1
            seconds += time.perf_counter() - started
            progress.update(task, completed=step)
            if step % args.log_every == 0:
                pictures, decibels = look()
                save_grid(pictures, args.work / f"step{step:06d}.png")
                progress.print(
                    f"step {step}, {seconds / 60:.1f} min, "
                    f"losses {loss_c.item():.2f} {loss_g.item():.2f}, checkerboard in dB: {decibels}"
                )
                save_checkpoint()

    save_checkpoint()
    halves = {n: t.half() if t.is_floating_point() else t for n, t in generator.state_dict().items()}
    save_file(halves, args.out)
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {size:.2f} MB after {step} steps, {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    main()
