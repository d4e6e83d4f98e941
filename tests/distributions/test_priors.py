"""Priors fitted after training: densities that integrate to one, draws that follow them, fits that find clusters."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import condgen
from condgen.distributions.likelihoods import Laplace
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import Clusters, GaussianMixture, packed, unpacked
from condgen.distributions.priors.normalizing_flow import Flow
from condgen.distributions.priors.standard import LabelNormal, Levels, StandardNormal
from condgen.nn import conditioners, velocities
from condgen.nn.velocities import MLPVelocity, ResNetVelocity, attended
from condgen.training.fit_prior import encode_latents


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_classes(n=2000):
    """Class 0 is two clusters with covariances of their own, class 1 one long one."""
    first = randn(n, 2) * 0.3 + torch.tensor([3.0, 0.0]) * torch.sign(randn(n, 1, seed=1))
    second = randn(n, 2, seed=2) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]], dtype=torch.float64) + 5
    return torch.cat([first, second]), torch.eye(2, dtype=torch.float64).repeat_interleave(n, 0)


@pytest.fixture(scope="module")
def fitted():
    prior = GaussianMixture(2, condition_dim=2, components=4, shrinkage=0.1).double()
    prior.fit(*two_classes())
    return prior


class TestGaussianMixture:
    def test_unfitted_it_is_the_standard_normal(self):
        prior, z = GaussianMixture(3, condition_dim=2, components=4), torch.randn(5, 3)
        expected = StandardNormal(3)(torch.zeros(5, 2)).log_prob(z)
        torch.testing.assert_close(prior(torch.eye(2)[[0, 1, 0, 1, 0]]).log_prob(z), expected)
        noise = torch.randn(5, 4)
        torch.testing.assert_close(prior.draw(torch.eye(2)[[0] * 5], noise), noise[:, 1:])

    @pytest.mark.slow
    def test_it_integrates_to_one(self, fitted):
        steps = torch.linspace(-12, 12, 601, dtype=torch.float64)
        z = torch.cartesian_prod(steps, steps)
        for label in (0, 1):
            c = torch.eye(2, dtype=torch.float64)[label].expand(len(z), 2)
            mass = fitted(c).log_prob(z).exp().sum() * (steps[1] - steps[0]) ** 2
            assert mass.item() == pytest.approx(1.0, abs=2e-3)

    def test_its_density_is_torchs(self, fitted):
        """Another route: torch's mixture of the same components, in standardised latents."""
        z, c = randn(20, 2, seed=5) * 3, torch.eye(2, dtype=torch.float64)[[0, 1] * 10]
        groups = fitted._groups(c)
        factors = unpacked(fitted.triangles, 2)
        factors = torch.where(fitted.weights[..., None, None] > 0, factors, torch.eye(2, dtype=torch.float64))
        mixture = MixtureSameFamily(
            Categorical(probs=fitted.weights[groups]),
            MultivariateNormal(fitted.means[groups], scale_tril=factors[groups]),
        )
        expected = mixture.log_prob((z - fitted.scale.offset) / fitted.scale.spread) - fitted.scale.spread.log().sum()
        torch.testing.assert_close(fitted(c).log_prob(z), expected)

    def test_draws_follow_it(self, fitted):
        z, c = two_classes()
        for label in (0, 1):
            own = torch.eye(2, dtype=torch.float64)[label].expand(20_000, 2)
            drawn, real = fitted.draw(own, randn(20_000, 3, seed=9 + label)), z[c[:, label] == 1]
            torch.testing.assert_close(drawn.mean(0), real.mean(0), atol=0.15, rtol=0)
            torch.testing.assert_close(drawn.T.cov(), real.T.cov(), atol=0.35, rtol=0)
            p = fitted(own[:1])
            torch.testing.assert_close(p.mean[0], drawn.mean(0), atol=0.1, rtol=0)
            torch.testing.assert_close(p.variance[0], drawn.var(0), atol=0.3, rtol=0)

    def test_a_component_is_chosen_by_the_normal_that_falls_in_its_share(self, fitted):
        """Noise at a quantile of the normal belongs to the component whose weights, added up, reach that quantile."""
        normal = torch.distributions.Normal(*torch.tensor([0.0, 1.0], dtype=torch.float64))
        c = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        group = int(fitted._groups(c))
        weights, ends = fitted.weights[group], fitted.weights[group].cumsum(0)
        for component in weights.nonzero()[:, 0].tolist():
            first, last = ends[component] - weights[component], ends[component]
            within = normal.icdf(torch.stack([0.99 * first + 0.01 * last, 0.01 * first + 0.99 * last]))
            assert fitted.choose(c.expand(2, 2), within).tolist() == [group * fitted.components + component] * 2

    def test_both_clusters_are_found(self, fitted):
        drawn = fitted.draw(torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(5000, 2), randn(5000, 3, seed=3))
        assert ((drawn[:, 0].abs() - 3).abs() < 1.2).double().mean() > 0.98  # hardly one lies between them
        assert 0.4 < (drawn[:, 0] > 0).double().mean() < 0.6

    def test_a_draw_does_not_depend_on_its_batch(self, fitted):
        c, noise = torch.eye(2, dtype=torch.float64)[[0, 1] * 32], randn(64, 3, seed=4)
        whole = fitted.draw(c, noise)
        assert torch.equal(whole[10:20], fitted.draw(c[10:20], noise[10:20]))

    def test_fitting_repeats(self):
        first, second = (GaussianMixture(2, 2, components=3).double() for _ in range(2))
        first.fit(*two_classes(300), seed=1)
        second.fit(*two_classes(300), seed=1)
        assert torch.equal(first.triangles, second.triangles)

    def test_expectation_maximisation_raises_the_likelihood(self):
        z, c = two_classes(500)
        found = []
        for em in (0, 20):
            prior = GaussianMixture(2, 2, components=4, shrinkage=0.0, em=em).double()
            prior.fit(z, c)
            found.append(prior(c).log_prob(z).mean())
        assert found[1] > found[0]

    def test_maps_have_the_density_of_their_cells(self):
        z = randn(300, 2, 2, 3) * torch.tensor([1.0, 3.0])[:, None, None]
        prior = GaussianMixture((2, 2, 3), condition_dim=0, components=1).double()
        prior.fit(z, torch.zeros(300, 0, dtype=torch.float64))
        flat = GaussianMixture(12, condition_dim=0, components=1).double()
        flat.fit(z.flatten(1), torch.zeros(300, 0, dtype=torch.float64))
        c = torch.zeros(300, 0, dtype=torch.float64)
        assert prior.draw(c, randn(300, 13)).shape == (300, 2, 2, 3)
        difference = prior(c).log_prob(z).mean() - flat(c).log_prob(z.flatten(1)).mean()
        assert abs(difference) < 0.2  # channels are standardised together, which shrinks a little differently

    def test_a_class_of_few_images_has_few_components(self):
        found = Clusters.of(randn(30, 50).numpy(), 16, 0)
        covariances = found.shrunk(0.3, 0.0, np.eye(50))
        assert len(found.sizes) == 1
        assert torch.linalg.eigvalsh(torch.as_tensor(covariances)).min() > 1e-3

    def test_other_conditions_count_as_the_nearest(self, fitted):
        z = randn(1, 2)
        near, exact = (fitted(torch.tensor([c], dtype=torch.float64)).log_prob(z) for c in ([0.9, 0.2], [1.0, 0.0]))
        assert torch.equal(near, exact)

    @pytest.mark.parametrize("options", [{"components": 0}, {"shrinkage": 1.5}, {"em": -1}])
    def test_numbers_out_of_range(self, options):
        with pytest.raises(ValueError, match="components of 1 or more, shrinkage in"):
            GaussianMixture(2, 2, **options)

    def test_what_cannot_be_fitted(self):
        with pytest.raises(ValueError, match="Expected finite latents"):
            GaussianMixture(2, 2).fit(torch.full((50, 2), math.nan), torch.eye(2).repeat(25, 1))
        with pytest.raises(ValueError, match="at most 2 different conditions; got 50"):
            GaussianMixture(2, 2).fit(torch.randn(50, 2), torch.randn(50, 2))

    def test_triangles(self):
        matrix = torch.randn(3, 4, 4).tril()
        assert torch.equal(unpacked(packed(matrix), 4), matrix)


class TestFlow:
    @pytest.fixture(scope="class")
    @staticmethod
    def flow():
        pytest.importorskip("zuko")
        torch.manual_seed(0)
        prior = Flow(2, condition_dim=2, transforms=2, hidden=(32,))
        z, c = two_classes()
        z, c = z.float(), c.float()
        prior.standardise(z)
        optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            (-prior(c).log_prob(z).mean()).backward()
            optimizer.step()
        return prior

    @pytest.mark.slow
    def test_it_integrates_to_one(self, flow):
        steps = torch.linspace(-14, 14, 401)
        z = torch.cartesian_prod(steps, steps)
        with torch.no_grad():
            mass = flow(torch.eye(2)[1].expand(len(z), 2)).log_prob(z).exp().sum() * (steps[1] - steps[0]) ** 2
        assert mass.item() == pytest.approx(1.0, abs=0.02)

    def test_draws_follow_it(self, flow):
        z, c = two_classes()
        with torch.no_grad():
            drawn = flow.draw(torch.eye(2)[1].expand(4000, 2), torch.randn(4000, 2))
        torch.testing.assert_close(drawn.mean(0).double(), z[c[:, 1] == 1].mean(0), atol=0.25, rtol=0)

    def test_a_draw_and_its_noise_have_one_density(self, flow):
        """The change of volume, by autograd."""
        c, noise = torch.eye(2)[[0, 1]], torch.randn(2, 2)
        jacobians = torch.autograd.functional.jacobian(lambda n: flow.draw(c, n).sum(0), noise)
        volume = torch.linalg.det(jacobians.transpose(0, 1)).abs().log()
        base = StandardNormal(2)(c).log_prob(noise)
        torch.testing.assert_close(flow(c).log_prob(flow.draw(c, noise)), base - volume, atol=1e-3, rtol=1e-3)

    def test_without_zuko_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "zuko", None)
        with pytest.raises(ImportError, match=r'pip install "condgen\[flows\]"'):
            Flow(2, 2)


class TestLevels:
    def test_each_level_has_its_prior(self):
        prior = Levels([StandardNormal(3), LabelNormal((2, 4, 4), 5)])
        first, second = prior(torch.zeros(6, 5))
        assert (first.event_shape, second.event_shape) == ((3,), (2, 4, 4))
        noise = torch.randn(6, 3), torch.randn(6, 2, 4, 4)
        assert all(map(torch.equal, prior.draw(torch.zeros(6, 5), noise), noise))


def test_a_label_normal_of_a_map_is_the_same_at_every_place():
    prior = LabelNormal((2, 3, 3), condition_dim=2)
    with torch.no_grad():
        prior.linear.weight[0, 0] = 2.0
    mean = prior(torch.eye(2)).mean
    assert mean[0, 0].eq(2).all()
    assert mean[0, 1].eq(0).all()
    assert mean[1].eq(0).all()


class TestFitPrior:
    @pytest.fixture(scope="class")
    @staticmethod
    def trained():
        """A model of images that a straight line of latents makes, away from the standard normal."""
        images = condgen.load_smears(400, size=16)
        torch.manual_seed(0)
        model = condgen.conditional_vae((3, 16, 16), 8, latent=(2, 4, 4), width=8, likelihood=Laplace("optimal"))
        condgen.fit(model, images, epochs=3, batch_size=32, progress=False, accelerator="cpu")
        return model, images

    def test_encoding_takes_every_symmetry(self, trained):
        model, images = trained
        z, c = encode_latents(model, images.train, symmetries=True)
        assert (z.shape, c.shape) == ((8 * len(images.train), 2, 4, 4), (8 * len(images.train), 8))
        flipped = images.train.images[..., ::-1].copy()
        posterior = model.eval().posterior(model.images(flipped), model.labels(images.train.labels))
        with torch.no_grad():
            error = (z[len(images.train) : 2 * len(images.train)] - posterior.mean) / posterior.stddev
        assert abs(error.std() - 1) < 0.05

    @pytest.mark.parametrize("kind", ["mixture", "flow"])
    def test_samples_come_from_it_and_are_saved_with_the_model(self, kind, trained, tmp_path):
        model, images = trained
        if kind == "flow":
            pytest.importorskip("zuko")
            prior = Flow((2, 4, 4), 8, kind="NICE", transforms=2, hidden=(16,))
        else:
            prior = GaussianMixture((2, 4, 4), condition_dim=8, components=2)
        before = model.sample([0, 1])
        held_out = encode_latents(model, images.validation, seed=5)
        fitted = condgen.fit_prior(model, images, prior, epochs=60, batch_size=64, progress=False, accelerator="cpu")
        assert model.sampler is fitted
        with torch.no_grad():
            densities = [p(held_out[1]).log_prob(held_out[0]).mean() for p in (fitted, model.prior)]
        assert densities[0] > densities[1]
        drawn = model.sample([0, 1] * 40, seed=1)
        assert not torch.equal(drawn[:2], before)
        assert torch.equal(drawn[10:20], model.sample([0, 1] * 5, seed=1, start=10))
        again = condgen.load(condgen.save(model, tmp_path))
        assert torch.equal(again.sample([0, 1] * 40, seed=1), drawn)
        assert repr(again) == repr(model)
        model.sampler = None

    def test_temperature_does_not_touch_the_choice_of_component(self, trained):
        model, images = trained
        condgen.fit_prior(model, images, GaussianMixture((2, 4, 4), 8, components=2), progress=False)
        z = []
        model.decoder.register_forward_pre_hook(lambda _, given: z.append(given[0].clone()))
        model.sample([3] * 64, temperature=0.0)
        assert 1 < len(torch.unique(z[0].flatten(1), dim=0)) <= 2  # the means of the components
        model.decoder._forward_pre_hooks.clear()
        model.sampler = None

    def test_likelihood_is_under_what_is_sampled(self, trained):
        model, images = trained
        x, y = images.validation.images, images.validation.labels
        before = model.log_likelihood(x, y, samples=4).mean()
        condgen.fit_prior(model, images, GaussianMixture((2, 4, 4), 8, components=2), progress=False)
        assert model.log_likelihood(x, y, samples=4).mean() > before
        model.sampler = None

    def test_one_that_only_draws(self, trained):
        model, images = trained

        class Still(torch.nn.Module):
            noise_shape = (2, 4, 4)

            def draw(self, c, noise):
                return 0 * noise

        model.sampler = Still()
        assert model.sample([0, 0]).diff(dim=0).abs().max() == 0
        with pytest.raises(ValueError, match=r"Still only draws\. Set model.sampler = None"):
            model.log_likelihood(images.images[:2], images.labels[:2])
        model.sampler = None

    def test_another_shape_is_refused(self, trained):
        model, images = trained
        with pytest.raises(ValueError, match=r"latents of shape \(2, 4, 4\).*draws \(3,\)"):
            condgen.fit_prior(model, images, GaussianMixture(3, 8), progress=False)


class Still(nn.Module):
    """A field that moves nothing."""

    def forward(self, z, t, c, component, dropped):
        return 0 * z


class Straight(torch.nn.Module):
    """The velocity from a standard normal to N(mean, spread^2), known in closed form."""

    mean, spread = torch.tensor([2.0, -1.0], dtype=torch.float64), 0.5

    def forward(self, z, t, c, component, dropped):
        t = t[:, None]
        variance = (1 - t) ** 2 + t**2 * self.spread**2
        return self.mean + (t * self.spread**2 - (1 - t)) / variance * (z - t * self.mean)


class Wavy(torch.nn.Module):
    """Any smooth velocity, different for each condition and component."""

    def forward(self, z, t, c, component, dropped):
        angle = z.flip(1) + t[:, None] + component[:, None] + c.sum(1, keepdim=True)
        return 0.5 * torch.sin(angle) * (1 - 0.7 * dropped[:, None])


@pytest.mark.parametrize("places", [1, 49, velocities.FEW, velocities.FEW + 1])
def test_attention_written_out_is_pytorchs(places):
    """Values and slopes, on either side of the number of places where the way of computing it changes."""
    q, k, v, wanted = (randn(2, 3, places, 8, seed=seed).requires_grad_(seed < 3) for seed in range(4))
    own, theirs = attended(q, k, v), torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(own, theirs, atol=1e-10, rtol=0)
    slopes = (torch.autograd.grad(out, (q, k, v), wanted) for out in (own, theirs))
    for slope, other in zip(*slopes, strict=True):
        torch.testing.assert_close(slope, other, atol=1e-10, rtol=0)


def matching_prior(velocity, source=None, **options):
    return FlowMatching(2, 2, source or StandardNormal(2), velocity, **options).double()


def clustered():
    """Two components a class, far from each other."""
    source = GaussianMixture(2, condition_dim=2, components=2, shrinkage=0.0).double()
    source.fit(*two_classes(400))
    return source


@pytest.mark.parametrize("heads", [3, -1])
def test_heads_that_do_not_divide_the_channels(heads):
    with pytest.raises(ValueError, match=f"heads that divide the 8 channels of the attention; got {heads} heads"):
        ResNetVelocity((2, 4, 4), 8, width=8, depth=3, heads=heads)
    with pytest.raises(ValueError, match="divide the 10 channels"):
        condgen.conditional_flow((1, 8, 8), 2, widths=(8, 10), heads=4)


class TestFlowMatching:
    def test_the_known_field_carries_the_normal_to_its_target(self):
        prior, noise = matching_prior(Straight(), steps=64), randn(500, 2)
        expected = Straight.mean + Straight.spread * noise  # the monotone map
        torch.testing.assert_close(prior.draw(torch.zeros(500, 2), noise), expected, rtol=0, atol=2e-3)

    def test_the_density_is_that_of_the_target(self):
        prior, z = matching_prior(Straight(), density=True, steps=64), Straight.mean + 0.5 * randn(50, 2)
        target = MultivariateNormal(Straight.mean, Straight.spread**2 * torch.eye(2, dtype=torch.float64))
        found = prior(torch.zeros(50, 2, dtype=torch.float64)).log_prob(z)
        torch.testing.assert_close(found, target.log_prob(z), rtol=0, atol=2e-2)

    @pytest.mark.parametrize("mixture", [False, True])
    def test_a_density_integrates_to_one(self, mixture):
        source = clustered() if mixture else None
        prior = matching_prior(Wavy(), source, density=True)
        prior.scale.offset.copy_(torch.tensor([1.0, -1.0]))
        prior.scale.spread.copy_(torch.tensor([2.0, 0.5]))
        steps = torch.linspace(-16, 16, 161, dtype=torch.float64)
        z = torch.cartesian_prod(steps, steps)
        c = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(len(z), 2)
        mass = prior(c).log_prob(z).exp().sum() * (steps[1] - steps[0]) ** 2
        assert mass.item() == pytest.approx(1, abs=0.02)

    def test_a_density_of_many_latents_is_estimated_without_bias(self):
        """A linear field's divergence is known: errors differ from latent to latent and are as large as is said."""
        dim = 300

        class Linear(nn.Module):
            def __init__(self):
                super().__init__()
                generator = torch.Generator().manual_seed(0)
                self.matrix = nn.Parameter(torch.randn(dim, dim, generator=generator).double() / dim)

            def forward(self, z, t, c, component, dropped):
                return z @ self.matrix.T

        prior = FlowMatching(dim, 2, velocity=Linear(), density=True).double()
        z, c = randn(40, dim), torch.zeros(40, 2, dtype=torch.float64)
        distribution = prior(c)
        found = distribution.log_prob(z)
        steps = distribution.STEPS
        step = torch.eye(dim).double() - prior.velocity.matrix.detach() / steps
        inverse = torch.linalg.matrix_power(step + (step @ step - 2 * step + torch.eye(dim)).div(2), steps)
        expected = StandardNormal(dim)(c).log_prob(z @ inverse.T) - prior.velocity.matrix.detach().trace()
        errors = found - expected
        assert errors.unique().numel() == 40
        assert errors.abs().mean() < 2 * distribution.error.mean()
        assert errors.mean().abs() < 4 * errors.std() / 40**0.5

    def test_validation_latents_reach_the_source(self):
        class Source(StandardNormal):
            def fit(self, z, c, seed=0, validation=None):
                self.given = validation

        prior, others = FlowMatching(2, 2, Source(2)), (torch.ones(3, 2), torch.zeros(3, 2))
        prior.prepare(torch.randn(5, 2), torch.zeros(5, 2), 0, others)
        assert prior.source.given is others

    def test_each_symmetry_of_an_image_has_noise_of_its_own(self):
        images = condgen.load_smears(12, size=16)
        model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=4)
        for parameter in model.encoder.parameters():
            nn.init.zeros_(parameter)  # the posterior is the standard normal, whatever the image
        z, _ = encode_latents(model, images, symmetries=True)
        assert len(z.unique(dim=0)) == 8 * len(images)

    def test_a_missing_label_is_drawn_from_all_classes_by_their_share(self):
        """And its density is the mixture of theirs."""
        torch.manual_seed(0)
        dropout = conditioners.LabelDropout(conditioners.OneHot(2), 0.1)
        y = (torch.arange(400) % 4 == 0).long()
        z = torch.randn(400, 2) + 6.0 * y[:, None]
        mixture = GaussianMixture(2, 3, components=2, classes=2)
        mixture.fit(z, dropout(y))
        missing = dropout(torch.tensor([-1])).expand(2000, 3)
        for prior in (mixture, FlowMatching(2, 3, mixture, velocity=Still(), density=True)):
            drawn = prior.draw(missing, torch.randn(2000, *prior.noise_shape))
            assert (drawn[:, 0] > 3).double().mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)
            some, classes = z[::40], (dropout(torch.full((10,), k)) for k in (0, 1))
            parts = [prior(c).log_prob(some) + math.log(share) for c, share in zip(classes, (0.75, 0.25), strict=True)]
            whole = prior(missing[:10]).log_prob(some)
            torch.testing.assert_close(whole, torch.stack(parts).logsumexp(0), rtol=1e-4, atol=1e-4)
        again = GaussianMixture(**mixture.arguments)
        again.load_state_dict(mixture.state_dict())
        noise = torch.randn(50, 3)
        assert torch.equal(again.draw(missing[:50], noise), mixture.draw(missing[:50], noise))

    def test_heun_is_of_second_order_and_euler_of_first(self):
        c, noise, errors = torch.zeros(40, 2), randn(40, 2), {}
        exact = matching_prior(Wavy(), steps=512).draw(c, noise)
        for solver in ("euler", "heun"):
            found = [matching_prior(Wavy(), steps=k, solver=solver).draw(c, noise) for k in (8, 16)]
            errors[solver] = [(one - exact).abs().mean().item() for one in found]
        assert errors["euler"][0] / errors["euler"][1] == pytest.approx(2, rel=0.2)
        assert errors["heun"][0] / errors["heun"][1] == pytest.approx(4, rel=0.3)

    def test_guidance_is_linear(self):
        z, c, component = randn(5, 2), torch.eye(2, dtype=torch.float64)[[0, 1, 0, 1, 1]], torch.arange(5)
        time, known = torch.full((5,), 0.3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        of_class, of_none = (Wavy()(z, time, c, component, known + k) for k in (0, 1))
        found = matching_prior(Wavy(), guidance=0.7).field(z, 0.3, c, component)
        torch.testing.assert_close(found, of_class + 0.7 * (of_class - of_none))

    def test_latents_are_paired_within_their_component(self):
        prior, (z, c) = matching_prior(Wavy(), clustered()), two_classes(100)
        component = prior.prepare(z, c)
        assert component[:100].unique().numel() == 2  # left and right of class 0
        assert not set(component[:100].tolist()) & set(component[100:].tolist())
        assert torch.equal(component[:100] == component[0], torch.sign(z[:100, 0]) == torch.sign(z[0, 0]))

    def test_the_error_is_what_it_says(self):
        """Against pairs made by hand: nothing to learn where the field is the pair's own difference."""
        prior = matching_prior(Wavy(), drop=0.0)
        z, c, component = randn(6, 2), torch.zeros(6, 2, dtype=torch.float64), torch.zeros(6, dtype=torch.int64)
        noise = {"z": randn(6, 2, seed=1), "t": randn(6, seed=2), "drop": randn(6, seed=3)}
        t = noise["t"].sigmoid()
        at = (1 - t[:, None]) * noise["z"] + t[:, None] * z
        velocity = Wavy()(at, t, c, component, torch.zeros(6, dtype=torch.float64))
        expected = (velocity - (z - noise["z"])).square().mean(1)
        torch.testing.assert_close(prior.matching(z, c, component, noise).double(), expected, rtol=1e-5, atol=1e-6)

    def test_conditions_are_dropped_as_often_as_told(self):
        seen, prior = [], matching_prior(Wavy(), drop=0.25)
        prior.velocity.register_forward_pre_hook(lambda _, given: seen.append(given[-1]))
        noise = {"z": randn(4000, 2), "t": randn(4000, seed=1), "drop": randn(4000, seed=2)}
        prior.matching(randn(4000, 2), torch.zeros(4000, 2), torch.zeros(4000, dtype=torch.int64), noise)
        assert seen[0].mean().item() == pytest.approx(0.25, abs=0.03)

    @pytest.mark.parametrize("latent", [4, (2, 4, 4)])
    def test_it_learns_and_a_model_draws_from_it(self, latent, tmp_path):
        images = condgen.load_smears(120, size=16)
        model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=latent, width=4)
        condgen.fit(model, images, epochs=1, progress=False, accelerator="cpu")
        dim = 1 if isinstance(latent, int) else 2
        source = GaussianMixture(latent, 8, components=dim)
        velocity = (
            MLPVelocity(latent, 8, 8 * dim, width=16, depth=1)
            if isinstance(latent, int)
            else ResNetVelocity(latent, 8, 8 * dim, width=8, depth=3, embedding=8, heads=2)
        )
        prior = FlowMatching(latent, 8, source, velocity)
        before = {name: value.clone() for name, value in velocity.state_dict().items()}
        condgen.fit_prior(model, images, prior, epochs=2, batch_size=32, progress=False, accelerator="cpu")
        assert any(not torch.equal(value, before[name]) for name, value in prior.velocity.state_dict().items())
        whole = model.sample([0, 1, 2, 3] * 20, seed=3)
        assert torch.equal(model.sample([2, 3], seed=3, start=2), whole[2:4])
        condgen.save(model, tmp_path)
        assert torch.equal(condgen.load(tmp_path).sample([0, 1, 2, 3] * 20, seed=3), whole)
        prior.steps, prior.guidance = 3, 0.5  # as it is when it is saved
        other = condgen.load(condgen.save(model, tmp_path / "guided"))
        assert (other.sampler.steps, other.sampler.guidance) == (3, 0.5)
        assert torch.equal(other.sample([0, 1]), model.sample([0, 1]))
        assert not torch.equal(other.sample([0, 1]), whole[:2])
        with pytest.raises(ValueError, match="a sampler with a density; FlowMatching only draws"):
            model.log_likelihood(images.images[:2], images.labels[:2])

    def test_what_cannot_be(self):
        for wrong in ({"steps": 0}, {"solver": "midpoint"}, {"guidance": -1.0}, {"drop": 1.0}):
            with pytest.raises((ValueError, TypeError)):
                matching_prior(Wavy(), **wrong)


class TestShrinkage:
    def test_validation_latents_choose_it(self):
        """Few latents in many dimensions, all of one covariance: trusting the clusters' own is the worst choice."""
        root = randn(12, 12, seed=5)
        z, others = randn(2, 60, 12) @ root, randn(2, 400, 12, seed=1) @ root
        c = torch.eye(2, dtype=torch.float64)
        labels, other_labels = c.repeat_interleave(60, 0), c.repeat_interleave(400, 0)
        found = {}
        for name, shrinkage in (("own", 0.0), ("chosen", None)):
            prior = GaussianMixture(12, 2, components=2, shrinkage=shrinkage).double()
            prior.fit(z.flatten(0, 1), labels, validation=(others.flatten(0, 1), other_labels))
            found[name] = prior(other_labels).log_prob(others.flatten(0, 1)).mean().item()
        assert found["chosen"] > found["own"] + 0.1

    def test_a_rare_class_borrows_from_all(self):
        root = randn(12, 12, seed=5)
        many, few, others = randn(1000, 12) @ root, randn(25, 12, seed=2) @ root, randn(300, 12, seed=1) @ root
        c = torch.eye(2, dtype=torch.float64)
        z, labels = torch.cat([many, few]), torch.cat([c[:1].expand(1000, 2), c[1:].expand(25, 2)])
        prior = GaussianMixture(12, 2, components=1).double()
        prior.fit(z, labels, validation=(others, c[1:].expand(300, 2)))
        alone = GaussianMixture(12, 1, components=1).double()
        alone.fit(few, torch.ones(25, 1, dtype=torch.float64), validation=(others, torch.ones(300, 1).double()))
        borrowed = prior(c[1:].expand(300, 2)).log_prob(others).mean()
        assert borrowed > alone(torch.ones(300, 1).double()).log_prob(others).mean() + 0.3

    def test_covariances_of_few_latents_stay_shrunk(self):
        """Expectation maximisation would leave them to themselves."""
        c = torch.ones(70, 1, dtype=torch.float64)
        found = []
        for em in (0, 5):
            prior = GaussianMixture(12, 1, components=3, em=em).double()
            prior.fit(randn(70, 12), c)
            found.append(prior(c).log_prob(randn(70, 12, seed=1)))
        assert torch.equal(*found)


def test_fitting_a_mixture_leaves_threads_as_they_were():
    before = torch.get_num_threads()
    GaussianMixture(2, 0, components=2).fit(torch.randn(200, 2), torch.zeros(200, 0))
    assert torch.get_num_threads() == before


class TestGuidanceNeedsHiddenConditions:
    """A network that never saw a hidden condition says nothing about it."""

    def test_when_it_is_built(self):
        with pytest.raises(ValueError, match=r"guidance=0 for a flow trained with drop=0; got 0\.5"):
            FlowMatching(4, 2, drop=0.0, guidance=0.5)

    def test_when_it_is_changed(self):
        flow = FlowMatching(4, 2, drop=0.0)
        with pytest.raises(ValueError, match=r"train it with drop=0\.1 to guide it"):
            flow.guidance = 1.0
        assert flow.guidance == 0.0


def test_covariances_are_trusted_by_how_many_latents_they_are_of():
    """10 latents in 2 dimensions: 10 / 12 own, the rest shared by the class; then both weights by hand."""
    own, shared, pooled = np.diag([4.0, 1.0]), np.eye(2), np.diag([0.0, 2.0])
    clusters = Clusters(np.array([10.0]), np.zeros((1, 2)), own[None], shared)
    small = 1e-4 * np.eye(2)
    assert np.allclose(clusters.shrunk(0.0, 0.0, pooled)[0], 10 / 12 * own + 2 / 12 * shared + small)
    half = 0.5 * 10 / 12
    by_hand = half * own + (1 - half) * (0.75 * shared + 0.25 * pooled) + small
    assert np.allclose(clusters.shrunk(0.5, 0.25, pooled)[0], by_hand)
