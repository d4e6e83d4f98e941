"""Moment matching: two routes to one covariance, what is known of the shortest map, few latents in many dimensions."""

import pytest
import torch
from torch import nn

import condgen
from condgen.distributions.priors.flow_matching import FlowMatching, one_step
from condgen.distributions.priors.moments import MomentMatched, between, moments, power
from condgen.nn.velocities import MLPVelocity, ResNetVelocity


class Going(nn.Module):
    """A network whose step has a closed form: from z to rate * z, and by the condition beside it."""

    def __init__(self, rate=1.0):
        super().__init__()
        self.rate = rate

    def forward(self, z, t, c, component, dropped):
        return (self.rate - 1) * z + c


def normal(count, covariance, mean=0.0, seed=0):
    """Draws of a normal distribution."""
    white = torch.randn(count, len(covariance), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean + white @ torch.linalg.cholesky(covariance.double()).mT


def covariance(size, seed):
    """A covariance with correlations."""
    root = torch.randn(size, 2 * size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT / (2 * size)


def fitted(ends, latents):
    matched = MomentMatched(Going(), ends.shape[1:])
    matched.fit(ends.float(), latents.float())
    return matched


def test_ends_get_mean_and_covariance_of_latents():
    ends, latents = normal(2000, covariance(6, 1), 2.0), normal(3000, covariance(6, 2), -1.0, seed=3)
    matched = fitted(ends, latents)
    moved, wanted = moments(matched.moved(ends.float())), moments(latents.float())
    torch.testing.assert_close(moved[0], wanted[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[1], wanted[1], atol=1e-3, rtol=1e-2)


def test_the_map_is_the_shortest_one():
    """Symmetric and positive, as the gradient of a convex function is; a turn besides would move ends for nothing."""
    matrix = fitted(normal(2000, covariance(5, 1)), normal(2000, covariance(5, 2), seed=4)).matrix
    torch.testing.assert_close(matrix, matrix.mT, atol=1e-5, rtol=0)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_where_axes_agree_spreads_are_divided():
    ends = normal(200_000, torch.diag(torch.tensor([1.0, 4.0, 9.0])))
    latents = normal(200_000, torch.diag(torch.tensor([4.0, 4.0, 1.0])), seed=1)
    expected = torch.diag(torch.tensor([2.0, 1.0, 1 / 3]))
    torch.testing.assert_close(fitted(ends, latents).matrix, expected, atol=0.01, rtol=0)


def test_what_has_the_moments_already_stays():
    ends = normal(500, covariance(4, 1), 3.0)
    torch.testing.assert_close(fitted(ends, ends.flip(0)).moved(ends.float()), ends.float(), atol=1e-3, rtol=1e-3)


def test_before_it_is_fitted_it_changes_nothing():
    network = MLPVelocity(3, condition_dim=2)
    nn.init.normal_(network.last.weight)
    z, c, component = torch.randn(5, 3), torch.eye(2)[[0, 1, 0, 1, 1]], torch.zeros(5, dtype=torch.int64)
    ends = [one_step(own, z, c, component) for own in (network, MomentMatched(network, 3))]
    torch.testing.assert_close(*ends)
    assert not torch.equal(ends[0], z)


def test_its_step_ends_where_the_map_takes_the_networks_end():
    matched = fitted(normal(300, covariance(4, 1)), normal(300, covariance(4, 2), 1.0, seed=2))
    matched.network = Going(1.5)
    z, c = torch.randn(6, 4), torch.ones(6, 4)
    found = one_step(matched, z, c, torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(found, matched.moved(1.5 * z + 1))


@pytest.mark.parametrize(("draws", "latents", "trust"), [(300, 9000, 0.5), (9000, 150, 0.25), (600, 600, 1.0)])
def test_maps_of_few_draws_or_latents_are_believed_in_part(draws, latents, trust):
    """By n / (100 d), n the fewer of both, between a stretch of all alike and the map that matches covariances."""
    ends, latents = normal(draws, covariance(6, 1)), normal(latents, covariance(6, 2), 4.0, seed=3)
    (m0, own), (m, theirs) = moments(ends.float()), moments(latents.float())
    stretch = (theirs.trace() / own.trace()).sqrt() * torch.eye(6)
    found = fitted(ends, latents)
    expected = (1 - trust) * stretch + trust * between(own, theirs)
    torch.testing.assert_close(found.matrix, expected.float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.centre, m0.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.target, m.float(), atol=1e-5, rtol=0)


def test_chance_is_not_undone():
    """120 draws in 60 dimensions: the map from their covariance would stretch fresh draws by chance alone."""
    few, latents = normal(120, torch.eye(60)), normal(20_000, torch.eye(60), seed=1)
    torch.testing.assert_close(fitted(few, latents).matrix, torch.eye(60), atol=0.1, rtol=0)
    assert torch.linalg.eigvalsh(between(moments(few)[1], moments(latents)[1])).max() > 1.5


def test_latents_that_do_not_vary_in_one_direction():
    ends, latents = normal(500, covariance(3, 1)), normal(500, covariance(3, 2), seed=1)
    latents[:, 0] = ends[:, 1] = 0
    matched = fitted(ends, latents)
    assert matched.matrix.isfinite().all()
    assert matched.moved(ends.float())[:, 0].std() < 0.05


@pytest.mark.parametrize("exponent", [0.5, -0.5, 2.0])
def test_powers(exponent):
    matrix = covariance(4, 5)
    torch.testing.assert_close(power(power(matrix, exponent), 1 / exponent), matrix)
    torch.testing.assert_close(power(matrix, exponent) @ power(matrix, -exponent), torch.eye(4).double())


def test_it_is_saved_with_the_model(tmp_path):
    model = condgen.conditional_vae((1, 8, 8), 2, latent=(2, 4, 4), width=4)
    flow = FlowMatching((2, 4, 4), 2, steps=1)
    matched = MomentMatched(ResNetVelocity((2, 4, 4), 2, 0), (2, 4, 4))
    matched.fit(torch.randn(100, 2, 4, 4), 2 * torch.randn(100, 2, 4, 4))
    flow.student, model.sampler = matched, flow
    condgen.save(model, tmp_path)
    again = condgen.load(tmp_path)
    assert torch.equal(again.sampler.student.matrix, matched.matrix)
    assert torch.equal(again.sample([0, 1]), model.sample([0, 1]))
