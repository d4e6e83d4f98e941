"""The set of images: what it accepts, how it splits, and in which order it comes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condgen.data.batches import batches, image_tensor
from condgen.data.images import LabelledImages


def blank(labels, **settings):
    labels = np.asarray(labels)
    return LabelledImages(np.zeros((len(labels), 1, 4, 4), np.uint8), labels, **settings)


def numbered(n):
    """Images that tell their own number."""
    return np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 1, 4, 4)).copy()


class_labels = st.lists(st.integers(1, 60), min_size=1, max_size=6).map(lambda n: np.repeat(np.arange(len(n)), n))


class TestLabels:
    @pytest.mark.parametrize("labels", [[0, 1, 1], [[0], [1], [1]], [False, True, True]])
    def test_class_labels_in_every_form(self, labels):
        images = blank(labels)
        assert (images.kind, images.num_classes, len(images)) == ("class", 2, 3)
        assert images.labels.dtype == np.int64
        assert images.labels.tolist() == [0, 1, 1]
        assert images.class_counts == {"class 0": 1, "class 1": 2}

    def test_several_labels_an_image(self):
        images = blank([[1, 0, 1], [1, 0, 0]], class_names=("mass", "edema", "nodule"))
        assert images.kind == "multi-label"
        assert images.labels.dtype == np.uint8
        assert images.class_counts == {"mass": 2, "edema": 0, "nodule": 1}

    @pytest.mark.parametrize("labels", [[0.5, 1.5], [[0.5, 2.0], [1.0, 3.0]]])
    def test_continuous_labels(self, labels):
        images = blank(labels)
        assert images.kind == "continuous"
        assert images.labels.dtype == np.float32
        assert images.labels.shape == (2, images.num_classes)
        with pytest.raises(ValueError, match="Continuous labels have no classes"):
            _ = images.class_counts

    def test_tensors_are_accepted_as_labels(self):
        images = LabelledImages(np.zeros((2, 1, 4, 4), np.uint8), torch.tensor([1, 0]).numpy())
        assert images.class_counts == {"class 0": 1, "class 1": 1}

    @pytest.mark.parametrize(
        ("labels", "names", "error", "message"),
        [
            ([0, 1], (), ValueError, r"one label for each of 3 images; got labels of shape \(2,\)"),
            (np.zeros((3, 1, 1), int), (), ValueError, r"got labels of shape \(3, 1, 1\)"),
            ([[0, 2], [0, 1], [1, 1]], (), ValueError, "Expected 0 or 1 in every column"),
            ([0.0, 1.0, np.nan], (), ValueError, "finite continuous labels; got NaN"),
            (["a", "b", "c"], ("a", "b"), ValueError, "labels among a, b; got c"),
            ([0, 1, 2], ("a", "b"), ValueError, r"labels in \[0, 2\), one class per name; got 2. Name more"),
            ([0, -1, 1], ("a", "b"), ValueError, "got -1"),
            ([0, -1, 1], (), ValueError, "got -1"),
            ([[0, 1], [1, 1], [1, 1]], ("a",), ValueError, "Expected 1 label columns, one per name; got 2"),
            ([0, 1, 1], ("a", "a"), ValueError, "a name of its own for every class; got 'a' more than once"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_wrong_labels(self, labels, names, error, message):
        with pytest.raises(error, match=message):
            LabelledImages(np.zeros((3, 1, 4, 4), np.uint8), np.asarray(labels), names)


class TestImages:
    @pytest.mark.parametrize(
        ("images", "error", "message"),
        [
            (np.full((2, 1, 4, 4), 0.3, np.float32), ValueError, r"uint8 images in .*; got float32 in \[0, 1\] that"),
            (torch.ones(2, 1, 4, 4), ValueError, "got only 0 and 1, which can be grey levels or black and white"),
            ([1, 2], TypeError, "got list"),
            (np.zeros((2, 4), np.uint8), ValueError, r"\(images, channels, height, width\); got \(2, 4\)"),
            (np.zeros((2, 0, 4, 4), np.uint8), ValueError, r"got \(2, 0, 4, 4\)"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_wrong_images(self, images, error, message):
        with pytest.raises(error, match=message):
            LabelledImages(images, np.array([0, 1]))

    def test_a_memory_map_stays_on_disk_and_uint8(self, tmp_path):
        np.save(tmp_path / "images.npy", numbered(20))
        mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
        images = LabelledImages(mapped, np.arange(20) % 2, splits={"train": slice(0, 16)})
        assert isinstance(images.train.images, np.memmap)
        assert images.train.images.dtype == np.uint8
        assert np.shares_memory(images.train.images, mapped)
        assert image_tensor(images.train.images[2:4])[:, 0, 0, 0].mul(255).round().tolist() == [2, 3]

    def test_repr(self):
        splits = {"train": slice(0, 2)}
        images = blank([0, 1, 1], class_names=("round", "lobed"), splits=splits, name="cells")
        assert repr(images) == "LabelledImages 'cells': 3 images of (1, 4, 4); round 1, lobed 2"
        assert repr(images.train) == "LabelledImages 'cells train': 2 images of (1, 4, 4); round 1, lobed 1"
        assert repr(blank([[0.5]], class_names=["radius"])).endswith("1 images of (1, 4, 4); radius")
        assert repr(blank(range(21))).endswith("class 18, class 19")  # many classes: names without counts

    def test_properties(self):
        images = LabelledImages(np.zeros((2, 3, 4, 6), np.uint8), np.array([0, 1]))
        assert images.image_shape == (3, 4, 6)
        assert images.class_names == ("class 0", "class 1")


class TestSubsets:
    def test_a_slice_is_a_view(self):
        images = LabelledImages(numbered(9), np.arange(9) % 3)
        part = images.subset(slice(2, 7))
        assert np.shares_memory(part.images, images.images)
        assert part.images[:, 0, 0, 0].tolist() == [2, 3, 4, 5, 6]

    @pytest.mark.parametrize(
        "indices",
        [[4, 1], np.array([4, 1]), torch.tensor([4, 1]), np.array([4, 1], np.uint8)],
        ids=["list", "array", "tensor", "bytes"],
    )
    def test_indices_in_their_order(self, indices):
        images = LabelledImages(numbered(5), np.arange(5), factors={"radius": np.arange(5.0)})
        part = images.subset(indices, name="two")
        assert part.images[:, 0, 0, 0].tolist() == [4, 1]
        assert part.labels.tolist() == [4, 1]
        assert part.factors["radius"].tolist() == [4.0, 1.0]
        assert part.class_names == images.class_names
        assert part.name == "two"

    def test_masks_and_nothing(self):
        images = LabelledImages(numbered(5), np.arange(5))
        assert images.subset(images.labels > 2).labels.tolist() == [3, 4]
        assert images.subset(torch.tensor([True, False, False, False, True])).labels.tolist() == [0, 4]
        assert len(images.subset([])) == 0

    def test_fractions_are_no_indices(self):
        with pytest.raises(TypeError, match="a slice, integers or a boolean mask; got float64"):
            blank([0, 1]).subset(np.array([0.5]))

    def test_an_absent_split_says_what_to_do(self):
        with pytest.raises(ValueError, match=r"'images' has no splits, not 'train'. Split it"):
            _ = blank([0, 1]).train
        with pytest.raises(ValueError, match="'cells' has train, not 'validation'"):
            _ = blank([0, 1], name="cells", splits={"train": slice(0, 1)}).validation

    def test_with_labels_keeps_images_splits_and_factors(self):
        images = LabelledImages(numbered(30), np.arange(30) % 3, factors={"radius": np.linspace(0, 1, 30)}).split()
        other = images.with_labels(images.factors["radius"], ["radius"])
        assert other.images is images.images
        assert (other.kind, other.class_names, other.name) == ("continuous", ("radius",), "images")
        assert np.array_equal(other.test.labels[:, 0], images.test.factors["radius"].astype(np.float32))


class TestStratified:
    @given(labels=class_labels, share=st.floats(0.01, 1), seed=st.integers(0, 2**32))
    @settings(deadline=None)
    def test_keeps_the_share_of_every_class(self, labels, share, seed):
        images = blank(labels)
        taken = images.stratified(share, seed)
        assert np.array_equal(taken, np.unique(taken))
        for name, count in images.subset(taken).class_counts.items():
            assert count == max(1, round(share * images.class_counts[name]))

    @given(
        labels=class_labels,
        validation=st.floats(0.05, 0.6),
        test=st.floats(0.05, 0.39),
        seed=st.integers(0, 2**32),
    )
    @settings(deadline=None)
    def test_splits_share_out_every_class(self, labels, validation, test, seed):
        labels = np.concatenate([labels, np.zeros(3, np.int64)])  # some class has three images to give
        images = blank(labels).split(validation, test, seed)
        indices = [images.splits[name] for name in ("train", "validation", "test")]
        assert np.array_equal(np.sort(np.concatenate(indices)), np.arange(len(labels)))
        for name, count in images.class_counts.items():
            train, held_out, reported = (images.subset(index).class_counts[name] for index in indices)
            assert train >= 1
            if count >= 3:
                assert held_out >= 1
                assert reported >= 1
            if count >= 20:  # rounding and the least one apart, the shares are kept
                assert abs(held_out - validation * count) <= 0.5
                assert abs(reported - test * count) <= 1.5  # one stays to train on

    def test_seeds_differ_and_repeat(self):
        images = blank(np.arange(200) % 2)
        assert np.array_equal(images.stratified(0.1, 1), images.stratified(0.1, 1))
        assert not np.array_equal(images.stratified(0.1, 1), images.stratified(0.1, 2))
        assert not np.array_equal(images.split(seed=1).splits["test"], images.split(seed=2).splits["test"])

    def test_labels_without_classes_are_split_at_random(self):
        assert len(blank(np.linspace(0, 1, 50)).split().test) == 5
        assert len(blank(np.tri(50, dtype=int)).stratified(0.2)) == 10

    @pytest.mark.parametrize("share", [0.0, 1.1, float("nan")])
    def test_shares_outside_0_to_1(self, share):
        with pytest.raises(ValueError, match=r"Expected a share in \(0, 1\]; got"):
            blank([0, 1]).stratified(share)

    @pytest.mark.parametrize("shares", [(0.0, 0.1), (0.1, -0.1), (0.5, 0.5)])
    def test_shares_that_leave_nothing(self, shares):
        with pytest.raises(ValueError, match="positive shares with a sum below 1; got"):
            blank([0, 1, 0, 1]).split(*shares)

    @pytest.mark.parametrize("n", [0, 1, 2])
    def test_too_few_to_split(self, n):
        with pytest.raises(ValueError, match=f"{n} images are too few to split"):
            blank(np.zeros(n, np.int64)).split()

    def test_nothing_of_nothing(self):
        assert len(blank(np.zeros(0, np.int64)).stratified(0.5)) == 0


class TestBatches:
    @given(n=st.integers(1, 100), size=st.integers(1, 40), seed=st.integers(0, 2**40), epoch=st.integers(0, 99))
    @settings(deadline=None)
    def test_every_image_once_and_its_label_beside_it(self, n, size, seed, epoch):
        images, labels = torch.from_numpy(numbered(n)), torch.arange(n)
        taken = list(batches(images, labels, size, seed=seed, epoch=epoch))
        assert [len(batch.x) for batch in taken] == [size] * (n // size) + [n % size] * (n % size > 0)
        index = torch.cat([batch.index for batch in taken])
        assert torch.equal(index.sort().values, labels)
        assert torch.equal(torch.cat([batch.y for batch in taken]), index)
        assert torch.equal(torch.cat([batch.x for batch in taken])[:, 0, 0, 0].mul(255).round().long(), index)

    def test_the_order_is_a_function_of_seed_and_epoch(self):
        images, labels = torch.zeros(500, 1, 1, 1, dtype=torch.uint8), torch.arange(500)

        def order(batch_size=64, **settings):
            return torch.cat([batch.index for batch in batches(images, labels, batch_size, **settings)])

        torch.manual_seed(0)
        first = order(seed=3, epoch=7)
        torch.manual_seed(1)
        assert torch.equal(first, order(7, seed=3, epoch=7))
        assert not torch.equal(first, order(seed=3, epoch=8))
        assert not torch.equal(first, order(seed=4, epoch=7))
        assert torch.equal(order(seed=3), torch.arange(500))


class TestImageTensor:
    def test_bytes_become_0_to_1(self):
        x = image_tensor(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1))
        assert x.dtype == torch.get_default_dtype()
        assert torch.allclose(x.flatten(), torch.tensor([0.0, 0.2, 1.0]))

    def test_floats_are_taken_as_they_are(self):
        x = torch.rand(2, 1, 3, 3)
        assert image_tensor(x) is x
        assert image_tensor(np.zeros((0, 1, 3, 3), np.float32)).shape == (0, 1, 3, 3)

    @pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), float("inf")])
    def test_floats_out_of_range(self, value):
        with pytest.raises(ValueError, match=r"Expected float images in \[0, 1\]; got values from"):
            image_tensor(torch.full((1, 1, 1, 1), value))

    def test_other_integers(self):
        with pytest.raises(TypeError, match=r"uint8 or as floats in .*; got torch.int64"):
            image_tensor(torch.zeros(1, 1, 1, 1, dtype=torch.int64))


class TestOrdered:
    """Names decide which class is which."""

    def images(self, names, labels=(0, 1, 1, 2)):
        return LabelledImages(np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8), np.array(labels), names)

    def test_labels_follow_their_names(self):
        images = self.images(("ant", "bee", "cat"))
        other = images.ordered(("cat", "ant", "bee"))
        names = [other.class_names[label] for label in other.labels]
        assert names == [images.class_names[label] for label in images.labels]
        assert other.images is images.images

    def test_the_same_order_is_the_same_set(self):
        images = self.images(("ant", "bee", "cat"))
        assert images.ordered(["ant", "bee", "cat"]) is images
        assert images.ordered(()) is images

    def test_splits_and_factors_stay(self):
        images = LabelledImages(np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 2, ("ant", "bee")).split()
        assert images.ordered(("bee", "ant")).train.class_counts == images.train.class_counts

    def test_a_class_without_images_may_be_unknown(self):
        images = self.images(("ant", "bee", "cat", "dog"))
        assert images.ordered(("cat", "bee", "ant")).class_counts == {"cat": 1, "bee": 2, "ant": 1}
        with pytest.raises(ValueError, match=r"Expected images of ant, bee, dog; 'images' has others: cat"):
            images.ordered(("ant", "bee", "dog"))

    def test_columns_follow_their_names_too(self):
        images = LabelledImages(np.zeros((2, 1, 8, 8), np.uint8), np.array([[1, 0], [1, 1]]), ("ant", "bee"))
        assert images.ordered(("bee", "cat", "ant")).labels.tolist() == [[0, 0, 1], [1, 0, 1]]

    def test_without_names_numbers_decide(self):
        images = self.images(())
        assert images.ordered(("ant", "bee", "cat")).class_counts == {"ant": 1, "bee": 2, "cat": 1}
        with pytest.raises(ValueError, match=r"Expected 2 classes \(ant, bee\); 'images' has 3"):
            images.ordered(("ant", "bee"))


class TestFingerprint:
    def changed(self, **changes):
        images, labels = np.zeros((20, 1, 8, 8), np.uint8), np.arange(20) % 2
        given = {"images": images, "labels": labels, "class_names": ("a", "b"), "splits": {"train": slice(0, 10)}}
        return LabelledImages(**{**given, **changes})

    def test_of_content_labels_names_and_splits(self):
        other = np.zeros((20, 1, 8, 8), np.uint8)
        other[3, 0, 0, 0] = 1
        sets = [
            self.changed(),
            self.changed(images=other),
            self.changed(labels=(np.arange(20) + 1) % 2),
            self.changed(class_names=("b", "a")),
            self.changed(splits={"train": slice(0, 11)}),
            self.changed(splits={"test": slice(0, 10)}),
            self.changed(splits={}),
        ]
        assert len({images.fingerprint for images in sets}) == len(sets)
        assert self.changed(name="another").fingerprint == sets[0].fingerprint
