"""The adversarial objective and its discriminators: formulas by two routes, who moves in which phase, contracts."""

from functools import partial

import pytest
import torch
from torch import nn

import condgen
from condgen.distributions import likelihoods
from condgen.losses.elbo import ELBO
from condgen.losses.vaegan import VAEGANLoss, pull_of
from condgen.nn.discriminators import ConvDiscriminator
from condgen.random import Use, normals
from condgen.training.optimizers import adam
from condgen.training.run_folder import load_objective
from tests.training.test_training import same, small, toy, weights

quiet = partial(condgen.fit, progress=False, accelerator="cpu", batch_size=16)


class Known(nn.Module):
    """Scores and features one can work out by hand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, c):
        return self.scale * x.mean(1), (self.scale * x, x.mean((2, 3)))


def critic(shape=(1, 8, 8), condition_dim=2, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ConvDiscriminator(shape, condition_dim, **{"widths": (8, 12), **options})


def batch(model, n=6):
    images = toy(n)
    x, y = torch.as_tensor(images.images) / 255, torch.as_tensor(images.labels)
    return x, y, normals(model.noise_shapes, 0, torch.arange(n), Use.TRAINING)


class TestObjective:
    def test_before_it_begins_it_is_the_bound(self):
        model, objective = small(), VAEGANLoss(Known(), beta=0.5)
        x, y, noise = batch(model)
        found, expected = objective.model_loss(model, x, y, noise), ELBO(0.5).loss(model, x, y, noise)
        assert set(found) == set(expected)
        for name in expected:
            assert torch.equal(found[name], expected[name])

    @pytest.mark.parametrize(
        "likelihood", [likelihoods.Bernoulli(), likelihoods.Laplace(0.05), likelihoods.Gaussian(0.1)]
    )
    @pytest.mark.parametrize("relative", [False, True])
    def test_the_loss_is_the_formula(self, likelihood, relative):
        options = {"weight": 0.3, "matching": 0.7, "relative": relative}
        model, objective = small(likelihood=likelihood), VAEGANLoss(Known(), **options)
        x, y, noise = batch(model)
        objective.begun.fill_(True)
        found = objective.model_loss(model, x, y, noise)
        inference = model.infer(x, y, noise)
        back = inference.p.mean
        score = 2 * back.mean()
        apart = [(2 * (back - x)).abs().mean(), (back - x).mean((2, 3)).abs().mean()]
        sizes = [2 * x.mean(), x.mean()] if relative else [1, 1]
        matching = (apart[0] / sizes[0] + apart[1] / sizes[1]) / 2
        slope = torch.func.grad(lambda given: model.likelihood(given).log_prob(x).sum())(inference.output.detach())
        pull = slope.abs().sum() / len(x)
        expected = ELBO()(inference)["loss"] + pull * (0.7 * matching - 0.3 * score)
        torch.testing.assert_close(found["loss"], expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found["score"], score)

    def test_features_of_nothing_leave_the_relative_error_finite(self):
        model, objective = small(), VAEGANLoss(Known(), relative=True)
        objective.begun.fill_(True)
        torch.nn.init.zeros_(objective.discriminator.scale)
        assert objective.model_loss(model, *batch(model))["matching"].isfinite()

    def test_the_pull_of_a_laplace_likelihood_is_known(self):
        model = small(likelihood=likelihoods.Laplace(0.05))
        assert pull_of(model.infer(*batch(model))).item() == pytest.approx(64 / (2 * 0.05), rel=1e-5)

    def test_each_phase_moves_its_own(self):
        for still, rates in (("model", {"": 0.0, "discriminator": 1e-2}), ("critic", {"": 1e-2, "discriminator": 0.0})):
            model, objective = small(), VAEGANLoss(critic(), start=0.0)
            before = {"model": weights(model), "critic": dict(objective.discriminator.named_parameters())}
            before["critic"] = {name: value.detach().clone() for name, value in before["critic"].items()}
            optimizers = {name: partial(adam, lr=rate) for name, rate in rates.items()}
            quiet(model, toy(), epochs=2, objective=objective, optimizer=optimizers)
            after = {"model": weights(model), "critic": dict(objective.discriminator.named_parameters())}
            for name in ("model", "critic"):
                assert same(before[name], after[name]) == (name == still)
            assert all(parameter.requires_grad for parameter in objective.discriminator.parameters())

    def test_it_begins_when_it_is_told_and_validation_shows_the_bound(self):
        history = quiet(small(), toy(), validation=toy(8), epochs=4, objective=VAEGANLoss(critic(), start=0.5))
        begun = ["train_discriminator_loss" in row for row in history.rows]
        assert begun == [False, False, True, True]
        assert {"validation_elbo", "validation_kl"} <= set(history.rows[-1])
        assert not any(name.startswith("validation_discriminator") for name in history.rows[-1])
        assert history.best_epoch == 4
        assert history["train_score"][0] != history["train_score"][0]  # NaN where there was none
        assert history.to_csv().count("\n") == 5

    def test_the_critic_learns_to_tell(self):
        objective = VAEGANLoss(critic(), weight=0.0, matching=0.0, start=0.0)
        history = quiet(small(), toy(64), epochs=6, objective=objective, optimizer=partial(adam, lr=1e-2))
        losses = history["train_discriminator_loss"]
        assert losses[-1] < losses[0] < 2.5

    def test_reconstructions_are_drawn_once_a_step(self, monkeypatch):
        model, calls = small(), []
        infer = model.infer
        monkeypatch.setattr(model, "infer", lambda *given: calls.append(1) or infer(*given))
        quiet(model, toy(32), epochs=1, objective=VAEGANLoss(critic(), start=0.0))
        assert len(calls) == 2

    def test_that_it_has_begun_is_saved(self, tmp_path):
        quiet(small(), toy(), epochs=1, objective=VAEGANLoss(critic(), start=0.0), out=tmp_path)
        again = load_objective(VAEGANLoss(critic()), tmp_path)
        model = small()
        assert "score" in again.model_loss(model, *batch(model))

    def test_wrong_numbers(self):
        with pytest.raises(ValueError, match=r"weights of 0 or more; got weight=-1.0"):
            VAEGANLoss(Known(), weight=-1.0)
        with pytest.raises(ValueError, match="at least 8x8 and two widths or more"):
            ConvDiscriminator((1, 7, 8), 0)


class TestDiscriminator:
    @pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 28), (2, 9, 13)])
    @pytest.mark.parametrize("condition_dim", [0, 2])
    def test_scores_of_places_and_features(self, shape, condition_dim):
        x, c = torch.rand(3, *shape), torch.rand(3, condition_dim)
        scores, features = critic(shape, condition_dim)(x, c)
        half = [-(-size // 2) for size in shape[1:]]
        quarter = [-(-size // 2) for size in half]
        assert scores.shape == (3, *quarter)
        assert [f.shape for f in features] == [(3, 8, *half), (3, 12, *quarter)]

    def test_no_image_sees_another(self):
        network = critic().eval()
        x, c = torch.rand(4, 1, 8, 8), torch.rand(4, 2)
        torch.testing.assert_close(network(x, c)[0][1:2], network(x[1:2], c[1:2])[0])

    def test_the_condition_matters_by_projection(self):
        network, x = critic().eval(), torch.rand(1, 1, 8, 8)
        scores = [network(x, c[None])[0] for c in torch.cat([torch.zeros(1, 2), torch.eye(2)])]
        h = network(x, torch.zeros(1, 2))[1][-1]
        for k in range(2):
            expected = scores[0] + (network.projection.weight[:, k, None, None] * h).sum(1)
            torch.testing.assert_close(scores[1 + k], expected)

    def test_every_layer_is_of_norm_one(self):
        network = critic()
        for _ in range(60):
            network(torch.rand(2, 1, 8, 8), torch.rand(2, 2))
        for layer in (*network.convs, network.score, network.projection):
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=0.02)
