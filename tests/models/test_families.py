"""What holds for conditional models of every family: one dictionary, and all of it runs over each."""

import inspect
import itertools
import re
from functools import partial
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import condgen
from condgen.cli import main
from condgen.data.augmentation import NUMBERS as AUGMENTED
from condgen.data.augmentation import Augmentation
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.evaluation.judge import train_judge
from condgen.losses.gan import HingeGANLoss, gradient_norm, without
from condgen.models.cflow import CENTRE, SPREAD, ConditionalFlow
from condgen.models.cgan import ConditionalGAN
from condgen.nn.conditioners import LabelDropout, OneHot, Unconditional
from condgen.nn.discriminators import ResNetDiscriminator, minibatch_statistics
from condgen.nn.parts import FAMILIES
from condgen.nn.velocities import MLPVelocity, UNetVelocity
from condgen.random import Use, normal, normals, stream, uniform
from condgen.recipes import RECIPES
from condgen.sampling.shards import write_samples
from condgen.training.callbacks import LambdaCallback
from condgen.training.optimizers import WarmupDecay, adam

SHAPE, CLASSES = (3, 16, 12), 3


def vae(shape=SHAPE, classes=CLASSES, **options):
    return condgen.conditional_vae(shape, classes, latent=4, width=8, **options)


def gan(shape=SHAPE, classes=CLASSES, **options):
    return condgen.conditional_gan(shape, classes, latent=4, width=8, **options)


def flow(shape=SHAPE, classes=CLASSES, **options):
    return condgen.conditional_flow(shape, classes, widths=(8, 8), depth=1, steps=2, **options)


def diffusion(shape=SHAPE, classes=CLASSES, **options):
    return flow(shape, classes, path="cosine", guidance=0.5, **options)


AUGMENT = Augmentation(flips=True, rotation=10, shift=0.1, colour=0.1, blur=0.5, erasing=0.2)
BUILD = {"cvae": vae, "cgan": gan, "cflow": flow, "diffusion": diffusion}


@pytest.fixture(params=BUILD)
def build(request):
    return BUILD[request.param]


@pytest.fixture
def model(build):
    """With weights large enough that everything matters, zero at the start or not."""
    torch.manual_seed(0)
    made = build()
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1 and "discriminator" not in name:
            nn.init.normal_(parameter, std=0.3)
    made.class_names = ("a", "b", "c")
    return made.eval()


def test_every_family_is_here():
    assert {family.removeprefix("models.") for family in FAMILIES} <= set(BUILD)


class TestSamples:
    def test_a_sample_is_its_number_and_seed(self, model):
        labels = torch.arange(150) % CLASSES
        whole = model.sample(labels, seed=5)
        assert whole.shape == (150, *SHAPE)
        for first, last in ((0, 1), (3, 7), (60, 70), (149, 150)):
            assert torch.equal(model.sample(labels[first:last], seed=5, start=first), whole[first:last])
        assert not torch.equal(model.sample(labels[:4], seed=6), whole[:4])

    def test_they_are_images(self, model):
        images = model.sample([0] * 8)
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
        assert float(images.std(0).mean()) > 1e-4  # noise matters

    def test_the_label_matters(self, model):
        of_class = [model.sample([label] * 4) for label in range(CLASSES)]
        assert all(not torch.allclose(a, b) for a, b in itertools.combinations(of_class, 2))

    def test_names_stand_for_numbers(self, model):
        assert torch.equal(model.sample(["b", "c"]), model.sample([1, 2]))

    def test_without_labels(self, build):
        model = build(classes=0)
        assert isinstance(model.conditioner, Unconditional)
        assert model.eval().sample([0, 0]).shape == (2, *SHAPE)

    @pytest.mark.parametrize(
        ("labels", "said"),
        [([3], "Expected"), ([-1], "Expected"), (["d"], "among a, b, c"), ([], "at least one label"), (1, "sequence")],
    )
    def test_labels_it_does_not_know(self, model, unchecked, labels, said):
        with pytest.raises(ValueError, match=said):
            model.sample(labels)

    def test_temperature_zero_draws_one_image_a_class(self, model):
        images = model.sample([0, 1, 0, 1], temperature=0.0)
        assert torch.allclose(images[:2], images[2:], atol=1e-6)


class ReadBack(TorchDispatchMode):
    """Counts the values that Python asks tensors for or makes tensors of: each makes the CPU wait for a GPU."""

    ASKING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh")
    counted, watching = 0, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counted += self.watching and func.overloadpacket.__name__ in self.ASKING
        return func(*args, **(kwargs or {}))


class TestFiles:
    def test_saved_and_loaded(self, model, tmp_path):
        again = condgen.load(condgen.save(model, tmp_path))
        assert type(again) is type(model)
        assert again.class_names == model.class_names
        assert torch.equal(again.sample([0, 1, 2], seed=3), model.sample([0, 1, 2], seed=3))
        assert repr(again) == repr(model)

    def test_parts_that_do_not_fit_are_damage(self, model, tmp_path):
        model.conditioner = OneHot(CLASSES + 1)
        model.class_names = ()
        with pytest.raises(ValueError, match=r"damaged|Change|fit"):
            condgen.load(condgen.save(model, tmp_path))

    @pytest.mark.parametrize("change", [{"steps": 3}, {"solver": "euler"}, {"guidance": 0.25}])
    def test_samples_of_another_way_through_the_field_are_not_mixed(self, change, tmp_path):
        model, ((name, value),) = flow(), change.items()
        model.class_names = ("a", "b", "c")
        write_samples(model, [0, 1], tmp_path / "cells")
        setattr(model.flow, name, value)
        with pytest.raises(ValueError, match=f"samples of other {name}"):
            write_samples(model, [0, 1], tmp_path / "cells", start=2)

    def test_a_subclass_is_refused(self, model, tmp_path):
        class Mine(type(model)):
            pass

        mine = Mine(**{name: getattr(model, name) for name in model.arguments if name != "image_shape"})
        with pytest.raises(TypeError, match="not a subclass"):
            condgen.save(mine, tmp_path)


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(96, size=16)


@pytest.fixture
def trained(build, cells):
    torch.manual_seed(0)
    return build(cells.image_shape, cells.num_classes)


class TestTraining:
    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_nothing_is_read_back_within_an_epoch(self, build, accumulate):
        cells = condgen.load_smears(100, size=16).train
        last = -(-len(cells) // 16) - 1
        mode, steps = ReadBack(), []

        def watch(state):
            steps.append(state.step - 1)
            mode.watching = state.epoch > 0 and state.step <= last

        options = {"epochs": 2, "batch_size": 16, "schedule": WarmupDecay(), "clip": 1.0, "ema": 0.9}
        options |= {"augment": AUGMENT, "accumulate": accumulate, "callbacks": [LambdaCallback(on_step=watch)]}
        with mode:
            condgen.fit(build(cells.image_shape, 8), cells, accelerator="cpu", progress=False, **options)
        assert steps == 2 * list(range(last + 1))
        assert mode.counted == 0

    def test_the_same_call_gives_the_same_weights(self, build, cells):
        states = []
        for _ in range(2):
            torch.manual_seed(0)
            made = build(cells.image_shape, cells.num_classes)
            condgen.fit(made, cells, epochs=2, batch_size=16, progress=False)
            states.append(made.state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_every_part_learns(self, trained, cells):
        before = {name: parameter.clone() for name, parameter in trained.named_parameters()}
        history = condgen.fit(trained, cells, epochs=3, batch_size=16, progress=False, trim=False)
        still = {name for name, parameter in trained.named_parameters() if torch.equal(before[name], parameter)}
        assert not still
        assert np.isfinite(history["train_loss"]).all()
        assert np.isfinite(history["validation_loss"]).all()

    @pytest.mark.slow
    def test_stopped_and_resumed_is_never_stopped(self, build, cells, tmp_path):
        def run(out, **options):
            torch.manual_seed(0)
            made = build(cells.image_shape, cells.num_classes)
            condgen.fit(made, cells, epochs=3, batch_size=16, ema=0.9, progress=False, out=out, save_every=0, **options)
            return made.state_dict()

        def stop(state):
            if (state.epoch, state.step) == (1, 3):
                raise KeyboardInterrupt

        whole = run(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", callbacks=[LambdaCallback(on_step=stop)])
        again = run(tmp_path / "stopped", resume=True)
        assert all(torch.equal(whole[name], again[name]) for name in whole)

    def test_label_dropout_has_its_noise(self, build, cells):
        made = build(cells.image_shape, cells.num_classes, conditioner=LabelDropout(OneHot(cells.num_classes), 0.5))
        assert "label" in made.noise_shapes
        assert "label" not in made.sampling_noise_shapes
        condgen.fit(made, cells, epochs=1, progress=False)
        assert made.eval().sample([0]).shape == (1, 3, 16, 16)


@pytest.fixture(scope="module")
def judge(cells):
    return train_judge(cells, epochs=1, width=4)


def test_evaluation_says_what_a_family_cannot(trained, cells, judge):
    found = condgen.evaluate(trained, cells, usefulness="none", judge=judge, measure=("model",))
    reasons = {name: measure.reason for name, measure in found.measures.items() if measure.overall is None}
    if hasattr(trained, "infer"):
        assert found.measures["psnr"].overall is not None
    else:
        name = type(trained).__name__
        assert reasons["psnr"].startswith(f"Not available for a {name}: it has no encoder")
        assert reasons["elbo"] == f"Not available for a {name}: it tells no likelihood."
        assert "infers no latents" in reasons["active_latents"]
    assert not any("left the bound" in text for text in found.details["warnings"])


def test_per_class_and_balance(trained, cells):
    assert condgen.sampling.grids.per_class(trained, 2).shape == (8, 2, 3, 16, 16)
    balanced, provenance = condgen.balance(cells, trained, seed=0)
    assert len(set(balanced.train.class_counts.values())) == 1
    assert provenance.synthetic.any()


class TestRecipes:
    @pytest.mark.slow
    @pytest.mark.parametrize("recipe", ["gan", "flow", "diffusion"])
    def test_from_the_command_line(self, recipe, tmp_path):
        run = str(tmp_path / recipe)
        assert main(["train", "--images", "64", "--size", "16", "--recipe", recipe, "--epochs", "1", "--out", run]) == 0
        assert main(["sample", run, "--per-class", "2", "--out", str(tmp_path / "cells.npz")]) == 0
        assert type(condgen.load(run)) is {"gan": ConditionalGAN}.get(recipe, ConditionalFlow)

    def test_what_has_no_meaning_is_refused(self, tmp_path, capsys):
        run = ["train", "--images", "64", "--size", "16", "--epochs", "1", "--out", str(tmp_path)]
        assert main([*run, "--recipe", "gan", "--beta", "2"]) == 1
        assert "conditional_gan has no use for beta" in capsys.readouterr().err
        assert main([*run, "--recipe", "flow", "--sampler", "mixture"]) == 1
        assert "conditional_flow has no use for sampler" in capsys.readouterr().err
        assert main([*run, "--recipe", "gan", "--guidance", "1"]) == 1
        assert "no use for guidance" in capsys.readouterr().err

    def test_a_model_that_only_draws_reconstructs_nothing(self, tmp_path, capsys):
        condgen.save(gan(), tmp_path)
        assert main(["reconstruct", str(tmp_path), "--data", "smears"]) == 1
        assert "holds a ConditionalGAN, which only draws" in capsys.readouterr().err

    def test_steps_and_guidance_are_kept(self, cells):
        model, _ = RECIPES["flow"].fit(cells, epochs=1, steps=3, guidance=0.5, progress=False)
        assert (model.flow.steps, model.flow.guidance) == (3, 0.5)


class TestHingeGANLoss:
    def test_steps_are_whole_numbers(self):
        """A float32 stops counting at 16,777,216, within a day on a GPU."""
        assert HingeGANLoss().steps.dtype == torch.int64

    def test_the_losses_by_hand(self, cells):
        model, game = gan(cells.image_shape, 8), HingeGANLoss(augment=None)
        x, y = model.images(cells.images[:6]), model.labels(cells.labels[:6])
        noise = normals(model.noise_shapes, 0, torch.arange(6), Use.TRAINING)
        model.eval()  # spectral normalisation stands still
        drawn, c = model.draw(y, noise), model.condition(y)

        def score(images):
            return model.discriminator(images, c)[0]

        terms = game.train().decoder_loss(model, x, y, noise)
        assert torch.allclose(terms["loss"], -score(drawn).mean(), atol=1e-6)
        critic = game.critic_loss(model, x, y, noise)
        by_hand = torch.relu(1 - score(x)).mean() + torch.relu(1 + score(drawn)).mean()
        assert torch.allclose(critic["loss"], by_hand, atol=1e-5)

    def test_the_critic_sees_drawn_and_real_images_augmented(self, cells):
        """Each by the numbers of its own, in the decoder's phase and in its own."""
        model, game = gan(cells.image_shape, 8), HingeGANLoss()
        x, y = model.images(cells.images[:6]), model.labels(cells.labels[:6])
        noise = normals(game.noise_shapes(model), 0, torch.arange(6), Use.TRAINING)
        drawn, seen = model.draw(y, noise).detach(), []
        model.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        game.train().decoder_loss(model, x, y, noise)
        game.critic_loss(model, x, y, noise)
        one, other = (torch.special.ndtr(noise["augmentation"][:, k]) for k in (0, 1))
        expected = [game.augment.apply(drawn, one), game.augment.apply(x, one), game.augment.apply(drawn, other)]
        for found, wanted in zip(seen, expected, strict=True):
            torch.testing.assert_close(found, wanted)
        assert not any(torch.allclose(found, plain) for found, plain in zip(seen, (drawn, x, drawn), strict=True))

    def test_each_phase_moves_its_own_network(self):
        model, game = gan(), HingeGANLoss()
        first, second = ({id(p) for p in phase.parameters(model)} for phase in game.phases)
        assert not first & second
        assert first | second == {id(p) for p in model.parameters()}
        assert {id(p) for p in without(model, "discriminator")} == first

    def test_the_decoder_gets_no_gradient_from_the_critics_phase(self, cells):
        model, game = gan(cells.image_shape, 8), HingeGANLoss(r1=1.0)
        x, y = model.images(cells.images[:4]), model.labels(cells.labels[:4])
        noise = normals(game.noise_shapes(model), 0, torch.arange(4), Use.TRAINING)
        game.decoder_loss(model, x, y, noise)["loss"].backward()
        assert all(p.grad is None for p in model.discriminator.parameters())
        model.zero_grad()
        game.critic_loss(model, x, y, noise)["loss"].backward()
        assert all(p.grad is None for p in model.decoder.parameters())
        assert all(p.grad is not None for p in model.discriminator.parameters())

    def test_the_penalty_of_a_linear_score_is_known(self):
        class Linear(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(1, 4, 4))

            def forward(self, x, c):
                return (self.weight * x).sum((1, 2, 3)), ()

        critic = Linear()
        found = gradient_norm(critic, torch.rand(5, 1, 4, 4), torch.zeros(5, 0))
        assert torch.allclose(found, critic.weight.square().sum())
        found.backward()
        assert torch.allclose(critic.weight.grad, 2 * critic.weight)

    def test_the_penalty_comes_seldom_and_heavier(self, cells):
        model, game = gan(cells.image_shape, 8, spectral=False), HingeGANLoss(augment=None, r1=2.0, every=3)
        x, y = model.images(cells.images[:4]), model.labels(cells.labels[:4])
        noise = normals(model.noise_shapes, 0, torch.arange(4), Use.TRAINING)
        found = [game.critic_loss(model, x, y, noise) for _ in range(6)]
        assert ["penalty" in terms for terms in found] == [True, False, False] * 2
        norm = gradient_norm(model.discriminator, x, model.condition(y))
        assert torch.allclose(found[0]["penalty"], 3 * norm, rtol=1e-5)

    def test_augmentation_passes_gradients_and_shows_both_the_same(self):
        x = torch.rand(4, 3, 8, 8, requires_grad=True)
        u = torch.rand(4, AUGMENTED)
        changed = Augmentation(shift=0.2, colour=0.1, erasing=0.3).apply(x, u)
        changed.sum().backward()
        assert float(x.grad.abs().sum()) > 0
        index = torch.arange(4)
        seen = Augmentation(shift=0.2)(x.detach(), 0, index, 3)
        numbers = uniform(0, index, stream(Use.AUGMENTATION, 3), (AUGMENTED,)).float()
        assert torch.equal(seen, Augmentation(shift=0.2).apply(x.detach(), numbers))

    def test_without_spectral_norm_scores_may_be_steep(self):
        steep, even = (ResNetDiscriminator((1, 8, 8), 2, widths=(8,), spectral=own) for own in (False, True))
        assert not any("parametrizations" in name for name, _ in steep.named_parameters())
        assert any("parametrizations" in name for name, _ in even.named_parameters())

    def test_how_alike_each_group_is_by_hand(self):
        h = torch.randn(10, 3, 2, 2, dtype=torch.float64)
        found = minibatch_statistics(h, torch.zeros(10, 0), 4)
        assert found.shape == (10, 2, 2, 2)
        for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
            spread = h[part].std(0, unbiased=False).mean()
            apart = torch.cdist(h[part].flatten(1), h[part].flatten(1))
            nearest = apart.masked_fill(torch.eye(len(apart), dtype=torch.bool), torch.inf).amin(1)
            expected = torch.stack([spread.expand(len(apart)), nearest / apart.square().mean().sqrt()], 1)
            torch.testing.assert_close(
                found[part], expected[:, :, None, None].expand_as(found[part]), atol=1e-5, rtol=0
            )

    def test_the_spread_is_of_images_of_one_condition(self):
        """However the batch is mixed: drawn images that differ by their class alone have none."""
        labels = torch.randperm(12, generator=torch.Generator().manual_seed(0)) % 3
        c, of_class = nn.functional.one_hot(labels).float(), torch.randn(3, 2, 2, 2)
        assert minibatch_statistics(of_class[labels], c, 4)[:, 0].max() < 1e-3
        varied = of_class[labels] + (labels == 1)[:, None, None, None] * torch.randn(12, 2, 2, 2)
        told = minibatch_statistics(varied, c, 4)[:, 0, 0, 0]
        assert told[labels != 1].max() < 1e-3
        by_hand = varied[labels == 1].std(0, unbiased=False).mean()
        torch.testing.assert_close(told[labels == 1], by_hand.expand(4), atol=1e-5, rtol=0)

    def test_twins_are_told_at_any_spread(self):
        """Two images that are nearly one stand out among others, which are as far from each other as they can be."""
        h = torch.randn(8, 64, 2, 2, generator=torch.Generator().manual_seed(0))
        c = torch.zeros(8, 1)
        apart = minibatch_statistics(h, c, 8)[:, 1, 0, 0]
        assert apart.min() > 0.8
        h[5] = h[2] + 1e-3
        for scale in (1.0, 100.0):
            twins = minibatch_statistics(scale * h, c, 8)[:, 1, 0, 0]
            assert (twins < 0.01).nonzero().flatten().tolist() == [2, 5]
            torch.testing.assert_close(twins[[0, 1, 3]], apart[[0, 1, 3]], atol=0.1, rtol=0)

    @pytest.mark.parametrize("kept", [[0], [0, 0], [0, 1, 2, 3, 4]])
    def test_gradients_are_finite_whatever_a_group_holds(self, kept):
        """One image, the same one twice, one left over."""
        h = torch.randn(5, 2, 2, 2)[kept].requires_grad_()
        minibatch_statistics(h, torch.zeros(len(h), 1), 4).sum().backward()
        assert h.grad.isfinite().all()

    def test_a_discriminator_knows_one_image_drawn_again_and_again(self):
        torch.manual_seed(0)
        x, c = torch.rand(8, 1, 8, 8), torch.zeros(8, 2)
        for groups, told in ((8, True), (0, False)):
            critic = ResNetDiscriminator((1, 8, 8), 2, widths=(8,), spectral=False, groups=groups)
            among_others, repeated = critic(x, c)[0][0], critic(x[:1].expand(8, 1, 8, 8), c)[0][0]
            assert torch.allclose(among_others, repeated, atol=1e-5) is not told

    @pytest.mark.parametrize("options", [{"r1": -1.0}, {"every": 0}])
    def test_numbers_out_of_range(self, options):
        with pytest.raises(ValueError, match="Expected r1 of 0 or more"):
            HingeGANLoss(**options)


class Known(nn.Module):
    """The best velocity from a standard normal to a normal of another mean and spread, in closed form."""

    def __init__(self, mean, spread, path):
        super().__init__()
        self.mean, self.spread, self.path = mean, spread, path

    def forward(self, z, t, c, component, dropped):
        t = t[:, None]
        if self.path == "straight":
            a, b, da, db = 1 - t, t, torch.tensor(-1.0), torch.tensor(1.0)
        else:
            angle = torch.pi / 2 * t
            a, b, da, db = angle.cos(), angle.sin(), -torch.pi / 2 * angle.sin(), torch.pi / 2 * angle.cos()
        variance = a**2 + (b * self.spread) ** 2
        gain = (a * da + b * db * self.spread**2) / variance
        return db * self.mean + gain * (z - b * self.mean)


class TestFlow:
    @pytest.mark.parametrize("path", ["straight", "cosine"])
    def test_the_path_ends_where_it_should(self, path):
        prior = FlowMatching(2, 0, path=path)
        start, end = torch.randn(5, 2), torch.randn(5, 2)
        for t, there in ((0.0, start), (1.0, end)):
            assert torch.allclose(prior.between(start, end, torch.full((5, 1), t))[0], there, atol=1e-6)
        t = torch.full((5, 1), 0.3, dtype=torch.float64)

        def at(time):
            return prior.between(start.double(), end.double(), time)[0]

        slope = prior.between(start.double(), end.double(), t)[1]
        assert torch.allclose((at(t + 1e-6) - at(t - 1e-6)) / 2e-6, slope, atol=1e-6)

    def test_the_cosine_path_is_v_prediction(self):
        prior = FlowMatching(3, 0, path="cosine")
        x, noise, t = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 1)
        # Salimans & Ho: z = alpha x + sigma eps with alpha = cos, sigma = sin of an angle; v = alpha eps - sigma x.
        angle = torch.pi / 2 * (1 - t)
        alpha, sigma = angle.cos(), angle.sin()
        at, slope = prior.between(noise, x, t)
        assert torch.allclose(at, alpha * x + sigma * noise, atol=1e-6)
        assert torch.allclose(slope, -torch.pi / 2 * (alpha * noise - sigma * x), atol=1e-5)

    @pytest.mark.parametrize("path", ["straight", "cosine"])
    @pytest.mark.parametrize(("solver", "steps"), [("heun", 40), ("euler", 800)])
    def test_the_right_field_draws_the_right_distribution(self, path, solver, steps):
        prior = FlowMatching(2, 0, velocity=Known(1.5, 0.5, path), steps=steps, solver=solver, path=path)
        noise = torch.randn(64, 2)
        assert torch.allclose(prior.draw(torch.zeros(64, 0), noise), 1.5 + 0.5 * noise, atol=5e-3)

    @pytest.mark.parametrize("path", ["straight", "cosine"])
    def test_no_field_has_a_smaller_error_than_the_right_one(self, path):
        best = Known(1.5, 0.5, path)
        n = 20_000
        z = 1.5 + 0.5 * normal(1, torch.arange(n), stream(Use.DATA), (2,))

        def error(velocity):
            prior = FlowMatching(2, 0, velocity=velocity, path=path)
            noise = normals(prior.training_noise, 0, torch.arange(n), Use.TRAINING)
            return float(prior.matching(z, torch.zeros(n, 0), torch.zeros(n, dtype=torch.int64), noise).mean())

        least = error(best)
        for mean, wide in ((1.4, 0.5), (1.6, 0.5), (1.5, 0.4), (1.5, 0.6)):
            assert error(Known(mean, wide, path)) > least

    def test_pixels_are_standardised_and_come_back(self):
        model = flow()
        model.flow.velocity = Constant()
        noise = torch.randn(3, *SHAPE)
        drawn = model.draw(torch.zeros(3, dtype=torch.int64), {"z": noise})
        assert torch.allclose(drawn, (CENTRE + SPREAD * (noise + 1)).clamp(0, 1), atol=1e-6)

    def test_matching_is_by_the_standardised_image(self):
        model = flow()
        model.flow.velocity = Constant()
        x, noise = torch.rand(3, *SHAPE), normals(model.noise_shapes, 0, torch.arange(3), Use.TRAINING)
        by_hand = ((x - CENTRE) / SPREAD - noise["z"] - 1).square().flatten(1).mean(1)
        assert torch.allclose(model.matching(x, torch.zeros(3, dtype=torch.int64), noise), by_hand, atol=1e-5)

    def test_guidance_goes_beyond_the_class(self):
        model = flow(guidance=1.0)
        model.flow.velocity = Telling()
        c = model.condition(torch.tensor([2]))
        found = model.flow.field(torch.zeros(1, *SHAPE), 0.5, c, torch.zeros(1, dtype=torch.int64))
        assert torch.allclose(found, torch.full_like(found, 2.0))  # 1 + 1 * (1 - 0)

    def test_an_unknown_path(self, unchecked):
        with pytest.raises(ValueError, match='"straight" or "cosine"'):
            FlowMatching(2, 0, path="round")  # type: ignore[arg-type]

    @pytest.mark.parametrize("shape", [(1, 16, 8), (3, 30, 27), (2, 33, 47)])
    @pytest.mark.parametrize("patch", [1, 2, 4])
    def test_the_network_takes_any_size(self, shape, patch):
        velocity = UNetVelocity(shape, 2, patch=patch, widths=(8, 8), depth=1)
        for parameter in velocity.parameters():
            nn.init.normal_(parameter, std=0.1)
        z, t, none = torch.randn(2, *shape), torch.tensor([0.2, 0.9]), torch.zeros(2, dtype=torch.int64)
        out = velocity(z, t, torch.eye(2), none, torch.zeros(2))
        assert out.shape == z.shape
        alone = velocity(z[1:], t[1:], torch.eye(2)[1:], none[1:], torch.zeros(1))
        assert torch.allclose(out[1:], alone, atol=1e-5)
        moved = z.clone()
        moved[:, :, -1, -1] += 1  # the last pixel is seen, padded or not
        assert not torch.allclose(velocity(moved, t, torch.eye(2), none, torch.zeros(2)), out)

    @pytest.mark.slow
    def test_it_learns_two_points(self):
        points = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
        cells = condgen.LabelledImages(
            (255 * (0.5 + 0.4 * points[torch.arange(64) % 2])).round().byte().numpy().reshape(64, 1, 1, 2),
            np.arange(64) % 2,
            ("left", "right"),
        )
        model = ConditionalFlow(
            conditioner=OneHot(2),
            flow=FlowMatching((1, 1, 2), 2, velocity=Flat(), steps=8),
            image_shape=(1, 1, 2),
        )
        condgen.fit(model, cells, epochs=150, batch_size=32, progress=False, optimizer=partial(adam, lr=5e-3))
        drawn = model.eval().sample([0, 1] * 16).reshape(32, 2)
        wanted = (0.5 + 0.4 * points).repeat(16, 1)
        assert float((drawn - wanted).abs().mean()) < 0.05


class Constant(nn.Module):
    def forward(self, z, t, c, component, dropped):
        return torch.ones_like(z)


class Telling(nn.Module):
    def forward(self, z, t, c, component, dropped):
        return torch.ones_like(z) * (1 - dropped)[:, None, None, None]


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = MLPVelocity(2, 2, width=32, depth=2)

    def forward(self, z, t, c, component, dropped):
        return self.inner(z.flatten(1), t, c, component, dropped).reshape(z.shape)


def test_assemblers_are_short():
    for family in FAMILIES:
        lines = inspect.getsource(import_module(f"condgen.{family}")).splitlines()
        code, quoted = 0, False
        for line in lines:
            bare = line.strip()
            quotes = bare.count('"""')
            if not quoted and not quotes and bare and not bare.startswith("#"):
                code += 1
            quoted ^= quotes == 1
        assert code < 250, family
        assert code > 40, family


@pytest.mark.parametrize(
    "name",
    [
        *("sampling.grids", "sampling.shards", "models.saving", "training.loop", "training.fit", "training.run_folder"),
        *("evaluation.run", "evaluation.parts", "evaluation.latents"),
    ],
)
def test_what_serves_all_families_names_none(name):
    code = re.sub(r'""".*?"""', "", inspect.getsource(import_module(f"condgen.{name}")), flags=re.DOTALL)
    assert not re.search(r"Conditional(VAE|GAN|Flow)|condgen\.(cvae|cgan|cflow)", code)


def test_a_flow_without_an_image_shape_has_that_of_its_network():
    flow = FlowMatching((1, 8, 8), 2, velocity=UNetVelocity((1, 8, 8), 2, widths=(4, 8), depth=1))
    assert ConditionalFlow(conditioner=OneHot(2), flow=flow).image_shape == (1, 8, 8)
    assert ConditionalFlow(conditioner=OneHot(2), flow=flow, image_shape=(1, 8, 8)).image_shape == (1, 8, 8)


def test_the_penalty_goes_on_where_a_saved_loss_was():
    model = gan((3, 16, 16), 8, spectral=False)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    first, again = (HingeGANLoss(augment=None, r1=2.0, every=3) for _ in range(2))

    def due(game):
        noise = normals(game.noise_shapes(model), 0, torch.arange(4), Use.TRAINING)
        return "penalty" in game.critic_loss(model, x, y, noise)

    assert [due(first) for _ in range(2)] == [True, False]
    again.load_state_dict(first.state_dict())
    assert [due(again) for _ in range(3)] == [False, True, False]
