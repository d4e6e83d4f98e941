"""Distillation: pairs are what the flow makes of its starts, and the student's one step goes where they end."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn

import condgen
from condgen.distributions.priors.flow_matching import FlowMatching
from condgen.distributions.priors.mixture import GaussianMixture
from condgen.distributions.priors.standard import StandardNormal
from condgen.recipes import RECIPES
from condgen.training import distil as module
from condgen.training.checkpoints import Checkpoints
from condgen.training.distil import distil
from condgen.training.settings import Hardware, Sampler, Training
from tests.training.test_training import same, weights

quiet = partial(distil, progress=False, accelerator="cpu", distil_pairs=200, distil_epochs=2, batch_size=32)


class Shrinking(nn.Module):
    """The field -z, and twice the condition beside it unless that is hidden; its steps have a closed form."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.ones(1))

    def forward(self, z, t, c, component, dropped):
        return -self.rate * z + 2 * (1 - dropped[:, None]) * c


def flow_of(velocity=None, source=None, **options):
    """A flow of two latents under two classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FlowMatching(2, 2, source or StandardNormal(2), velocity, **options)


def sampling(flow):
    """A model that samples from it, and images with its two labels."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = condgen.conditional_vae((1, 8, 8), 2, latent=2, width=4)
    model.sampler = flow
    labels = torch.arange(40).remainder(4).clamp(max=1).numpy()  # three of the second for one of the first
    return model, condgen.LabelledImages(torch.zeros(40, 1, 8, 8).byte().numpy(), labels, ("first", "second"))


def drawn(flow, steps, numbers=range(300), guidance=0.0):
    """Pairs by so many steps."""
    teacher = Sampler("flow_matching", distil_pairs=1, teacher_steps=steps, teacher_guidance=guidance)
    with torch.no_grad(), module.teaching(flow, teacher, Hardware(accelerator="cpu")):
        return module.pairs_of(flow, torch.eye(2), Training(), numbers)


class TestPairs:
    @pytest.mark.parametrize(("steps", "guidance"), [(1, 0.0), (4, 0.0), (3, 0.5)])
    def test_they_end_where_the_solver_ends(self, steps, guidance):
        """Heun's step of dz/dt = a - z is z → a + q (z - a), with q = 1 - h + h²/2; guided, a grows by its share."""
        pairs, c, _ = drawn(flow_of(Shrinking()), steps, guidance=guidance)
        start, end = pairs.unbind(1)
        attractor = 2 * (1 + guidance) * c
        q = (1 - 1 / steps + 1 / (2 * steps**2)) ** steps
        torch.testing.assert_close(end, attractor + q * (start - attractor))

    def test_starts_are_the_sources_draws(self):
        pairs, c, _ = drawn(flow_of(Shrinking()), 1, range(4000))
        start = pairs[:, 0]
        assert start.mean(0).abs().max() < 4 / 4000**0.5
        assert (start.std(0) - 1).abs().max() < 4 / 8000**0.5
        assert c[:, 0].mean() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)

    def test_a_pair_is_a_function_of_its_number(self):
        """Whichever block it is drawn in; another seed draws others."""
        whole = drawn(flow_of(Shrinking()), 2, range(50))
        for own, other in zip(whole, drawn(flow_of(Shrinking()), 2, range(20, 50)), strict=True):
            assert torch.equal(own[20:], other)
        with torch.no_grad():
            others = module.pairs_of(flow_of(Shrinking()), torch.eye(2), Training(seed=1), range(50))
        assert not torch.equal(others[0][:, 0], whole[0][:, 0])

    def test_components_are_those_of_the_condition(self):
        source = GaussianMixture(2, 2, components=3, classes=2)
        c = torch.eye(2).repeat(60, 1)
        source.fit(torch.randn(120, 2, generator=torch.Generator().manual_seed(0)), c)
        _, c, component = drawn(flow_of(source=source), 1)
        of_class = [set(component[c[:, k] == 1].tolist()) for k in (0, 1)]
        assert [len(own) for own in of_class] == [3, 3]
        assert not of_class[0] & of_class[1]

    def test_the_flow_is_as_it_was(self):
        flow = flow_of(steps=3, guidance=0.2)
        flow.student = flow.velocity
        drawn(flow, 5, range(3))
        assert (flow.steps, flow.guidance, flow.student is flow.velocity) == (3, 0.2, True)


class TestStudent:
    def test_it_goes_in_one_step_where_the_teacher_goes_in_four(self):
        torch.manual_seed(0)
        flow = flow_of()
        nn.init.normal_(flow.velocity.last.weight, std=0.4)  # a bent field, unlike a new one, which stands still
        model, images = sampling(flow)
        y = torch.arange(400) % 2
        flow.steps, far = 4, []
        wanted = flow.draw(torch.eye(2)[y], torch.randn(400, 2, generator=torch.Generator().manual_seed(5)))
        quiet(model, images, distil_pairs=1500, distil_epochs=16, teacher_guidance=0.0, learning_rate=3e-3)
        for student in (flow.student, None):
            flow.steps, flow.student, flow.solver = 1, student, "euler"
            found = flow.draw(torch.eye(2)[y], torch.randn(400, 2, generator=torch.Generator().manual_seed(5)))
            far.append((found - wanted).square().mean().sqrt().item())
        assert far[0] < far[1] / 4

    def test_more_steps_follow_the_field_as_before(self):
        flow = flow_of()
        nn.init.normal_(flow.velocity.last.weight, generator=torch.Generator().manual_seed(0))
        model, images = sampling(flow)
        before = model.sample([0, 1] * 4)
        assert quiet(model, images) is flow
        assert (flow.steps, flow.guidance) == (1, 0.0)
        assert not torch.equal(model.sample([0, 1] * 4), before)
        flow.steps = 2
        assert torch.equal(model.sample([0, 1] * 4), before)

    def test_one_that_learnt_too_little_is_not_drawn_from(self):
        """Two steps of the flow come nearer to the teacher's samples: they are taken, and that is said."""
        flow = flow_of()
        nn.init.normal_(flow.velocity.last.weight, std=0.4, generator=torch.Generator().manual_seed(0))
        model, images = sampling(flow)
        with pytest.warns(UserWarning, match="farther from its teacher's samples than 2 steps"):
            quiet(model, images, distil_pairs=32, distil_epochs=1, learning_rate=1e-9, teacher_guidance=0.0)
        assert flow.student is not None
        assert flow.steps == 2

    def test_its_one_step_cannot_be_guided(self):
        model, images = sampling(flow_of())
        quiet(model, images)
        model.sampler.guidance = 0.3
        with pytest.raises(ValueError, match=r"Expected guidance=0 with steps=1.*steps=2"):
            model.sample([0])
        model.sampler.steps = 2
        assert model.sample([0]).shape == (1, 1, 8, 8)

    def test_it_is_saved_with_the_model(self, tmp_path):
        model, images = sampling(flow_of(source=None))
        quiet(model, images)
        condgen.save(model, tmp_path)
        again = condgen.load(tmp_path)
        assert torch.equal(again.sample([0, 1, 1]), model.sample([0, 1, 1]))
        again.sampler.steps = model.sampler.steps = 3
        assert torch.equal(again.sample([0, 1, 1]), model.sample([0, 1, 1]))

    def test_the_density_of_its_samples_integrates_to_one(self):
        class Bent(nn.Module):
            def forward(self, z, t, c, component, dropped):
                return 0.3 * z.sin().flip(1) + c

        flow = flow_of(density=True, student=Bent(), steps=1).double()
        side = torch.linspace(-9, 9, 121, dtype=torch.float64)
        z = torch.cartesian_prod(side, side)
        density = flow(torch.tensor([[1.0, 0.0]]).double().expand(len(z), 2)).log_prob(z).exp()
        assert density.sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(1, abs=1e-3)

    def test_distilling_again_begins_anew(self):
        """The same student as the first time, not one that learnt from the student."""
        model, images = sampling(flow_of())
        first = weights(quiet(model, images).student)
        assert same(weights(quiet(model, images).student), first)


class TestAsked:
    def test_errors(self, tmp_path):
        model, images = sampling(None)
        with pytest.raises(ValueError, match=r"samples from StandardNormal\. Fit one first"):
            quiet(model, images)
        model, images = sampling(flow_of(drop=0.0))
        with pytest.raises(ValueError, match=r"Expected guidance=0 for a flow trained with drop=0; got 0\.8"):
            quiet(model, images)
        with pytest.raises(ValueError, match="distil_pairs of 1 or more; got 0"):
            quiet(model, images, distil_pairs=0)
        with pytest.raises(ValueError, match=r"guidance=0 where samples are drawn in one step.*teacher_guidance"):
            RECIPES["sharp"].changed(guidance=0.3)
        assert RECIPES["sharp"].changed(guidance=0.3, steps=2).sampler.guidance == 0.3
        with pytest.raises(TypeError, match="Did you mean distil_pairs"):
            quiet(model, images, distill_pairs=3)

    @pytest.mark.parametrize("place", ["pairs_of", "train_student"])
    def test_nothing_changes_where_it_fails(self, place, monkeypatch):
        flow = flow_of(guidance=0.1)
        model, images = sampling(flow)

        def failing(*_):
            raise FloatingPointError("no longer finite")

        monkeypatch.setattr(module, place, failing)
        with pytest.raises(FloatingPointError):
            quiet(model, images)
        assert (flow.steps, flow.guidance, flow.student) == (2, 0.1, None)

    def test_a_budget_draws_what_it_has_time_for(self, monkeypatch):
        monkeypatch.setattr(module, "SMALL_BLOCK", 10)
        model, images = sampling(flow_of())
        given = []
        monkeypatch.setattr(module, "train_student", lambda *a: given.append(len(a[1][0])))
        quiet(model, images, distil_pairs=10**9, minutes=0.02)
        assert 9 <= given[0] < 10**6
        assert (given[0] + min(256, -(-given[0] // 9))) % 10 == 0  # a tenth tells whether the student is of use


class TestStopped:
    @pytest.mark.parametrize("after", [2, 6])
    def test_it_goes_on_to_the_same_student(self, after, tmp_path, monkeypatch):
        """Stopped among the pairs, and in training."""
        monkeypatch.setattr(module, "BLOCK", 50)
        model, images = sampling(flow_of())
        whole = weights(quiet(model, images).student)
        model, images = sampling(flow_of())
        states = []
        write = Checkpoints.write

        def killed(self, state):
            write(self, state)
            states.append(state)
            if len(states) == after:
                raise RuntimeError("pulled out")

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "write", killed)
            with pytest.raises(RuntimeError, match="pulled out"):
                quiet(model, images, checkpoints=tmp_path / "kept", save_every=0.0)
        kept = states[-1]
        assert ("pairs" in kept) == (after == 2)
        numbers = []
        with monkeypatch.context() as patch:
            patch.setattr(module, "pairs_of", lambda *a: numbers.append(a[3]) or PAIRS_OF(*a))
            again = quiet(model, images, checkpoints=tmp_path / "kept")
        assert same(weights(again.student), whole)
        assert [own.start for own in numbers] == ([100, 150, 200] if after == 2 else [200])  # those held out as well
        assert not (tmp_path / "kept").exists()

    def test_another_distillations_state_is_not_gone_on_from(self, tmp_path, monkeypatch):
        model, images = sampling(flow_of())

        def killed(*_):
            raise RuntimeError("pulled out")

        with monkeypatch.context() as patch:
            patch.setattr(module, "train_student", killed)
            with pytest.raises(RuntimeError, match="pulled out"):
                quiet(model, images, checkpoints=tmp_path)
        expected = weights(quiet(model, images, teacher_steps=1).student)
        assert same(weights(quiet(model, images, teacher_steps=1, checkpoints=tmp_path).student), expected)


PAIRS_OF = module.pairs_of


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The distilled network")
def test_a_recipe_stopped_in_its_distillation_goes_on_there(tmp_path):
    data = condgen.load_smears(24, size=16)
    chosen = {"epochs": 1, "components": 1, "sampler_epochs": 1, "distil_pairs": 40, "distil_epochs": 1}
    chosen |= {"progress": False, "accelerator": "cpu"}
    whole, _ = RECIPES["sharp"].fit(data, tmp_path / "whole", **chosen)
    assert whole.sampler.student is not None

    def killed(*_, **__):
        raise RuntimeError("pulled out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("condgen.recipes.distil", killed)
        with pytest.raises(RuntimeError, match="pulled out"):
            RECIPES["sharp"].fit(data, tmp_path / "stopped", **chosen)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The distilled network")
        again, _ = RECIPES["sharp"].fit(data, tmp_path / "stopped", resume=True, **chosen)
    assert same(weights(again), weights(whole))
    assert torch.equal(condgen.load(tmp_path / "stopped").sample([0, 1]), whole.sample([0, 1]))
