"""Trimming: fewer weights, the same function, the same gradients of those that are left."""

import pytest
import torch
from torch import nn

import condgen
from condgen import recipes
from condgen.nn.decoders import DeconvDecoder
from condgen.nn.encoders import ConvEncoder
from condgen.nn.layers import ChannelNorm, FiLM, WholeConv2d, WholeConvTranspose2d, live_taps, trimmed
from condgen.random import Use, normals

SHAPES = [
    {"channels": (4, 6, 8), "strides": (2, 2, 2)},
    {"channels": (4, 6, 8, 8, 6), "strides": (2, 2, 2, 2, 1)},
    {"channels": (4, 6, 8), "strides": (2, 2, 2), "kernel_size": 5},
    {"channels": (4, 6), "strides": (3, 2), "kernel_size": 7},
    {"channels": (4, 6, 6, 6), "strides": (2, 2, 2, 1), "norm": ChannelNorm, "modulation": FiLM},
]


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (28, 28), (8, 33)])
@pytest.mark.parametrize("options", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_same_function_and_gradients(kind, options, size):
    def build(trim):
        torch.manual_seed(0)
        if kind == "encoder":
            return ConvEncoder((2, *size), 3, 5, **options, trim=trim).double()
        reverse = {**options, "channels": options["channels"][::-1], "strides": options["strides"][::-1]}
        return DeconvDecoder((2, *size), 5, 3, **reverse, trim=trim).double()

    full, less = build(False), build(True)
    given = torch.rand(3, 2, *size).double() if kind == "encoder" else torch.randn(3, 5).double()
    c = torch.rand(3, 3).double()
    outputs = [part(given, c) for part in (full, less)]
    torch.testing.assert_close(*outputs, atol=1e-12, rtol=1e-12)
    for output in outputs:
        (output * torch.arange(output.numel()).reshape(output.shape).cos()).sum().backward()
    alive = 0
    for whole, own in zip(full.parameters(), less.parameters(), strict=True):
        assert (whole.grad != 0).sum() <= own.numel()
        torch.testing.assert_close(whole.grad.square().sum(), own.grad.square().sum(), atol=1e-10, rtol=1e-10)
        alive += own.numel()
    assert alive <= sum(p.numel() for p in full.parameters())


def test_the_reference_loses_its_dead_weights():
    torch.manual_seed(0)
    full = recipes.bloodmnist_reference()
    torch.manual_seed(0)
    model = recipes.bloodmnist_reference()
    assert condgen.trim(model) == 2_424_832
    assert sum(p.numel() for p in model.parameters()) == 923_979
    assert condgen.trim(model) == 0
    x, y = torch.rand(4, 3, 28, 28), torch.tensor([0, 1, 2, 7])
    noise = normals(model.noise_shapes, 0, torch.arange(4), Use.TRAINING)
    torch.testing.assert_close(model.infer(x, y, noise).kl, full.infer(x, y, noise).kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.sample([0, 6]), full.sample([0, 6]), rtol=1e-5, atol=1e-5)


def test_every_weight_left_has_a_gradient():
    model = recipes.bloodmnist_reference()
    condgen.trim(model)
    x, y = torch.rand(16, 3, 28, 28), torch.arange(16) % 8
    inference = model.infer(x, y, normals(model.noise_shapes, 0, torch.arange(16), Use.TRAINING))
    (inference.kl.mean() - inference.log_likelihood.mean()).backward()
    taps = [p.grad.abs().sum((0, 1)) for p in model.parameters() if p.ndim == 4]
    assert all(bool((tap > 0).all()) for tap in taps)


def test_files_say_so(tmp_path):
    model = recipes.bloodmnist_reference()
    condgen.trim(model)
    again = condgen.load(condgen.save(model, tmp_path))
    assert again.encoder.trim
    assert again.decoder.trim
    assert torch.equal(again.sample([0, 1]), model.eval().sample([0, 1]))


def test_training_is_the_same():
    """Adam moves live weights as it would have, since the others have no gradient."""
    images, losses = condgen.load_smears(64, size=16).train, []
    for cut in (False, True):
        torch.manual_seed(0)
        model = condgen.ConditionalVAE(**dict(deep().named_children()), image_shape=(3, 16, 16)).double()
        if cut:
            assert condgen.trim(model) > 0
        history = condgen.fit(model, images, epochs=3, batch_size=16, progress=False, accelerator="cpu")
        losses.append(history["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def deep():
    channels, strides = (4, 8, 8, 8, 8), (2, 2, 2, 2, 1)
    return condgen.ConditionalVAE(
        conditioner=condgen.nn.conditioners.OneHot(8),
        encoder=ConvEncoder((3, 16, 16), 8, 4, channels=channels, strides=strides),
        reparameterizer=condgen.distributions.reparameterizers.Gaussian(),
        prior=condgen.distributions.priors.StandardNormal(4),
        decoder=DeconvDecoder((3, 16, 16), 4, 8, channels=channels[::-1], strides=strides[::-1]),
        likelihood=condgen.distributions.likelihoods.Bernoulli(),
    )


def test_taps():
    assert live_taps(3, 1, 1, 1, 1) == (1, 2)
    assert live_taps(5, 1, 2, 2, 2) == (1, 4)
    assert live_taps(3, 2, 1, 2, 4) == (0, 3)


def test_a_layer_that_needs_all_of_its_taps_stays():
    conv = nn.Conv2d(2, 3, 3, 2, 1)
    assert trimmed(conv, (28, 28), (14, 14)) is conv


def test_the_generator_is_left_alone():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1)
    before = torch.get_rng_state()
    assert trimmed(conv, (1, 1), (1, 1)).weight.shape == (3, 2, 1, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (3, 4)])
@pytest.mark.parametrize(
    "options",
    [{}, {"groups": 2}, {"padding": 1, "stride": 2}, {"bias": False}, {"output_padding": 1, "stride": 2}],
    ids=str,
)
@pytest.mark.parametrize(("kind", "plain"), [(WholeConv2d, nn.Conv2d), (WholeConvTranspose2d, nn.ConvTranspose2d)])
def test_one_product_is_the_convolution(kind, plain, options, size):
    """Where a product does not apply (another size of the map, groups, padding) the layer convolves as usual."""
    if kind is WholeConv2d and ("output_padding" in options or (min(size) < 3 and "padding" not in options)):
        pytest.skip("there is no such convolution")
    layer, x = kind(4, 6, 3, **options).double(), torch.randn(3, 4, *size).double()
    torch.testing.assert_close(layer(x), plain.forward(layer, x))
