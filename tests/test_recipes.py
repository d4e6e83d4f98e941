"""Recipes: the reference network layer by layer, as the student report describes it."""

import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import condgen
from condgen import recipes
from condgen.apps.benchmarking import multiply_adds
from condgen.distributions.likelihoods import Bernoulli
from condgen.distributions.priors.standard import StandardNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.nn.conditioners import OneHot
from condgen.nn.layers import LabelConv2d
from condgen.recipes import RECIPES, bloodmnist_reference, smears_demo
from condgen.training.callbacks import LambdaCallback
from condgen.training.settings import RECIPE_NAMES
from condgen.training.work import work_of

# Kernel 3x3, six layers a side, encoder strides 2 but for the last, and the encoder's channels are the report's;
# padding 1, the mirrored decoder and its output paddings are our reading of it.
ENCODER = [  # in, out, stride, output size
    (11, 16, 2, 14),
    (16, 32, 2, 7),
    (32, 64, 2, 4),
    (64, 128, 2, 2),
    (128, 256, 2, 1),
    (256, 512, 1, 1),
]
DECODER = [  # in, out, stride, output padding, output size
    (512, 256, 1, 0, 1),
    (256, 128, 2, 1, 2),
    (128, 64, 2, 1, 4),
    (64, 32, 2, 0, 7),
    (32, 16, 2, 1, 14),
    (16, 11, 2, 1, 28),
]


def calls(network, *inputs):
    """Every layer without layers in it, in the order of its call, with the shape of its output."""
    made, hooks = [], []
    for layer in network.modules():
        if not list(layer.children()):
            hook = layer.register_forward_hook(lambda layer, _, output: made.append((layer, tuple(output.shape[1:]))))
            hooks.append(hook)
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return made


def is_convolution(layer, kind, i, o, stride):
    assert type(layer) is kind
    assert (layer.in_channels, layer.out_channels, layer.stride) == (i, o, (stride, stride))
    assert (layer.kernel_size, layer.padding, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
    assert layer.bias is not None


def is_leaky_relu(layer):
    assert type(layer) is nn.LeakyReLU
    assert layer.negative_slope == 0.01


def is_linear(layer, i, o):
    assert type(layer) is nn.Linear
    assert (layer.in_features, layer.out_features) == (i, o)
    assert layer.bias is not None


class TestReference:
    model = bloodmnist_reference()

    def test_the_encoder(self):
        made = calls(self.model.encoder, torch.zeros(1, 3, 28, 28), torch.zeros(1, 8))
        heads = made[12:]
        for (conv, size), (activation, _), (i, o, stride, n) in zip(made[:12:2], made[1:12:2], ENCODER, strict=True):
            is_convolution(conv, LabelConv2d if i == 11 else nn.Conv2d, i, o, stride)
            is_leaky_relu(activation)
            assert size == (o, n, n)
        assert len(heads) == 2  # mean and log-variance, nothing after them
        for head, size in heads:
            is_linear(head, 512, 128)
            assert size == (128,)

    @pytest.mark.parametrize(("output_labels", "channels"), [(True, 11), (False, 3)])
    def test_the_decoder(self, output_labels, channels):
        decoder = bloodmnist_reference(output_labels=output_labels).decoder
        (linear, size), (reshape, reshaped), *made = calls(decoder, torch.zeros(1, 128), torch.zeros(1, 8))
        is_linear(linear, 136, 512)
        assert (size, type(reshape), reshaped) == ((512,), nn.Unflatten, (512, 1, 1))
        assert len(made) == 11  # six deconvolutions with an activation between each two, none after the last
        for k, (i, o, stride, output_padding, n) in enumerate(DECODER):
            deconv, size = made[2 * k]
            o = o if k < 5 else channels
            is_convolution(deconv, nn.ConvTranspose2d, i, o, stride)
            assert deconv.output_padding == (output_padding, output_padding)
            assert size == (o, n, n)
        for activation, _ in made[1::2]:
            is_leaky_relu(activation)

    def test_the_other_parts(self):
        assert isinstance(self.model.conditioner, OneHot)
        assert isinstance(self.model.reparameterizer, Gaussian)
        assert isinstance(self.model.prior, StandardNormal)
        assert isinstance(self.model.likelihood, Bernoulli)  # the sigmoid after the last layer
        assert self.model.noise_shapes == {"z": (128,)}
        assert (self.model.conditioner.dim, self.model.output_labels) == (8, True)

    @pytest.mark.parametrize(("output_labels", "expected"), [(True, 3_348_811), (False, 3_347_651)])
    def test_the_number_of_parameters(self, output_labels, expected):
        encoder = sum(9 * i * o + o for i, o, *_ in ENCODER) + 2 * (512 * 128 + 128)
        channels = 11 if output_labels else 3
        decoder = 136 * 512 + 512 + sum(9 * i * o + o for i, o, *_ in DECODER[:-1]) + 9 * 16 * channels + channels
        model = bloodmnist_reference(output_labels=output_labels)
        assert sum(p.numel() for p in model.parameters()) == encoder + decoder == expected

    def test_the_initial_weights_are_torch_s_own(self):
        """The same layers made one by one in the order of their making give the same numbers under one seed."""
        torch.manual_seed(3)
        model = bloodmnist_reference()
        torch.manual_seed(3)
        layers = [nn.Conv2d(i, o, 3, stride, 1) for i, o, stride, _ in ENCODER]
        layers += [nn.Linear(512, 128), nn.Linear(512, 128), nn.Linear(136, 512)]
        layers += [nn.ConvTranspose2d(i, o, 3, stride, 1) for i, o, stride, _, _ in DECODER]
        expected = [p for layer in layers for p in layer.parameters()]
        for ours, theirs in zip(model.parameters(), expected, strict=True):
            assert torch.equal(ours, theirs)

    def test_the_loss_is_the_summed_cross_entropy_and_kl_averaged_over_the_batch(self):
        """The report's objective, label planes in the target, by torch's own functions."""
        from condgen.losses.elbo import ELBO

        x, y, z = torch.rand(3, 3, 28, 28), torch.tensor([0, 7, 3]), torch.randn(3, 128)
        c = nn.functional.one_hot(y, 8).float()
        mean, log_variance = self.model.encoder(x, c).chunk(2, dim=1)
        output = self.model.decoder(mean + (log_variance / 2).exp() * z, c)
        target = torch.cat([x, c[:, :, None, None].expand(3, 8, 28, 28)], 1)
        bce = nn.functional.binary_cross_entropy(output.sigmoid(), target, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        torch.testing.assert_close(ELBO().loss(self.model, x, y, {"z": z})["loss"], (bce + kl) / 3)

    def test_the_loss_of_guessing_is_a_coin_a_pixel(self):
        """All weights zero: 11 * 784 coins and no KL."""
        from condgen.losses.elbo import ELBO

        model = bloodmnist_reference()
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        loss = ELBO().loss(model, torch.rand(2, 3, 28, 28), torch.tensor([0, 1]), {"z": torch.randn(2, 128)})["loss"]
        assert loss.item() == pytest.approx(11 * 784 * math.log(2), rel=1e-5)

    @pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 64, 64), 8), ((1, 33, 47), 2)])
    def test_other_images_and_classes(self, shape, classes):
        model = bloodmnist_reference(image_shape=shape, num_classes=classes)
        assert model.sample([0, classes - 1]).shape == (2, *shape)
        assert model.decoder.last.out_channels == shape[0] + classes


@pytest.mark.parametrize("name", RECIPES)
class TestEveryRecipe:
    def test_it_builds_for_other_images(self, name):
        model = RECIPES[name].build((1, 16, 20), 3)
        assert model.sample([2, 0]).shape == (2, 1, 16, 20)

    def test_it_says_how_to_train(self, name):
        recipe = RECIPES[name]
        assert recipe.training.epochs > 0
        assert (recipe.loss is None) == (name.removeprefix("bloodmnist_") in ("gan", "flow", "diffusion"))


def test_the_reference_is_trained_as_the_report_says():
    """300 epochs; the batch size is ours, the report gives none."""
    training = RECIPES["bloodmnist_reference"].training
    assert (training.epochs, training.batch_size, training.optimizer) == (300, 128, "adam")


def test_options_reach_the_model():
    assert RECIPES["default"].build((1, 8, 8), 2, latent=4).noise_shapes == {"z": (4,)}
    assert not RECIPES["bloodmnist_reference"].build((3, 28, 28), 8, output_labels=False).output_labels


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bloodmnist_reference", "bloodmnist_reference fixes latent, width; it leaves open: output_labels"),
        ("smears_demo", "smears_demo fixes latent, width; it leaves open: nothing"),
    ],
)
def test_options_that_a_recipe_fixes_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        RECIPES[name].build((3, 28, 28), 8, width=3, latent=4)


def test_the_demo_is_small():
    model = smears_demo()
    assert model.noise_shapes == {"z": (16,)}
    assert sum(p.numel() for p in model.parameters()) < 500_000


def test_public_names_exist():
    assert all(hasattr(recipes, name) for name in recipes.__all__)


@pytest.mark.filterwarnings("ignore:The distilled network")
@pytest.mark.parametrize("name", ["fast", pytest.param("sharp", marks=pytest.mark.slow)])
def test_a_busy_machine_changes_nothing(name, tmp_path):
    """Recipes are numbers of passes: one training alone, one beside processes that keep all cores busy."""
    data = condgen.load_smears(24, size=16)
    chosen = {"epochs": 2, "sampler_epochs": 1, "components": 1, "distil_epochs": 1, "teacher_steps": 1}
    chosen |= {"progress": False, "accelerator": "cpu", "seed": 3}
    alone, _ = RECIPES[name].fit(data, tmp_path / "alone", **chosen)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        beside, _ = RECIPES[name].fit(data, tmp_path / "beside", **chosen)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert {k: v.tolist() for k, v in alone.state_dict().items()} == {
        k: v.tolist() for k, v in beside.state_dict().items()
    }


def test_recipes_are_stated_in_passes():
    """Nothing that depends on a clock or on the machine."""
    for name, recipe in RECIPES.items():
        assert recipe.training.minutes is None, name
        assert recipe.training.epochs >= 1, name
        assert recipe.training.precision == "auto", name
    assert tuple(RECIPES) == RECIPE_NAMES


@pytest.mark.filterwarnings("ignore:The distilled network")
@pytest.mark.slow
def test_a_budget_covers_the_prior_too(tmp_path):
    data = condgen.load_smears(2000, size=16)
    started = time.process_time()  # of all threads, and of this process alone: other work on the machine is not in it
    model, _ = RECIPES["sharp"].fit(data, tmp_path, minutes=0.15, progress=False, accelerator="cpu")
    taken = time.process_time() - started
    assert type(model.sampler).__name__ == "FlowMatching"
    assert taken < torch.get_num_threads() * (1.1 * 9 + 10)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["planned"] == "0.15 minutes"
    assert 0 < run["passes"] < 30


def test_work_is_that_of_the_layers():
    """Two routes to one number: three forward passes for forward and backward."""
    data = condgen.load_smears(40, size=16)
    recipe = RECIPES["fast"].changed(epochs=3)
    model = recipe.build(data.image_shape, data.num_classes)
    work = work_of(model, None, data, recipe.training, recipe.loss, recipe.sampler)
    assert work.per_image == 3 * multiply_adds(model)
    assert work.training == pytest.approx((1 + 0.9 * 0.75) * work.per_image * len(data.train) * 3)
    assert work.first_share == 1.0
    assert work.later(64) == 0.0
    works = []
    for passes in (2, 1):
        own = RECIPES["sharp"].changed(components=1, epochs=3, sampler_epochs=passes)
        flow = own.prior_for(model, data)
        works.append(work_of(model, flow, data, own.training, own.loss, own.sampler))
    sharp, one = works
    assert sharp.flow == 2 * one.flow > 0
    assert sharp.encoding == one.encoding > 0
    # A pass of flow matching is three evaluations of a latent; a pair costs those of its teacher and three a pass.
    latents, how = 8 * len(data.train), {"components": 1, "sampler_epochs": 1, "teacher_steps": 4, "distil_epochs": 5}
    for pairs, guidance, expected in ((100, 0.0, 100 * (8 + 15)), (10**6, 0.5, latents * (16 + 15)), (0, 0.5, 0)):
        own = RECIPES["sharp"].changed(distil_pairs=pairs, teacher_guidance=guidance, **how)
        work = work_of(model, own.prior_for(model, data), data, own.training, own.loss, own.sampler)
        assert work.student == pytest.approx(work.flow / (3 * latents) * expected)
        prior = work.encoding + work.flow
        assert work.prior_share == pytest.approx(prior / (prior + work.student))


@pytest.mark.parametrize(("size", "widths"), [(16, [48]), (28, [48, 96]), (64, [32, 64, 128]), (128, [24, 48, 96, 96])])
def test_larger_images_get_narrower_networks(size, widths):
    model = recipes.latent_map((3, size, size), 8)
    assert [blocks[0].convs[0].in_channels for blocks in model.encoder.stages] == widths
    assert max(model.noise_shapes["z"][1:]) <= 8


@pytest.mark.slow
def test_fast_on_images_of_128(tmp_path):
    """Trained, stopped, resumed and drawn from: the same as never stopped."""
    cells, found = condgen.load_smears(48, size=128), []
    settings = {"epochs": 1, "components": 1, "em": 0, "batch_size": 16, "progress": False}

    def stop(_):
        raise KeyboardInterrupt

    for name in ("whole", "stopped"):
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                RECIPES["fast"].fit(cells, tmp_path / name, callbacks=[LambdaCallback(on_step=stop)], **settings)
        model, _ = RECIPES["fast"].fit(cells, tmp_path / name, resume="auto", **settings)
        found.append(model.sample([0, 7]))
    assert found[0].shape == (2, 3, 128, 128)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("side", "asked", "spectral"), [(32, None, True), (33, None, False), (32, False, False), (33, True, True)]
)
def test_the_discriminator_of_larger_images_is_not_held_back(side, asked, spectral):
    recipe = RECIPES["sharp"].changed(spectral=asked)
    objective = recipe.loss_for(recipe.build((1, side, 16), 2))
    layers = [*objective.discriminator.convs, objective.discriminator.score, objective.discriminator.projection]
    assert {hasattr(layer, "parametrizations") for layer in layers} == {spectral}
    assert objective.relative != spectral
