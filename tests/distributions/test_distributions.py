"""Reparameterizers, priors and likelihoods: two routes to every number, and densities that integrate to one."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence

from condgen.distributions import likelihoods
from condgen.distributions.likelihoods import Bernoulli, ContinuousBernoulli, DiscretizedLogistic
from condgen.distributions.priors.standard import LabelNormal, StandardNormal
from condgen.distributions.reparameterizers import LOG_VARIANCE_RANGE, Gaussian
from condgen.random import normal

LEVELS = torch.arange(256, dtype=torch.float64) / 255


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestGaussianReparameterizer:
    def test_the_first_half_are_means_the_second_log_variances(self):
        q = Gaussian()(torch.tensor([[1.0, 2.0, 0.0, math.log(9.0)]]))
        assert q.mean.tolist() == [[1.0, 2.0]]
        torch.testing.assert_close(q.stddev, torch.tensor([[1.0, 3.0]]))

    def test_a_draw_is_mean_plus_deviation_times_noise(self):
        parameters, noise = randn(3, 8), randn(3, 4, seed=1)
        mean, log_variance = parameters[:, :4], parameters[:, 4:]
        torch.testing.assert_close(Gaussian().draw(parameters, noise), mean + log_variance.exp().sqrt() * noise)

    @pytest.mark.parametrize("shape", [(3, 8), (3, 4, 2, 2)])
    def test_log_prob_is_the_formula_summed_over_latents(self, shape):
        parameters = randn(*shape)
        (mean, log_variance), z = parameters.chunk(2, dim=1), randn(*shape, seed=1).chunk(2, dim=1)[0]
        expected = -0.5 * (math.log(2 * math.pi) + log_variance + (z - mean) ** 2 / log_variance.exp())
        torch.testing.assert_close(Gaussian()(parameters).log_prob(z), expected.flatten(1).sum(1))

    def test_the_gradient_of_a_draw_is_that_of_finite_differences(self):
        noise = randn(2, 3, seed=1)
        assert torch.autograd.gradcheck(lambda p: Gaussian().draw(p, noise), randn(2, 6).requires_grad_())

    @pytest.mark.parametrize("prior", [StandardNormal(4), LabelNormal(4, 2)], ids=["standard", "label"])
    def test_the_analytic_kl_is_the_mean_of_log_q_minus_log_p_over_draws(self, prior):
        """The draws, both densities and the closed form have to agree."""
        n = 50_000
        if isinstance(prior, LabelNormal):
            prior.linear.weight.data = randn(8, 2, seed=4)
        parameters, c = randn(1, 8), randn(1, 2, seed=2)
        q, p = Gaussian()(parameters), prior.double()(c)
        z = Gaussian().draw(parameters.expand(n, 8), normal(0, torch.arange(n), 0, (4,), torch.float64))
        estimate = q.log_prob(z) - p.log_prob(z)
        assert abs(estimate.mean() - kl_divergence(q, p)).item() < 4 * estimate.std().item() / math.sqrt(n)

    def test_the_kl_to_the_standard_normal_is_the_formula(self):
        """KL = -1/2 sum (1 + log sigma^2 - mu^2 - sigma^2) (Kingma & Welling, 2014, appendix B)."""
        parameters = randn(3, 8)
        mean, log_variance = parameters.chunk(2, dim=1)
        expected = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        kl = kl_divergence(Gaussian()(parameters), StandardNormal(4)(torch.zeros(3, 0, dtype=torch.float64)))
        torch.testing.assert_close(kl, expected)

    @pytest.mark.parametrize("extreme", [-1e6, -100.0, 100.0, 1e6])
    @pytest.mark.parametrize("prior", [StandardNormal(2), LabelNormal(2, 3)], ids=["standard", "label"])
    def test_extreme_log_variances_stay_finite_and_are_pulled_back(self, extreme, prior):
        parameters = torch.tensor([[0.5, -0.5, extreme, extreme]], requires_grad=True)
        q, z = Gaussian()(parameters), Gaussian().draw(parameters, torch.ones(1, 2))
        kl = kl_divergence(q, prior(torch.zeros(1, 3))).sum()
        (gradient,) = torch.autograd.grad(kl, parameters)
        assert torch.isfinite(torch.cat([z.flatten(), kl.view(1), gradient.flatten(), q.log_prob(z)])).all()
        assert (gradient[0, 2:].sign() == math.copysign(1, extreme)).all()  # descent moves it towards the range

    @given(st.floats(*LOG_VARIANCE_RANGE))
    @settings(deadline=None)
    def test_log_variances_within_the_range_are_used_as_they_are(self, log_variance):
        q = Gaussian()(torch.tensor([[0.0, log_variance]], dtype=torch.float64))
        assert math.isclose(q.variance.item(), math.exp(log_variance), rel_tol=1e-12)


PRIORS = {
    "standard": lambda: StandardNormal(4),
    "standard, a map": lambda: StandardNormal((2, 3, 3)),
    "of the label": lambda: LabelNormal(4, 3),
    "of the label, a map": lambda: LabelNormal((2, 3, 3), 3),
}


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
class TestPriors:
    def test_draws_and_distribution_agree(self, make):
        """A standardised draw is its noise, so draws have the mean and spread of the distribution."""
        prior, c = make().double(), randn(5, 3)
        for parameter in prior.parameters():
            parameter.data = randn(*parameter.shape, seed=3)
        noise = randn(5, *prior.noise_shape, seed=1)
        p, z = prior(c), prior.draw(c, noise)
        assert z.shape == (5, *prior.noise_shape)
        torch.testing.assert_close((z - p.mean) / p.stddev, noise)

    def test_the_density_is_the_noise_s_and_the_change_of_volume(self, make):
        prior, c = make().double(), randn(5, 3)
        for parameter in prior.parameters():
            parameter.data = randn(*parameter.shape, seed=3)
        noise = randn(5, *prior.noise_shape, seed=1)
        p = prior(c)
        standard = -0.5 * (noise.square() + math.log(2 * math.pi))
        expected = (standard - p.stddev.log()).flatten(1).sum(1)
        torch.testing.assert_close(p.log_prob(prior.draw(c, noise)), expected)

    def test_every_prior_starts_as_the_standard_normal(self, make):
        prior, c = make(), randn(5, 3).float()
        noise = randn(5, *prior.noise_shape).float()
        assert torch.equal(prior.draw(c, noise), noise)
        assert torch.equal(prior(c).mean, torch.zeros_like(noise))
        assert torch.equal(prior(c).stddev, torch.ones_like(noise))

    def test_the_precision_is_that_of_the_condition(self, make):
        assert make().double()(randn(2, 3)).mean.dtype == torch.float64


def test_label_normal_learns_mean_and_variance_of_each_label():
    """The gradient of log p at a condition of one label reaches that label's column and the bias alone."""
    prior, c = LabelNormal(2, 3), torch.tensor([[0.0, 1.0, 0.0]])
    prior(c).log_prob(torch.tensor([[2.0, -2.0]])).backward()
    gradient = prior.linear.weight.grad
    # d log N / d mu = z - mu; d log N / d log sigma^2 = ((z - mu)^2 - 1) / 2, at mu = 0 and sigma = 1
    torch.testing.assert_close(gradient[:, 1], torch.tensor([2.0, -2.0, 1.5, 1.5]))
    assert gradient[:, [0, 2]].abs().sum() == 0


LIKELIHOODS = {
    "Bernoulli": Bernoulli,
    "continuous Bernoulli": ContinuousBernoulli,
    "Gaussian": lambda: likelihoods.Gaussian(0.1),
    "Gaussian, shared": lambda: likelihoods.Gaussian("shared"),
    "Gaussian, pixel": lambda: likelihoods.Gaussian("pixel"),
    "Gaussian, optimal": likelihoods.Gaussian,
    "discretized logistic": DiscretizedLogistic,
}
MEASURES = dict.fromkeys(LIKELIHOODS, "density") | {"Bernoulli": None, "discretized logistic": "mass"}
each = pytest.mark.parametrize("name", LIKELIHOODS)


def images(*shape, seed=5):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).double() / 255


@each
class TestLikelihoods:
    def test_log_prob_keeps_the_batch_and_sums_over_pixels(self, name):
        likelihood = LIKELIHOODS[name]().double()
        parameters, x = randn(3, 2 * likelihood.params, 3, 4), images(3, 2, 3, 4)
        log_prob = likelihood(parameters).log_prob(x)
        assert log_prob.shape == (3,)
        single = [
            likelihood(parameters[:, k::2, i : i + 1, j : j + 1]).log_prob(x[:, k : k + 1, i : i + 1, j : j + 1])
            for k in range(2)
            for i in range(3)
            for j in range(4)
        ]
        torch.testing.assert_close(log_prob, torch.stack(single).sum(0))

    def test_the_mean_has_the_shape_of_the_image_and_its_range(self, name):
        likelihood = LIKELIHOODS[name]()
        mean = likelihood(100 * randn(3, 2 * likelihood.params, 3, 4).float()).mean
        assert mean.shape == (3, 2, 3, 4)
        assert 0 <= mean.min() < 0.05
        assert 0.95 < mean.max() <= 1

    def test_the_mean_grows_with_the_first_parameter(self, name):
        likelihood = LIKELIHOODS[name]().double()
        parameters = torch.zeros(201, likelihood.params, 1, 1).double()
        parameters[:, 0, 0, 0] = torch.linspace(-5, 5, 201, dtype=torch.float64)
        mean = likelihood(parameters).mean.flatten()
        assert (mean.diff() > 0).all()
        assert mean[100].item() == pytest.approx(0.5, abs=1e-12)

    def test_it_is_what_its_measure_says(self, name):
        """A mass sums to one over the grey levels, a density integrates to one."""
        likelihood = LIKELIHOODS[name]().double()
        assert likelihood.measure == MEASURES[name]
        parameters = randn(20, likelihood.params, 1, 1, seed=7)
        if likelihood.measure == "mass":
            total = sum(likelihood(parameters).log_prob(x.expand(20, 1, 1, 1)).exp() for x in LEVELS)
        elif likelihood.measure is None:
            ones = torch.ones(20, 1, 1, 1).double()
            total = sum(likelihood(parameters).log_prob(k * ones).exp() for k in (0, 1))
            assert not torch.allclose(likelihood(parameters).log_prob(0.5 * ones).exp() + total, total)
        else:
            ends = (0.0, 1.0) if name == "continuous Bernoulli" else (-40.0, 41.0)
            x = torch.linspace(*ends, 20_001, dtype=torch.float64)
            pixels = x.view(-1, 1, 1, 1)
            density = [likelihood(p.expand(len(x), -1, 1, 1)).log_prob(pixels).exp() for p in parameters[:, None]]
            total = torch.trapezoid(torch.stack(density), x, dim=1)
        torch.testing.assert_close(total, torch.ones(20).double(), rtol=0, atol=1e-8)

    @pytest.mark.parametrize("extreme", [-1e4, -50.0, 50.0, 1e4])
    def test_extreme_parameters_stay_finite(self, name, extreme):
        likelihood = LIKELIHOODS[name]()
        parameters = torch.full((1, likelihood.params, 16, 16), extreme, requires_grad=True)
        p = likelihood(parameters)
        log_prob = p.log_prob(LEVELS.float().view(1, 1, 16, 16))
        (gradient,) = torch.autograd.grad(log_prob, parameters)
        assert torch.isfinite(torch.cat([log_prob, gradient.flatten(), p.mean.detach().flatten()])).all()

    def test_the_gradient_is_that_of_finite_differences(self, name):
        likelihood, x = LIKELIHOODS[name]().double(), images(2, 1, 2, 3)
        parameters = randn(2, likelihood.params, 2, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda p: likelihood(p).log_prob(x), parameters)


def test_bernoulli_is_minus_binary_cross_entropy():
    logits, x = randn(2, 3, 4, 4), images(2, 3, 4, 4)
    expected = -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli()(logits).log_prob(x), expected)


class TestBernoulli:
    @given(
        st.integers(1, 150),
        st.integers(0, 2**32 - 1),
        st.sampled_from([0.1, 3.0, 40.0]),
        st.sampled_from(["grey", "binary"]),
    )
    def test_groups_of_any_size_and_logits_of_any(self, width, seed, spread, kind):
        """Against the sum of torch's own terms in float64, gradients too."""
        generator = torch.Generator().manual_seed(seed)
        logits = spread * torch.randn(2, 1, 1, width, generator=generator)
        x = torch.rand(logits.shape, generator=generator)
        x = x.round() if kind == "binary" else x
        ours, theirs = (logits.clone().requires_grad_(), logits.double().requires_grad_())
        expected = -F.binary_cross_entropy_with_logits(theirs, x.double(), reduction="none").flatten(1).sum(1)
        found = Bernoulli()(ours).log_prob(x)
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-5)
        for loss in (found, expected):
            (loss * torch.tensor([1.0, -2.0])).sum().backward()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-6, atol=1e-6)

    def test_nothing_cancels_for_black_and_white(self):
        """A thousand sure pixels of logit 30: torch's sum of terms and the closed form agree, digit for digit."""
        x = (torch.arange(1000) % 2).float().view(1, 1, 10, 100)
        expected = -1000 * torch.log1p(torch.exp(torch.tensor(-15.0, dtype=torch.float64))).item()
        found = Bernoulli()(15 * (2 * x - 1)).log_prob(x).item()
        assert found == pytest.approx(expected, abs=1e-4)

    def test_second_derivatives_and_those_of_pixels(self):
        logits, x = randn(2, 1, 2, 3).requires_grad_(), images(2, 1, 2, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda given, x: Bernoulli()(given).log_prob(x), (logits, x))
        assert torch.autograd.gradgradcheck(lambda given, x: Bernoulli()(given).log_prob(x), (logits, x))

    def test_functional_transforms(self):
        logits, x = randn(4, 1, 2, 3), images(4, 1, 2, 3)
        each = torch.func.vmap(torch.func.grad(lambda one, own: Bernoulli()(one[None]).log_prob(own[None])[0]))
        torch.testing.assert_close(each(logits, x), x - logits.sigmoid())

    def test_images_broadcast(self):
        p, x = Bernoulli()(randn(3, 1, 2, 2)), images(1, 1, 2, 2)
        torch.testing.assert_close(p.log_prob(x), p.log_prob(x.expand(3, 1, 2, 2)))
        assert p.expand((5, 3)).log_prob(x).shape == (5, 3)


class TestContinuousBernoulli:
    def test_it_is_torch_s_where_that_one_is_exact(self):
        logits, x = torch.linspace(-12, 12, 1001).double().view(1, 1, 7, 143), images(1, 1, 7, 143)
        ours = ContinuousBernoulli()(logits)
        theirs = torch.distributions.ContinuousBernoulli(logits=logits, validate_args=False)
        # torch's Taylor series near logit 0 and its clamped probabilities cost it some digits.
        torch.testing.assert_close(ours.base_dist.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-7)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-7)

    @pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-9)])
    @pytest.mark.parametrize("logit", [0.0, 1e-6, 0.01, 0.249, 0.251, 1.0, 8.0, 16.0, 30.0, 100.0])
    def test_density_mean_and_gradient_by_quadrature(self, dtype, error, logit):
        """Gauss-Legendre nodes integrate e^(lx) on [0, 1] to machine precision."""
        nodes, weights = (torch.tensor(v) / 2 for v in np.polynomial.legendre.leggauss(100))
        x = (nodes + 0.5).to(dtype)
        for sign in (1, -1):
            logits = torch.full((1, 1, 1, 1), sign * logit, dtype=dtype, requires_grad=True)
            p = ContinuousBernoulli()(logits)
            density = p.log_prob(x.view(-1, 1, 1, 1)).double().exp()
            assert (density * weights).sum().item() == pytest.approx(1, abs=error)
            assert p.mean.item() == pytest.approx((density * weights * x).sum().item(), abs=error)
            (gradient,) = torch.autograd.grad(p.log_prob(x[:1].view(1, 1, 1, 1)), logits)
            # exponential family: d log p / d logit = x - mean
            assert gradient.item() == pytest.approx((x[0] - p.mean).item(), abs=error)


class TestDiscretizedLogistic:
    def levels(self, *parameters):
        """Log-probabilities of the 256 levels for these two raw parameters."""
        raw = torch.tensor(parameters, dtype=torch.float64).view(1, 2, 1, 1).expand(256, 2, 1, 1)
        return DiscretizedLogistic()(raw).log_prob(LEVELS.view(-1, 1, 1, 1))

    @pytest.mark.parametrize("location", [-1e3, -3.0, -2.0, 0.0, 0.3, 2.0, 1e3])
    @pytest.mark.parametrize("log_scale", [-50.0, -4.0, 0.0, 3.0, 50.0])
    def test_the_levels_sum_to_one(self, location, log_scale):
        assert self.levels(location, log_scale).exp().sum().item() == pytest.approx(1, abs=1e-10)

    @pytest.mark.parametrize(("location", "log_scale"), [(0.0, 0.0), (1.7, -1.0), (-2.4, 1.0), (0.5, 3.0)])
    def test_it_is_the_difference_of_logistic_cdfs(self, location, log_scale):
        """As the docstring has it, with mu = 1/2 + location / 4 and s = exp(log_scale) / 10."""
        mu, s = 0.5 + location / 4, math.exp(log_scale) / 10
        upper, lower = (((LEVELS + half - mu) / s).sigmoid() for half in (1 / 510, -1 / 510))
        upper[-1], lower[0] = 1, 0
        torch.testing.assert_close(self.levels(location, log_scale).exp(), upper - lower, rtol=1e-9, atol=1e-14)

    @given(st.floats(-6, 6), st.floats(-6, 6))
    @settings(deadline=None)
    def test_the_mean_is_within_half_a_level_of_the_exact_one(self, location, log_scale):
        exact = (self.levels(location, log_scale).exp() * LEVELS).sum().item()
        mean = DiscretizedLogistic()(torch.tensor([location, log_scale]).view(1, 2, 1, 1)).mean.item()
        assert abs(mean - exact) <= 0.5 / 255 + 1e-5

    def test_the_mean_is_that_of_the_clipped_logistic(self):
        """By quadrature of P(X > t) over [0, 1]; finer than half a level."""
        raw = torch.tensor([[0.7, -0.3], [-3.0, 1.0], [2.0, 2.0]]).double().view(3, 2, 1, 1)
        mu, s = 0.5 + raw[:, 0] / 4, raw[:, 1].exp() / 10
        t = torch.linspace(0, 1, 100_001).double().view(1, 1, -1)
        exact = torch.trapezoid(((mu - t) / s).sigmoid(), t.flatten(), dim=-1)
        torch.testing.assert_close(DiscretizedLogistic()(raw).mean.flatten(), exact.flatten(), rtol=0, atol=1e-8)

    def test_the_scale_is_bounded(self):
        """Within exp(-8) and exp(4), whatever the decoder says."""
        scales = DiscretizedLogistic()(torch.tensor([[0.0, -99.0], [0.0, 99.0]]).view(2, 2, 1, 1)).scale
        torch.testing.assert_close(scales.flatten(), torch.tensor([-8.0, 4.0]).exp())

    def test_float32_is_as_good_as_float64(self):
        """Within 1e-4 nats a pixel, far in the tails included."""
        raw, x = 3 * randn(4, 2, 16, 16), images(4, 1, 16, 16)
        single = DiscretizedLogistic()(raw.float()).level_log_prob(x.float()).double()
        torch.testing.assert_close(single, DiscretizedLogistic()(raw).level_log_prob(x), rtol=1e-4, atol=1e-4)


class TestGaussianLikelihood:
    def test_log_prob_is_the_formula(self):
        logits, x = randn(2, 3, 4, 4), images(2, 3, 4, 4)
        expected = -((x - logits.sigmoid()) ** 2) / (2 * 0.2**2) - math.log(0.2) - 0.5 * math.log(2 * math.pi)
        p = likelihoods.Gaussian(0.2)(logits)
        torch.testing.assert_close(p.log_prob(x), expected.flatten(1).sum(1))
        assert torch.equal(p.mean, logits.sigmoid())

    def test_pixel_takes_logits_then_log_scales(self):
        raw, x = randn(2, 6, 4, 4), images(2, 3, 4, 4)
        expected = torch.distributions.Normal(raw[:, :3].sigmoid(), raw[:, 3:].exp()).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(likelihoods.Gaussian("pixel")(raw).log_prob(x), expected)

    def test_shared_learns_its_scale(self):
        """d(-log p)/d log s = D - SSE / s^2, which vanishes at the root mean squared error."""
        likelihood, logits, x = likelihoods.Gaussian("shared").double(), randn(2, 3, 4, 4), images(2, 3, 4, 4)
        squares = (x - logits.sigmoid()).square().sum().item()
        for log_scale in (0.0, -1.0, 0.5 * math.log(squares / 96)):
            likelihood.log_scale.data.fill_(log_scale)
            (gradient,) = torch.autograd.grad(-likelihood(logits).log_prob(x).sum(), likelihood.log_scale)
            assert gradient.item() == pytest.approx(96 - squares * math.exp(-2 * log_scale), abs=1e-10)

    def test_optimal_has_the_gradient_of_the_analytic_variance(self):
        """sigma-VAE (Rybkin et al., 2021): the loss D/2 log MSE, D numbers in the batch."""
        likelihood, x = likelihoods.Gaussian("optimal").double(), images(2, 3, 4, 4)
        logits = randn(2, 3, 4, 4).requires_grad_()
        likelihood.observe(logits, x)
        (ours,) = torch.autograd.grad(-likelihood(logits).log_prob(x).sum(), logits)
        analytic = x.numel() / 2 * (logits.sigmoid() - x).square().mean().log()
        torch.testing.assert_close(ours, torch.autograd.grad(analytic, logits)[0])

    def test_optimal_averages_the_first_hundred_batches_and_then_moves_by_a_hundredth(self):
        likelihood = likelihoods.Gaussian("optimal").double()
        errors = []
        for k in range(102):
            logits, x = randn(1, 1, 4, 4, seed=k), images(1, 1, 4, 4, seed=k)
            likelihood.observe(logits, x)
            errors.append((logits.sigmoid() - x).square().mean().item())
            if k < 100:
                assert likelihood.variance.item() == pytest.approx(np.mean(errors), rel=1e-12)
        expected = 0.99 * (0.99 * np.mean(errors[:100]) + 0.01 * errors[100]) + 0.01 * errors[101]
        assert likelihood.variance.item() == pytest.approx(expected, rel=1e-12)

    def test_optimal_survives_a_perfect_reconstruction(self):
        likelihood = likelihoods.Gaussian("optimal")
        likelihood.observe(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5))
        assert likelihood(torch.zeros(1, 1, 2, 2)).stddev.unique().item() == pytest.approx(1 / 255)

    @pytest.mark.parametrize("kind", [likelihoods.Gaussian, likelihoods.Laplace])
    def test_a_constant_pixel_earns_the_same_as_it_is_and_dequantised(self, kind):
        """Where the scale could shrink below a grey level, only the pixel as it is would earn from it."""
        grey, u = torch.full((1, 1, 40, 40), 100 / 255), images(1, 1, 40, 40)
        location = grey.logit() if kind is likelihoods.Gaussian else 2 * grey - 1
        raw = torch.cat([location.double(), torch.full((1, 1, 40, 40), -20.0).double()], 1)
        for p in (kind("pixel")(raw), kind(1 / 255)(location.double())):
            plain, dithered = p.log_prob(grey.double()), p.log_prob(grey.double() + (u - 0.5) / 255)
            assert 0 < (plain - dithered).item() / 1600 < (0.05 if kind is likelihoods.Gaussian else 0.26)

    def test_observing_leaves_other_scales_alone(self):
        for scale in (0.3, "shared", "pixel"):
            likelihood = likelihoods.Gaussian(scale)
            before = {k: v.clone() for k, v in likelihood.state_dict().items()}
            likelihood.observe(torch.zeros(1, likelihood.params, 2, 2), torch.ones(1, 1, 2, 2))
            assert likelihood.state_dict() == before

    @pytest.mark.parametrize("scale", [0, -1.0, math.nan, "optimum", ""])
    def test_other_scales_are_refused(self, scale):
        with pytest.raises(ValueError, match=f"positive scale, 'shared', 'pixel' or 'optimal'; got {scale!r}"):
            likelihoods.Gaussian(scale)


class TestLaplace:
    """Its location is the network's output itself, in units of [-1, 1]."""

    def test_it_is_torchs_density(self):
        output, x = randn(4, 3, 8, 8), images(4, 3, 8, 8)
        expected = torch.distributions.Laplace((1 + output) / 2, 0.07).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(likelihoods.Laplace(0.07)(output).log_prob(x), expected)

    def test_it_integrates_to_one(self):
        """On either side of its kink, where a grid is exact enough."""
        output, b = 0.3, 0.05
        p = likelihoods.Laplace(b)(torch.full((40_000, 1, 1, 1), output, dtype=torch.float64))
        centre = (1 + output) / 2
        for low, high in ((centre - 30 * b, centre), (centre, centre + 30 * b)):
            x = torch.linspace(low, high, 40_000, dtype=torch.float64)
            mass = torch.trapezoid(p.log_prob(x.reshape(-1, 1, 1, 1)).exp(), x)
            assert mass.item() == pytest.approx(0.5, abs=1e-6)

    def test_a_scale_for_every_pixel(self):
        output, log_scales, x = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=2), images(2, 1, 4, 4)
        found = likelihoods.Laplace("pixel")(torch.cat([output, log_scales], 1)).log_prob(x)
        pixels = torch.distributions.Laplace((1 + output) / 2, log_scales.exp()).log_prob(x)
        torch.testing.assert_close(found, pixels.sum((1, 2, 3)))

    def test_the_optimal_scale_is_the_mean_absolute_error(self):
        likelihood, output, x = likelihoods.Laplace("optimal").double(), randn(5, 1, 4, 4), images(5, 1, 4, 4)
        likelihood.observe(output, x)
        error = ((1 + output) / 2 - x).abs().mean()
        torch.testing.assert_close(likelihood.best_scale(), error)
        best = likelihood(output).log_prob(x).sum()
        for other in (0.9, 1.1):
            assert likelihoods.Laplace(float(other * error))(output).log_prob(x).sum() < best

    def test_what_is_shown_is_an_image(self):
        mean = likelihoods.Laplace(0.1)(torch.tensor([-3.0, 0.0, 3.0]).reshape(1, 1, 1, 3)).mean
        assert mean.flatten().tolist() == [0.0, 0.5, 1.0]

    def test_it_draws_no_attention_to_outliers(self):
        """Its gradient does not grow with the error."""
        output = torch.tensor([0.0, 10.0]).reshape(2, 1, 1, 1).requires_grad_()
        likelihoods.Laplace(0.1)(output).log_prob(torch.zeros(2, 1, 1, 1)).sum().backward()
        assert output.grad.flatten().tolist() == pytest.approx([-5.0, -5.0])


def test_bernoulli_sums_over_pixels_alone():
    """Whatever stands before them: draws, images of a batch."""
    x, logits = torch.rand(2, 3, 1, 4, 5), torch.randn(2, 3, 1, 4, 5)
    found = likelihoods.BernoulliLogProb.apply(logits, x)
    assert found.shape == (2, 3)
    assert torch.allclose(found, -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((2, 3, 4)))
