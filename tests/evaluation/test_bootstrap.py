"""The bootstrap over test images: figures as scikit-learn has them, spreads as closed forms have them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, recall_score

from condgen.evaluation.arms import Arm, Run, StudyPlan, Usefulness
from condgen.evaluation.bootstrap import confusions, figure, image_spreads, widened
from condgen.evaluation.usefulness import usefulness_measures
from condgen.evaluation.verdict import judge_measures


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(5, 80))
def test_figures_are_those_of_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    labels, guesses = rng.integers(0, 3, n), rng.integers(0, 4, n)  # a class that has no images may be guessed
    confusion, there = confusions(np.ones((1, n)), labels, guesses, 4), np.unique(labels)
    assert figure(confusion, "accuracy")[0] == pytest.approx(accuracy_score(labels, guesses))
    expected = f1_score(labels, guesses, labels=there, average="macro", zero_division=0)
    assert figure(confusion, "macro_f1")[0] == pytest.approx(expected)
    for k in there:
        expected = recall_score(labels, guesses, labels=[k], average=None, zero_division=0)[0]
        assert figure(confusion, int(k))[0] == pytest.approx(expected)


class TestSpreads:
    labels = np.repeat([0, 1], 300)

    def spread(self, *guesses, quantity="accuracy"):
        return image_spreads(self.labels, *guesses, quantities={"": quantity}, classes=2)[""]

    def test_of_a_share(self):
        right = np.arange(600) % 4 > 0
        guess = np.where(right, self.labels, 1 - self.labels)
        assert self.spread([guess]) == pytest.approx((0.75 * 0.25 / 600) ** 0.5, rel=0.1)
        assert self.spread([guess], quantity=1) == pytest.approx((0.75 * 0.25 / 300) ** 0.5, rel=0.1)
        assert self.spread([guess, guess]) == self.spread([guess])  # seeds that agree say no more than one

    def test_of_a_paired_difference(self):
        """Of McNemar's two kinds of image on which the classifiers differ."""
        one, other = np.arange(600) % 10 > 0, (np.arange(600) % 10 > 0) ^ (np.arange(600) % 6 == 1)
        guesses = [[np.where(right, self.labels, 1 - self.labels)] for right in (one, other)]
        b, c = (one & ~other).sum(), (~one & other).sum()
        expected = (b + c - (b - c) ** 2 / 600) ** 0.5 / 600
        assert self.spread(*guesses) == pytest.approx(expected, rel=0.1)

    @given(low=st.floats(0, 1), reach=st.floats(0, 13), spread=st.floats(0, 1), least=st.sampled_from([0.0, -1.0]))
    def test_intervals_stay_in_range_and_only_grow(self, low, reach, spread, least):
        found = widened((low - reach, low + reach), spread, least, 1.0)
        assert least <= found[0] <= found[1] <= 1
        assert found[0] <= max(least, low - reach) + 1e-9
        assert found[1] >= min(1.0, low + reach) - 1e-9

    def test_none_stays_none(self):
        assert widened(None, 0.1, 0.0, 1.0) is None


def study(rng, effect, seeds=3, images=400):
    """Two training sets whose classifiers share the test images, each of which is harder or easier for each set."""
    labels, hard = rng.integers(0, 3, images), rng.normal(2.0, 1.5, images)

    def arm(kind, gain):
        of_set, runs = rng.normal(0, 0.5, images), []
        for seed in range(seeds):
            right = rng.random(images) < 1 / (1 + np.exp(-(hard + of_set + gain)))
            guesses = np.where(right, labels, (labels + rng.integers(1, 3, images)) % 3)
            f1 = float(f1_score(labels, guesses, average="macro"))
            recall = tuple(float(right[labels == k].mean()) for k in range(3))
            runs.append(Run(seed, 0.5, 0.5, 0.0, float(right.mean()), f1, recall, tuple(guesses.tolist())))
        return Arm(kind, None, 9, 0, tuple(runs))

    arms = [arm(kind, effect * (kind == "balanced")) for kind in ("real", "synthetic", "balanced")]
    arms += [Arm(kind, None, 9, 0, arms[0].runs) for kind in ("oversampled", "cutmix")]
    return Usefulness(tuple(arms), ("a", "b", "c"), "b", {}, StudyPlan(seeds=seeds), 0, (), tuple(labels.tolist()))


def titles(useful):
    measure = {"balanced_gain": usefulness_measures(useful)["balanced_gain"]}
    return {finding.title for finding in judge_measures(measure, useful=useful).findings}


@pytest.mark.slow
def test_nothing_is_said_to_help_in_at_most_five_of_a_hundred():
    rng = np.random.default_rng(0)
    helped = sum("Generated images help real ones" in titles(study(rng, 0.0)) for _ in range(100))
    assert helped <= 5
    assert sum("Generated images help real ones" in titles(study(rng, 1.5)) for _ in range(10)) >= 8


def test_other_test_images_are_part_of_the_interval():
    """Three seeds that agree on one small test set are not certain."""
    useful = study(np.random.default_rng(1), 0.0, images=60)
    same = [Arm(arm.kind, None, 9, 0, (arm.runs[0],) * 3) for arm in useful.arms]
    found = usefulness_measures(
        Usefulness(tuple(same), useful.class_names, "b", {}, useful.plan, 0, (), useful.test_labels)
    )
    low, high = found["synthetic_accuracy"].interval
    share = found["synthetic_accuracy"].overall
    assert high - low == pytest.approx(2 * 1.96 * (share * (1 - share) / 60) ** 0.5, rel=0.2)
    assert found["balanced_gain"].interval[1] - found["balanced_gain"].interval[0] > 0.05
