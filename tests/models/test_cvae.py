"""The conditional VAE: its parts in concert, labels exactly as asked, sample i of seed s is one image."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from condgen.distributions import likelihoods
from condgen.distributions.priors.standard import LabelNormal, StandardNormal
from condgen.losses.elbo import ELBO, dequantize, label_log_likelihood
from condgen.models.cvae import ConditionalVAE, conditional_vae
from condgen.models.generator import BLOCK, PIECE
from condgen.nn.conditioners import Continuous, Embedding, Joint, LabelDropout, MultiLabel, OneHot, Unconditional
from condgen.nn.layers import ChannelNorm, FiLM
from condgen.random import Use, normal, normals, stream, uniform

CLASSES = 3


def build(shape=(1, 8, 8), num_classes=CLASSES, seed=0, **options):
    """A small model with random weights; layers that start at zero get some too."""
    torch.manual_seed(seed)
    model = conditional_vae(shape, num_classes, **{"latent": 4, "width": 4, **options})
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return model


def images(n=5, shape=(1, 8, 8), seed=1):
    return torch.randint(256, (n, *shape), generator=torch.Generator().manual_seed(seed)).float() / 255


def noise_for(model, n, use=Use.TRAINING):
    return normals(model.noise_shapes, 0, torch.arange(n), use, dtype=model.dtype)


Y = torch.tensor([0, 2, 1, 1, 0])
MODELS = {
    "default": (build, Y),
    "colour, 13x9": (lambda: build((3, 13, 9)), Y),
    "label planes redrawn": (lambda: build(output_labels=True), Y),
    "embedding": (lambda: build(conditioner=Embedding(CLASSES, 5)), Y),
    "many labels": (lambda: build(conditioner=MultiLabel(2)), torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1]])),
    "one label": (lambda: build(conditioner=MultiLabel(1)), torch.tensor([0, 1, 1, 0, 1])),
    "continuous": (lambda: build(conditioner=Continuous([1.0], [2.0])), torch.tensor([0.5, 1.0, 2.0, 3.0, 9.0])),
    "joint": (
        lambda: build(conditioner=Joint([OneHot(3), Continuous([0.0], [1.0])])),
        torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 0.0], [2.0, 1.0], [0.0, -1.0]]),
    ),
    "label dropout": (lambda: build(conditioner=LabelDropout(OneHot(3), 0.3)), torch.tensor([0, 2, -1, 1, 0])),
    "dropout of an embedding": (lambda: build(conditioner=LabelDropout(Embedding(3, 4), 0.3)), Y),
    "label prior": (lambda: build(prior=LabelNormal(4, CLASSES)), Y),
    "norm and modulation": (lambda: build(norm=ChannelNorm, modulation=FiLM), Y),
    "unconditional": (lambda: build(num_classes=0), Y),
    "continuous Bernoulli": (lambda: build(likelihood=likelihoods.ContinuousBernoulli()), Y),
    "Gaussian, pixel": (lambda: build(likelihood=likelihoods.Gaussian("pixel")), Y),
    "Gaussian, shared": (lambda: build(likelihood=likelihoods.Gaussian("shared")), Y),
    "Gaussian, optimal": (lambda: build(likelihood=likelihoods.Gaussian("optimal")), Y),
    "discretized logistic": (lambda: build((2, 8, 8), likelihood=likelihoods.DiscretizedLogistic()), Y),
}
each = pytest.mark.parametrize("name", MODELS)


def made(name):
    make, y = MODELS[name]
    model = make()
    return model, images(5, model.image_shape), y


def label_matters(model, y, other):
    """Whether the same noise gives other images under other labels."""
    model.eval()
    noise = noise_for(model, len(y), Use.SAMPLING)
    with torch.no_grad():
        change = model.draw(model.labels(y), noise) - model.draw(model.labels(other), noise)
    return bool((change.abs().flatten(1).amax(1) > 1e-4).all())


@each
class TestEveryModel:
    def test_infer_keeps_the_batch(self, name):
        model, x, y = made(name)
        inference = model.infer(x, y, noise_for(model, 5))
        assert inference.log_likelihood.shape == inference.kl.shape == (5,)
        assert inference.z.shape == (5, 4)
        assert inference.p.mean.shape == x.shape
        assert (inference.kl > 0).all()

    def test_one_step_of_training_reaches_every_parameter(self, name):
        model, x, y = made(name)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        terms = ELBO().loss(model.train(), x, y, noise_for(model, 5))
        terms["loss"].backward()
        assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
        assert ELBO().loss(model, x, y, noise_for(model, 5))["loss"] < terms["loss"]

    def test_permuting_the_batch_permutes_the_terms(self, name):
        model, x, y = made(name)
        order, noise = torch.tensor([3, 0, 4, 1, 2]), noise_for(model, 5)
        first = model.eval().infer(x, y, noise)
        second = model.infer(x[order], y[order], {key: value[order] for key, value in noise.items()})
        torch.testing.assert_close(second.log_likelihood, first.log_likelihood[order])
        torch.testing.assert_close(second.kl, first.kl[order])

    def test_it_works_in_float64(self, name):
        model, x, y = made(name)
        single = ELBO().loss(model.eval(), x, y, noise_for(model, 5))
        noise = {key: value.double() for key, value in noise_for(model, 5).items()}
        double = ELBO().loss(model.double(), x.double(), y, noise)
        for term, value in single.items():
            assert double[term].dtype == torch.float64
            torch.testing.assert_close(double[term].float(), value, rtol=1e-4, atol=1e-4)
        assert model.sample(y.tolist()).dtype == model.reconstruct(x, y).dtype == torch.float64

    def test_samples_are_images(self, name):
        model, x, y = made(name)
        samples = model.sample(y, seed=3)
        assert samples.shape == x.shape
        assert 0 <= samples.min() < samples.max() <= 1
        assert not samples.requires_grad

    def test_the_label_matters(self, name):
        model, _, y = made(name)
        expected = not isinstance(model.conditioner, Unconditional)
        assert label_matters(model, y[:2], y[:2].flip(0)) == expected

    def test_the_terms_do_not_depend_on_the_mode(self, name):
        """But for label dropout and the running scale, which are for training alone."""
        model, x, y = made(name)
        noise = noise_for(model, 5) | ({"label": torch.full((5,), 9.0)} if "label" in model.noise_shapes else {})
        model.infer(x, y, noise)  # the running scale has seen the batch
        train, evaluation = model.train().infer(x, y, noise), model.eval().infer(x, y, noise)
        torch.testing.assert_close(train.log_likelihood, evaluation.log_likelihood)
        torch.testing.assert_close(train.kl, evaluation.kl)

    def test_it_prints(self, name):
        model, x, _ = made(name)
        text = repr(model)
        assert text.startswith(f"ConditionalVAE: {sum(p.numel() for p in model.parameters()):,} parameters\n")
        assert f"x ({', '.join(map(str, x.shape[1:]))})" in text


class TestInfer:
    def test_the_terms_are_those_of_the_parts(self):
        model, x, noise = build(prior=LabelNormal(4, CLASSES)), images(), {"z": torch.randn(5, 4)}
        inference = model.infer(x, Y, noise)
        c = F.one_hot(Y, CLASSES).float()
        mean, log_variance = model.encoder(x, c).chunk(2, dim=1)
        z = mean + (log_variance / 2).exp() * noise["z"]
        torch.testing.assert_close(inference.z, z)
        bce = F.binary_cross_entropy_with_logits(model.decoder(z, c), x, reduction="none")
        torch.testing.assert_close(inference.log_likelihood, -bce.sum((1, 2, 3)))
        mean_p, log_variance_p = model.prior.linear(c).chunk(2, dim=1)
        ratio = (log_variance - log_variance_p).exp()
        kl = 0.5 * (ratio + (mean - mean_p) ** 2 / log_variance_p.exp() - 1 - ratio.log()).sum(1)
        torch.testing.assert_close(inference.kl, kl)

    def test_label_planes_are_the_last_channels_and_their_own_term(self):
        model, x, noise = build((2, 8, 8), output_labels=True), images(5, (2, 8, 8)), {"z": torch.randn(5, 4)}
        inference = model.infer(x, Y, noise)
        c = F.one_hot(Y, CLASSES).float()
        output = model.decoder(inference.z, c)
        assert output.shape[1] == 2 + CLASSES
        planes = c[:, :, None, None].expand(5, CLASSES, 8, 8)
        labels = -F.binary_cross_entropy_with_logits(output[:, 2:], planes, reduction="none").sum((1, 2, 3))
        pixels = -F.binary_cross_entropy_with_logits(output[:, :2], x, reduction="none").sum((1, 2, 3))
        torch.testing.assert_close(inference.label_log_likelihood, labels)
        torch.testing.assert_close(inference.log_likelihood, pixels)
        assert inference.p.mean.shape == x.shape

    def test_label_log_likelihood_of_a_coin_a_pixel(self):
        """log 1/2 for each of 3 planes of 64 pixels."""
        c = F.one_hot(Y, CLASSES).float()
        value = label_log_likelihood(torch.zeros(5, CLASSES, 8, 8), c)
        torch.testing.assert_close(value, torch.full((5,), 192 * math.log(0.5)))

    def test_without_label_planes_there_is_no_label_term(self):
        model = build()
        assert model.infer(images(), Y, noise_for(model, 5)).label_log_likelihood is None

    def test_label_planes_need_one_hot_labels(self):
        with pytest.raises(ValueError, match=r"OneHot for output_labels; got Embedding. Leave it out"):
            build(conditioner=Embedding(3, 3), output_labels=True)

    def test_a_kl_without_closed_form_is_taken_at_the_latent_drawn(self):
        """log q(z) - log p(z) for a mixture of two normals as the prior."""

        class Mixture(StandardNormal):
            def forward(self, c):
                means = torch.tensor([-1.0, 1.0]).expand(len(c), 4, 2)
                return Independent(MixtureSameFamily(Categorical(torch.ones_like(means)), Normal(means, 1.0)), 1)

        model = build(prior=Mixture(4))
        inference = model.infer(images(), Y, noise_for(model, 5))
        q, p, z = inference.q, model.prior(torch.zeros(5, 0)), inference.z
        torch.testing.assert_close(inference.kl, q.log_prob(z) - p.log_prob(z))

    def test_inference_observes_nothing(self):
        """It may run twice for one batch; the loop is what observes, once a step."""
        model, x = build(likelihood=likelihoods.Gaussian("optimal")), images()
        inference = model.train().infer(x, Y, noise_for(model, 5))
        model.sample([0])
        assert model.likelihood.observations == 0
        model.likelihood.observe(inference.output, x)
        assert model.likelihood.observations == 1
        error = (inference.p.mean - x).square().mean()
        torch.testing.assert_close(model.likelihood.variance, error.detach())

    def test_label_dropout_uses_its_own_noise(self):
        """With every label dropped in training, labels no longer matter; outside training they do."""
        model, x = build(conditioner=LabelDropout(OneHot(CLASSES), 1.0)), images()
        assert model.noise_shapes == {"z": (4,), "label": ()}
        noise, other = noise_for(model, 5), (Y + 1) % CLASSES
        train = [model.train().infer(x, y, noise).log_likelihood for y in (Y, other)]
        evaluation = [model.eval().infer(x, y, noise).log_likelihood for y in (Y, other)]
        assert torch.equal(*train)
        assert not torch.isclose(*evaluation).any()

    def test_a_plain_vae_is_one_without_a_condition(self):
        model, x = build(num_classes=0), images()
        mean, log_variance = model.encoder(x, torch.zeros(5, 0)).chunk(2, dim=1)
        inference = model.infer(x, Y, noise_for(model, 5))
        torch.testing.assert_close(inference.kl, -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1))
        assert torch.equal(model.sample([0, 0]), model.sample([1, 2]))

    def test_forward_is_infer(self):
        model, x = build(), images()
        assert torch.equal(model(x, Y, noise_for(model, 5)).z, model.infer(x, Y, noise_for(model, 5)).z)


class TestDeterminism:
    @pytest.mark.parametrize("training", [True, False])
    def test_encode_and_reconstruct_repeat_and_leave_the_mode(self, training):
        model, x = build(conditioner=LabelDropout(OneHot(CLASSES), 0.9), norm=ChannelNorm).train(training), images()
        assert torch.equal(model.encode(x, Y), model.encode(x, Y))
        assert torch.equal(model.reconstruct(x, Y), model.reconstruct(x, Y))
        model.log_likelihood(x, Y, samples=2)
        model.sample([0])
        assert {module.training for module in model.modules()} == {training}

    def test_a_part_kept_in_evaluation_mode_stays_so(self):
        model = build().train()
        model.encoder.eval()
        model.reconstruct(images(), Y)
        assert (model.training, model.encoder.training, model.encoder.blocks[0].training) == (True, False, False)
        assert model.decoder.training

    def test_encode_is_the_posterior_s_mean_and_reconstruct_its_image(self):
        model, x = build().eval(), images()
        c = F.one_hot(Y, CLASSES).float()
        mean = model.encoder(x, c)[:, :4]
        torch.testing.assert_close(model.encode(x, Y), mean)
        torch.testing.assert_close(model.posterior(x, Y).mean, mean)
        torch.testing.assert_close(model.reconstruct(x, Y), model.decoder(mean, c).sigmoid())

    def test_the_global_generator_is_left_alone(self):
        model, x = build(), images()
        before = torch.get_rng_state()
        model.sample([0, 1])
        model.infer(x, Y, noise_for(model, 5))
        model.reconstruct(x, Y)
        model.log_likelihood(x, Y, samples=2)
        assert torch.equal(torch.get_rng_state(), before)


class TestSample:
    model = build(seed=5)
    labels = tuple(k * k % CLASSES for k in range(150))
    whole = model.sample(labels, seed=7)

    @given(st.integers(0, 149), st.integers(1, 150))
    @settings(deadline=None, max_examples=25)
    def test_any_slice_gives_the_same_bits(self, start, length):
        asked = self.labels[start : start + length]
        assert torch.equal(self.model.sample(asked, seed=7, start=start), self.whole[start : start + length])

    def test_an_image_is_the_decoder_s_mean_at_the_sample_s_noise(self):
        for i in (0, 63, 64, 149):
            z = normal(7, torch.tensor([i]), stream(Use.SAMPLING), (4,))
            c = F.one_hot(torch.tensor([self.labels[i]]), CLASSES).float()
            torch.testing.assert_close(self.model.decoder(z, c)[0].sigmoid(), self.whole[i], rtol=0, atol=1e-6)

    def test_every_label_is_the_one_asked_for_in_order(self):
        """A decoder that paints its label says which one it was given."""

        class Paint(nn.Module):
            def forward(self, z, c):
                return (c.argmax(1).float() / 10).logit().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)

        model = build()
        model.decoder = Paint()
        for start in (0, 5, 60):
            painted = 10 * model.sample(self.labels, start=start)[:, 0, 0, 0]
            assert tuple(painted.round().int().tolist()) == self.labels

    def test_other_seeds_and_other_starts_give_other_images(self):
        for other in ({"seed": 8}, {"seed": 7, "start": 1}):
            change = (self.model.sample(self.labels, **other) - self.whole).abs().flatten(1).amax(1)
            assert (change > 0).all()

    def test_temperature_zero_gives_equal_images_for_equal_labels(self):
        images = self.model.sample([0, 1, 0, 1], temperature=0)
        assert torch.equal(images[:2], images[2:])
        assert not torch.equal(images[0], images[1])

    def test_temperature_scales_the_noise(self):
        z = 0.5 * normal(0, torch.arange(1), stream(Use.SAMPLING), (4,))
        c = torch.tensor([[0.0, 1.0, 0.0]])
        expected = self.model.decoder(z, c).sigmoid()
        torch.testing.assert_close(self.model.sample([1], temperature=0.5), expected)

    def test_temperature_zero_is_the_prior_s_mean(self):
        model = build(prior=LabelNormal(4, CLASSES))
        c = torch.tensor([[0.0, 1.0, 0.0]])
        expected = model.decoder(model.prior(c).mean, c).sigmoid()
        torch.testing.assert_close(model.sample([1], temperature=0), expected)

    def test_blocks_come_as_they_are_made_and_leave_gradients_on(self):
        sizes = []
        for block in self.model.sample_blocks(self.labels, start=60):
            assert torch.is_grad_enabled()
            sizes.append(len(block))
        assert sizes == [BLOCK - 60, BLOCK, BLOCK, 150 - 2 * BLOCK - 4]

    def test_few_images_cost_no_whole_block(self, monkeypatch):
        drawn, model = [], build()
        whole, draw = model.sample([0, 1, 2] * 22), model.draw
        monkeypatch.setattr(model, "draw", lambda y, noise: drawn.append(len(y)) or draw(y, noise))
        for start, count in ((0, 1), (5, 1), (0, 30), (6, 4), (63, 2)):
            assert torch.equal(
                model.sample(([0, 1, 2] * 22)[start : start + count], start=start), whole[start : start + count]
            )
        assert drawn == [PIECE] * (1 + 1 + 4 + 2 + 2)

    def test_whole_blocks_are_tried_once(self, monkeypatch):
        drawn, model = [], build()  # with a draw that gives the same bits for any number of images, on any machine
        monkeypatch.setattr(model, "draw", lambda y, noise: drawn.append(len(y)) or noise["z"][:, :1, None, None])
        model.sample([0, 1, 2] * 22)
        assert drawn == [BLOCK, PIECE, PIECE, PIECE]  # the first and the last piece again, and two images more
        drawn.clear()
        model.sample([0] * 2 * BLOCK, start=BLOCK)
        assert drawn == [BLOCK, BLOCK]

    def test_bits_that_depend_on_the_block_are_those_of_pieces(self, monkeypatch):
        """A decoder for which it matters how many images it sees at once."""
        model = build()
        decoder = model.decoder.forward
        monkeypatch.setattr(model.decoder, "forward", lambda z, c: decoder(z, c) + len(z) / 100)
        whole = model.sample([0, 1, 2] * 22)
        assert torch.equal(model.sample([1], start=4), whole[4:5])

    @pytest.mark.parametrize("start", [0, 10])
    def test_no_label_is_refused(self, start):
        with pytest.raises(ValueError, match="at least one label; got none"):
            self.model.sample([], start=start)

    @pytest.mark.parametrize("wrong", [{"start": -1}, {"temperature": -0.1}, {"temperature": math.nan}])
    def test_negative_numbers_are_refused(self, wrong):
        with pytest.raises(ValueError, match=r"start in \[0, 2\*\*62\) and temperature in"):
            self.model.sample([0], **wrong)


class TestLabels:
    model = build()

    @pytest.mark.parametrize(
        "y",
        [
            [2, 0],
            (2, 0),
            [[2], [0]],
            np.array([2, 0]),
            np.array([[2], [0]], np.uint8),
            np.array([2.0, 0.0]),
            torch.tensor([2, 0]),
            torch.tensor([[2], [0]], dtype=torch.uint8),
            range(2, -1, -2),
            [np.int64(2), np.int64(0)],
        ],
        ids=repr,
    )
    def test_every_form_asks_for_the_same(self, y):
        assert self.model.labels(y).tolist() == [2, 0]
        assert torch.equal(self.model.sample(y), self.model.sample([2, 0]))

    def test_class_names(self):
        model = build()
        model.class_names = ("basophil", "eosinophil", "platelet")
        for names in (["platelet", "basophil"], np.array(["platelet", "basophil"])):
            assert model.labels(names).tolist() == [2, 0]

    def test_unknown_names_are_refused_with_those_that_are_known(self):
        model = build()
        with pytest.raises(ValueError, match="among no names; pass integers; got platelet"):
            model.labels(["platelet"])
        model.class_names = ("basophil", "platelet")
        with pytest.raises(ValueError, match="among basophil, platelet; got cat, dog"):
            model.labels(["dog", "basophil", "cat"])

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            ([0, 3], r"in \[0, 3\); got 3\. Pass num_classes=4 or remap"),
            ([-1], r"in \[0, 3\); got -1"),
            ([0.5], "whole numbers"),
            ([[0, 1]], r"one class label per image, shape \(batch,\); got shape \(1, 2\)"),
            (1, r"a sequence of labels; got 1\. Pass one per image, e\.g\. \[1\] \* 10"),
            (torch.tensor(1), "a sequence of labels"),
            ("platelet", r"a sequence of labels; got 'platelet'.*\['platelet'\] \* 10"),
        ],
    )
    def test_labels_it_cannot_take_are_refused(self, unchecked, y, message):
        with pytest.raises(ValueError, match=message):
            self.model.sample(y)


class TestImages:
    def test_grey_levels_and_floats_are_the_same_images(self):
        model, x = build(), images()
        levels = (255 * x).round().to(torch.uint8)
        for form in (levels, levels.numpy(), x.numpy(), x.double()):
            torch.testing.assert_close(model.encode(form, Y), model.encode(x, Y))

    @pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 1, 8, 9), (1, 8, 8)])
    def test_another_shape_is_refused(self, unchecked, shape):
        with pytest.raises(ValueError, match=r"images of shape \(batch, 1, 8, 8\); got"):
            build().encode(torch.zeros(shape), Y)

    def test_values_beyond_one_are_refused(self):
        with pytest.raises(ValueError, match=r"float images in \[0, 1\]; got values from 0 to 2"):
            build().encode(2 * torch.eye(8).expand(5, 1, 8, 8), Y)


class PlainEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(64 + CLASSES, 8)

    def forward(self, x, c):
        return self.net(torch.cat([x.flatten(1), c], 1))


class PlainDecoder(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        self.channels, self.net = channels, nn.Linear(4 + CLASSES, 64 * channels)

    def forward(self, z, c):
        return self.net(torch.cat([z, c], 1)).view(-1, self.channels, 8, 8)


class DeafDecoder(PlainDecoder):
    """Ignores the label."""

    def forward(self, z, c):
        return super().forward(z, torch.zeros_like(c))


def assemble(encoder=None, decoder=None, likelihood=None, prior=None, **options):
    torch.manual_seed(0)
    return ConditionalVAE(
        conditioner=OneHot(CLASSES),
        encoder=encoder or PlainEncoder(),
        reparameterizer=build().reparameterizer,
        prior=prior or StandardNormal(4),
        decoder=decoder or PlainDecoder(),
        likelihood=likelihood or likelihoods.Bernoulli(),
        **options,
    )


class TestOwnParts:
    @pytest.mark.parametrize("shape", [None, (1, 8, 8)])
    def test_plain_modules_make_a_model(self, shape):
        model, x = assemble(image_shape=shape), images()
        assert model.image_shape == shape
        assert model.sample([0, 1]).shape == (2, 1, 8, 8)
        assert model.reconstruct(x, Y).shape == x.shape
        ELBO().loss(model, x, Y, noise_for(model, 5))["loss"].backward()
        assert all(p.grad.any() for p in model.parameters())
        assert ("x (1, 8, 8)" if shape else "x (?)") in repr(model)

    def test_a_decoder_that_ignores_the_label_is_caught(self):
        assert label_matters(assemble(), [0, 1], [1, 2])
        assert not label_matters(assemble(decoder=DeafDecoder()), [0, 1], [1, 2])

    def test_a_decoder_of_other_channels_is_refused(self):
        model = assemble(decoder=PlainDecoder(channels=2), image_shape=(1, 8, 8))
        message = r"\(batch, 1, 8, 8\), which is 1 per image channel; got \(1, 2, 8, 8\)\. Change the decoder's last"
        with pytest.raises(ValueError, match=message):
            model.decode(torch.zeros(1, 4), torch.tensor([0]))

    def test_a_likelihood_of_more_parameters_is_refused(self):
        model = assemble(likelihood=likelihoods.DiscretizedLogistic(), image_shape=(1, 8, 8))
        with pytest.raises(ValueError, match=r"\(batch, 2, 8, 8\), which is 2 per image channel; got"):
            model.infer(images(), Y, noise_for(model, 5))

    def test_missing_label_planes_are_refused(self):
        model = assemble(output_labels=True, image_shape=(1, 8, 8))
        with pytest.raises(ValueError, match="1 per image channel and 3 label planes; got"):
            model.infer(images(), Y, noise_for(model, 5))

    @pytest.mark.parametrize("latent", [1, 5])
    def test_a_prior_of_other_latents_is_refused(self, latent):
        """A single latent would be broadcast over the encoder's four without a word."""
        model = assemble(prior=StandardNormal(latent))
        with pytest.raises(ValueError, match=rf"prior's z of shape \({latent}\); got a posterior of shape \(4\)"):
            model.infer(images(), Y, noise_for(model, 5))

    def test_a_model_without_weights_lives_on_the_cpu_in_the_default_precision(self):
        class Nothing(nn.Module):
            def forward(self, x, c):
                return torch.zeros(len(x), 8)

        model = assemble(encoder=Nothing(), decoder=nn.Identity())
        assert (model.device, model.dtype) == (torch.device("cpu"), torch.get_default_dtype())


class TestLogLikelihood:
    @pytest.mark.parametrize("chunk", [1, 3, 7, 100])
    def test_chunks_make_no_difference(self, chunk):
        model, x = build().double(), images()
        whole = model.log_likelihood(x, Y, samples=7, chunk=7)
        torch.testing.assert_close(model.log_likelihood(x, Y, samples=7, chunk=chunk), whole, rtol=1e-12, atol=0)

    def test_it_is_the_log_mean_of_the_weights_of_its_draws(self):
        model, x = build(prior=LabelNormal(4, CLASSES)).double(), images().double()
        c, weights = F.one_hot(Y, CLASSES).double(), []
        for k in range(3):
            z = normal(9, torch.arange(5), stream(Use.POSTERIOR, k), (4,), torch.float64)
            q = model.posterior(x, Y)
            z = q.mean + q.stddev * z
            p = model.likelihood(model.decoder(z, c))
            weights.append(p.log_prob(x) + model.prior(c).log_prob(z) - q.log_prob(z))
        expected = torch.stack(weights).logsumexp(0) - math.log(3)
        torch.testing.assert_close(model.log_likelihood(x, Y, samples=3, seed=9), expected)

    def test_labels_of_several_columns_follow_their_images(self):
        model, x = build(conditioner=MultiLabel(2)).double(), images()
        y = MODELS["many labels"][1]
        chunked = model.log_likelihood(x, y, samples=4, chunk=1)
        torch.testing.assert_close(model.log_likelihood(x, y, samples=4, chunk=4), chunked)

    def test_many_samples_are_above_the_elbo(self):
        model, x = build(), images()
        ones = torch.stack([model.log_likelihood(x, Y, samples=1, seed=seed) for seed in range(100)])
        gap = model.log_likelihood(x, Y, samples=200) - ones
        assert gap.mean().item() > 4 * gap.std().item() / math.sqrt(gap.numel())

    def test_label_planes_are_left_out(self):
        model = build(output_labels=True)
        before = model.log_likelihood(images(), Y, samples=2)
        with torch.no_grad():
            model.decoder.last.bias[1:] += 3
        assert torch.equal(model.log_likelihood(images(), Y, samples=2), before)

    def test_no_sample_is_refused(self):
        with pytest.raises(ValueError, match="at least one sample; got 0"):
            build().log_likelihood(images(), Y, samples=0)


class TestBitsPerDimension:
    def test_a_mass_is_used_as_it_is(self):
        model, x = build(likelihood=likelihoods.DiscretizedLogistic()), images()
        expected = -model.log_likelihood(x, Y, samples=3) / (64 * math.log(2))
        torch.testing.assert_close(model.bits_per_dimension(x, Y, samples=3), expected)

    def test_a_density_is_taken_at_dequantised_pixels(self):
        model, x = build(likelihood=likelihoods.Gaussian(0.1)), images()
        u = uniform(4, torch.arange(5), stream(Use.DEQUANTIZATION), (1, 8, 8)).float()
        log_likelihood = model.log_likelihood(dequantize(x, u), Y, samples=3, seed=4)
        expected = -log_likelihood / (64 * math.log(2)) + 8
        torch.testing.assert_close(model.bits_per_dimension(x, Y, samples=3, seed=4), expected)

    def test_a_model_that_says_nothing_needs_eight_bits(self):
        """Uniform densities whatever z is, and a posterior that is the prior: every grey level costs 8 bits."""
        model = build(likelihood=likelihoods.ContinuousBernoulli())
        for network in (model.encoder, model.decoder):
            for parameter in network.parameters():
                nn.init.zeros_(parameter)
        bits = model.bits_per_dimension(images(), Y, samples=2)
        torch.testing.assert_close(bits, torch.full((5,), 8.0), rtol=0, atol=1e-6)

    def test_cross_entropy_is_refused_before_any_work(self):
        model = build()
        model.encoder = None
        with pytest.raises(ValueError, match="Bits per dimension need a probability of grey levels"):
            model.bits_per_dimension(images(), Y)

    def test_an_own_likelihood_that_does_not_say_is_refused(self):
        class Own(nn.Module):
            params = 1

            def forward(self, parameters):
                return likelihoods.Bernoulli()(parameters)

        with pytest.raises(ValueError, match="need a probability of grey levels"):
            assemble(likelihood=Own()).bits_per_dimension(images(), Y)


class TestBuilder:
    @pytest.mark.parametrize(
        ("shape", "channels"),  # halved and doubled until the larger side is 4 or less
        [((1, 8, 8), (6,)), ((3, 28, 28), (6, 12, 24)), ((1, 9, 8), (6, 12)), ((1, 64, 64), (6, 12, 24, 48))],
    )
    def test_the_depth_follows_the_size(self, shape, channels):
        model = build(shape, width=6)
        assert tuple(block.conv.out_channels for block in model.encoder.blocks) == channels
        assert tuple(model.decoder.unflatten.unflattened_size) == (
            channels[-1],
            *(-(-n // 2 ** len(channels)) for n in shape[1:]),
        )
        assert max(model.decoder.unflatten.unflattened_size[1:]) <= 4

    def test_norm_and_modulation_reach_both_networks(self):
        model = build((1, 16, 16), norm=ChannelNorm, modulation=FiLM)
        for block in (*model.encoder.blocks, *model.decoder.blocks):
            assert isinstance(block.norm, ChannelNorm)
            assert isinstance(block.modulation, FiLM)
            assert block.modulation.linear.in_features == CLASSES

    def test_small_images_are_refused(self):
        with pytest.raises(ValueError, match="at least 8x8; got 7x28"):
            build((1, 7, 28))

    def test_arguments_describe_the_model(self):
        model = build()
        assert model.arguments["decoder"] is model.decoder
        assert model.arguments["output_labels"] is False

    def test_the_text_of_a_known_model(self):
        """Encoder: 4 * 4 * 9 + 4 and two heads of 64 * 4 + 4; decoder: 7 * 64 + 64 and 4 * 4 * 9 + 4."""
        assert repr(build(output_labels=True)).splitlines() == [
            "ConditionalVAE: 1,328 parameters",
            "  conditioner     OneHot           y → c (3)                                         0",
            "  encoder         ConvEncoder      x (1, 8, 8), c (3) → (8)                        668",
            "  reparameterizer Gaussian         (8) → z (4)                                       0",
            "  prior           StandardNormal   c (3) → z (4)                                     0",
            "  decoder         DeconvDecoder    z (4), c (3) → (4, 8, 8)                        660",
            "  likelihood      Bernoulli        (4, 8, 8) → x (1, 8, 8) and label planes          0",
        ]


@pytest.mark.parametrize("likelihood", [likelihoods.DiscretizedLogistic(), likelihoods.Gaussian(0.1)])
def test_a_set_taken_in_batches_has_the_values_of_the_set_taken_whole(likelihood):
    model = conditional_vae((1, 8, 8), 2, latent=2, width=4, likelihood=likelihood)
    x, y = torch.rand(5, 1, 8, 8), [0, 1, 0, 1, 1]
    for values in (model.log_likelihood, model.bits_per_dimension):
        whole = values(x, y, samples=3)
        assert torch.allclose(values(x[2:], y[2:], samples=3, start=2), whole[2:], rtol=1e-4)


@pytest.mark.parametrize("labels", [np.array([1, 0], np.uint16), np.array(["lobed", "round"], object)])
def test_labels_as_other_libraries_store_them(labels):
    model = conditional_vae((1, 8, 8), 2, latent=2, width=4)
    model.class_names = ("round", "lobed")
    assert model.labels(labels).tolist() == [1, 0]
