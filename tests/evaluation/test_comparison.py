"""Comparisons with floors and intervals: known truths of half-samples, and what is said where nothing can be."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from condgen.evaluation.comparison import compare
from condgen.evaluation.records import Measure, Unmeasurable
from condgen.evaluation.statistics import half_samples

LABELS = torch.arange(60) % 3
NAMES = ("a", "b", "c")


def normal(n, seed, mean=0.0):
    return mean + torch.randn(n, generator=torch.Generator().manual_seed(seed))


def level(_, generated):
    """The simplest statistic of which everything is known."""
    if not len(generated):
        raise Unmeasurable("there are no images")
    return {"level": float(generated.double().mean())}


def level_of(real, generated, held_out=None, **options):
    return compare(level, real, generated, held_out, names=["level"], **options)["level"]


def by_class(**options):
    return {"real_labels": LABELS, "labels": LABELS, "classes": NAMES, **options}


class TestHalfSamples:
    @pytest.mark.parametrize("n", [8, 40])
    def test_means_of_halves_spread_as_much_as_the_standard_error(self, n):
        x = normal(n, seed=n).double()
        means = [float(x[half].mean()) for half in half_samples(n, 1500, seed=1)]
        assert np.std(means) == pytest.approx(float(x.std()) / math.sqrt(n), rel=0.07)
        assert np.mean(means) == pytest.approx(float(x.mean()), abs=0.09 * float(x.std()) / math.sqrt(n))

    def test_what_a_class_explains_does_not_spread(self):
        """Shares of classes are those of the whole, so a figure that is the class's own has no error."""
        x = LABELS.double() * 10
        assert level_of(x, x, **by_class()).interval == pytest.approx((10, 10))
        low, high = level_of(x, x).interval
        assert high - low > 2

    def test_half_of_all_where_every_class_is_odd(self):
        labels = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2, 3])
        halves = list(half_samples(10, 40, labels=labels))
        assert {len(half) for half in halves} == {5}
        once = [0 in half.tolist() for half in halves]
        assert 0 < sum(once) < 40  # the only image of a class comes in some halves

    def test_it_is_a_function_of_the_seed(self):
        one, two, other = (list(half_samples(30, 4, seed=seed, labels=LABELS[:30])) for seed in (5, 5, 6))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class TestIntervals:
    @pytest.mark.slow
    def test_ten_halves_cover_the_truth_as_often_as_student_says(self):
        """Twice a spread estimated with nine degrees of freedom."""
        n, runs, inside, half_widths = 40, 200, 0, []
        for seed in range(runs):
            x = normal(n, seed, mean=3.0)
            low, high = level_of(x[:20], x, seed=seed).interval
            inside += low < 3 < high
            half_widths.append((high - low) / 2 / float(x.std()))
            assert (low + high) / 2 == pytest.approx(float(x.mean()), rel=1e-6)
        expected = 1 - 2 * student.sf(2, 9)
        assert inside / runs == pytest.approx(expected, abs=3.5 * math.sqrt(expected * (1 - expected) / runs))
        # A spread of ten has the expectation c4 = 0.9727 of what it estimates.
        assert np.mean(half_widths) == pytest.approx(0.9727 * 2 / math.sqrt(n), rel=0.05)

    def test_three_halves_by_hand(self):
        x = normal(20, 4)
        halves = [float(x[half].double().mean()) for half in half_samples(20, 3, seed=8)]
        middle, mean = float(x.double().mean()), sum(halves) / 3
        spread = math.sqrt(sum((half - mean) ** 2 for half in halves) / 2)
        # Halves of generated images have the seed after that of the real ones.
        found = level_of(x, x, subsamples=3, seed=7).interval
        assert found == pytest.approx((middle - 2 * spread, middle + 2 * spread))

    def test_both_sets_count(self):
        """Var(mean x - mean y) = s²/n + s²/m, from sets of different sizes."""

        def difference(real, generated):
            return {"level": float(generated.mean() - real.mean())}

        x, y = normal(50, 0), 3 * normal(200, 1)
        low, high = compare(difference, x, y, None, names=["level"], subsamples=400)["level"].interval
        expected = math.sqrt(float(x.var()) / 50 + float(y.var()) / 200)
        assert (high - low) / 4 == pytest.approx(expected, rel=0.1)

    def test_classes_add_up_as_independent_ones(self):
        x = normal(60, 2)
        found = level_of(x, x, **by_class(within=True))
        halves = [(high - low) / 2 for low, high in found.per_class_interval.values()]
        assert found.overall == pytest.approx(np.mean(list(found.per_class.values())))
        low, high = found.interval
        assert (high - low) / 2 == pytest.approx(math.hypot(*halves) / 3)
        assert (low + high) / 2 == pytest.approx(found.overall)

    def test_under_three_halves_there_is_none(self):
        x = normal(20, 0)
        found = level_of(x, x, x, subsamples=2)
        assert found.interval is None
        assert "no interval" in found.reason
        assert level_of(x, x, x, subsamples=3).interval is not None


class TestCompare:
    def test_classes_are_compared_with_their_own_kind(self):
        def gap(real, generated):
            return {"level": float(generated.mean() - real.mean())}

        real, generated = LABELS * 100.0, LABELS * 100.0 + LABELS
        found = compare(gap, real, generated, real + 0.5, names=["level"], **by_class())["level"]
        assert found.per_class == {"a": 0.0, "b": 1.0, "c": 2.0}
        assert found.per_class_floor == {"a": 0.5, "b": 0.5, "c": 0.5}
        assert (found.overall, found.floor) == (1.0, 0.5)

    def test_labels_may_be_arrays_in_any_order(self):
        x, order = normal(60, 3), torch.randperm(60, generator=torch.Generator().manual_seed(0))
        plain = level_of(x, x, x, **by_class())
        mixed = level_of(x, x, x[order], **by_class(held_out_labels=LABELS[order].numpy()))
        assert mixed.per_class_floor == pytest.approx(plain.per_class_floor)
        assert mixed.per_class == plain.per_class
        wrong = level_of(x, x, x[order], **by_class())
        assert wrong.per_class_floor != pytest.approx(plain.per_class_floor)

    def test_tensors_of_a_tuple_stay_together(self):
        def together(real, generated):
            for pixels, late in (real, generated):
                assert torch.equal(pixels[:, 0], late)
            return {"level": float(len(generated[1]))}

        late = torch.arange(60.0)
        pair = (late[:, None].expand(60, 4), late)
        found = compare(together, pair, pair, pair, names=["level"], **by_class())["level"]
        assert found.overall == 60
        assert found.per_class == {"a": 20, "b": 20, "c": 20}

    def test_without_labels_nothing_is_said_of_classes(self):
        x = normal(60, 0)
        for given in ({}, {"labels": LABELS}, {"real_labels": LABELS}):
            found = level_of(x, x, x, classes=NAMES, **given)
            assert (found.per_class, found.per_class_floor, found.per_class_interval) == ({}, {}, {})
            assert found.overall == pytest.approx(float(x.mean()))
            assert found.reason == ""

    @pytest.mark.parametrize("kind", [float, np.float32, torch.tensor])
    def test_what_comes_out_is_json(self, kind):
        def one(*_):
            return {"level": kind(0.25)}

        x = normal(60, 0)
        found = compare(one, x, x, x, names=["level"], **by_class())["level"]
        read = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert read["overall"] == 0.25
        assert read["interval"] == [0.25, 0.25]
        assert read["per_class_interval"]["b"] == [0.25, 0.25]
        assert (
            Measure(**{**read, "interval": tuple(read["interval"]), "per_class_interval": {}, "excess": None}).floor
            == 0.25
        )


class TestReasons:
    def test_no_held_out_images_no_floor(self):
        found = level_of(normal(20, 0), normal(20, 1))
        assert found.overall is not None
        assert found.floor is None
        assert found.reason == "no floor: there are no held-out images"

    def test_too_few_held_out_images(self):
        found = level_of(normal(20, 0), normal(20, 1), torch.zeros(0))
        assert found.reason == "no floor: there are no images"

    def test_one_value_of_several(self):
        def two(*_):
            return {"level": 1.0, "other": Unmeasurable("it takes two")}

        x = normal(20, 0)
        found = compare(two, x, x, x, names=["level", "other"])
        assert (found["level"].overall, found["level"].reason) == (1.0, "")
        assert (found["other"].overall, found["other"].interval, found["other"].floor) == (None, None, None)
        assert found["other"].reason == "it takes two"

    def test_classes_without_images(self):
        labels = torch.zeros(60, dtype=torch.int64)
        names = ("a", "b", "c", "d", "e", "f")
        x = normal(60, 0)
        found = level_of(x, x, x, real_labels=LABELS, labels=labels, classes=names)
        assert list(found.per_class.values())[1:] == [None] * 5
        assert found.reason == "; ".join(
            [*(f"{name}: there are no images" for name in ("b", "c", "d")), "and 2 more classes"]
        )
        within = level_of(x, x, x, real_labels=LABELS, labels=labels, classes=names, within=True)
        assert within.overall == found.per_class["a"]  # of those that are there

    def test_no_class_at_all(self):
        def never(*_):
            raise Unmeasurable("too few")

        x = normal(60, 0)
        found = compare(never, x, x, x, names=["level"], **by_class(within=True))["level"]
        assert (found.overall, found.floor, found.interval, found.reason) == (None, None, None, "too few")

    def test_halves_that_are_too_small_leave_the_value(self):
        def forty(real, generated):
            if len(generated) < 40:
                raise Unmeasurable("it takes 40")
            return level(real, generated)

        x = normal(60, 0)
        found = compare(forty, x, x, x, names=["level"])["level"]
        assert found.overall is not None
        assert found.interval is None
        assert found.reason == "no interval where half of the images are too few"

    def test_other_errors_are_not_swallowed(self):
        def broken(*_):
            raise ValueError("a mistake")

        with pytest.raises(ValueError, match="a mistake"):
            compare(broken, normal(5, 0), normal(5, 1), None, names=["level"])


class TestRefusals:
    @pytest.mark.parametrize("part", ["real_labels", "labels", "held_out_labels"])
    def test_labels_of_other_images(self, part):
        x = normal(60, 0)
        with pytest.raises(ValueError, match=r"Expected one label for each .* image; got 60 images and 59 labels"):
            level_of(x, x, x, **by_class(**{part: LABELS[:59]}))

    def test_held_out_images_of_another_number_need_labels_of_their_own(self):
        x = normal(60, 0)
        with pytest.raises(ValueError, match="got 30 images and 60 labels"):
            level_of(x, x, x[:30], **by_class())
        found = level_of(x, x, x[:30], **by_class(held_out_labels=LABELS[:30]))
        assert found.per_class_floor["c"] == pytest.approx(float(x[:30][LABELS[:30] == 2].mean()))

    def test_a_tuple_of_different_lengths(self):
        with pytest.raises(ValueError, match="got 6, 5 images"):
            compare(level, (torch.ones(6), torch.ones(5)), torch.ones(6), None, names=["level"])

    @pytest.mark.parametrize("place", range(3))
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_figures_that_are_none(self, place, value):
        sets = [normal(10, seed) for seed in range(3)]
        sets[place][4] = value
        kind = ("real", "generated", "held-out")[place]
        with pytest.raises(ValueError, match=f"finite figures of the {kind} images"):
            level_of(*sets)

    def test_a_function_that_gives_none(self):
        def nothing(*_):
            return {"level": math.nan}

        with pytest.raises(ValueError, match="finite"):
            compare(nothing, normal(5, 0), normal(5, 1), None, names=["level"])

    @pytest.mark.parametrize(
        "bad",
        [
            {"floor": math.nan},
            {"per_class": {"a": math.inf}},
            {"per_class_floor": {"a": -math.inf}},
            {"per_class_interval": {"a": (0.0, math.nan)}},
        ],
    )
    def test_a_measure_is_finite_everywhere(self, bad):
        with pytest.raises(ValueError, match="finite"):
            Measure(1.0, **bad)
