"""Privacy: known copies are found, images that merely look alike are not, and the attack scores known answers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import condgen
from condgen.data.augmentation import turned
from condgen.distributions.likelihoods import Gaussian
from condgen.evaluation.copies import near_copies, nearest
from condgen.evaluation.membership import membership_auc
from condgen.evaluation.privacy import privacy_measures
from condgen.evaluation.run import without_shared
from condgen.evaluation.statistics import delong, newcombe
from condgen.evaluation.verdict import judge_measures
from condgen.random import Use, normal, stream


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(2000, balance="equal")


@pytest.fixture(scope="module")
def fresh():
    """What a perfect generator would draw."""
    return condgen.load_smears(200, seed=7, balance="equal")


def drawn(shape, number=0):
    return normal(5, torch.arange(shape[0]), stream(Use.DATA, number), shape[1:])


def noisy(images, levels):
    noise = np.random.default_rng(0).integers(-levels, levels + 1, images.shape)
    return np.clip(images.astype(int) + noise, 0, 255).astype(np.uint8)


def blurred(images):
    return F.avg_pool2d(torch.as_tensor(images) / 255, 3, 1, 1)


class TestNearest:
    @settings(max_examples=25, deadline=None)
    @given(n=st.integers(1, 60), queries=st.integers(1, 20), d=st.integers(1, 30), offset=st.floats(0, 100))
    def test_as_brute_force(self, n, queries, d, offset):
        a, b = drawn((n, d), 0) + offset, drawn((queries, d), 1) + offset
        k = min(n, 4)
        distances, indices = nearest(a, b, k)
        whole = torch.cdist(b.double(), a.double(), compute_mode="donot_use_mm_for_euclid_dist")
        expected = whole.topk(k, largest=False)
        torch.testing.assert_close(distances.double(), expected.values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(whole.gather(1, indices), distances.double(), rtol=1e-5, atol=1e-6)

    def test_keeps_the_digits_of_small_distances(self):
        a = drawn((300, 2000)) + 50
        b = a[:10].clone()
        b[:, 0] += 1e-3
        distances, indices = nearest(a, b, 1)
        assert indices[:, 0].tolist() == list(range(10))
        torch.testing.assert_close(distances[:, 0], (b - a[:10])[:, 0].abs())

    def test_equal_images_are_at_zero_and_the_first_comes_first(self):
        a = drawn((100, 50))[[5, 3, 5, 3, 7]]
        distances, indices = nearest(a, a, 2)
        assert distances[:, 0].max() == 0
        assert indices[:, 0].tolist() == [0, 1, 0, 1, 4]

    def test_uint8_images(self, cells):
        distances, indices = nearest(cells.train.images, cells.train.images[30:33], 2)
        assert indices[:, 0].tolist() == [30, 31, 32]
        expected = cells.train.images[indices[:, 1].numpy()] / 255 - cells.train.images[30:33] / 255
        np.testing.assert_allclose(distances[:, 1], np.sqrt((expected**2).sum((1, 2, 3))), rtol=1e-5)

    def test_no_queries(self):
        distances, indices = nearest(torch.zeros(4, 3), torch.zeros(0, 3), 2)
        assert distances.shape == indices.shape == (0, 2)

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="of one size"):
            nearest(torch.zeros(4, 3), torch.zeros(4, 2))
        with pytest.raises(ValueError, match="training images, 4; got 5"):
            nearest(torch.zeros(4, 3), torch.zeros(4, 3), 5)
        with pytest.raises(ValueError, match="uint8 or floats"):
            nearest(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3))


class TestNearCopies:
    @pytest.mark.parametrize(
        ("change", "least"),
        [
            (lambda x: x, 1.0),
            (lambda x: noisy(x, 2), 1.0),
            (lambda x: noisy(x, 10), 1.0),
            (lambda x: np.roll(x, 1, 2), 0.5),
        ],
        ids=["copies", "noise of 2", "noise of 10", "one pixel to the side"],
    )
    def test_copies_are_found(self, cells, change, least):
        copies = near_copies(cells.train.images, change(cells.train.images[:100]), cells.validation.images)
        assert copies.share >= least
        assert copies.floor <= 0.02
        found = copies.near.nonzero()[:, 0]
        assert (copies.index[found] == found).double().mean() > 0.99

    def test_fresh_images_are_not(self, cells, fresh):
        copies = near_copies(cells.train.images, fresh.images, cells.validation.images)
        assert copies.share <= 0.03
        assert copies.share - copies.floor < 0.02

    def test_blurred_images_are_not(self, cells, fresh):
        """They are as near to training images as copies may be, and copy none."""
        copies = near_copies(cells.train.images, blurred(fresh.images), cells.validation.images)
        assert copies.share <= 0.01
        means = torch.as_tensor(cells.train.images).float().mean(0, keepdim=True).expand(50, -1, -1, -1) / 255
        assert near_copies(cells.train.images, means, cells.validation.images).share == 0

    def test_some_among_others(self, cells, fresh):
        generated = np.concatenate([fresh.images[:90], noisy(cells.train.images[40:50], 2)])
        copies = near_copies(cells.train.images, generated, cells.validation.images)
        worst = copies.worst(10)
        assert sorted((pair.generated, pair.training) for pair in worst) == [(90 + i, 40 + i) for i in range(10)]
        assert [pair.ratio for pair in worst] == sorted(pair.ratio for pair in worst)
        first = worst[0]
        apart = generated[first.generated] / 255 - cells.train.images[first.training] / 255
        assert first.distance == pytest.approx(math.sqrt((apart**2).sum()), rel=1e-4)
        assert len(copies.worst(100)) == int(copies.near.sum())

    @pytest.mark.parametrize("times", [2, 20])
    def test_duplicates_in_training_hide_nothing(self, cells, times):
        train = np.concatenate([cells.train.images] + [cells.train.images[:50]] * (times - 1))
        copies = near_copies(train, noisy(cells.train.images[:50], 2), cells.validation.images)
        assert copies.share == 1
        assert copies.index.tolist() == list(range(50))

    def test_held_out_images_that_were_trained_on(self, cells):
        """They raise the floor and do not hide copies."""
        held_out = np.concatenate([cells.validation.images[:90], cells.train.images[:10]])
        copies = near_copies(cells.train.images, noisy(cells.train.images[:50], 2), held_out)
        assert copies.share == 1
        assert copies.floor == pytest.approx(0.1)

    def test_symmetries(self, cells):
        turned = np.ascontiguousarray(np.rot90(cells.train.images[:40], 1, (2, 3))[..., ::-1])
        plain = near_copies(cells.train.images[:600], turned, cells.validation.images)
        found = near_copies(cells.train.images[:600], turned, cells.validation.images, invariant=True)
        assert plain.share < 0.1
        assert found.share == 1
        assert found.index.tolist() == list(range(40))
        assert found.distance.max() < 0.1  # of about 20 between different images

    @pytest.mark.parametrize(
        "change",
        [
            lambda x: np.roll(x, (2, -1), (2, 3)),
            lambda x: (0.8 * x).round().astype(np.uint8),
            lambda x: (0.7 * x[..., ::-1] + 40).round().astype(np.uint8),
            lambda x: np.ascontiguousarray(np.roll(np.rot90(x, 1, (2, 3)), 1, 2)),
        ],
        ids=["shifted", "dimmed", "mirrored and paler", "turned and shifted"],
    )
    def test_altered_copies_are_found(self, cells, change):
        train, held_out = cells.train.images[:900], cells.validation.images
        found = near_copies(train, change(train[:60]), held_out, invariant=True)
        assert found.share > 0.95
        assert (found.index == torch.arange(60)).double().mean() > 0.95
        assert found.floor < 0.05

    def test_fresh_images_are_no_altered_copies(self, cells, fresh):
        found = near_copies(cells.train.images, fresh.images[:100], cells.validation.images, invariant=True)
        assert found.share < 0.05

    def test_the_nearest_up_to_changes_is_that_of_all_of_them(self):
        """Against every turn and shift of every image, one by one."""
        a, b = (drawn((n, 1, 28, 28), k).sigmoid() for n, k in ((12, 0), (6, 1)))
        distances, indices = nearest(a, b, 3, invariant=True)

        def standard(x):
            x = x - x.mean((1, 2, 3), keepdim=True)
            return x / x.square().mean((1, 2, 3), keepdim=True).sqrt()

        a, b = standard(a), standard(b)
        views = [view for q in range(4) for view in (b.rot90(q, (2, 3)), b.rot90(q, (2, 3)).flip(3))]
        shifted = [view[..., y : y + 24, x : x + 24] for view in views for y in range(5) for x in range(5)]
        whole = torch.stack([torch.cdist(s.flatten(1), a[..., 2:26, 2:26].flatten(1)) for s in shifted])
        # Candidates are found in small pictures, in one turn each; of twelve images all are candidates.
        best = whole.amin(0).topk(3, largest=False)
        assert (distances[:, 0] >= best.values[:, 0] - 1e-3).all()
        assert distances[:, 0].mean() < 1.02 * best.values[:, 0].mean()
        assert (distances.diff(dim=1) >= 0).all()
        assert indices.shape == (6, 3)

    def test_symmetries_of_images_that_are_not_square(self):
        train = drawn((50, 1, 6, 10)).sigmoid()
        found = near_copies(train, train[:5].flip(2, 3), drawn((20, 1, 6, 10), 1).sigmoid(), invariant=True)
        assert found.share == 1

    def test_few_training_images(self):
        copies = near_copies(torch.eye(2), torch.eye(2), torch.full((3, 2), 0.5))
        assert copies.share == 1
        assert copies.ratio.isfinite().all()

    def test_without_held_out_images_each_is_compared_with_the_others(self):
        train = drawn((40, 6), 2)
        found = near_copies(train, train[:3] + 0.01)
        distances = torch.cdist(train, train).fill_diagonal_(torch.inf).sort(1).values
        reach = 0.5 * distances[:, 4].quantile(0.05)
        torch.testing.assert_close(found.held_out_distance, distances[:, 0])
        torch.testing.assert_close(found.held_out_ratio, distances[:, 0] / distances[:, 4].maximum(reach))
        assert found.near.all()
        assert near_copies(train[:3], drawn((4, 6), 3)).held_out_ratio.lt(1).any()  # of two others, one is nearer

    def test_wrong_input(self, unchecked):
        x = torch.rand(5, 4)
        with pytest.raises(ValueError, match="three different training images; got 1 and 2"):
            near_copies(x[:2], x)
        with pytest.raises(ValueError, match="0 generated"):
            near_copies(x, x[:0], x)
        with pytest.raises(ValueError, match="two different training images"):
            near_copies(torch.ones(5, 4), x, x)
        with pytest.raises(ValueError, match="of one size"):
            near_copies(x, x[:, :3], x)
        with pytest.raises(ValueError, match="to turn and shift"):
            near_copies(x, x, x, invariant=True)


class TestPrivacyMeasures:
    def test_of_each_class(self, cells, fresh):
        """All of one class are copies, none of the others."""
        own, names = cells.validation, cells.class_names
        generated = fresh.images[: len(own)].copy()
        of_class = cells.train.images[cells.train.labels == 3]
        generated[own.labels == 3] = of_class[: (own.labels == 3).sum()]
        copies = near_copies(cells.train.images, generated, own.images)
        found = privacy_measures(copies, own.labels, own.labels, names)
        near, ratio = found["near_copies"], found["nearest_distance_ratio"]
        assert near.per_class[names[3]] == 1
        assert max(near.per_class[name] for name in names if name != names[3]) <= 0.1
        assert near.overall == pytest.approx(copies.share)
        assert near.interval[0] < near.overall < near.interval[1]
        assert ratio.per_class[names[3]] == 0
        assert 0.8 < ratio.per_class[names[2]] < 1.2
        assert ratio.per_class_interval[names[2]][0] < ratio.per_class[names[2]]
        assert ratio.floor == 1

    def test_fresh_images_are_as_far_as_held_out_ones(self, cells, fresh):
        ratio = privacy_measures(near_copies(cells.train.images, fresh.images, cells.validation.images))[
            "nearest_distance_ratio"
        ]
        assert ratio.interval[0] < 1 < ratio.interval[1]
        assert ratio.per_class == {}

    def test_absent_classes(self, cells, fresh):
        labels, names = np.zeros(200, np.int64), cells.class_names
        copies = near_copies(cells.train.images, fresh.images, cells.validation.images)
        found = privacy_measures(copies, labels, cells.validation.labels, names)
        for measure in found.values():
            assert measure.per_class[names[1]] is None
            assert measure.per_class[names[0]] is not None
            assert names[1] in measure.reason

    def test_held_out_images_from_training(self, cells, fresh):
        copies = near_copies(cells.train.images, fresh.images, cells.train.images[:50])
        ratio = privacy_measures(copies)["nearest_distance_ratio"]
        assert ratio.overall is None
        assert "training images" in ratio.reason

    def test_labels_that_do_not_fit(self, cells, fresh):
        copies = near_copies(cells.train.images, fresh.images, cells.validation.images)
        with pytest.raises(ValueError, match="one label for each image"):
            privacy_measures(copies, np.zeros(3, np.int64), cells.validation.labels, cells.class_names)


class Known:
    """A model whose likelihood of an image is its first pixel."""

    def log_likelihood(self, x, y, *, samples, seed, start, chunk):
        return torch.as_tensor(x)[:, 0, 0, 0].double()


def scored(scores):
    """Images that `Known` gives these scores."""
    images = torch.zeros(len(scores), 1, 8, 8, dtype=torch.float64)
    images[:, 0, 0, 0] = torch.as_tensor(scores)
    return images


class TestMembership:
    @settings(deadline=None, max_examples=25)
    @given(
        st.lists(st.integers(0, 9), min_size=2, max_size=12),
        st.lists(st.integers(0, 9), min_size=2, max_size=12),
    )
    def test_area_is_the_chance_of_a_member_above_another(self, member, other):
        area, (low, high) = delong(torch.tensor(member, dtype=torch.float64), torch.tensor(other, dtype=torch.float64))
        wins = [(a > b) + (a == b) / 2 for a in member for b in other]
        assert area == pytest.approx(np.mean(wins))
        assert 0 <= low <= area <= high <= 1

    def test_delong_by_simulation(self):
        """Its standard error is the spread of the area over sets."""
        pairs = [(drawn((60,), 2 * k) + 0.5, drawn((40,), 2 * k + 1)) for k in range(120)]
        found = [delong(*pair) for pair in pairs]
        areas = np.array([area for area, _ in found])
        errors = np.array([(high - low) / 2 / 1.96 for _, (low, high) in found])
        assert areas.mean() == pytest.approx(torch.special.ndtr(torch.tensor(0.5 / math.sqrt(2))).item(), abs=0.01)
        assert errors.mean() == pytest.approx(areas.std(), rel=0.15)

    def test_known_scores(self):
        y = np.zeros(4, np.int64)
        measure = membership_auc(Known(), scored([1, 2, 3, 4]), y, scored([0, 0.5, 2.5, 0.7]), y, ["a"])
        assert measure.overall == pytest.approx(14 / 16)
        assert measure.per_class == {"a": measure.overall}
        assert measure.floor == 0.5
        told_apart = membership_auc(Known(), scored([5, 6, 7, 8]), y, scored([0, 1, 2, 3]), y)
        assert told_apart.overall == 1

    def test_nothing_to_learn(self):
        member, other = drawn((400,), 0), drawn((400,), 1)
        y = np.arange(400) % 2
        measure = membership_auc(Known(), scored(member), y, scored(other), y, ["a", "b", "c"])
        assert measure.interval[0] < 0.5 < measure.interval[1]
        assert measure.per_class["c"] is None
        assert "c" in measure.reason

    def test_other_mixtures_of_classes_tell_nothing(self):
        """One class is far more probable and more common in training; members are as probable as others."""
        y_train, y_other = np.repeat([0, 1], [900, 100]), np.repeat([0, 1], [100, 400])
        train, other = (
            drawn((1000,), 0) - 10 * torch.as_tensor(y_train),
            drawn((500,), 1) - 10 * torch.as_tensor(y_other),
        )
        measure = membership_auc(Known(), scored(train), y_train, scored(other), y_other)
        assert measure.interval[0] < 0.5 < measure.interval[1]
        assert membership_auc(Known(), scored(train), y_train, scored(other), y_other, images=40).overall is not None

    @pytest.mark.slow
    def test_a_model_that_learned_images_by_heart(self):
        cells = condgen.load_smears(64, size=16, balance="equal")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = condgen.conditional_vae((3, 16, 16), 8, latent=4, width=8, likelihood=Gaussian(0.1))
        x, y = model.images(cells.images[:16]), model.labels(cells.labels[:16])
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(150):
            noise = {"z": normal(0, torch.arange(16), stream(Use.TRAINING, step), (4,))}
            inference = model.infer(x, y, noise)
            loss = (inference.kl - inference.log_likelihood).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        arguments = (cells.images[:16], cells.labels[:16], cells.images[16:], cells.labels[16:])
        measure = membership_auc(model, *arguments, samples=4)
        assert measure.overall > 0.8
        assert measure.interval[0] > 0.5
        assert measure == membership_auc(model, *arguments, samples=4)

    def test_wrong_input(self):
        zero, one = np.zeros(4, np.int64), np.ones(4, np.int64)
        x = scored([1, 2, 3, 4])
        with pytest.raises(ValueError, match="share none"):
            membership_auc(Known(), x, zero, x, one)
        with pytest.raises(ValueError, match="one label for each image"):
            membership_auc(Known(), x, zero[:2], x, zero)


class TestFewImagesAndRepeatedTraining:
    """Intervals decide, and what the training set repeats hides nothing."""

    def found(self, copied, n, train=None):
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(400 + 2 * n, 3, 8, 8, generator=generator)
        train = images[:400] if train is None else train
        generated, held_out = images[400 : 400 + n].clone(), images[400 + n :]
        generated[:copied] = train[:copied] + 0.01
        return privacy_measures(near_copies(train, generated, held_out))["near_copies"]

    @pytest.mark.parametrize(
        ("copied", "n", "title"),
        [
            (0, 10, "Too few images to rule out copies"),
            (1, 30, "Too few images to rule out copies"),
            (0, 200, "No copies"),
            (30, 100, "Copies of training images"),
            (5, 10, "Copies of training images"),
        ],
    )
    def test_the_verdict_goes_by_the_interval(self, copied, n, title):
        (finding,) = judge_measures({"near_copies": self.found(copied, n)}).findings
        assert finding.title == title
        assert ("150 images" in finding.text) == title.startswith("Too few")

    def test_newcombe_covers_the_difference(self):
        generator, hits = np.random.default_rng(0), 0
        for _ in range(400):
            right, other = generator.binomial(40, 0.1), generator.binomial(60, 0.02)
            low, high = newcombe(int(right), 40, int(other), 60)
            hits += low <= 0.08 <= high
        assert hits / 400 > 0.92

    @pytest.mark.parametrize("repeated", ["as it is", "symmetries", "brightened", "noisy"])
    def test_copies_of_a_training_set_that_repeats_its_images(self, repeated):
        generator = torch.Generator().manual_seed(1)
        base = torch.rand(80, 3, 16, 16, generator=generator)
        base = torch.nn.functional.avg_pool2d(base, 3, 1, 1)  # neighbours alike, as in pictures
        others = torch.nn.functional.avg_pool2d(torch.rand(80, 3, 16, 16, generator=generator), 3, 1, 1)
        changes = {
            "as it is": [base],
            "symmetries": [turned(base, torch.full((80,), code)) for code in range(8)],
            "brightened": [base * factor for factor in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)],
            "noisy": [base + 0.01 * torch.randn(base.shape, generator=generator) for _ in range(6)],
        }
        train = torch.cat(changes[repeated]).clamp(0, 1)
        noisy = (base[:20] + 0.01 * torch.randn(20, 3, 16, 16, generator=generator)).clamp(0, 1)
        copies = near_copies(train, torch.cat([noisy, others[:20]]), others[20:], invariant=True)
        assert copies.near[:20].all()
        assert copies.near[20:].sum() <= 1


def test_shared_images_are_named_and_left_out():
    cells = condgen.load_smears(60, size=16)
    train, test = (np.arange(len(cells))[cells.splits[name]] for name in ("train", "test"))
    images = cells.images.copy()
    images[test[2]] = images[train[0]]
    data = condgen.LabelledImages(images, cells.labels, cells.class_names, cells.splits)
    kept, said = without_shared(data)
    assert said == [f"1 of {len(test)} test images is a training image, too, and left out: number 2."]
    assert len(kept.test) == len(test) - 1
    assert without_shared(cells) == (cells, [])
