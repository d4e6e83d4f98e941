"""Usefulness without training: classifiers whose states are known, so that every choice and figure can be foretold."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

from condgen.data import LabelledImages
from condgen.evaluation import usefulness as module
from condgen.evaluation.usefulness import Arm, Plan, Run, Usefulness, usefulness, usefulness_measures

NAMES = ("a", "b", "c")
PLAN = Plan(seeds=2, steps=4, batch_size=2, width=4, cuts=(2, 50), milestones=4)


def images_of(labels):
    """An image of class k is grey 100 k throughout, so a network can be told to read it."""
    return np.broadcast_to((100 * np.asarray(labels))[:, None, None, None], (len(labels), 1, 8, 8)).astype(np.uint8)


def labelled(train, validation, test):
    parts = [np.repeat(np.arange(3), counts) for counts in (train, validation, test)]
    labels, ends = np.concatenate(parts), np.cumsum([len(part) for part in parts])
    splits = {"train": slice(0, ends[0]), "validation": slice(ends[0], ends[1]), "test": slice(ends[1], ends[2])}
    return LabelledImages(images_of(labels), labels, NAMES, splits)


def draw(labels, _):
    return images_of(labels)


class Reader(torch.nn.Module):
    """Reads the class off an image; in state s it takes for class 0 whatever is not of class s."""

    def __init__(self, *_):
        super().__init__()
        self.register_buffer("state", torch.tensor(0))

    def forward(self, x):
        classes = (x[:, 0, 0, 0] * 255 / 100).round().long()
        return torch.nn.functional.one_hot(torch.where(classes == self.state, classes, 0), 3).float()


@pytest.fixture
def states(monkeypatch):
    """Classifiers are in a given state at each milestone; what they were trained on is kept by seed."""
    given, sets = [0, 1, 2, 0], defaultdict(list)

    def fit(network, images, labels, *, seed, weights, milestones, on_milestone, **_):
        sets[seed].append((images, labels, weights))
        for step in sorted(milestones):
            network.state.fill_(given[step - 1])
            on_milestone(step, network)
        network.state.fill_(0)

    monkeypatch.setattr(module, "ResidualClassifier", Reader)
    monkeypatch.setattr(module, "fit_classifier", fit)
    return given, sets


class TestChoice:
    def test_the_state_best_on_validation_is_measured_on_test(self, states):
        """State 1 is better on validation, state 2 on test: the one kept is state 1, not the last nor the best."""
        data = labelled((6, 5, 4), (4, 5, 1), (4, 1, 5))
        result = usefulness(draw, data, plan=PLAN)
        truth = data.test.labels
        guesses = np.where(truth == 1, 1, 0)
        for run in (run for arm in result.arms for run in arm.runs):
            assert run.step == 2
            assert run.accuracy == pytest.approx(accuracy_score(truth, guesses))
            assert run.macro_f1 == pytest.approx(f1_score(truth, guesses, average="macro"))
            assert run.recall == tuple(recall_score(truth, guesses, average=None, zero_division=0))
            assert run.validation_accuracy == pytest.approx(0.9)

    def test_macro_f1_goes_before_accuracy_and_early_before_late(self, states, monkeypatch):
        looks = [(0.9, 0.5), (0.6, 0.7), (0.8, 0.7), (0.8, 0.7), (0.1, 0.2)]  # the last is the test split
        given = iter(looks * 14)
        monkeypatch.setattr(module, "scores", lambda *_: module.Scores(*next(given), (0.1, 0.1, 0.1)))
        result = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=PLAN)
        runs = [run for arm in result.arms for run in arm.runs]
        assert {(run.step, run.validation_accuracy, run.validation_macro_f1) for run in runs} == {(3, 0.8, 0.7)}
        assert {(run.accuracy, run.macro_f1) for run in runs} == {(0.1, 0.2)}

    def test_the_test_split_is_seen_once_a_classifier(self, states, monkeypatch):
        seen = []
        real = module.scores
        monkeypatch.setattr(module, "scores", lambda network, split: seen.append(split.name) or real(network, split))
        usefulness(draw, labelled((6, 5, 4), (4, 5, 1), (4, 1, 5)), plan=PLAN)
        assert seen == [*["images validation"] * 4, "images test"] * 14


class TestSets:
    def test_every_arm_of_a_seed_is_trained_on_what_it_says(self, states):
        _, sets = states
        data = labelled((6, 5, 4), (2, 2, 2), (2, 2, 2))
        result = usefulness(draw, data, plan=PLAN, seed=7)
        assert sorted(sets) == [7, 8]
        counts = [np.bincount(labels).tolist() for _, labels, _ in sets[7]]
        assert counts == [[6, 5, 4], [6, 5, 4], [6, 5, 4], [6, 6, 6], [6, 5, 2], [6, 5, 2], [6, 6, 6]]
        assert [arm.real + arm.generated for arm in result.arms] == [sum(row) for row in counts]
        for images, labels, weights in sets[7]:
            assert (images[:, 0, 0, 0] == 100 * labels).all()
            if weights is not None:
                assert np.bincount(labels, weights) == pytest.approx([1, 1, 1])
        assert [weights is not None for *_, weights in sets[7]] == [False, True, False, False, False, True, False]

    def test_classes_and_seeds_are_drawn_apart(self, states):
        asked = []

        def noting(labels, seed):
            asked.append((seed, int(labels[0])))
            return images_of(labels)

        usefulness(noting, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=PLAN)
        assert len(asked) == len({seed for seed, _ in asked}) == 6

    def test_the_cut_is_recorded_and_depends_on_the_seed(self, states):
        data = labelled((40, 30, 20), (2, 2, 2), (2, 2, 2))
        one, again, other = (usefulness(draw, data, plan=PLAN, seed=seed) for seed in (0, 0, 1))
        assert one == again
        assert set(one.cuts) == {2}
        assert len(one.cuts[2]) == 2
        assert (data.train.labels[list(one.cuts[2])] == 2).all()
        assert one.cuts != other.cuts

    def test_another_class_can_be_cut(self, states):
        result = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=PLAN, rare="a")
        # With two of the largest class left, the next largest is what classes are filled up to.
        assert (result.arm("balanced", 2).real, result.arm("balanced", 2).generated) == (2 + 5 + 4, 3 + 0 + 1)


class TestNotes:
    def test_a_cut_that_cuts_nothing_is_left_out_and_told(self, states):
        notes = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=PLAN).notes
        assert "c has 4 training images: there is no cut to 50." in notes

    @pytest.mark.parametrize(("saw", "told"), [(None, True), (3, True), (2, False)])
    def test_a_generator_that_saw_more_than_the_cut_is_told(self, states, saw, told):
        notes = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=PLAN, saw=saw).notes
        assert any("knows more" in note for note in notes) == told

    def test_classes_that_cannot_be_measured_are_told(self, states):
        result = usefulness(draw, labelled((6, 5, 4), (2, 0, 2), (2, 2, 0)), plan=PLAN)
        assert any("validation has no images of b" in note for note in result.notes)
        assert any("test has no images of c" in note for note in result.notes)
        found = usefulness_measures(result)
        assert found["synthetic_rare_recall"].overall is None
        assert "no images" in found["synthetic_rare_recall"].reason
        assert found["synthetic_accuracy"].per_class["c"] is None
        assert found["rare_2_recall_gain"].overall is None
        assert found["rare_2_gain"].overall is not None


class TestMeasures:
    def test_the_ceiling_of_a_gain_is_what_the_lost_images_would_add(self):
        def arm(kind, cut, *values):
            return Arm(kind, cut, 9, 0, tuple(Run(k, 1, v, v, v, v, (v, v, v)) for k, v in enumerate(values)))

        arms = (
            *(arm(kind, None, 0.9, 0.7) for kind in module.KINDS),
            arm("real", 2, 0.5, 0.4),
            arm("oversampled", 2, 0.3, 0.2),
            arm("balanced", 2, 0.8, 0.4),
        )
        found = usefulness_measures(Usefulness(arms, NAMES, "c", {2: (0, 1)}, PLAN, 0, ()))["rare_2_gain"]
        assert found.overall == pytest.approx(0.15)
        assert found.floor == pytest.approx(0.35)
        assert "'real, 2 c'" in found.meaning
        assert "70%" in found.meaning  # two seeds: Student's distribution with one degree of freedom
        assert 2 / math.pi * math.atan(2) == pytest.approx(0.70, abs=0.01)

    def test_one_seed_has_no_interval(self, states):
        data = labelled((6, 5, 4), (2, 2, 2), (2, 2, 2))
        found = usefulness_measures(
            usefulness(draw, data, plan=Plan(seeds=1, steps=4, batch_size=2, width=4, cuts=(2,)))
        )
        assert all(measure.interval is None for measure in found.values())

    def test_a_name_for_every_class(self, states):
        result = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=PLAN)
        assert list(usefulness_measures(result, ("x", "y", "z"))["balanced_gain"].per_class) == ["x", "y", "z"]
        with pytest.raises(ValueError, match="3 class names"):
            usefulness_measures(result, ("x",))
