"""What the loop carries beside the plain bound: phases, averages, schedules, precision, budgets, maps and levels."""

import json
import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import condgen
from condgen.data.augmentation import Augmentation
from condgen.distributions import likelihoods, priors, reparameterizers
from condgen.evaluation.latents import latent_health
from condgen.losses.elbo import ELBO, Constant, LinearWarmup
from condgen.losses.phases import Phase, phases_of
from condgen.nn import conditioners, decoders, encoders
from condgen.random import Use, normals
from condgen.training import budget as planning
from condgen.training.budget import Budget, Plan
from condgen.training.ema import Averaged
from condgen.training.optimizers import WarmupDecay, adam, adamw
from condgen.training.run_folder import load_objective
from tests.training.test_training import same, small, toy, weights

quiet = partial(condgen.fit, progress=False, accelerator="cpu", batch_size=16)


class Adversarial(nn.Module):
    """The bound and a critic that tells reconstructions from images, in two phases."""

    def __init__(self, every=1, start=0.0, select=("loss", "min")):
        super().__init__()
        self.bound, self.select = ELBO(LinearWarmup(2)), select
        self.critic = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 16, 1))
        self.schedules, self.seen = {**self.bound.schedules, "weight": Constant(0.1)}, []
        self.phases = (
            Phase(self.model_loss, lambda model: model.parameters(), "model", after=self.bound.after_step),
            Phase(self.critic_loss, lambda _: self.critic.parameters(), "critic", every, start),
        )

    def model_loss(self, model, x, y, noise, beta, weight):
        inference = model.infer(x, y, noise)
        terms = self.bound(inference, beta)
        fooling = -self.critic(inference.p.mean).mean()
        return {
            **terms,
            "loss": terms["loss"] + weight * fooling,
            "fooling": fooling,
        }

    def critic_loss(self, model, x, y, noise, beta, weight):
        self.seen.append((float(beta), float(weight)))
        with torch.no_grad():
            drawn = model.infer(x, y, noise).p.mean
        return {"loss": (1 - self.critic(x)).relu().mean() + (1 + self.critic(drawn)).relu().mean()}


def adversarial(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Adversarial(**options)


class TestPhases:
    def test_each_has_its_own_optimizer_and_parameters(self):
        objective, model = adversarial(), small()
        before, critic = weights(model), weights(objective.critic)
        rates = {"model": partial(adam, lr=0.0), "critic": partial(adam, lr=1e-2)}
        quiet(model, toy(), epochs=1, objective=objective, optimizer=rates)
        assert same(before, weights(model))
        assert not same(critic, weights(objective.critic))

    def test_both_learn_and_their_terms_are_told_apart(self):
        history = quiet(small(), toy(), validation=toy(8), epochs=3, objective=adversarial())
        row = history.rows[-1]
        assert {
            "train_loss",
            "train_kl",
            "train_fooling",
            "train_critic_loss",
            "validation_fooling",
            "beta",
            "weight",
        } <= set(row)
        assert "validation_critic_loss" not in row
        assert history["train_critic_loss"][-1] < history["train_critic_loss"][0]

    def test_schedules_reach_every_phase(self):
        objective = adversarial()
        quiet(small(), toy(32), epochs=2, objective=objective)
        assert objective.seen == [(k / 4, pytest.approx(0.1)) for k in range(4)]

    @pytest.mark.parametrize(
        ("options", "steps"), [({"every": 3}, 4), ({"start": 0.5}, 6), ({"every": 5, "start": 0.5}, 1)]
    )
    def test_how_often_and_from_when(self, options, steps):
        objective = adversarial(**options)
        quiet(small(), toy(48), epochs=4, objective=objective)
        assert len(objective.seen) == steps

    def test_what_chooses_the_best_epoch(self):
        history = quiet(small(), toy(), validation=toy(8), epochs=4, objective=adversarial(select=("fooling", "max")))
        assert history.best_epoch == 1 + max(range(4), key=lambda k: history["validation_fooling"][k])
        with pytest.raises(ValueError, match="a term 'beauty' to select by"):
            quiet(small(), toy(), validation=toy(8), epochs=1, objective=adversarial(select=("beauty", "max")))

    def test_an_objectives_networks_are_saved_and_come_back(self, tmp_path):
        objective = adversarial()
        quiet(small(), toy(), epochs=1, objective=objective, out=tmp_path)
        torch.manual_seed(1)
        again = Adversarial()
        assert not same(weights(again), weights(objective))
        assert same(weights(load_objective(again, tmp_path)), weights(objective))

    def test_the_scale_is_observed_once_a_step(self):
        for objective in (adversarial(), ELBO()):
            model = small(likelihood=likelihoods.Gaussian("optimal"))
            quiet(model, toy(), validation=toy(8), epochs=2, objective=objective)
            assert model.likelihood.observations == 6

    def test_the_plain_bound_is_one_phase(self):
        (phase,) = phases_of(ELBO())
        model = small()
        assert len(list(phase.parameters(model))) == len(list(model.parameters()))

    def test_phases_that_cannot_be(self):
        objective = adversarial()
        objective.phases = objective.phases[::-1]
        objective.phases[0].__dict__["start"] = 0.5
        with pytest.raises(ValueError, match="the first of them at every step; got"):
            quiet(small(), toy(), epochs=1, objective=objective)
        objective = adversarial()
        objective.phases[0].__dict__["every"] = 2
        with pytest.raises(ValueError, match="the first of them at every step; got"):
            phases_of(objective)
        with pytest.raises(ValueError, match="Expected an optimizer for the phase 'critic'; got model"):
            quiet(small(), toy(), epochs=1, objective=adversarial(), optimizer={"model": adam})


def test_optimizers_have_the_usual_rates():
    """An optimizer that is named, not built, comes with these."""
    weights_ = [nn.Parameter(torch.zeros(1))]
    plain, decoupled = adam(weights_).defaults, adamw(weights_).defaults
    assert (plain["lr"], plain["betas"], plain["weight_decay"]) == (1e-3, (0.9, 0.999), 0)
    assert (decoupled["lr"], decoupled["betas"], decoupled["weight_decay"]) == (1e-3, (0.9, 0.99), 1e-3)


class TestAverages:
    def test_they_follow_the_formula(self):
        model = nn.Linear(1, 1, bias=False)
        averaged, expected = Averaged(model, 0.9), None
        for step in range(30):
            with torch.no_grad():
                model.weight.fill_(float(step))
            averaged.update(model)
            decay = min(0.9, (1 + step) / (10 + step))
            expected = float(step) if expected is None else decay * expected + (1 - decay) * step
        assert averaged.average.module.weight.item() == pytest.approx(expected, rel=1e-5)

    def test_the_averaged_model_is_validated_kept_and_left(self, tmp_path):
        kept, plain = [], small()
        model = small()
        history = quiet(
            model,
            toy(),
            validation=toy(8),
            epochs=3,
            ema=0.95,
            out=tmp_path,
            callbacks=[lambda state: kept.append(weights(state.model))],
        )
        quiet(plain, toy(), validation=toy(8), epochs=3)
        assert not same(weights(model), weights(plain))
        assert same(weights(model), kept[-1])
        assert same(weights(condgen.load(tmp_path / "last")), kept[-1])
        objective = ELBO()
        x, y = model.images(toy(8).images), model.labels(toy(8).labels)
        noise = normals(model.noise_shapes, 0, torch.arange(8), Use.VALIDATION)
        with torch.no_grad():
            loss = objective.loss(model.eval(), x, y, noise)["loss"]
        assert history["validation_loss"][-1] == pytest.approx(loss.item(), rel=1e-5)
        assert model.provenance["epoch"] == 3

    def test_buffers_are_the_latest(self):
        model = small(likelihood=likelihoods.Gaussian("optimal"))
        quiet(model, toy(), epochs=2, ema=0.9)
        assert model.likelihood.observations == 6


class TestNumbers:
    def test_gradients_are_cut_and_their_norm_recorded(self):
        free = quiet(small(), toy(), epochs=2)
        cut = quiet(small(), toy(), epochs=2, clip=1e-3, optimizer=partial(torch.optim.SGD, lr=1.0))
        assert "train_gradient_norm" not in free.rows[0]
        assert cut["train_gradient_norm"][0] > 1
        assert abs(cut["train_loss"][1] - cut["train_loss"][0]) < 0.1 * cut["train_loss"][0]  # steps of length 0.001

    def test_the_learning_rate_follows_the_share_of_training(self):
        shares = []

        def rate(share):
            shares.append(share)
            return 0.0

        model = small()
        before = weights(model)
        quiet(model, toy(32), epochs=2, schedule=rate)
        assert shares == [0.0, 0.25, 0.5, 0.75]
        assert same(before, weights(model))

    @pytest.mark.parametrize("shares", [(-0.1, 0.5), (0.6, 0.6)])
    def test_shares_of_a_schedule(self, shares):
        with pytest.raises(ValueError, match="shares with a sum of at most 1"):
            WarmupDecay(*shares)

    def test_bf16_trains_and_probabilities_stay_in_float32(self):
        model, kinds = small(likelihood=likelihoods.DiscretizedLogistic()), []
        model.decoder.register_forward_hook(lambda _, __, output: kinds.append(output.dtype))
        history = quiet(
            model, toy(), validation=toy(8), epochs=3, precision="bf16-mixed", optimizer=partial(adamw, lr=1e-2)
        )
        assert set(kinds[1:]) == {torch.bfloat16}  # the first is a look at the layers
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert (
            model(model.images(toy(2).images), model.labels([0, 1]), {"z": torch.zeros(2, 4)}).log_likelihood.dtype
            == torch.float32
        )

    @pytest.mark.parametrize(
        "likelihood", ["Bernoulli", "ContinuousBernoulli", "Gaussian", "DiscretizedLogistic", "Laplace"]
    )
    def test_half_precision_costs_no_more_than_its_digits(self, likelihood):
        """Parameters rounded to bfloat16, then taken in float32: the same as in float32 from the start."""
        part = getattr(likelihoods, likelihood)()
        rounded = torch.randn(2, part.params, 8, 8).bfloat16()
        x = (torch.rand(2, 1, 8, 8) * 255).round() / 255
        assert torch.equal(part(rounded).log_prob(x), part(rounded.float()).log_prob(x))

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"precision": "8-bit"}, "Expected precision as one of auto, 32-true, bf16-mixed, 16-mixed; got '8-bit'"),
            ({"precision": "16-mixed"}, 'on a CPU; got "16-mixed"'),
            ({"ema": 1.0}, "ema between 0 and 1; got ema=1.0"),
            ({"clip": 0.0}, "clip above 0; got clip=0.0"),
            ({"epochs": 1, "minutes": 1.0}, "Expected epochs or minutes, not both"),
            ({"minutes": math.nan}, "minutes above 0; got minutes=nan"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_numbers_out_of_range(self, options, said):
        with pytest.raises(ValueError, match=said):
            quiet(small(), toy(), **options)

    def test_augmented_images_are_what_is_learnt_from(self):
        seen, images = [], toy(16)

        class Looking(ELBO):
            def loss(self, model, x, y, noise, **scheduled):
                seen.append((self.training, x.clone()))
                return super().loss(model, x, y, noise, **scheduled)

        quiet(
            small(), images, validation=toy(8), epochs=2, objective=Looking(), augment=Augmentation(quarter_turns=True)
        )
        trained = [x for training, x in seen if training]
        assert not torch.equal(trained[0].sort(0).values, trained[1].sort(0).values)
        validated = [x for training, x in seen if not training]
        assert torch.equal(*validated)


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(planning.time, "perf_counter", lambda: self.now)


class TestBudget:
    def test_the_share_of_training_is_the_share_of_time(self, monkeypatch):
        clock = Clock(monkeypatch)
        plan = Plan(None, Budget(10.0), steps=10)
        shares = []
        while not plan.over(len(shares) / 10):
            clock.now += 1.0 if len(shares) < 100 else 3.0  # the machine becomes busy
            plan.tick()
            shares.append(plan.share(0.0))
        assert clock.now <= 600
        assert clock.now > 580
        assert shares[99] == pytest.approx(100 / (600 * 0.98))
        assert (np.diff(shares) > 0).all()

    def test_time_for_what_follows_is_set_aside(self, monkeypatch):
        clock = Clock(monkeypatch)
        plan, steps = Plan(None, Budget(1.0), steps=10), 0
        while not plan.over(steps / 10):
            clock.now, steps = clock.now + 1.0, steps + 1
            if steps == 10:
                plan.reserve(20.0)  # an epoch's validation took this long
            plan.tick()
        assert 37 <= clock.now <= 40

    def test_a_larger_reserve_never_lets_the_share_fall(self, monkeypatch):
        clock = Clock(monkeypatch)
        plan = Plan(None, Budget(1.0), steps=10)
        clock.now = 50.0
        plan.reserve(20.0)
        plan.tick()
        before = plan.share(0.0)
        plan.reserve(0.0)
        plan.tick()
        assert plan.share(0.0) == before == 1.0

    def test_parts_of_a_budget_share_its_clock(self, monkeypatch):
        clock = Clock(monkeypatch)
        whole = Budget(10.0)
        part = whole.part(0.5)
        clock.now = 400.0
        assert (part.left(), whole.left()) == (-100.0, 200.0)
        second = whole.part(1.0)
        state = second.state()
        clock.now = 10_000.0  # the process was gone for long
        second.restore(state)
        assert second.left() == whole.left() == pytest.approx(200.0)

    def test_devices_follow_the_first_ones_clock(self, monkeypatch):
        clock = Clock(monkeypatch)
        plan = Plan(None, Budget(1.0), steps=10)
        clock.now = 30.0
        plan.tick(agree=lambda _: 0.25)
        assert plan.share(0.0) == 0.25

    def test_it_ends_inside_an_epoch_and_the_rate_has_come_down(self, tmp_path):
        rates = []

        def rate(share):
            rates.append(share)
            return WarmupDecay(0.0, 0.5)(share)

        images = toy(4096)
        history = quiet(small(), images, minutes=0.02, out=tmp_path, batch_size=4, schedule=rate)
        run = json.loads((tmp_path / "run.json").read_text())
        assert run["minutes"] == 0.02
        assert run["passes"] % 1 > 0
        assert len(history) == math.ceil(run["passes"]) == run["epochs_done"]
        assert 0.8 < rates[-1] <= 1
        steps = len(history) * 1024 if run["passes"] % 1 == 0 else int(run["passes"] * 1024)
        assert history.rows[-1]["images_per_second"] * history.rows[-1]["seconds"] == pytest.approx(
            4 * (steps % 1024), rel=0.01
        )

    def test_less_than_a_step_is_one(self):
        assert len(quiet(small(), toy(), minutes=1e-6)) == 1


MAPS = {"map": (2, 4, 4), "map of one channel": (1, 2, 2), "vector": 5}


def resnet(latent, shape=(1, 8, 8), **options):
    torch.manual_seed(0)
    options = {"width": 4, "network": "resnet", "likelihood": likelihoods.Laplace(0.1), **options}
    return condgen.conditional_vae(shape, 2, latent=latent, **options)


@pytest.mark.parametrize("latent", MAPS.values(), ids=MAPS)
class TestLatentMaps:
    def test_they_train_and_come_back(self, latent, tmp_path):
        model = resnet(latent)
        history = quiet(model, toy(), validation=toy(8), epochs=4, out=tmp_path, optimizer=partial(adamw, lr=1e-2))
        assert history["train_loss"][-1] < history["train_loss"][0]
        again = condgen.load(tmp_path / "last")
        assert torch.equal(again.sample([0, 1]), model.eval().sample([0, 1]))
        assert repr(again) == repr(model)
        shape = (latent,) if isinstance(latent, int) else latent
        assert model.encode(toy(3).images, toy(3).labels).shape == (3, *shape)

    def test_the_label_matters(self, latent):
        model = resnet(latent)
        quiet(model, toy(), epochs=4, optimizer=partial(adamw, lr=1e-2))
        z = model.encode(toy(1).images, [0])
        assert not torch.equal(model.decode(z, torch.tensor([0])).mean, model.decode(z, torch.tensor([1])).mean)

    def test_interpolation_swap_health_and_likelihood(self, latent):
        model, images = resnet(latent), toy(24)
        z = model.encode(images.images[:2], images.labels[:2])
        assert condgen.sampling.latents.interpolate(model, z[0], z[1], 0, steps=3).shape == (3, 1, 8, 8)
        assert condgen.sampling.latents.transfer(model, images.images[:2], [0, 1], [0, 1]).shape == (2, 2, 1, 8, 8)
        health = latent_health(model, images.images, images.labels)
        assert health.latents == math.prod(z.shape[1:])
        assert len(health.kl_per_latent) == health.latents
        assert model.log_likelihood(images.images, images.labels, samples=4).shape == (24,)

    def test_free_bits_of_a_channel(self, latent):
        model, images = resnet(latent), toy(8)
        noise = normals(model.noise_shapes, 0, torch.arange(8), Use.TRAINING)
        terms = ELBO(free_bits=1e6).loss(model, model.images(images.images), model.labels(images.labels), noise)
        channels = latent if isinstance(latent, int) else latent[0]
        assert (terms["loss"] + terms["log_likelihood"]).item() == pytest.approx(1e6 * channels, rel=1e-4)


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 33, 47), (3, 64, 64), (2, 8, 9)])
def test_residual_networks_take_any_size(shape):
    height, width = (-(-size // 4) for size in shape[1:])
    for latent in ((3, height, width), 7):
        model = resnet(latent, shape)
        assert model.sample([0]).shape == (1, *shape)
        assert model.infer(
            torch.rand(2, *shape), torch.tensor([0, 1]), normals(model.noise_shapes, 0, torch.arange(2), Use.TRAINING)
        )


def test_maps_that_cannot_be():
    with pytest.raises(ValueError, match="a latent map of one of 14x14, 7x7, 4x4, 2x2, 1x1 for images of 28x28; got"):
        condgen.conditional_vae((3, 28, 28), 2, latent=(4, 6, 6))
    with pytest.raises(ValueError, match="a width for each of 2 maps; got 1"):
        encoders.ResNetEncoder((3, 28, 28), 2, (4, 7, 7), widths=(8,))
    with pytest.raises(ValueError, match="plain convolutions with a vector"):
        condgen.conditional_vae((3, 28, 28), 2, latent=(4, 7, 7), network="conv")


class Split(nn.Module):
    """Encoder and decoder for two levels, from plain layers."""

    def __init__(self):
        super().__init__()
        self.top, self.map = nn.Linear(64 + 2, 2 * 3), nn.Conv2d(1, 2 * 2, 3, 2, 1)

    def forward(self, x, c):
        return self.top(torch.cat([x.flatten(1), c], 1)), self.map(x)


class Merge(nn.Module):
    def __init__(self):
        super().__init__()
        self.top, self.map = nn.Linear(3 + 2, 64), nn.ConvTranspose2d(2, 1, 4, 2, 1)

    def forward(self, z, c):
        return self.top(torch.cat([z[0], c], 1)).unflatten(1, (1, 8, 8)) + self.map(z[1])


class TestLevels:
    def model(self):
        torch.manual_seed(0)
        return condgen.ConditionalVAE(
            conditioner=conditioners.OneHot(2),
            encoder=Split(),
            reparameterizer=reparameterizers.Levels([reparameterizers.Gaussian(), reparameterizers.Gaussian()]),
            prior=priors.Levels([priors.StandardNormal(3), priors.LabelNormal((2, 4, 4), 2)]),
            decoder=Merge(),
            likelihood=likelihoods.Bernoulli(),
            image_shape=(1, 8, 8),
        )

    def test_they_train_sample_and_reconstruct(self):
        model = self.model()
        history = quiet(model, toy(), validation=toy(8), epochs=3, optimizer=partial(adam, lr=1e-2))
        assert history["train_loss"][-1] < history["train_loss"][0]
        assert model.noise_shapes == {"z0": (3,), "z1": (2, 4, 4)}
        drawn = model.sample([0, 1] * 40, seed=2)
        assert torch.equal(drawn[30:40], model.sample([0, 1] * 5, seed=2, start=30))
        assert not torch.equal(model.sample([0], temperature=0.5), drawn[:1])
        assert model.reconstruct(toy(2).images, [0, 1]).shape == (2, 1, 8, 8)
        assert [z.shape for z in model.encode(toy(2).images, [0, 1])] == [(2, 3), (2, 2, 4, 4)]
        assert "z (3), (2, 4, 4)" in repr(model)

    def test_their_kl_adds_up(self):
        model, x = self.model(), torch.rand(4, 1, 8, 8)
        noise = normals(model.noise_shapes, 0, torch.arange(4), Use.TRAINING)
        inference = model.infer(x, torch.tensor([0, 1, 0, 1]), noise)
        assert [term.shape for term in inference.kl_terms] == [(4, 3), (4, 2, 4, 4)]
        torch.testing.assert_close(inference.kl, sum(term.flatten(1).sum(1) for term in inference.kl_terms))

    def test_their_likelihood_and_health(self):
        model, images = self.model(), toy(24)
        bounds = [model.log_likelihood(images.images, images.labels, samples=k).mean() for k in (1, 64)]
        assert bounds[1] > bounds[0]
        health = latent_health(model, images.images, images.labels)
        assert health.latents == 3 + 2 * 4 * 4

    def test_a_level_that_does_not_fit_is_named(self):
        model = self.model()
        model.prior = priors.Levels([priors.StandardNormal(4), priors.StandardNormal((2, 4, 4))])
        with pytest.raises(ValueError, match=r"prior's z of shape \(4\), \(2, 4, 4\); got a posterior of shape \(3\)"):
            model.infer(
                torch.rand(1, 1, 8, 8), torch.tensor([0]), normals(model.noise_shapes, 0, torch.arange(1), Use.TRAINING)
            )


def test_decoding_from_a_condition_between_two_labels():
    model = resnet((2, 4, 4))
    quiet(model, toy(), epochs=3, optimizer=partial(adamw, lr=1e-2))
    z = torch.zeros(1, 2, 4, 4)
    ends = [model.decode(z, torch.tensor([label])).mean for label in (0, 1)]
    between = model.decode_from(z, torch.tensor([[0.5, 0.5]])).mean
    assert torch.equal(model.decode_from(z, torch.tensor([[1.0, 0.0]])).mean, ends[0])
    assert not any(torch.equal(between, end) for end in ends)


@pytest.mark.slow
def test_one_graph():
    """Nothing in inference makes the compiler give up: in a process without run-time type checks."""
    script = """if True:
        import torch, condgen
        from condgen.distributions import likelihoods
        for options in ({"latent": 4}, {"latent": (2, 4, 4), "likelihood": likelihoods.Laplace("optimal")}):
            model = condgen.conditional_vae((1, 8, 8), 2, width=4, **options).eval()
            noise = {"z": torch.zeros(2, *model.noise_shapes["z"])}
            def bound(x, y):
                inference = model.infer(x, y, noise)
                return inference.log_likelihood - inference.kl
            print(torch._dynamo.explain(bound)(torch.rand(2, 1, 8, 8), torch.tensor([0, 1])).graph_break_count)
    """
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0"]


def test_the_mirror_of_an_encoder_decodes_what_it_encodes():
    encoder = encoders.ResNetEncoder((3, 28, 20), 4, (2, 7, 5), widths=(8, 16))
    decoder = decoders.ResNetDecoder((3, 28, 20), (2, 7, 5), 4, widths=(8, 16))
    parameters = encoder(torch.rand(2, 3, 28, 20), torch.zeros(2, 4))
    assert parameters.shape == (2, 4, 7, 5)
    assert decoder(parameters[:, :2], torch.zeros(2, 4)).shape == (2, 3, 28, 20)
