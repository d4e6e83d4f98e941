"""Reconstruction, likelihood and latents: closed forms, second routes to each number, and models broken on purpose."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

import condgen
from condgen.distributions.likelihoods import ContinuousBernoulli, DiscretizedLogistic, Gaussian
from condgen.distributions.priors.standard import LabelNormal
from condgen.evaluation.latents import carrying, latent_health, latent_measures, mmd, moment_kl
from condgen.evaluation.likelihood import likelihood_measures
from condgen.evaluation.reconstruction import PSNR_LIMIT, feature_distance, psnr, reconstruction_measures, ssim
from condgen.evaluation.records import average
from condgen.random import Use, normal, normals, stream


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(320, size=16, balance="equal")


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return condgen.conditional_vae((3, 16, 16), num_classes=8, latent=4, width=8).eval()


def drawn(shape, number=0):
    """Standard normal numbers, the same in every run."""
    return normal(5, torch.arange(shape[0]), stream(Use.DATA, number), shape[1:], torch.float64)


def set_posterior(model, mean_weight, mean_bias, log_variance):
    """The encoder's heads: means are a multiple of what they were plus a shift, the variance is one number."""
    with torch.no_grad():
        mean, spread = model.encoder.heads
        mean.weight *= mean_weight
        mean.bias.fill_(mean_bias)
        spread.weight.zero_()
        spread.bias.fill_(log_variance)


class TestPSNR:
    @settings(deadline=None)
    @given(offset=st.floats(0.002, 1.0))
    def test_of_a_constant_offset(self, offset):
        x = torch.zeros(2, 3, 8, 8)
        torch.testing.assert_close(psnr(x, x + offset), torch.full((2,), -20 * math.log10(offset)))

    def test_each_image_has_its_own(self):
        x = torch.zeros(3, 1, 8, 8)
        offsets = torch.tensor([0.1, 0.01, 1.0]).reshape(3, 1, 1, 1)
        torch.testing.assert_close(psnr(x, x + offsets), torch.tensor([20.0, 40.0, 0.0]), atol=1e-4, rtol=0)

    def test_equal_images_stand_at_the_error_of_rounding(self):
        x = drawn((1, 1, 200, 200)).sigmoid()
        rounded = (255 * x).round() / 255
        assert psnr(x, x).item() == pytest.approx(PSNR_LIMIT)
        assert -10 * math.log10((x - rounded).square().mean()) == pytest.approx(PSNR_LIMIT, abs=0.1)

    def test_shapes_that_differ(self, unchecked):
        with pytest.raises(ValueError, match="one shape"):
            psnr(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8))


class TestSSIM:
    @pytest.mark.parametrize("size", [3, 4, 8, 10, 11, 28])
    def test_equal_images_at_any_size(self, size):
        x = drawn((2, 3, size, size)).sigmoid().float()
        torch.testing.assert_close(ssim(x, x), torch.ones(2))

    @pytest.mark.parametrize("size", [8, 16])
    def test_constant_images_have_the_term_of_brightness_alone(self, size):
        a, b = 0.2, 0.6
        value = ssim(torch.full((1, 1, size, size), a), torch.full((1, 1, size, size), b))
        assert value.item() == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-4)

    def test_as_it_is_defined(self):
        """Wang's window by hand: 11 by 11, sigma 1.5, borders reflected."""
        x, y = (drawn((1, 1, 20, 20), k)[0, 0].sigmoid() for k in (0, 1))
        grid = torch.arange(-5.0, 6.0, dtype=torch.float64)
        line = torch.exp(-(grid**2) / (2 * 1.5**2))
        window = (line[:, None] * line) / line.sum() ** 2

        def blur(image):
            image = torch.as_tensor(np.pad(image.numpy(), 5, mode="reflect"))
            return (image.unfold(0, 11, 1).unfold(1, 11, 1) * window).sum((-1, -2))

        mx, my = blur(x), blur(y)
        vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        whole = (2 * mx * my + 1e-4) * (2 * c + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        assert ssim(x[None, None].float(), y[None, None].float()).item() == pytest.approx(whole.mean().item(), abs=1e-4)

    def test_batches_change_nothing(self):
        x, y = (drawn((130, 1, 8, 8), k).sigmoid().float() for k in (0, 1))
        torch.testing.assert_close(ssim(x, y)[128:], ssim(x[128:], y[128:]))

    def test_images_too_small(self):
        with pytest.raises(ValueError, match="at least 3 pixels"):
            ssim(torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))


class TestFeatureDistance:
    def test_unrelated_images_are_at_one(self):
        real, other = drawn((400, 20), 0), drawn((400, 20), 1)
        assert feature_distance(real, other).mean() == pytest.approx(1, abs=0.03)
        assert feature_distance(real, real).max() == 0

    @given(scale=st.floats(0.01, 100))
    def test_units_do_not_matter(self, scale):
        real, other = drawn((30, 5), 0), drawn((30, 5), 1)
        torch.testing.assert_close(feature_distance(scale * real, scale * other), feature_distance(real, other))

    @pytest.mark.parametrize("real", [torch.zeros(1, 3), torch.ones(4, 3)])
    def test_nothing_to_compare_with(self, real):
        with pytest.raises(ValueError, match="two different images"):
            feature_distance(real, real)


class TestAverage:
    def test_covers_the_mean_19_times_in_20(self):
        values = drawn((400, 50)) + 3
        intervals = [average(row, np.zeros(50)).interval for row in values]
        assert 0.9 < np.mean([low < 3 < high for low, high in intervals]) < 0.98

    def test_classes(self):
        found = average(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([2, 2, 0]), ["a", "b", "c"])
        assert found.per_class == {"a": 8.0, "b": None, "c": 2.0}
        assert found.per_class_interval["a"] is None
        assert found.per_class_interval["c"] == pytest.approx((2 - 1.96, 2 + 1.96))
        assert found.reason == "No images of b."


class TestReconstructionMeasures:
    def test_by_hand(self, model, cells):
        own = cells.validation
        x = torch.as_tensor(own.images) / 255
        found = reconstruction_measures(
            model, own.images, own.labels, cells.class_names, lambda x: x.flatten(1), cells.train
        )
        again = model.reconstruct(x, own.labels)
        mse = (again - x).square().flatten(1).mean(1)
        assert found["psnr"].overall == pytest.approx((-10 * mse.log10()).mean().item(), abs=1e-3)
        distance = (768 * mse).sqrt() / torch.pdist(x.flatten(1)).mean()
        assert found["reconstruction_distance"].overall == pytest.approx(distance.mean().item(), rel=1e-4)
        of_class = -10 * mse[torch.as_tensor(own.labels == 3)].log10()
        assert found["psnr"].per_class[cells.class_names[3]] == pytest.approx(of_class.mean().item(), abs=1e-3)

    def test_floor_is_the_mean_image_of_the_class(self, model, cells):
        own, train = cells.validation, cells.train
        found = reconstruction_measures(model, own.images, own.labels, cells.class_names, lambda x: x.flatten(1), train)
        means = np.stack([train.images[train.labels == k].mean(0) / 255 for k in range(8)])
        mse = ((own.images / 255 - means[own.labels]) ** 2).mean((1, 2, 3))
        assert found["psnr"].floor == pytest.approx(-10 * np.log10(mse).mean(), abs=1e-3)
        name = cells.class_names[1]
        assert found["psnr"].per_class_floor[name] == pytest.approx(
            -10 * np.log10(mse[own.labels == 1]).mean(), abs=1e-3
        )
        for measure in found.values():
            assert measure.floor is not None
            assert measure.interval[0] < measure.overall < measure.interval[1]
        assert found["reconstruction_distance"].better == "lower"

    def test_a_perfect_model(self, cells):
        perfect = SimpleNamespace(reconstruct=lambda x, _: x)
        found = reconstruction_measures(perfect, cells.images, cells.labels, embed=lambda x: x.flatten(1))
        assert [found[name].overall for name in found] == pytest.approx([PSNR_LIMIT, 1.0, 0.0], abs=1e-4)

    def test_what_is_missing_has_a_reason(self, model, cells):
        own = cells.validation.subset(cells.validation.labels != 2)
        train = cells.train.subset(cells.train.labels != 5)
        found = reconstruction_measures(model, own.images, own.labels, cells.class_names, train=train)
        assert found["psnr"].per_class[cells.class_names[2]] is None
        assert found["psnr"].floor is None
        assert cells.class_names[2] in found["psnr"].reason
        assert "no floor" in found["psnr"].reason
        assert found["psnr"].per_class_floor[cells.class_names[1]] is not None
        assert "features" in found["reconstruction_distance"].reason

    def test_uint8_and_floats_agree(self, model, cells):
        own = cells.validation
        first = reconstruction_measures(model, own.images, own.labels)["psnr"]
        second = reconstruction_measures(model, torch.as_tensor(own.images) / 255, own.labels)["psnr"]
        assert first.overall == second.overall

    def test_labels_that_do_not_fit(self, model, cells):
        with pytest.raises(ValueError, match="one label for each image"):
            reconstruction_measures(model, cells.images, cells.labels[:5])


class TestLikelihoodMeasures:
    def test_terms_are_those_of_the_bound(self, cells):
        model = condgen.conditional_vae((3, 16, 16), 8, latent=4, width=8, output_labels=True).eval()
        x, y = cells.images[:300], cells.labels[:300]
        found = likelihood_measures(model, x, y, cells.class_names, samples=5)
        noise = normals(model.noise_shapes, 0, torch.arange(300), Use.VALIDATION)
        with torch.no_grad():
            whole = model.infer(model.images(x), model.labels(y), noise)
        assert found["log_likelihood"].overall == pytest.approx(whole.log_likelihood.mean().item(), rel=1e-5)
        assert found["kl"].overall == pytest.approx(whole.kl.mean().item(), rel=1e-4)
        assert found["elbo"].overall == pytest.approx((whole.log_likelihood - whole.kl).mean().item(), rel=1e-5)
        assert found["label_log_likelihood"].overall == pytest.approx(
            whole.label_log_likelihood.mean().item(), rel=1e-5
        )
        several = model.log_likelihood(x, y, samples=5)
        assert found["importance_weighted"].overall == pytest.approx(several.mean().item(), rel=1e-5)
        assert found["importance_weighted"].per_class[cells.class_names[4]] == pytest.approx(
            several[torch.as_tensor(y == 4)].mean().item(), rel=1e-5
        )

    def test_nothing_exceeds_the_image_itself(self, model, cells):
        found = likelihood_measures(model, cells.images, cells.labels, cells.class_names, samples=2)["log_likelihood"]
        x = torch.as_tensor(cells.images).double() / 255
        p = torch.distributions.Bernoulli(probs=x.clamp(1e-9, 1 - 1e-9), validate_args=False)
        assert found.floor == pytest.approx(p.log_prob(x).flatten(1).sum(1).mean().item(), rel=1e-5)
        assert found.overall < found.floor

    @pytest.mark.parametrize("likelihood", [Gaussian(0.1), ContinuousBernoulli(), DiscretizedLogistic()])
    def test_bits_per_dimension(self, cells, likelihood):
        model = condgen.conditional_vae((3, 16, 16), 8, latent=4, width=8, likelihood=likelihood).eval()
        x, y = cells.images[:150], cells.labels[:150]
        found = likelihood_measures(model, x, y, samples=3)
        expected = model.bits_per_dimension(x, y, samples=3).mean().item()
        assert found["bits_per_dimension"].overall == pytest.approx(expected, rel=1e-5)
        assert found["log_likelihood"].floor is None
        assert type(likelihood).__name__ in found["log_likelihood"].reason

    def test_binary_cross_entropy_has_none(self, model, cells):
        found = likelihood_measures(model, cells.images[:9], cells.labels[:9], samples=1)["bits_per_dimension"]
        assert found.overall is None
        assert "does not sum to one" in found.reason
        assert found.to_json()["overall"] is None

    def test_deterministic_and_leaves_the_mode(self, model, cells):
        model.train()
        x, y = cells.images[:40], cells.labels[:40]
        first = likelihood_measures(model, x, y, samples=2)
        assert first == likelihood_measures(model, x, y, samples=2)
        assert first["elbo"] != likelihood_measures(model, x, y, samples=2, seed=1)["elbo"]
        assert model.training


class TestMMD:
    def test_by_hand(self):
        x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0], [5.0]])
        both = torch.cat((x, y)).numpy()[:, 0]
        pairs = [abs(a - b) for i, a in enumerate(both) for b in both[i + 1 :]]
        s2 = 2 * sorted(v * v for v in pairs)[(len(pairs) - 1) // 2]

        def k(a, b):
            return math.exp(-((a - b) ** 2) / s2)

        expected = k(0, 1) + (k(2, 4) + k(2, 5) + k(4, 5)) / 3 - 2 * sum(k(a, b) for a in (0, 1) for b in (2, 4, 5)) / 6
        assert mmd(x, y) == pytest.approx(expected, abs=1e-6)

    def test_zero_on_average_for_equal_distributions(self):
        values = torch.tensor([mmd(drawn((30, 3), 2 * k), drawn((30, 3), 2 * k + 1)) for k in range(200)])
        assert abs(values.mean()) < 3 * values.std() / math.sqrt(200)
        assert values.min() < 0

    @pytest.mark.parametrize("change", [lambda z: z + 0.7, lambda z: 2 * z, lambda z: z.sign() + 0.1 * z])
    def test_positive_for_others(self, change):
        x, y, z = (drawn((400, 1), k) for k in range(3))
        assert mmd(change(x), y) > 10 * abs(mmd(z, y))

    def test_wrong_sizes(self, unchecked):
        with pytest.raises(ValueError, match="one width"):
            mmd(torch.zeros(3, 2), torch.zeros(3, 4))
        with pytest.raises(ValueError, match="two rows"):
            mmd(torch.zeros(1, 2), torch.zeros(3, 2))


NUMBERS = hnp.arrays(np.float64, 3, elements=st.floats(-3, 3))


class TestMomentKL:
    @given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
    def test_as_torch_has_it(self, m, s, prior_m, prior_s):
        m, s, prior_m, prior_s = (torch.as_tensor(a) for a in (m, s, prior_m, prior_s))
        expected = kl_divergence(Normal(m, s.exp()), Normal(prior_m, prior_s.exp()))
        torch.testing.assert_close(moment_kl(m, (2 * s).exp(), prior_m, (2 * prior_s).exp()), expected)


class TestLatentHealth:
    def test_collapsed(self, model, cells):
        set_posterior(model, 0, 0, 0)
        health = latent_health(model, cells.images, cells.labels)
        assert health.verdict == "posterior collapse: 0 of 4 latents used, 0.0 nats per image"
        assert health.kl_per_latent.abs().max() == 0
        assert health.mismatch.mmd < 3 * health.mismatch.mmd_floor
        assert health.carrying == 0

    def test_means_away_from_the_prior_are_not_active(self, model, cells):
        """All images in one place far off: a KL, but no information, and holes everywhere else."""
        set_posterior(model, 0, 3, 0)
        health = latent_health(model, cells.images, cells.labels)
        assert health.active == 0
        assert health.kl_per_latent.tolist() == pytest.approx([4.5] * 4)
        # The aggregate posterior is N(3, 1) itself.
        assert health.mismatch.nats == pytest.approx(18, rel=0.1)
        assert health.mismatch.mmd > 100 * health.mismatch.mmd_floor

    def test_counts_active_latents(self, model, cells):
        set_posterior(model, 1, 0, 0)
        with torch.no_grad():
            spread = model.encode(cells.images, cells.labels).std(0)
            model.encoder.heads[0].weight *= (torch.tensor([0.0, 0.05, 0.2, 1.5]) / spread)[:, None]
        health = latent_health(model, cells.images, cells.labels)
        assert health.active == 2  # standard deviations above 0.1
        assert health.latents == 4
        means = model.encode(cells.images, cells.labels)
        torch.testing.assert_close(health.kl_per_latent.float(), means.square().mean(0) / 2, rtol=1e-3, atol=1e-5)
        own = means[torch.as_tensor(cells.labels == 2)].var(0, correction=0)
        assert health.active_per_class[2] == int((own > 0.01).sum())

    def test_holes(self, model, cells):
        set_posterior(model, 1, 0, -6)
        with torch.no_grad():
            means = model.encode(cells.images, cells.labels)
            model.encoder.heads[0].weight *= (5 / means.std(0))[:, None]
        health = latent_health(model, cells.images, cells.labels)
        assert health.verdict.startswith("holes: draws from the prior fall where no image lies (19")
        assert health.holes
        assert health.verdict.endswith("4 of 4 latents used")

    def test_healthy(self, model, cells):
        """Posterior means of variance 0.75 about 0 and a variance of 0.25 make the prior's, if shaped like it."""
        z = math.sqrt(0.75) * drawn((320, 4)).float()
        known = {image.tobytes(): own for image, own in zip(model.images(cells.images).numpy(), z, strict=True)}

        class Known(torch.nn.Module):
            def forward(self, x, c):
                mean = torch.stack([known[image.tobytes()] for image in x.numpy()])
                return torch.cat((mean, torch.full_like(mean, math.log(0.25))), 1)

        model.encoder = Known()
        health = latent_health(model, cells.images, cells.labels)
        assert health.verdict == "healthy: 4 of 4 latents used"
        assert health.mismatch.nats < 3 * health.mismatch.nats_floor

    def test_a_prior_of_its_own_for_each_class_counts_as_none(self, cells):
        """Prior and posterior that move together with the label say nothing about an image."""
        model = condgen.conditional_vae((3, 16, 16), 8, latent=4, width=8, prior=LabelNormal(4, 8)).eval()
        shifts = 3 * drawn((4, 8)).float()

        class OfTheLabel(torch.nn.Module):
            def forward(self, x, c):
                return torch.cat((c @ shifts.T, torch.full((len(c), 4), math.log(4.0))), 1)

        model.encoder = OfTheLabel()
        with torch.no_grad():
            model.prior.linear.weight[:4] = shifts
            model.prior.linear.bias[4:] = math.log(4.0)
        health = latent_health(model, cells.images, cells.labels)
        assert health.active == 0
        assert health.mismatch.nats < 3 * health.mismatch.nats_floor
        assert health.mismatch.mmd < 3 * health.mismatch.mmd_floor

    def test_other_priors(self, model, cells):
        """A mixture, whose KL does not factorise; once with moments, once with draws alone."""

        class Mixture(torch.nn.Module):
            noise_shape = (4,)

            def forward(self, c):
                means = torch.tensor([-2.0, 2.0])[:, None].expand(len(c), 2, 4)
                own = Independent(Normal(means, torch.ones_like(means), validate_args=False), 1)
                return MixtureSameFamily(Categorical(logits=torch.zeros(len(c), 2)), own, validate_args=False)

            def draw(self, c, noise):
                return noise + torch.where(torch.arange(len(c)) % 2 == 0, 2.0, -2.0)[:, None]

        class NoMoments(MixtureSameFamily):
            @property
            def mean(self):
                raise NotImplementedError

        class Hidden(Mixture):
            def forward(self, c):
                p = super().forward(c)
                return NoMoments(p.mixture_distribution, p.component_distribution, validate_args=False)

        found = []
        for model.prior in (Mixture(), Hidden()):
            health = latent_health(model, cells.images, cells.labels)
            assert health.carrying is None
            assert health.kl_per_latent.shape == (1,)
            found.append(health.mismatch.nats)
        assert found[0] == pytest.approx(found[1], rel=0.05)
        assert found[0] > 1

    def test_deterministic_and_leaves_the_mode(self, model, cells):
        model.train()
        first, second, third = (latent_health(model, cells.images, cells.labels, seed) for seed in (0, 0, 1))
        assert first.mismatch == second.mismatch != third.mismatch
        assert model.training

    @settings(deadline=None)
    @given(hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(0, 10)))
    def test_carrying(self, kl):
        count = carrying(torch.as_tensor(kl))
        ordered = np.sort(kl)[::-1]
        assert ordered[:count].sum() >= 0.99 * kl.sum() - 1e-9
        assert count == 0 or ordered[: count - 1].sum() < 0.99 * kl.sum() + 1e-9


class TestLatentMeasures:
    def test_they_are_those_of_health(self, model, cells):
        health = latent_health(model, cells.images, cells.labels)
        found = latent_measures(health, cells.class_names)
        name = cells.class_names[6]
        assert found["active_latents"].overall == health.active
        assert found["aggregate_mismatch"].overall == health.mismatch.mmd
        assert found["aggregate_mismatch"].per_class_floor[name] == health.mismatch_per_class[6].mmd_floor
        assert found["aggregate_mismatch_nats"].per_class[name] == health.mismatch_per_class[6].nats
        kl = likelihood_measures(model, cells.images, cells.labels, cells.class_names, samples=1)["kl"]
        assert kl.overall == pytest.approx(float(health.kl.mean()))

    def test_small_classes_have_a_reason(self, model, cells):
        few = np.concatenate([np.flatnonzero(cells.labels == 0)[:4], np.flatnonzero(cells.labels == 1)])
        health = latent_health(model, cells.images[few], cells.labels[few])
        found = latent_measures(health, cells.class_names)
        first, second, *_ = cells.class_names
        assert found["aggregate_mismatch"].per_class[first] is None
        assert found["aggregate_mismatch"].per_class[second] is not None
        assert first in found["active_latents"].reason
        alone = latent_measures(latent_health(model, cells.images[:3], cells.labels[:3]))
        assert alone["aggregate_mismatch"].overall is None
        assert alone["aggregate_mismatch"].reason


def test_a_mass_is_of_grey_levels_not_of_what_lies_between_them(cells):
    """Images a third of a level off are rounded first: the code length is that of the levels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = condgen.conditional_vae((3, 16, 16), 8, latent=4, width=8, likelihood=DiscretizedLogistic()).eval()
    x = torch.as_tensor(cells.images[:8]).float() / 255
    off = (x + torch.where(x < 0.5, 1, -1) / (3 * 255)).clamp(0, 1)
    one, other = (model.bits_per_dimension(images, cells.labels[:8], samples=2) for images in (x, off))
    assert torch.equal(one, other)
    assert not torch.equal(x, off)
