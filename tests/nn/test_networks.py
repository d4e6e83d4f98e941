"""Encoders, decoders and the layers they are made of."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from condgen.nn.decoders import DeconvDecoder, ResNetDecoder, SkipLatent
from condgen.nn.encoders import ConvEncoder, ResNetEncoder
from condgen.nn.layers import (
    ChannelNorm,
    Concatenate,
    ConvBlock,
    FiLM,
    LabelChannels,
    LabelConv2d,
    bounded,
    join,
    map_sizes,
)
from condgen.nn.velocities import MLPVelocity, ResNetVelocity, UNetVelocity

LATENT, LABELS = 4, 3
FEW = {"channels": (6, 8), "strides": (2, 2)}


def encoder(shape=(2, 9, 12), **options):
    return ConvEncoder(shape, LABELS, LATENT, **{**FEW, **options})


def decoder(shape=(2, 9, 12), **options):
    return DeconvDecoder(shape, LATENT, LABELS, **{**FEW, **options})


def awake(net):
    """Residual blocks start as if they were not there."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def linear_encoder():
    return Concatenate(nn.Sequential(nn.Flatten(), nn.Linear((2 + LABELS) * 9 * 12, 2 * LATENT)))


def linear_decoder():
    return Concatenate(nn.Sequential(nn.Linear(LATENT + LABELS, 216), nn.Unflatten(1, (2, 9, 12))))


def mixed_encoder():
    return Concatenate(nn.Sequential(nn.Conv2d(2 + LABELS, 4, 3, 2), nn.SiLU(), nn.Flatten(), nn.Linear(80, 8)))


ENCODERS = {
    "conv": encoder,
    "conv, strides 1 and 3": lambda: encoder(strides=(1, 3)),
    "conv, kernel 4": lambda: encoder(kernel_size=4),
    "conv, kernel 5, SiLU": lambda: encoder(kernel_size=5, activation=nn.SiLU),
    "conv, one layer": lambda: encoder(channels=[5], strides=[2]),
    "conv, norm": lambda: encoder(norm=ChannelNorm),
    "conv, modulation": lambda: encoder(modulation=FiLM),
    "conv, norm and modulation": lambda: encoder(norm=ChannelNorm, modulation=FiLM),
    "resnet": lambda: awake(ResNetEncoder((2, 9, 12), LABELS, LATENT, widths=(6, 8))),
    "resnet, depth 2": lambda: awake(ResNetEncoder((2, 9, 12), LABELS, LATENT, widths=(6, 8), depth=2)),
    "concatenated linear": linear_encoder,
    "concatenated conv": mixed_encoder,
}
DECODERS = {
    "deconv": decoder,
    "deconv, strides 3 and 1": lambda: decoder(strides=(3, 1)),
    "deconv, kernel 4": lambda: decoder(kernel_size=4),
    "deconv, kernel 5, SiLU": lambda: decoder(kernel_size=5, activation=nn.SiLU),
    "deconv, one layer": lambda: decoder(channels=[5], strides=[2]),
    "deconv, norm": lambda: decoder(norm=ChannelNorm),
    "deconv, modulation": lambda: decoder(modulation=FiLM),
    "deconv, norm and modulation": lambda: decoder(norm=ChannelNorm, modulation=FiLM),
    "resnet decoder": lambda: awake(ResNetDecoder((2, 9, 12), LATENT, LABELS, widths=(6, 8))),
    "resnet decoder, depth 2": lambda: awake(ResNetDecoder((2, 9, 12), LATENT, LABELS, widths=(6, 8), depth=2)),
    "skip latent": lambda: SkipLatent(awake(ResNetDecoder((2, 9, 12), LATENT, LABELS + LATENT, widths=(6, 8)))),
    "concatenated": linear_decoder,
}
NETWORKS = {**ENCODERS, **DECODERS}
each = pytest.mark.parametrize("name", NETWORKS)


def built(name):
    """A network with weights of its own in the layers that start at zero, and its input: x or z, and c."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for layer in network.modules():
        if isinstance(layer, FiLM):
            nn.init.normal_(layer.linear.weight)
    h = torch.rand(5, 2, 9, 12) if name in ENCODERS else torch.randn(5, LATENT)
    return network, h, F.one_hot(torch.tensor([0, 1, 2, 1, 0]), LABELS).float()


@each
def test_the_output_has_the_shape_of_the_contract(name):
    network, h, c = built(name)
    assert network(h, c).shape == ((5, 2 * LATENT) if name in ENCODERS else (5, 2, 9, 12))


@each
def test_no_image_sees_another(name):
    """The gradient of image 3's output reaches input 3 and no other, in training mode too."""
    network, h, c = built(name)
    h.requires_grad_(), c.requires_grad_()
    network.train()(h, c)[3].square().sum().backward()
    for inputs in (h.grad, c.grad):
        assert inputs[3].abs().sum() > 0
        assert inputs[[0, 1, 2, 4]].abs().sum() == 0


@each
def test_permuting_the_batch_permutes_the_output(name):
    network, h, c = built(name)
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(network(h[order], c[order]), network(h, c)[order])


@each
def test_every_parameter_gets_a_gradient(name):
    network, h, c = built(name)
    network(h, c).square().sum().backward()
    assert [key for key, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@each
def test_the_label_matters(name):
    network, h, c = built(name)
    assert ((network(h, c) - network(h, c.roll(1, dims=1))).abs().flatten(1).amax(1) > 1e-4).all()


@each
def test_the_first_input_matters(name):
    network, h, c = built(name)
    assert ((network(h, c) - network(h.roll(1, dims=0), c)).abs().flatten(1).amax(1) > 1e-4).all()


@each
def test_evaluation_repeats(name):
    network, h, c = built(name)
    assert torch.equal(network.eval()(h, c), network(h, c))


@pytest.mark.parametrize("make", [encoder, decoder])
def test_the_network_is_a_stack_of_its_blocks(make):
    """Norm, then modulation, then activation, written out by hand."""
    torch.manual_seed(0)
    network = make(norm=ChannelNorm, modulation=FiLM, activation=nn.Tanh)
    c = torch.rand(2, LABELS)
    if make is encoder:
        x = torch.rand(2, 2, 9, 12)
        h = x
    else:
        x = torch.rand(2, LATENT)
        h = network.linear(torch.cat([x, c], 1)).view(2, 6, *network.unflatten.unflattened_size[1:])
    for block in network.blocks:
        convolved = block.conv(h, c) if isinstance(block.conv, LabelConv2d) else block.conv(h)
        h = torch.tanh(block.modulation(block.norm(convolved), c))
    h = torch.cat([head(h.flatten(1)) for head in network.heads], 1) if make is encoder else network.last(h)
    assert torch.equal(network(x, c), h)


def test_the_decoder_ends_in_a_linear_layer():
    """Parameters are logits: shifting the last bias shifts the output by as much, whatever its sign."""
    network, z, c = built("deconv")
    before = network(z, c)
    with torch.no_grad():
        network.last.bias -= 7
    torch.testing.assert_close(network(z, c), before - 7)


def test_heads_come_in_the_order_of_the_parameters():
    """All means first, then all log-variances, as the reparameterizer reads them."""
    network = encoder(params=3)
    with torch.no_grad():
        for k, head in enumerate(network.heads):
            head.weight.zero_(), head.bias.fill_(k)
    output = network(torch.zeros(1, 2, 9, 12), torch.zeros(1, LABELS))
    assert output.tolist() == [[0.0] * 4 + [1.0] * 4 + [2.0] * 4]


class TestSizes:
    @pytest.mark.parametrize("size", [(28, 28), (33, 47), (8, 8), (64, 9)])
    def test_the_decoder_draws_what_the_encoder_saw(self, size):
        shape = (3, *size)
        parameters = ConvEncoder(shape, LABELS, LATENT, channels=(4, 4, 4))(torch.zeros(1, *shape), torch.zeros(1, 3))
        assert parameters.shape == (1, 2 * LATENT)
        mirror = DeconvDecoder(shape, LATENT, LABELS, channels=(4, 4, 4))
        assert mirror(torch.zeros(1, LATENT), torch.zeros(1, LABELS)).shape == (1, *shape)

    @given(
        st.tuples(st.integers(8, 70), st.integers(8, 70)),
        st.integers(3, 5),
        st.lists(st.integers(1, 3), min_size=1, max_size=3),
    )
    @settings(deadline=None, max_examples=40)
    def test_the_mirrored_decoder_has_the_size_of_the_image(self, size, kernel, strides):
        channels = [2] * len(strides)
        try:
            sizes = map_sizes(size, strides, kernel)
        except ValueError:  # an even kernel shrinks the map to nothing
            assert kernel == 4
            return
        there = ConvEncoder((1, *size), 0, 1, 2, channels, strides, kernel)
        maps, h = [], torch.zeros(1, 1, *size)
        for block in there.blocks:
            h = block(h, torch.zeros(1, 0))
            maps.append(tuple(h.shape[2:]))
        assert maps == sizes[1:]
        back = DeconvDecoder((1, *size), 1, 0, channels, strides[::-1], kernel)
        maps = []
        for layer in (*(block.conv for block in back.blocks), back.last):
            layer.register_forward_hook(lambda _, __, output: maps.append(tuple(output.shape[2:])))
        back(torch.zeros(1, 1), torch.zeros(1, 0))
        assert maps == sizes[::-1][1:]

    def test_map_sizes_of_the_known_case(self):
        assert map_sizes((28, 28), (2, 2, 2, 2, 2, 1), 3) == [(n, n) for n in (28, 14, 7, 4, 2, 1, 1)]

    @pytest.mark.parametrize("make", [encoder, decoder])
    def test_images_below_8x8_are_refused(self, make):
        with pytest.raises(ValueError, match=r"at least 8x8; got 28x7\. Enlarge them"):
            make((1, 28, 7))

    @pytest.mark.parametrize("make", [encoder, decoder])
    def test_images_an_even_kernel_shrinks_to_nothing_are_refused(self, make):
        many = {"channels": [2] * 4, "strides": [2] * 4, "kernel_size": 4}
        with pytest.raises(ValueError, match=r"8x8 are too small for 4 convolutions with kernel 4 .*fewer layers"):
            make((1, 8, 8), **many)

    @pytest.mark.parametrize("make", [encoder, decoder])
    @pytest.mark.parametrize(("channels", "strides"), [((4, 4), (2,)), ((4,), (2, 2)), ((), ())])
    def test_every_convolution_needs_its_stride(self, make, channels, strides):
        with pytest.raises(ValueError, match="one stride per convolution"):
            make(channels=channels, strides=strides)

    @pytest.mark.parametrize("make", [encoder, decoder])
    def test_the_caller_s_lists_stay_as_they_are(self, make):
        channels, strides, shape = [4, 8], [2, 1], (1, 9, 9)
        network = make(shape, channels=channels, strides=strides)
        assert (channels, strides) == ([4, 8], [2, 1])
        channels.append(99)
        assert network.arguments["channels"] == (4, 8)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_batch_normalisation_is_refused_in_a_decoder(norm):
    with pytest.raises(
        ValueError, match=r"Norm.*makes a sample depend on its batch. Use condgen.nn.layers.ChannelNorm"
    ):
        decoder(norm=norm)


def test_batch_normalisation_is_allowed_in_an_encoder():
    assert isinstance(encoder(norm=nn.BatchNorm2d).blocks[0].norm, nn.BatchNorm2d)


class TestLayers:
    def test_join_appends_to_a_vector(self):
        h, c = torch.rand(2, 4), torch.rand(2, 3, dtype=torch.float64)
        assert torch.equal(join(h, c), torch.cat([h, c.float()], 1))

    def test_label_channels_are_constant_planes_after_the_image(self):
        h, c = torch.rand(2, 3, 5, 7), torch.rand(2, 4)
        joined = LabelChannels()(h, c)
        assert joined.shape == (2, 7, 5, 7)
        assert torch.equal(joined[:, :3], h)
        for row in range(5):
            for column in range(7):
                assert torch.equal(joined[:, 3:, row, column], c)

    @pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2, "bias": False}])
    @pytest.mark.parametrize("condition_dim", [0, 1, 4])
    def test_planes_that_are_never_made_convolve_alike(self, options, condition_dim):
        conv, plain = (kind(3 + condition_dim, 5, 3, **options).double() for kind in (LabelConv2d, nn.Conv2d))
        plain.load_state_dict(conv.state_dict())
        h, c = (torch.randn(4, *shape).double().requires_grad_() for shape in ((3, 7, 9), (condition_dim,)))
        found = []
        for layer, output in ((plain, plain(LabelChannels()(h, c))), (conv, conv(h, c))):
            loss = (output * torch.arange(output.numel()).reshape(output.shape).cos()).sum()
            wanted = [h, *layer.parameters(), *([c] if condition_dim else [])]
            found.append((output, *torch.autograd.grad(loss, wanted)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    def test_groups_and_other_padding_make_the_planes(self):
        options = {"padding": 1, "groups": 2, "padding_mode": "reflect"}
        conv, plain = (kind(6, 4, 3, **options) for kind in (LabelConv2d, nn.Conv2d))
        plain.load_state_dict(conv.state_dict())
        h, c = torch.randn(2, 4, 6, 6), torch.eye(2)
        assert torch.equal(conv(h, c), plain(LabelChannels()(h, c)))

    def test_no_condition_leaves_the_image_alone(self):
        h = torch.rand(2, 3, 5, 7)
        assert torch.equal(LabelChannels()(h, torch.zeros(2, 0)), h)

    def test_film_scales_by_one_plus_gamma_and_shifts_by_beta(self):
        film, h, c = FiLM(3, 2), torch.randn(4, 2, 5, 5), torch.randn(4, 3)
        nn.init.normal_(film.linear.weight), nn.init.normal_(film.linear.bias)
        weight, bias = film.linear.weight, film.linear.bias
        for k in range(2):
            gamma, beta = c @ weight[k] + bias[k], c @ weight[2 + k] + bias[2 + k]
            expected = (1 + gamma)[:, None, None] * h[:, k] + beta[:, None, None]
            torch.testing.assert_close(film(h, c)[:, k], expected)

    def test_film_starts_as_the_identity(self):
        h = torch.randn(2, 16, 3, 3)
        assert torch.equal(FiLM(8, 16)(h, torch.randn(2, 8)), h)

    def test_film_without_a_condition_is_refused(self):
        with pytest.raises(ValueError, match="a condition to modulate by; got condition_dim=0"):
            FiLM(0, 4)

    @pytest.mark.parametrize(("channels", "groups"), [(8, 8), (12, 4), (7, 1), (32, 8), (6, 2)])
    def test_channel_norm_takes_groups_that_divide_the_channels(self, channels, groups):
        norm, h = ChannelNorm(channels), torch.randn(2, channels, 4, 4) * 3 + 1
        normal = norm(h).view(2, groups, -1)
        torch.testing.assert_close(normal.mean(2), torch.zeros(2, groups), rtol=0, atol=1e-5)
        torch.testing.assert_close(normal.var(2, unbiased=False), torch.ones(2, groups), rtol=1e-4, atol=0)

    def test_a_block_without_extras_is_convolution_and_activation(self):
        conv, h = nn.Conv2d(2, 3, 3), torch.randn(1, 2, 5, 5)
        assert torch.equal(ConvBlock(conv, None, None, nn.ReLU())(h, torch.zeros(1, 0)), conv(h).relu())

    @given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32), st.floats(0, 1e6, width=32))
    @settings(deadline=None, max_examples=50)
    def test_bounded_clamps_the_value_and_passes_the_gradient(self, value, low, width):
        x, high = torch.tensor(value, requires_grad=True), low + width
        result = bounded(x, low, high)
        result.backward()
        assert math.isclose(result.item(), min(max(value, low), high), rel_tol=1e-6)
        assert x.grad.item() == 1


def test_residual_networks_have_a_block_on_each_map_unless_asked_for_more():
    encoder, decoder = ResNetEncoder((3, 16, 16), 2, (4, 4, 4)), ResNetDecoder((3, 16, 16), (4, 4, 4), 2)
    assert [len(blocks) for blocks in encoder.stages] == [1, 1]
    assert [len(blocks) for blocks in decoder.stages] == [2, 1]  # the smallest has one more


@pytest.mark.parametrize(
    ("velocity", "weights"),
    [
        (lambda: ResNetVelocity((4, 7, 7), 8, components=64), 1_650_820),
        (lambda: UNetVelocity((3, 28, 28), 8), 2_167_180),
        (lambda: MLPVelocity(16, 8), 621_584),
    ],
)
def test_the_velocities_that_recipes_train_are_as_large_as_ever(velocity, weights):
    assert sum(parameter.numel() for parameter in velocity().parameters()) == weights
