"""The bound: against a model whose log p(x | y) is known, and term by term."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from condgen import conditional_vae
from condgen.distributions.priors.standard import LabelNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.losses.elbo import (
    ELBO,
    Constant,
    Cyclical,
    Inference,
    LinearWarmup,
    Schedule,
    bits_per_dimension,
    dequantize,
    importance_weighted,
    kl_per_latent,
)
from condgen.models.cvae import ConditionalVAE
from condgen.nn.conditioners import OneHot
from condgen.random import Use, normal, normals

SIGMA = 0.3


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class LinearDecoder(nn.Module):
    """x = W z + A c, six pixels; the columns of W are orthogonal, so that the posterior's covariance is diagonal."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.linalg.qr(randn(6, 2))[0] * torch.tensor([0.7, 1.6], dtype=torch.float64))
        self.a = nn.Parameter(0.3 * randn(6, 3, seed=1))

    def forward(self, z, c):
        return (z @ self.w.T + c @ self.a.T).view(-1, 1, 2, 3)


class LinearGaussian(nn.Module):
    """x = parameters + sigma * noise."""

    params, measure = 1, "density"

    def forward(self, parameters):
        return Independent(Normal(parameters, SIGMA, validate_args=False), 3, validate_args=False)


class ExactEncoder(nn.Module):
    """The posterior N(mean, variance) of the linear-Gaussian model, or one that is wrong by shift and spread."""

    def __init__(self, decoder, prior, shift=0.0, spread=0.0):
        super().__init__()
        self.shift, self.spread = shift, spread
        self.others = (decoder, prior)  # in a tuple, so that they stay parts of the model alone

    def forward(self, x, c):
        decoder, prior = self.others
        p = prior(c)
        variance = 1 / (1 / p.variance + decoder.w.square().sum(0) / SIGMA**2)
        residual = x.flatten(1) - c @ decoder.a.T
        mean = variance * (p.mean / p.variance + residual @ decoder.w / SIGMA**2)
        return torch.cat([mean + self.shift, variance.log() + self.spread], dim=1)


def linear_gaussian(**wrong):
    """A conditional VAE whose log p(x | y) is that of one six-dimensional Gaussian a label."""
    decoder, prior = LinearDecoder(), LabelNormal(2, 3).double()
    prior.linear.weight.data = 0.5 * randn(4, 3, seed=2)
    return ConditionalVAE(
        conditioner=OneHot(3),
        encoder=ExactEncoder(decoder, prior, **wrong),
        reparameterizer=Gaussian(),
        prior=prior,
        decoder=decoder,
        likelihood=LinearGaussian(),
        image_shape=(1, 2, 3),
    )


def log_marginal(model, x, y):
    """log p(x | y): mean W m + A c, covariance W S W' + sigma^2 I."""
    c, w = torch.eye(3, dtype=torch.float64)[y], model.decoder.w
    p = model.prior(c)
    mean = p.mean @ w.T + c @ model.decoder.a.T
    covariance = w @ torch.diag_embed(p.variance) @ w.T + SIGMA**2 * torch.eye(6).double()
    return MultivariateNormal(mean, covariance).log_prob(x.flatten(1)).detach()


def data(n):
    return torch.rand(n, 1, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64), torch.arange(n) % 3


class TestLinearGaussianModel:
    def test_with_the_exact_posterior_one_sample_gives_log_p(self):
        model, (x, y) = linear_gaussian(), data(9)
        for samples in (1, 5):
            bound = model.log_likelihood(x, y, samples=samples)
            torch.testing.assert_close(bound, log_marginal(model, x, y), rtol=1e-12, atol=1e-12)

    def test_the_elbo_of_infer_is_log_p(self):
        """log p(x | z) is quadratic in the noise, so four points +-sqrt(2) e_i average it exactly."""
        model, (x, y) = linear_gaussian(), data(9)
        points = math.sqrt(2) * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
        inferences = [model.infer(x, y, {"z": point.expand(9, 2)}) for point in points]
        elbo = torch.stack([i.log_likelihood - i.kl for i in inferences]).mean(0)
        torch.testing.assert_close(elbo, log_marginal(model, x, y), rtol=1e-12, atol=1e-12)
        objective = torch.stack([ELBO()(i)["loss"] for i in inferences]).mean()
        torch.testing.assert_close(objective, -log_marginal(model, x, y).mean(), rtol=1e-12, atol=1e-12)

    def test_one_sample_of_infer_is_log_p_by_bayes(self):
        model, (x, y) = linear_gaussian(), data(9)
        inference = model.infer(x, y, normals(model.noise_shapes, 0, torch.arange(9), Use.TRAINING, dtype=x.dtype))
        joint = inference.p.log_prob(x) + model.prior(model.condition(y)).log_prob(inference.z)
        torch.testing.assert_close(joint - inference.q.log_prob(inference.z), log_marginal(model, x, y))

    def test_a_wrong_posterior_costs_its_kl_to_the_exact_one(self):
        n, (x, y) = 20_000, data(1)
        model, exact = linear_gaussian(shift=0.2, spread=0.5), linear_gaussian()
        x, y = x.expand(n, 1, 2, 3), y.expand(n)
        gap = log_marginal(model, x, y) - model.log_likelihood(x, y, samples=1)
        expected = kl_per_latent(model.posterior(x[:1], y[:1]), exact.posterior(x[:1], y[:1]), x[:1]).sum().item()
        assert expected > 0.5
        assert abs(gap.mean().item() - expected) < 4 * gap.std().item() / math.sqrt(n)

    def test_more_samples_close_the_gap(self):
        n = 3000
        model, (x, y) = linear_gaussian(shift=0.2, spread=0.5), data(n)
        exact = log_marginal(model, x, y)
        gaps = [exact - model.log_likelihood(x, y, samples=k, chunk=16) for k in (1, 4, 16, 64)]
        means = [gap.mean().item() for gap in gaps]
        errors = [gap.std().item() / math.sqrt(n) for gap in gaps]
        for k in range(3):
            assert means[k] - means[k + 1] > 4 * math.hypot(errors[k], errors[k + 1])
        # The remaining gap is (variance of the weights) / 2k to first order, so it falls to a quarter.
        assert -4 * errors[3] < means[3] < means[2] / 2 < means[0] / 10


def inference(kl_terms, log_likelihood=None, label=None):
    batch = len(kl_terms[0])
    log_likelihood = torch.zeros(batch).double() if log_likelihood is None else log_likelihood
    q = Independent(Normal(torch.zeros(batch, 1), 1.0), 1)
    return Inference(log_likelihood, label, kl_terms, torch.zeros(batch, 1), q, q)


class TestObjective:
    kl = randn(6, 4).square()
    log_likelihood = -randn(6, seed=1).square()
    label = -randn(6, seed=2).square()

    @pytest.mark.parametrize("beta", [0.0, 0.3, 1.0, 4.0])
    def test_the_loss_is_beta_kl_minus_the_log_likelihoods(self, beta):
        terms = ELBO(beta)(inference((self.kl,), self.log_likelihood, self.label))
        mean_kl = self.kl.sum(1).mean()
        torch.testing.assert_close(terms["kl"], mean_kl)
        torch.testing.assert_close(terms["log_likelihood"], self.log_likelihood.mean())
        torch.testing.assert_close(terms["label_log_likelihood"], self.label.mean())
        torch.testing.assert_close(terms["elbo"], self.log_likelihood.mean() - mean_kl)
        torch.testing.assert_close(terms["loss"], beta * mean_kl - self.log_likelihood.mean() - self.label.mean())

    def test_without_label_planes_there_is_no_such_term(self):
        assert set(ELBO()(inference((self.kl,)))) == {"loss", "elbo", "log_likelihood", "kl"}

    @pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
    def test_beta_scales_the_gradient_of_the_kl(self, beta):
        kl, log_likelihood = self.kl.clone().requires_grad_(), self.log_likelihood.clone().requires_grad_()
        ELBO(beta)(inference((kl,), log_likelihood))["loss"].backward()
        torch.testing.assert_close(kl.grad, torch.full_like(kl, beta / 6))
        torch.testing.assert_close(log_likelihood.grad, torch.full_like(log_likelihood, -1 / 6))

    def test_the_beta_of_a_step_goes_before_the_final_one(self):
        objective, case = ELBO(LinearWarmup(10, beta=2.0)), inference((self.kl,))
        torch.testing.assert_close(objective(case)["loss"], 2 * self.kl.sum(1).mean())
        torch.testing.assert_close(objective(case, 0.5)["loss"], 0.5 * self.kl.sum(1).mean())
        torch.testing.assert_close(objective(case, torch.tensor(0.0))["loss"], torch.tensor(0.0).double())

    def test_free_bits_cost_their_number_where_unused_and_pass_the_rest(self):
        kl = torch.tensor([[0.1, 2.0, 0.4], [0.3, 4.0, 0.8]], dtype=torch.float64, requires_grad=True)
        terms = ELBO(beta=2.0, free_bits=0.5)(inference((kl,)))
        # Means over the batch 0.2, 3, 0.6: the first is below 0.5 and counts as 0.5.
        torch.testing.assert_close(terms["loss"], torch.tensor(2 * (0.5 + 3 + 0.6)).double())
        torch.testing.assert_close(terms["kl"], torch.tensor(3.8).double())
        torch.testing.assert_close(terms["elbo"], torch.tensor(-3.8).double())  # the bound knows no free bits
        terms["loss"].backward()
        torch.testing.assert_close(kl.grad, torch.tensor([[0.0, 1.0, 1.0]] * 2).double())

    def test_free_bits_that_are_used_change_nothing(self):
        kl = self.kl + 1
        loss = ELBO(free_bits=0.5)(inference((kl,), self.log_likelihood))["loss"]
        torch.testing.assert_close(loss, ELBO()(inference((kl,), self.log_likelihood))["loss"])

    def test_levels_add_up_and_have_free_bits_of_their_own(self):
        maps = randn(6, 2, 3, 3, seed=4).square()
        case = inference((self.kl, maps))
        torch.testing.assert_close(case.kl, self.kl.sum(1) + maps.sum((1, 2, 3)))
        loss = ELBO(free_bits=1.0)(case)["loss"]
        channels = maps.mean(0).sum((1, 2)).clamp(min=1)  # of a map, free bits are a channel's
        torch.testing.assert_close(loss, self.kl.mean(0).clamp(min=1).sum() + channels.sum())

    def test_repeating_the_batch_leaves_the_loss(self):
        model = conditional_vae((1, 8, 8), 2, latent=3, width=4, output_labels=True).double()
        x, y, z = torch.rand(4, 1, 8, 8).double(), torch.tensor([0, 1, 1, 0]), randn(4, 3)
        once = ELBO(0.7, free_bits=0.01).loss(model, x, y, {"z": z})
        thrice = ELBO(0.7, free_bits=0.01).loss(model, x.repeat(3, 1, 1, 1), y.repeat(3), {"z": z.repeat(3, 1)})
        for name, value in once.items():
            torch.testing.assert_close(thrice[name], value, msg=name)

    def test_twice_the_pixels_count_twice_against_the_same_kl(self):
        """Two copies of the image side by side, from a decoder that draws two copies."""

        class Twice(nn.Module):
            def __init__(self, decoder):
                super().__init__()
                self.decoder = decoder

            def forward(self, z, c):
                return torch.cat([self.decoder(z, c)] * 2, dim=-1)

        class Left(nn.Module):
            def __init__(self, encoder):
                super().__init__()
                self.encoder = encoder

            def forward(self, x, c):
                return self.encoder(x[..., :8], c)

        model = conditional_vae((1, 8, 8), 2, latent=3, width=4)
        parts = {k: getattr(model, k) for k in ("conditioner", "reparameterizer", "prior", "likelihood")}
        wide = ConditionalVAE(encoder=Left(model.encoder), decoder=Twice(model.decoder), **parts)
        x, y, noise = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 1, 0]), {"z": torch.randn(4, 3)}
        small, large = ELBO().loss(model, x, y, noise), ELBO().loss(wide, torch.cat([x, x], -1), y, noise)
        torch.testing.assert_close(large["kl"], small["kl"])
        torch.testing.assert_close(large["log_likelihood"], 2 * small["log_likelihood"])

    @pytest.mark.parametrize(("beta", "free_bits"), [(-1.0, 0.0), (1.0, -0.1), (Constant(-2.0), 0.0)])
    def test_negative_weights_are_refused(self, beta, free_bits):
        with pytest.raises(ValueError, match="beta and free_bits of 0 or more"):
            ELBO(beta, free_bits)


positive = st.floats(0.01, 1000)


class TestSchedules:
    @given(positive, st.floats(0, 10), st.floats(0, 2000))
    @settings(deadline=None)
    def test_warmup_is_a_ramp_that_ends_at_beta(self, epochs, beta, epoch):
        schedule = LinearWarmup(epochs, beta)
        assert schedule(0) == 0
        assert schedule(epochs) == schedule(epochs + epoch) == beta == schedule.final
        assert 0 <= schedule(epoch) <= beta
        assert schedule(epochs / 4) == pytest.approx(beta / 4)

    @given(positive, st.floats(0, 10), st.floats(0.01, 1), st.floats(0, 0.999), st.integers(0, 20))
    @settings(deadline=None)
    def test_cyclical_repeats_a_rise_and_a_plateau(self, period, beta, rise, phase, cycle):
        schedule = Cyclical(period, beta, rise)
        assert 0 <= schedule((cycle + phase) * period) <= beta == schedule.final
        expected = beta * min(1, phase / rise)
        assert schedule(phase * period) == pytest.approx(expected, abs=1e-9 * (1 + beta))

    def test_cyclical_starts_every_period_from_zero(self):
        schedule = Cyclical(period=8, beta=3.0, rise=0.25)
        assert [schedule(t) for t in (0, 1, 2, 5, 7.9, 8, 9, 16)] == [0, 1.5, 3, 3, 3, 0, 1.5, 0]

    @given(st.floats(0, 10), st.floats(0, 2000))
    def test_constant_is_beta(self, beta, epoch):
        assert Constant(beta)(epoch) == beta == Constant(beta).final

    @pytest.mark.parametrize("schedule", [Constant(), LinearWarmup(3), Cyclical(3)])
    def test_every_schedule_honours_the_protocol(self, schedule):
        assert isinstance(schedule, Schedule)
        assert ELBO(schedule).beta is schedule

    @pytest.mark.parametrize("epochs", [0, -1, math.nan])
    def test_a_warmup_without_time_is_refused(self, epochs):
        with pytest.raises(ValueError, match=r"positive number of epochs; got .* Use Constant"):
            LinearWarmup(epochs)

    @pytest.mark.parametrize(("period", "rise"), [(0, 0.5), (10, 0), (10, 1.5)])
    def test_a_cycle_that_cannot_rise_is_refused(self, period, rise):
        with pytest.raises(ValueError, match=r"positive period and rise in \(0, 1\]"):
            Cyclical(period, rise=rise)


class TestKL:
    def test_factorised_distributions_give_one_term_a_latent(self):
        q = Independent(Normal(randn(3, 4), randn(3, 4, seed=1).exp()), 1)
        p = Independent(Normal(randn(3, 4, seed=2), randn(3, 4, seed=3).exp()), 1)
        kl = kl_per_latent(q, p, torch.zeros(3, 4))
        q, p = q.base_dist, p.base_dist
        expected = (p.scale / q.scale).log() + (q.variance + (q.mean - p.mean) ** 2) / (2 * p.variance) - 0.5
        torch.testing.assert_close(kl, expected)

    def test_other_closed_forms_give_one_term_an_image(self):
        q = MultivariateNormal(randn(3, 2), torch.eye(2).double())
        p = MultivariateNormal(randn(3, 2, seed=1), torch.eye(2).double())
        kl = kl_per_latent(q, p, torch.zeros(3, 2))
        torch.testing.assert_close(kl, 0.5 * (q.mean - p.mean).square().sum(1, keepdim=True))

    @pytest.mark.parametrize("event", ["of vectors", "of every latent"])
    def test_without_a_closed_form_one_draw_estimates_without_bias(self, event):
        """Against the mixture of one component, whose KL is known, and the integral in one dimension."""
        n = 40_000
        z = 0.5 + 0.8 * normal(0, torch.arange(n), 0, (1,), torch.float64)
        q = Independent(Normal(torch.full((n, 1), 0.5).double(), 0.8), 1)
        components = Normal(torch.tensor([[-1.0, 1.5]]).double().expand(n, 1, 2), 0.6)
        mixing = Categorical(torch.tensor([[0.3, 0.7]]).double().expand(n, 1, 2))
        p = Independent(MixtureSameFamily(mixing, components), 1)
        if event == "of vectors":
            components = Independent(Normal(torch.tensor([[-1.0], [1.5]]).double().expand(n, 2, 1), 0.6), 1)
            p = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7]).double().expand(n, 2)), components)
        estimate = kl_per_latent(q, p, z)
        assert estimate.shape == (n, 1)
        t = torch.linspace(-6, 7, 20_001, dtype=torch.float64)
        log_q = Normal(0.5, 0.8).log_prob(t)
        density = 0.3 * Normal(-1.0, 0.6).log_prob(t).exp() + 0.7 * Normal(1.5, 0.6).log_prob(t).exp()
        exact = torch.trapezoid(log_q.exp() * (log_q - density.log()), t)
        assert abs(estimate.mean() - exact).item() < 4 * estimate.std().item() / math.sqrt(n)


class TestImportanceWeighted:
    @given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    @settings(deadline=None)
    def test_chunks_make_no_difference(self, sizes):
        weights = 5 * randn(sum(sizes), 3)
        expected = weights.exp().mean(0).log()
        torch.testing.assert_close(importance_weighted(weights.split(sizes)), expected)

    def test_large_weights_do_not_overflow(self):
        bound = importance_weighted([torch.tensor([[-9000.0]]), torch.tensor([[-9000.0]])])
        torch.testing.assert_close(bound, torch.tensor([-9000.0]))

    def test_no_sample_is_refused(self):
        with pytest.raises(ValueError, match="at least one sample; got none"):
            importance_weighted([])


class TestBits:
    @pytest.mark.parametrize("dimensions", [1, 64, 2352])
    def test_uniform_grey_levels_are_eight_bits(self, dimensions):
        mass = torch.tensor([dimensions * math.log(1 / 256)], dtype=torch.float64)
        assert bits_per_dimension(mass, "mass", dimensions).item() == pytest.approx(8, abs=1e-12)
        assert bits_per_dimension(torch.zeros(1), "density", dimensions).item() == 8  # density 1 on [0, 1]

    def test_a_coin_a_pixel_is_one_bit(self):
        assert bits_per_dimension(torch.tensor([10 * math.log(0.5)]), "mass", 10).item() == pytest.approx(1)

    def test_a_density_half_as_wide_saves_one_bit(self):
        assert bits_per_dimension(torch.tensor([10 * math.log(2)]), "density", 10).item() == pytest.approx(7)

    def test_binary_cross_entropy_is_refused_with_the_reason(self):
        with pytest.raises(ValueError, match=r"does not sum to one\). Use likelihoods.DiscretizedLogistic"):
            bits_per_dimension(torch.zeros(1), None, 10)

    @given(st.integers(0, 255), st.floats(0, 1, exclude_max=True))
    @settings(deadline=None)
    def test_dequantised_levels_stay_in_their_own_cell(self, level, u):
        x, u = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (level / 255, u))
        value = dequantize(x, u).item()
        assert 0 <= value <= 1
        assert value * 256 == pytest.approx(level + u.item(), abs=1e-9)

    @pytest.mark.parametrize("error", [-1e-4, 0.0, 1e-4])
    def test_levels_a_little_off_are_still_their_levels(self, error):
        """Half precision and resizing leave pixels near their grey levels, not on them."""
        levels = torch.arange(256.0).view(1, 1, 16, 16)
        u = torch.full_like(levels, 0.5)
        torch.testing.assert_close(dequantize((levels + 255 * error) / 255, u) * 256, levels + 0.5)
