"""Measures of two sets: against the published implementations, closed forms, and what must hold for any sets."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from condgen.evaluation.comparison import compare
from condgen.evaluation.fidelity import (
    DIVERSITY,
    FIDELITY,
    diversity,
    fidelity,
    frechet_distance,
    kernel_distance,
    label_measures,
    label_truth,
    precision_recall_density_coverage,
    relative_sharpness,
    sharpness,
)
from condgen.evaluation.records import Measure, Unmeasurable
from condgen.evaluation.statistics import half_samples, wilson


def normal(n, d, seed, mean=0.0, scale=1.0):
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def features(n, d, seed):
    """As a classifier's: not negative, correlated, of different spreads."""
    x = normal(n, d, seed)
    mixed = x @ normal(d, d, 99) / d**0.5 + 0.3 * x.roll(1, 1)
    return mixed.relu() * torch.linspace(0.2, 3, d)


SETS = [(features(n, d, 0), features(m, d, 1) + shift) for n, m, d, shift in ((300, 300, 16, 0.0), (400, 250, 64, 0.5))]


class TestOracles:
    @pytest.mark.parametrize(("real", "generated"), SETS)
    def test_fid_is_that_of_torch_fidelity(self, real, generated):
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        expected = fid_statistics_to_metric(
            fid_features_to_statistics(real), fid_features_to_statistics(generated), verbose=False
        )
        assert frechet_distance(real, generated) == pytest.approx(next(iter(expected.values())), rel=1e-4)

    @pytest.mark.parametrize(("real", "generated"), [SETS[0]])
    def test_kid_is_that_of_torch_fidelity_with_one_full_subset(self, real, generated):
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        options = {"kid_degree": 3, "kid_gamma": None, "kid_coef0": 1, "kid_kernel": "poly", "rng_seed": 0}
        expected = kid_features_to_metric(
            real.double(), generated.double(), kid_subsets=1, kid_subset_size=len(real), verbose=False, **options
        )[KEY_METRIC_KID_MEAN]
        assert kernel_distance(real, generated) == pytest.approx(expected, rel=1e-4)

    def test_kid_of_unequal_sizes_is_its_definition(self):
        x, y = features(7, 3, 0).double(), features(5, 3, 1).double()

        def kernel(a, b):
            return float((a @ b / 3 + 1) ** 3)

        xx = [kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
        yy = [kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
        xy = [kernel(a, b) for a in x for b in y]
        expected = np.mean(xx) + np.mean(yy) - 2 * np.mean(xy)
        assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(("real", "generated"), SETS)
    @pytest.mark.parametrize("k", [3, 5])
    def test_neighbour_measures_are_those_of_prdc(self, real, generated, k):
        from prdc import compute_prdc

        with contextlib.redirect_stdout(io.StringIO()):
            expected = compute_prdc(real.double().numpy(), generated.double().numpy(), nearest_k=k)
        assert precision_recall_density_coverage(real, generated, k) == pytest.approx(expected, rel=1e-4)


class TestClosedForms:
    def test_fid_of_gaussians(self):
        """Means 2 apart in one direction; standard deviations 1 and 3 in another: 4 + (3 - 1)²."""
        x = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)]).repeat(5, 1)
        y = x * torch.tensor([1.0, 3.0]) + torch.tensor([2.0, 0.0])
        assert frechet_distance(x, y) == pytest.approx(4 + 4 * 20 / 19, rel=1e-9)  # an unbiased variance

    def test_kid_averages_to_nothing_on_one_distribution(self):
        values = [kernel_distance(normal(40, 6, 2 * seed), normal(40, 6, 2 * seed + 1)) for seed in range(200)]
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(len(values))
        assert min(values) < 0 < max(values)

    def test_a_set_and_itself(self):
        x = features(100, 8, 0)
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
        found = precision_recall_density_coverage(x, x)
        assert (found["precision"], found["recall"], found["coverage"]) == (1, 1, 1)

    def test_diversity_of_one_picture_is_nothing(self):
        x = features(20, 8, 0)
        assert diversity(x, x)["diversity"] == pytest.approx(1)
        assert diversity(x, x[:1].expand(20, 8))["diversity"] == pytest.approx(0, abs=1e-6)
        assert diversity(x, 3 * x)["diversity"] == pytest.approx(3)

    def test_sharpness_of_a_checkerboard(self):
        board = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float()[None, None]
        assert sharpness(board) == 1.0
        ramp = torch.linspace(0, 1, 8).expand(1, 1, 8, 8)
        assert sharpness(ramp) == pytest.approx(0, abs=1e-12)
        assert relative_sharpness(board, 0.25 * board)["sharpness"] == pytest.approx(0.25)

    def test_wilson_is_that_of_scipy(self):
        for right, n in ((0, 5), (3, 10), (10, 10), (457, 1000)):
            expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
            assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-6)

    def test_label_truth(self):
        seen = torch.tensor([0, 0, 1, 1, 1, 0])
        truth = label_truth(torch.nn.functional.one_hot(seen, 3).float(), np.array([0, 0, 0, 1, 1, 1]))
        assert truth.accuracy == pytest.approx(4 / 6)
        assert truth.recall == (pytest.approx(2 / 3), pytest.approx(2 / 3), None)
        assert truth.macro == pytest.approx(2 / 3)
        assert truth.confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
        measure = label_measures(truth, truth, ["a", "b", "c"])["label_macro"]
        assert measure.per_class["c"] is None
        assert "c" in measure.reason


@settings(max_examples=25, deadline=None)
@given(n=st.integers(8, 40), m=st.integers(8, 40), d=st.integers(1, 6), seed=st.integers(0, 100))
def test_what_holds_for_any_two_sets(n, m, d, seed):
    x, y = normal(n, d, seed), normal(m, d, seed + 1000, mean=0.3)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    one, other = precision_recall_density_coverage(x, y), precision_recall_density_coverage(y, x)
    assert one["precision"] == other["recall"]
    assert one["recall"] == other["precision"]
    assert all(0 <= one[name] <= 1 for name in ("precision", "recall", "coverage"))
    assert one["density"] >= 0
    assert precision_recall_density_coverage(x[order], y) == pytest.approx(one)
    assert kernel_distance(x, y) == pytest.approx(kernel_distance(y, x[order]), rel=1e-6, abs=1e-9)
    if min(n, m) > d:
        assert frechet_distance(x, y) == pytest.approx(frechet_distance(y[:], x[order]), rel=1e-5, abs=1e-6)


class TestTooFew:
    def test_fid_needs_more_images_than_features(self):
        with pytest.raises(Unmeasurable, match=r"more than 8 images; there are 8: see KID"):
            frechet_distance(normal(8, 8, 0), normal(20, 8, 1))
        frechet_distance(normal(9, 8, 0), normal(20, 8, 1))

    def test_the_others_say_so_too(self):
        with pytest.raises(Unmeasurable, match="more than 5 images"):
            precision_recall_density_coverage(normal(5, 2, 0), normal(9, 2, 0))
        with pytest.raises(Unmeasurable, match="two images"):
            kernel_distance(normal(1, 2, 0), normal(9, 2, 0))
        with pytest.raises(Unmeasurable, match="two images"):
            diversity(normal(9, 2, 0), normal(1, 2, 0))
        with pytest.raises(Unmeasurable, match="all alike"):
            diversity(torch.ones(9, 2), normal(9, 2, 0))
        with pytest.raises(Unmeasurable, match="no detail"):
            relative_sharpness(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8))

    def test_the_reason_stands_beside_what_could_not_be_taken(self):
        labels = torch.arange(60) % 2
        labels[:50] = 0  # 55 and 5
        x, y, z = (normal(60, 8, seed) for seed in range(3))
        found = compare(fidelity, x, y, z, real_labels=labels, labels=labels, names=["many", "few"], describe=FIDELITY)
        assert found["fid"].overall is not None
        assert found["fid"].per_class["many"] is not None
        assert found["fid"].per_class["few"] is None
        assert "few: " in found["fid"].reason
        assert found["kid"].per_class["few"] is None  # none of six has more than 5 images
        assert all(math.isfinite(value) for value in (found["kid"].overall, found["kid"].floor))


class TestIntervals:
    def test_halves_have_half_of_each_class_without_repeats(self):
        labels = torch.tensor([0] * 10 + [1] * 7 + [2] * 5)
        halves = list(half_samples(22, 50, seed=3, labels=labels))
        for half in halves:
            assert len(half) == 11
            assert len(half.unique()) == 11
            counts = torch.bincount(labels[half], minlength=3).tolist()
            assert counts[0] == 5
            assert counts[1] in (3, 4)
            assert counts[2] in (2, 3)
        drawn = torch.bincount(torch.cat(halves), minlength=22)
        assert drawn.min() > 10  # of 25 expected: every image has its turn
        assert not torch.equal(halves[0], halves[1])

    def test_the_interval_of_a_mean_covers_it_as_often_as_it_should(self):
        """Known truth: the difference of two means, of which the standard error is sqrt(2 / n)."""

        def difference(real, generated):
            return {"difference": float(generated.mean() - real.mean())}

        about, inside, widths = {"difference": {"better": "floor"}}, 0, []
        for seed in range(150):
            x, y = normal(60, 1, 2 * seed), normal(60, 1, 2 * seed + 1, mean=0.5)
            low, high = compare(difference, x, y, None, describe=about, subsamples=20, seed=seed)["difference"].interval
            inside += low < 0.5 < high
            widths.append((high - low) / 4)
        assert np.mean(widths) == pytest.approx(math.sqrt(2 / 60), rel=0.1)
        assert 0.88 < inside / 150 < 0.995

    def test_variety_within_classes_is_not_hidden_by_the_distance_between_them(self):
        labels = torch.arange(40) % 2
        real = normal(40, 4, 0) + 100 * labels[:, None]
        collapsed = torch.zeros(40, 4) + 100 * labels[:, None] + 0.01 * normal(40, 4, 1)
        sets = {"real_labels": labels, "labels": labels, "names": ["a", "b"], "describe": DIVERSITY}
        assert compare(diversity, real, collapsed, real, **sets)["diversity"].overall > 0.9
        within = compare(diversity, real, collapsed, real, within=True, **sets)["diversity"]
        assert within.overall < 0.02
        assert within.floor == pytest.approx(1)
        assert within.overall == pytest.approx(np.mean(list(within.per_class.values())))

    def test_the_same_seed_gives_the_same_interval(self):
        x, y = normal(40, 3, 0), normal(40, 3, 1)
        one, two, other = (compare(fidelity, x, y, x, describe=FIDELITY, seed=seed)["fid"] for seed in (0, 0, 1))
        assert one == two
        assert one.overall == other.overall
        assert one.interval != other.interval


def test_a_measure_is_finite_or_says_why():
    with pytest.raises(ValueError, match="finite"):
        Measure(math.nan)
    with pytest.raises(ValueError, match="finite"):
        Measure(1.0, interval=(0.0, math.inf))
    with pytest.raises(ValueError, match="reason"):
        Measure(None)
    assert Measure(None, reason="none").to_json()["overall"] is None
