"""Fidelity, variety, sharpness, truth to the label: oracles, closed forms, known truth."""

import contextlib
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch.nn import functional as F

from condgen import load_smears
from condgen.evaluation.comparison import compare
from condgen.evaluation.fidelity import (
    FIDELITY,
    diversity,
    fidelity,
    frechet_distance,
    kernel_distance,
    label_measures,
    label_truth,
    precision_recall_density_coverage,
    relative_sharpness,
    repeats,
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
        found = compare(fidelity, x, y, z, real_labels=labels, labels=labels, classes=["many", "few"], names=FIDELITY)
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

    @pytest.mark.slow
    def test_the_interval_of_a_mean_covers_it_as_often_as_it_should(self):
        """Known truth: the difference of two means, of which the standard error is sqrt(2 / n)."""

        def difference(real, generated):
            return {"difference": float(generated.mean() - real.mean())}

        inside, widths = 0, []
        for seed in range(150):
            x, y = normal(60, 1, 2 * seed), normal(60, 1, 2 * seed + 1, mean=0.5)
            low, high = compare(difference, x, y, None, names=["difference"], subsamples=20, seed=seed)[
                "difference"
            ].interval
            inside += low < 0.5 < high
            widths.append((high - low) / 4)
        assert np.mean(widths) == pytest.approx(math.sqrt(2 / 60), rel=0.1)
        assert 0.88 < inside / 150 < 0.995

    def test_variety_within_classes_is_not_hidden_by_the_distance_between_them(self):
        labels = torch.arange(40) % 2
        real = normal(40, 4, 0) + 100 * labels[:, None]
        collapsed = torch.zeros(40, 4) + 100 * labels[:, None] + 0.01 * normal(40, 4, 1)
        sets = {"real_labels": labels, "labels": labels, "classes": ["a", "b"], "names": ["diversity"]}
        assert compare(diversity, real, collapsed, real, **sets)["diversity"].overall > 0.9
        within = compare(diversity, real, collapsed, real, within=True, **sets)["diversity"]
        assert within.overall < 0.02
        assert within.floor == pytest.approx(1)
        assert within.overall == pytest.approx(np.mean(list(within.per_class.values())))

    def test_the_same_seed_gives_the_same_interval(self):
        x, y = normal(40, 3, 0), normal(40, 3, 1)
        one, two, other = (compare(fidelity, x, y, x, names=FIDELITY, seed=seed)["fid"] for seed in (0, 0, 1))
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


def normal64(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(n, mean, covariance, seed):
    """A sample whose mean and (unbiased) covariance are exactly these."""
    x = normal64(n, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / (n - 1)), x.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def rotation(d, seed):
    return torch.linalg.qr(normal64(d, d, seed)).Q


class TestFrechet:
    def test_diagonal_covariances(self):
        mean, one, two = torch.tensor([1.0, 0, -2]).double(), [1.0, 4, 9], [4.0, 0.25, 9]
        x = exact(50, torch.zeros(3).double(), torch.diag(torch.tensor(one).double()), 0)
        y = exact(80, mean, torch.diag(torch.tensor(two).double()), 1)
        expected = 1 + 4 + sum((math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in zip(one, two, strict=True))
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)

    def test_covariances_that_do_not_commute(self):
        a, b = normal64(5, 5, 0), normal64(5, 5, 1)
        one, two = a @ a.T + torch.eye(5), b @ b.T + torch.eye(5)
        x, y = exact(40, torch.zeros(5).double(), one, 2), exact(30, torch.ones(5).double(), two, 3)
        root = sqrtm(sqrtm(one.numpy()) @ two.numpy() @ sqrtm(one.numpy()))
        expected = 5 + float(one.trace() + two.trace()) - 2 * float(np.trace(root).real)
        assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)

    @settings(max_examples=15, deadline=None)
    @given(d=st.integers(1, 6), scale=st.floats(0.1, 10), seed=st.integers(0, 1000))
    def test_it_is_a_squared_distance_in_space(self, d, scale, seed):
        """Turning and moving both sets changes nothing; scaling both scales it by the square."""
        x, y, turn = normal64(20, d, seed), 0.5 * normal64(25, d, seed + 1) + 1, rotation(d, seed)
        distance = frechet_distance(x, y)
        assert distance >= 0
        assert frechet_distance(x @ turn + 3, y @ turn + 3) == pytest.approx(distance, rel=1e-6, abs=1e-8)
        assert frechet_distance(scale * x, scale * y) == pytest.approx(scale**2 * distance, rel=1e-6, abs=1e-8)

    def test_single_precision_is_enough_for_the_features_not_for_the_sums(self):
        """Features far from 0: sums of squares in float32 would lose the covariance."""
        x, y = normal64(300, 4, 0).float(), 2 * normal64(300, 4, 1).float()
        assert frechet_distance(x + 1000, y + 1000) == pytest.approx(frechet_distance(x, y), rel=1e-3)


class TestKernel:
    def test_two_points(self):
        """Sets of one point each, repeated: k(a, a) + k(b, b) - 2 k(a, b) with k = (x·y/d + 1)³."""
        a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])
        expected = (5 / 2 + 1) ** 3 + (10 / 2 + 1) ** 3 - 2 * (1 / 2 + 1) ** 3
        assert kernel_distance(a.expand(4, 2), b.expand(7, 2)) == pytest.approx(expected)

    @pytest.mark.parametrize(("n", "m"), [(8, 8), (6, 30)])
    def test_no_bias_however_few_and_unequal(self, n, m):
        values = [kernel_distance(normal64(n, 4, 2 * seed), normal64(m, 4, 2 * seed + 1)) for seed in range(400)]
        assert abs(np.mean(values)) < 3.5 * np.std(values) / math.sqrt(len(values))
        assert np.mean(np.array(values) < 0) > 0.3


class TestNeighbours:
    def test_by_hand(self):
        """On a line, one neighbour: balls of 1 about the real points, of 9.5 about the generated ones."""
        real, generated = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[0.5], [10]])
        found = precision_recall_density_coverage(real, generated, k=1)
        assert found == {"precision": 0.5, "recall": 1.0, "density": 1.0, "coverage": 0.5}

    def test_expectations_on_one_distribution(self):
        """Whatever the distribution: density 1, and coverage by counting orders (Naeem et al., 2020, lemma 2)."""
        n, m, k, runs = 30, 40, 5, 250
        found = [
            precision_recall_density_coverage(normal64(n, 3, 2 * seed).exp(), normal64(m, 3, 2 * seed + 1).exp(), k)
            for seed in range(runs)
        ]
        missed = math.prod((n - 1 - i) / (n + m - 1 - i) for i in range(k))
        for name, expected in (("density", 1.0), ("coverage", 1 - missed)):
            values = [one[name] for one in found]
            assert np.mean(values) == pytest.approx(expected, abs=3.5 * np.std(values) / math.sqrt(runs)), name

    @settings(max_examples=15, deadline=None)
    @given(d=st.integers(1, 5), seed=st.integers(0, 1000), k=st.integers(1, 6))
    def test_only_order_of_distances_counts(self, d, seed, k):
        x, y = normal64(20, d, seed), normal64(15, d, seed + 1) + 0.5
        found = precision_recall_density_coverage(x, y, k)
        moved = precision_recall_density_coverage(3 * x @ rotation(d, seed) + 1, 3 * y @ rotation(d, seed) + 1, k)
        assert moved == pytest.approx(found)
        assert found["precision"] >= min(found["density"], 1 / 15) if found["density"] else found["precision"] == 0

    def test_one_good_picture_again_and_again(self):
        """Precision does not see collapse; recall and coverage do."""
        x = normal64(60, 3, 0)
        found = precision_recall_density_coverage(x, x[:1].expand(60, 3))
        assert found["precision"] == 1
        assert found["recall"] == 0
        assert found["coverage"] < 0.5

    def test_as_few_images_as_there_may_be(self):
        precision_recall_density_coverage(normal64(6, 2, 0), normal64(6, 2, 1), k=5)
        with pytest.raises(Unmeasurable, match="5 neighbours need more than 5 images; there are 5"):
            precision_recall_density_coverage(normal64(6, 2, 0), normal64(5, 2, 1), k=5)


class TestTogether:
    def test_a_better_generator_is_better_in_every_measure(self):
        real, near, far = normal64(200, 4, 0), normal64(200, 4, 1) + 0.3, 0.4 * normal64(200, 4, 2) + 2
        one, other = fidelity(real, near), fidelity(real, far)
        for name in ("fid", "kid"):
            assert one[name] < other[name], name
        for name in ("recall", "density", "coverage", "precision"):
            assert one[name] > other[name], name


class TestDiversity:
    def test_expected_distances(self):
        """Two standard normal numbers are 2/sqrt(pi) apart, two uniform ones 1/3; here their quantiles."""
        share = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
        x = math.sqrt(2) * torch.erfinv(2 * share - 1)
        assert diversity(x, share)["diversity"] == pytest.approx(math.sqrt(math.pi) / 6, rel=2e-3)

    def test_no_bias_of_size(self):
        """An image and itself are no pair: subsets are as varied as the whole."""
        x = normal64(12, 3, 0)
        ratios = [diversity(x, x[[i, j]])["diversity"] for i in range(12) for j in range(i)]
        assert np.mean(ratios) == pytest.approx(1)

    def test_it_is_the_same_anywhere(self):
        x, y = normal64(20, 3, 0), 0.7 * normal64(20, 3, 1)
        assert diversity(x + 50, y - 50)["diversity"] == pytest.approx(diversity(x, y)["diversity"], rel=1e-6)

    def test_one_collapsed_class_lowers_the_mean_by_its_share(self):
        labels = torch.arange(60) % 3
        real = normal64(60, 4, 0) + 30 * labels[:, None]
        generated = torch.where(labels[:, None] == 1, real[1], real)
        found = compare(
            diversity, real, generated, real, real_labels=labels, labels=labels, classes="abc", names=["diversity"],
            within=True,
        )["diversity"]  # fmt: skip
        assert found.per_class == pytest.approx({"a": 1, "b": 0, "c": 1}, abs=1e-6)
        assert found.overall == pytest.approx(2 / 3, abs=1e-6)
        assert found.floor == pytest.approx(1)


class TestRepeats:
    def test_each_of_two_twins_counts(self):
        real, own = normal64(500, 6, 0), normal64(500, 6, 1)
        own[400:450] = own[:50] + 1e-3  # so that 50 come a second time
        own[450:] = own[0]  # and one of them 50 times more
        by_hand = torch.cdist(own, own).fill_diagonal_(9).min(1).values
        near = torch.cdist(real, real).fill_diagonal_(9).min(1).values.sort().values[5]
        assert repeats(real, own)["repeats"] == pytest.approx(float((by_hand < near).double().mean()))
        assert 0.3 <= repeats(real, own)["repeats"] <= 0.32

    @pytest.mark.parametrize(("real", "own"), [(300, 3000), (3000, 300), (1000, 1000)])
    def test_the_size_of_the_sets_does_not_matter(self, real, own):
        shares = [repeats(normal64(real, 4, seed), normal64(own, 4, seed + 9))["repeats"] for seed in range(30)]
        assert np.mean(shares) == pytest.approx(0.01, abs=0.006)

    def test_a_larger_set_is_thinned_out_evenly(self):
        """Sets may be sorted by class: the first images would be of one."""
        labels = torch.arange(8).repeat_interleave(100)[:, None]
        real = normal64(800, 4, 0) + 50 * labels
        own = normal64(200, 4, 1) + 50 * labels[::4]
        assert repeats(real, own)["repeats"] == pytest.approx(0.01, abs=0.01)
        first = torch.where(labels == 0, 1e-3 * real, real)  # a class of pictures that are all the same
        assert repeats(own, first)["repeats"] == pytest.approx(1 / 8, abs=0.05)

    def test_fid_may_not_see_them(self):
        real, own = normal64(1000, 4, 0), normal64(1000, 4, 1)
        own[500:] = own[:500]
        assert frechet_distance(real, own) < 5 * frechet_distance(real, normal64(1000, 4, 2))
        assert repeats(real, own)["repeats"] == 1

    def test_it_is_the_same_anywhere(self):
        x, y = normal64(200, 3, 0), normal64(200, 3, 1)
        y[:50] = y[50:100]
        assert repeats(7 * x + 50, 7 * y - 50) == repeats(x, y)

    def test_what_cannot_be_told(self):
        with pytest.raises(Unmeasurable, match="repeats need 10 images or more; there are 9"):
            repeats(normal64(200, 3, 0), normal64(9, 3, 1))
        with pytest.raises(Unmeasurable, match="real images come twice"):
            repeats(normal64(100, 3, 0).repeat(2, 1), normal64(200, 3, 1))

    def test_of_few_images_only_what_is_nearly_the_same(self):
        """No false alarm of 30 images, and one picture given out again and again is seen."""
        found = [repeats(normal64(60, 30, 2 * k), normal64(30, 30, 2 * k + 1))["repeats"] for k in range(40)]
        assert sum(found) == 0
        same = normal64(4, 30, 1).repeat(8, 1)[:30]
        assert repeats(normal64(60, 30, 0), same) == {"repeats": 1.0}


class TestSharpness:
    @pytest.fixture
    def images(self):
        return torch.from_numpy(load_smears(40, size=16).images).float() / 255

    def test_white_noise(self):
        """A pixel and the mean of four others: variance s² (1 + 1/4)."""
        noise = 0.1 * torch.randn(60, 3, 20, 20, generator=torch.Generator().manual_seed(0))
        assert sharpness(noise) == pytest.approx(0.01 * 1.25, rel=0.03)
        assert relative_sharpness(noise, 0.1 * noise)["sharpness"] == pytest.approx(0.1)  # of amplitudes

    def test_the_more_blurred_the_lower(self, images):
        values = []
        for weight in (0.0, 0.1, 0.3, 0.6, 0.9):
            soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
            values.append(relative_sharpness(images, (1 - weight) * images + weight * soft)["sharpness"])
        assert values[0] == pytest.approx(1)
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0.5

    def test_noise_is_above_one(self, images):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        values = [relative_sharpness(images, images + scale * noise)["sharpness"] for scale in (0.0, 0.05, 0.1, 0.3)]
        assert values == sorted(values)
        assert values[-1] > 1.5

    def test_brightness_and_slopes_are_no_detail(self, images):
        slope = torch.linspace(0, 0.3, 16)
        assert sharpness(images + 0.2 + slope + 2 * slope[:, None]) == pytest.approx(sharpness(images), rel=1e-4)

    def test_too_small(self):
        for shape in ((0, 1, 8, 8), (2, 1, 2, 8), (2, 1, 8, 2)):
            with pytest.raises(Unmeasurable, match="3 x 3 pixels"):
                sharpness(torch.zeros(shape))
        with pytest.raises(Unmeasurable, match="3 x 3 pixels"):
            relative_sharpness(torch.rand(2, 1, 8, 8), torch.zeros(0, 1, 8, 8))
        assert sharpness(torch.rand(1, 1, 3, 3)) > 0


def judged(seen, classes):
    """Probabilities of a judge who sees these."""
    return F.one_hot(torch.as_tensor(seen), classes).float() * 0.6 + 0.4 / classes


class TestLabels:
    @settings(max_examples=25, deadline=None)
    @given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
    def test_figures_are_those_of_scikit_learn(self, pairs):
        asked, seen = (np.array(side) for side in zip(*pairs, strict=True))
        truth = label_truth(judged(seen, 4), asked)
        assert truth.accuracy == pytest.approx(accuracy_score(asked, seen))
        assert truth.macro == pytest.approx(np.mean([np.mean(seen[asked == c] == c) for c in np.unique(asked)]))
        if len(np.unique(asked)) > 1 and set(seen) <= set(asked):
            assert truth.macro == pytest.approx(balanced_accuracy_score(asked, seen))
        assert truth.confusion.sum() == len(pairs)
        for row, column in set(pairs):
            assert truth.confusion[row, column] == pairs.count((row, column))  # rows: asked for
        assert [value is None for value in truth.recall] == [c not in asked for c in range(4)]
        measure = label_measures(truth, truth, list("abcd"))["label_macro"]
        low, high = measure.interval
        assert 0 <= low <= truth.macro <= high <= 1

    def test_labels_that_the_judge_does_not_know(self):
        """They would silently be left out of the share."""
        for asked in ([0, 1, 3], [0, 1, -1]):
            with pytest.raises(ValueError, match=r"Expected labels in \[0, 3\)"):
                label_truth(torch.eye(3), np.array(asked))
        with pytest.raises(ValueError, match="at least one image"):
            label_truth(torch.zeros(0, 3), np.zeros(0, np.int64))

    @settings(max_examples=40, deadline=None)
    @given(n=st.integers(1, 500), share=st.floats(0, 1))
    def test_wilson(self, n, share):
        right = round(share * n)
        expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
        low, high = wilson(right, n)
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
        assert 0 <= low <= right / n <= high <= 1
        assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)

    def test_the_mean_of_one_class_has_its_interval(self):
        truth = label_truth(judged([0, 0, 1, 0], 2), np.zeros(4, np.int64))
        macro = label_measures(truth, truth, ["a", "b"])["label_macro"]
        assert macro.interval == pytest.approx(wilson(3, 4))
        assert macro.reason == "no images of b"

    def test_the_interval_of_the_mean_covers_it(self):
        """Three unequal classes near 1, where an interval that is as wide above as below would be too high."""
        chances, counts, generator, inside, runs = (0.97, 0.9, 0.99), (20, 60, 30), np.random.default_rng(0), 0, 400
        asked = np.repeat(np.arange(3), counts)
        for _ in range(runs):
            right = generator.random(len(asked)) < np.repeat(chances, counts)
            truth = label_truth(judged(np.where(right, asked, (asked + 1) % 3), 3), asked)
            low, high = label_measures(truth, truth, list("abc"))["label_macro"].interval
            inside += low < np.mean(chances) < high
        assert 0.92 < inside / runs < 0.99

    def test_the_ceiling_is_what_the_judge_makes_of_real_images(self):
        asked = np.array([0, 0, 1, 1, 1, 1])
        generated = label_truth(judged([0, 1, 1, 1, 1, 0], 2), asked)
        real = label_truth(judged([0, 0, 1, 1, 1, 0], 2), asked)
        found = label_measures(generated, real, ["a", "b"])
        assert set(found) == {"label_accuracy", "label_macro"}
        accuracy, macro = found["label_accuracy"], found["label_macro"]
        assert (accuracy.overall, accuracy.floor) == (pytest.approx(4 / 6), pytest.approx(5 / 6))
        assert (macro.overall, macro.floor) == (0.625, 0.875)
        assert accuracy.per_class == {"a": 0.5, "b": 0.75}
        assert accuracy.per_class_floor == {"a": 1.0, "b": 0.75}
        assert accuracy.per_class_interval["b"] == wilson(3, 4)
        assert accuracy.interval == wilson(4, 6)
        assert {measure.better for measure in found.values()} == {"higher"}
