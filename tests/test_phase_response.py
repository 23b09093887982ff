"""The phase response of up-samplers against what the layers really do to a constant input."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from pixelize.errors import ArgumentError
from pixelize.layers.pixel_dcl import PixelDCL2d, iPixelDCL2d
from pixelize.measure.checkerboard import frequencies
from pixelize.measure.phase_response import PhaseResponse, phase_response, phase_responses
from pixelize.rewrites.site import TransposedConv, geometry_of

LAYERS = [
    nn.ConvTranspose2d(3, 5, 4, 2, 1),
    nn.ConvTranspose2d(3, 5, 3, 2, 1, output_padding=1),
    nn.ConvTranspose2d(3, 5, 2, 2),
    nn.ConvTranspose2d(4, 6, (5, 3), (3, 2), (2, 0), groups=2),
    nn.ConvTranspose2d(4, 4, (3, 4), (1, 2), (1, 1), groups=4, bias=False),
    nn.ConvTranspose2d(2, 3, 3, 2, 1, dilation=3),
    nn.ConvTranspose2d(2, 3, 2, 3),
    iPixelDCL2d(3, 4, 4, 2, 1),
    iPixelDCL2d(4, 6, 3, 2, 1, 1, groups=2, dependency_groups=3, schedule="sequential"),
    iPixelDCL2d(2, 4, 4, 2, 1, dependency_groups=2, schedule="masked"),
    iPixelDCL2d(2, 3, 5, 3, 1, dependency_kernel_size=2),
    PixelDCL2d(3, 4, 4, 2, 1),
    PixelDCL2d(4, 6, 5, (3, 2), 2, groups=2, dependency_groups=2, schedule="sequential"),
    PixelDCL2d(3, 4, 4, 2, 1, schedule="masked", dependency_kernel_size=5),
]


def observed(layer: nn.ConvTranspose2d) -> Tensor:
    """Gains (s_h, s_w, C_out, C_in) as seen in the middle of the layer's output for constant inputs."""
    layer = layer.double().eval()
    stride, size = layer.stride, 24
    ones = torch.eye(layer.in_channels, dtype=torch.float64)[:, :, None, None].expand(-1, -1, size, size)
    with torch.no_grad():
        answer = layer(ones) - layer(torch.zeros_like(ones))
    rows, columns = (stride[axis] * (size // 2) for axis in (0, 1))
    middle = answer[:, :, rows : rows + stride[0], columns : columns + stride[1]]
    return middle.permute(2, 3, 1, 0)


def by_definition(gains: Tensor) -> float:
    mean = gains.mean((0, 1))
    return 10 * math.log10(float((gains - mean).square().sum((2, 3)).mean() / mean.square().sum()))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{type(layer).__name__}-{layer.extra_repr()}")
def test_it_is_what_the_layer_does_to_a_constant(layer):
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    response = phase_response(layer)
    gains = observed(layer)
    assert torch.allclose(response.gains, gains, atol=1e-5)
    assert response.stride == layer.stride
    assert response.unevenness == pytest.approx(by_definition(gains), abs=1e-3)
    assert list(response.per_frequency) == frequencies(layer.stride)
    powers = sum(10 ** (part / 10) for part in response.per_frequency.values())
    assert 10 * math.log10(powers) == pytest.approx(response.unevenness, abs=1e-6)


def test_a_closed_input_gate_counts():
    torch.manual_seed(0)
    layer = iPixelDCL2d(3, 4, 4, 2, 1)
    layer.input_gate = torch.tensor(0.25)
    assert torch.allclose(phase_response(layer).gains, observed(layer), atol=1e-5)


def test_one_frequency_at_a_time():
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # 0.5 (1 + (-1)^x): as much pattern as mean
    layer = nn.ConvTranspose2d(1, 1, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(weight)
    response = phase_response(layer)
    assert response.per_frequency == pytest.approx({(0.0, 0.5): 0, (0.5, 0.0): -120, (0.5, 0.5): -120})
    assert response.unevenness == pytest.approx(0)


@pytest.mark.parametrize(
    ("values", "expected"), [([1, 1, 1, 1], -120), ([1, -1, -1, 1], 120), ([0, 0, 0, 0], -120)]
)
def test_even_uneven_and_silent_layers_stay_within_limits(values, expected):
    layer = nn.ConvTranspose2d(1, 1, 2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(values).reshape(2, 2))
    assert phase_response(layer).unevenness == expected


def test_a_resized_convolution_is_even():
    # Nearest x2, then a 3x3 convolution, as one transposed convolution: every phase sums all nine taps.
    kernel = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    nearest = torch.ones(1, 1, 2, 2).double()
    weight = nn.functional.conv_transpose2d(kernel.reshape(12, 1, 3, 3).flip(-2, -1), nearest)
    layer = nn.ConvTranspose2d(3, 4, 4, 2, 1).double()
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(4, 3, 4, 4).transpose(0, 1))
    x = torch.randn(1, 3, 5, 5).double()
    resized = nn.functional.interpolate(x, scale_factor=2)
    assert torch.allclose(
        layer(x) - layer.bias[:, None, None], nn.functional.conv2d(resized, kernel, padding=1)
    )
    assert phase_response(layer).unevenness == -120


def test_the_canonical_form_of_a_site_measures_the_same():
    layer = nn.ConvTranspose2d(3, 5, 3, 2, 1)
    site = TransposedConv(geometry_of(layer), layer.weight, layer.bias)
    assert phase_response(site).unevenness == phase_response(layer).unevenness


def test_a_mean_input_weighs_the_channels():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(2, 3, 4, 2, 1)
    with torch.no_grad():
        layer.weight[1] = 0.1  # this channel's phases agree
    assert phase_response(layer, torch.tensor([0.0, 2.0])).unevenness < -100
    mean = torch.tensor([0.3, -1.0])
    answers = observed(layer) @ mean.double()[:, None]
    assert phase_response(layer, mean).unevenness == pytest.approx(by_definition(answers), abs=1e-4)
    with pytest.raises(ArgumentError, match="2 channels"):
        phase_response(layer, torch.ones(3))


@pytest.mark.parametrize(
    "wrap", [parametrizations.spectral_norm, parametrizations.weight_norm, spectral_norm, weight_norm]
)
def test_reparametrized_layers_are_evaluated_and_left_alone(wrap):
    torch.manual_seed(0)
    layer = wrap(nn.ConvTranspose2d(3, 5, 4, 2, 1).double())
    layer(torch.randn(1, 3, 4, 4).double())
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= 1.5  # what an optimizer step leaves: the old hooks' weight is out of date
    layer.train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    response = phase_response(layer)
    assert layer.training
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.allclose(response.gains, observed(layer), atol=1e-9)


def test_a_model_is_listed_most_uneven_first():
    torch.manual_seed(0)
    even = nn.ConvTranspose2d(4, 4, 2, 2)
    nn.init.constant_(even.weight, 0.1)
    shared = nn.ConvTranspose2d(4, 4, 4, 2, 1).half()
    model = nn.ModuleDict(
        {
            "even": even,
            "flat": nn.ConvTranspose2d(4, 4, 3),
            "a": shared,
            "again": shared,
            "c": nn.Conv2d(4, 4, 3),
        }
    )
    found = phase_responses(model)
    assert list(found) == ["a", "even"]
    assert all(isinstance(response, PhaseResponse) for response in found.values())
    assert phase_responses(model, {"a": torch.zeros(4)})["a"].unevenness == -120  # no input, no pattern
    assert phase_responses(nn.Linear(2, 2)) == {}


def test_refusals_say_what_to_do():
    with pytest.raises(ArgumentError, match="phase_responses"):
        phase_response(nn.Conv2d(1, 1, 1))
    with pytest.raises(ArgumentError, match="stride 1"):
        phase_response(nn.ConvTranspose2d(1, 1, 3))
    with pytest.raises(ArgumentError, match=r"up: .*call the model once"):
        phase_responses(nn.ModuleDict({"up": nn.LazyConvTranspose2d(3, 4, 2)}))
    with pytest.raises(ArgumentError, match=r"the model: .*meta device"):
        phase_responses(nn.ConvTranspose2d(1, 1, 4, 2, device="meta"))


def test_the_trained_generator_lays_on_its_pictures_what_its_last_layer_predicts():
    package = pytest.importorskip("gan_face_generate")
    from gan_face_generate.models import Generator

    generator = Generator(1, 3, 100, 64).eval()
    weights = torch.load(Path(package.__file__).parent / "weights.tar", map_location="cpu", weights_only=True)
    generator.load_state_dict(weights["netG_state_dict"])
    last = generator.main[12]
    latents = torch.randn(64, 100, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = generator.main[:12](latents)
        pictures = last(features).double()
    mean = features.mean((0, 2, 3)).double()
    response = phase_response(last, mean)
    sign = (-1.0) ** (torch.arange(64)[:, None] + torch.arange(64))
    predicted = torch.fft.fft2(response.gains @ mean, dim=(0, 1), norm="forward")[1, 1].real
    found = (pictures * sign).mean((0, 2, 3))
    assert found.abs().max() > 0.003
    assert torch.allclose(found, predicted, atol=0.001)
    # Of what the last layer could do to white inputs, its own inputs leave little.
    assert response.unevenness < phase_response(last).unevenness - 20
