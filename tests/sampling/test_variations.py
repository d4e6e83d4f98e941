"""Variations: at strength 0 the image itself, at 1 a draw of its component; known distributions in between."""

import numpy as np
import pytest
import torch

import condgen
from condgen.distributions.priors import FlowMatching, GaussianMixture, LabelNormal, StandardNormal
from condgen.models.latents import tempered, with_border
from condgen.nn.velocities import ResNetVelocity
from condgen.sampling.variations import has_surroundings


def clustered(n=4000):
    """Latents of two classes with two clusters each, far from each other."""
    generator = torch.Generator().manual_seed(0)
    c = torch.eye(2)[torch.arange(n) % 2]
    centre = torch.stack([10 * c[:, 0], 6 * (torch.arange(n) // 2 % 2).float()], 1)
    return centre + 0.5 * torch.randn(n, 2, generator=generator), c


@pytest.fixture(scope="module")
def mixture():
    source = GaussianMixture(2, condition_dim=2, components=2, shrinkage=0.0)
    source.fit(*clustered())
    return source


def trained(sampler=None, latent=(2, 6, 6)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = condgen.conditional_vae((3, 12, 12), 2, latent=latent, width=4)
    images = np.random.default_rng(0).integers(0, 256, (80, 3, 12, 12)).astype(np.uint8)
    data = condgen.LabelledImages(images, np.arange(80) % 2)
    if sampler:
        condgen.fit_prior(model, data, sampler(), epochs=1, progress=False)
    return model.eval(), data


SAMPLERS = {
    "standard normal": None,
    "mixture": lambda: GaussianMixture((2, 6, 6), condition_dim=2, components=1),
    "flow matching": lambda: FlowMatching(
        (2, 6, 6),
        2,
        GaussianMixture((2, 6, 6), condition_dim=2, components=1),
        ResNetVelocity((2, 6, 6), 2, 2, width=8, depth=1, heads=0),
    ),
}


class TestPriors:
    @pytest.mark.parametrize("kind", [StandardNormal, LabelNormal])
    def test_a_normal_stays_itself(self, kind):
        """Draws of the prior, moved by any strength, are draws of it, and correlated with what they were as said."""
        prior, c = kind(3) if kind is StandardNormal else kind(3, 2), torch.eye(2).repeat(20_000, 1)
        if kind is LabelNormal:
            torch.nn.init.normal_(prior.linear.weight, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(2, 40_000, 3, generator=generator)
        with torch.no_grad():
            z = prior.draw(c, noise[0])
            found, p = prior.vary(z, c, noise[1], 0.4), prior(c[:2])
        for k in (0, 1):
            own, mean, spread = found[k::2], p.mean[k], p.variance[k].sqrt()
            assert ((own.mean(0) - mean) / spread).abs().max() < 0.03
            assert (own.std(0) / spread - 1).abs().max() < 0.03
            shared = (((own - mean) / spread) * ((z[k::2] - mean) / spread)).mean(0)
            assert (shared - 0.6).abs().max() < 0.03

    def test_a_mixture_stays_in_the_component(self, mixture):
        z, c = clustered()
        noise = torch.randn(len(z), 3, generator=torch.Generator().manual_seed(3))
        found = mixture.vary(z, c, noise, 0.7)
        assert torch.equal(mixture.assign(found, c), mixture.assign(z, c))
        assert (found - z).norm(dim=1).mean() > 0.3
        for component in mixture.assign(z, c).unique():
            own = mixture.assign(z, c) == component
            assert (found[own].mean(0) - z[own].mean(0)).abs().max() < 0.1
            assert (found[own].std(0) / z[own].std(0) - 1).abs().max() < 0.1

    @pytest.mark.parametrize("path", ["straight", "cosine"])
    def test_a_flow_that_goes_nowhere_returns_along_the_path(self, mixture, path):
        """With a velocity of nothing the way ends where it turned: on the path, as far back as the strength says."""

        class Still(torch.nn.Module):
            def forward(self, z, *_):
                return torch.zeros_like(z)

        flow = FlowMatching(2, 2, mixture, Still(), path=path)
        z, c = (part[:50] for part in clustered())
        flow.scale.fit(clustered()[0])
        noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(3))
        start = flow.scale(mixture.draw_of(mixture.assign(z, c), noise[:, 1:]))
        expected, _ = flow.between(start, flow.scale(z), torch.tensor(0.7))
        torch.testing.assert_close(flow.scale(flow.vary(z, c, noise, 0.3)), expected)

    def test_a_flow_at_full_strength_draws_the_component(self, mixture):
        """With many steps the same as a sample of that component."""
        flow = FlowMatching(2, 2, mixture, steps=6)
        z, c = (part[:50] for part in clustered())
        flow.scale.fit(clustered()[0])
        noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(3))
        component = mixture.assign(z, c)
        at = flow.scale(mixture.draw_of(component, noise[:, 1:]))
        for k in range(6):
            at = flow.step(at, k, c, component)
        torch.testing.assert_close(flow.vary(z, c, noise, 1.0), flow.scale.restored(at))


class TestImages:
    @pytest.mark.parametrize("kind", SAMPLERS)
    def test_from_the_image_itself_to_others(self, kind):
        model, data = trained(SAMPLERS[kind])
        x, y = data.images[:20], data.labels[:20]
        same = condgen.vary(model, x, y, strength=0.0)
        torch.testing.assert_close(same, model.reconstruct(x, y), atol=1e-5, rtol=1e-4)
        apart = [float((condgen.vary(model, x, y, strength=s) - same).abs().mean()) for s in (0.2, 0.5, 1.0)]
        assert 0 < apart[0] < apart[1] < apart[2]

    @pytest.mark.parametrize("path", ["straight", "cosine"])
    def test_flows_of_pixels(self, path):
        _, data = trained()
        model = condgen.conditional_flow((3, 12, 12), 2, widths=(8,), depth=1, heads=0, path=path, steps=2)
        x, y = data.images[:5], data.labels[:5]
        torch.testing.assert_close(condgen.vary(model, x, y, strength=0.0), model.images(x), atol=1e-5, rtol=1e-4)
        assert not torch.equal(condgen.vary(model, x, y, strength=0.5), model.images(x))
        with pytest.raises(ValueError, match="no map of latents"):
            condgen.vary(model, x, y, background=data)

    def test_a_function_of_seed_and_number(self):
        model, data = trained()
        whole = condgen.vary(model, data.images, data.labels, seed=3)
        part = condgen.vary(model, data.images[60:], data.labels[60:], seed=3, start=60)
        torch.testing.assert_close(part, whole[60:], atol=2e-6, rtol=0)
        again = condgen.vary(model, data.images[:1].repeat(3, 0), data.labels[:1].repeat(3), seed=3)
        assert len({image.numpy().tobytes() for image in again}) == 3
        assert not torch.equal(condgen.vary(model, data.images, data.labels, seed=4), whole)

    def test_what_only_draws_is_refused(self):
        _, data = trained()
        gan = condgen.conditional_gan((3, 12, 12), 2, latent=4, width=8)
        with pytest.raises(ValueError, match="ConditionalGAN, which only draws"):
            condgen.vary(gan, data.images[:2], data.labels[:2])

    @pytest.mark.parametrize("strength", [-0.1, 1.1])
    def test_strengths_out_of_range(self, strength):
        model, data = trained()
        with pytest.raises(ValueError, match=f"strength from 0 to 1; got {strength}"):
            condgen.vary(model, data.images[:2], data.labels[:2], strength=strength)


class TestBackground:
    def test_the_border_is_anothers_and_the_inside_its_own(self):
        model, data = trained()
        x, y = data.images[:20], data.labels[:20]
        dark = condgen.LabelledImages(np.zeros((5, 3, 12, 12), np.uint8), np.zeros(5, np.int64), data.class_names)
        found = condgen.vary(model, x, y, strength=0.0, background=dark)
        own, other = model.encode(x, y), model.encode(dark.images[:1], [0]).expand(20, -1, -1, -1)
        expected = model.decode(with_border(own, other), torch.as_tensor(y)).mean.detach()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert not torch.equal(found, model.reconstruct(x, y))

    def test_others_are_drawn_evenly_and_pairs_will_do(self):
        from condgen.sampling.variations import background_of

        counts = np.bincount(background_of(torch.arange(5000), 5, seed=0), minlength=5)
        assert counts.min() > 900
        model, data = trained()
        pair = (data.images[:3], data.labels[:3])
        assert torch.equal(
            condgen.vary(model, data.images, data.labels, background=pair),
            condgen.vary(model, data.images, data.labels, background=data.subset(slice(0, 3))),
        )

    def test_vectors_have_none(self):
        model, data = trained(latent=4)
        with pytest.raises(ValueError, match="a map of latents of at least 3x3"):
            condgen.vary(model, data.images[:2], data.labels[:2], background=data)


def test_samplers_without_a_way_back():
    model, data = trained()

    class OneWay(torch.nn.Module):
        noise_shape = (2, 6, 6)

    model.sampler = OneWay()
    with pytest.raises(ValueError, match=r"a normal, a mixture or flow matching; OneWay has no way back"):
        condgen.vary(model, data.images[:2], data.labels[:2])


@pytest.mark.parametrize(("latent", "found"), [((2, 3, 3), True), ((2, 2, 4), False), (4, False)])
def test_a_map_of_three_by_three_has_surroundings(latent, found):
    size = (1, 12, 12) if latent == (2, 3, 3) else (1, 8, 16)
    assert has_surroundings(condgen.conditional_vae(size, 2, latent=latent, width=4)) is found


def test_the_temperature_scales_latents_of_every_level_and_nothing_else():
    noise = {"z": torch.ones(2, 3), "z1": torch.ones(2, 3), "other": torch.ones(2, 3)}
    found = tempered(noise, 0.5, choices=1)
    for name, expected in (("z", [1, 0.5, 0.5]), ("z1", [1, 0.5, 0.5]), ("other", [1, 1, 1])):
        assert found[name].tolist() == [expected] * 2


@pytest.mark.parametrize(("z", "got"), [((torch.ones(1, 4),) * 2, "several levels"), (torch.ones(1, 4), r"\(4,\)")])
def test_a_background_needs_a_map(z, got):
    with pytest.raises(ValueError, match=f"for a background; got .*{got}"):
        with_border(z, z)
