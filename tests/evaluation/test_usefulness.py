"""Usefulness: what goes into each arm, what is chosen on what, and whether known generators are told apart.

The first half trains classifiers; in the second their states are known, and so is every choice and figure.
"""

import json
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

import condgen
from condgen.data.images import LabelledImages
from condgen.evaluation import usefulness as module
from condgen.evaluation.arms import CUTMIX, KINDS, Arm, Run, StudyPlan, Usefulness
from condgen.evaluation.training_sets import cut_class
from condgen.evaluation.usefulness import usefulness, usefulness_measures

PLAN = StudyPlan(seeds=2, steps=80, batch_size=32, width=8, cuts=(10,))
NAMES = ("a", "b", "c")
SHORT = StudyPlan(seeds=2, steps=4, batch_size=2, width=4, cuts=(2, 50))


@pytest.fixture(scope="module")
def cells():
    """Real images, unbalanced."""
    return condgen.load_smears(900, size=16)


@pytest.fixture(scope="module")
def fresh():
    return condgen.load_smears(2500, size=16, seed=5, balance="equal")


def drawer(images):
    """Images of the asked class, taken from a pool."""

    def draw(labels, seed):
        members = np.flatnonzero(images.labels == labels[0]) if len(labels) else np.zeros(0, int)
        return images.images[np.resize(np.roll(members, seed % 97), len(labels))]

    return draw


@pytest.fixture(scope="module")
def perfect(cells, fresh):
    return usefulness(drawer(fresh), cells, plan=PLAN)


@pytest.fixture(scope="module")
def brief(cells, fresh):
    """All arms, hardly trained."""
    return usefulness(drawer(fresh), cells, plan=replace(PLAN, steps=2))


@pytest.mark.slow
class TestKnownGenerators:
    def test_a_perfect_one_teaches_as_well_as_real_images(self, perfect):
        assert perfect.arm("synthetic").mean("accuracy") > perfect.arm("real").mean("accuracy") - 0.1
        assert perfect.arm("real").mean("accuracy") > 0.6
        found = usefulness_measures(perfect)
        assert found["synthetic_accuracy"].floor == perfect.arm("real").mean("accuracy")
        assert found["synthetic_accuracy"].better == "higher"

    def test_one_that_ignores_labels_teaches_nothing(self, cells, fresh):
        mixed = LabelledImages(fresh.images, np.random.default_rng(0).permutation(fresh.labels), fresh.class_names)
        result = usefulness(drawer(mixed), cells, plan=StudyPlan(seeds=1, steps=40, batch_size=32, width=8, cuts=(10,)))
        assert result.arm("synthetic").mean("accuracy") < 0.45
        assert result.arm("synthetic").mean("macro_f1") < 0.3


class TestArms:
    def test_they_hold_what_they_promise(self, brief, cells):
        train, counts = cells.train, np.array(list(cells.train.class_counts.values()))
        rare, largest = counts.argmin(), counts.max()
        assert brief.rare == train.class_names[rare]
        fill = int((largest - counts).sum())
        real = {(arm.kind, arm.cut): (arm.real, arm.generated) for arm in brief.arms}
        assert real["real", None] == real["oversampled", None] == (len(train), 0)
        assert real["synthetic", None] == (0, len(train))
        assert real["balanced", None] == (len(train), fill)
        lost = int(counts[rare]) - 10
        assert real["real", 10] == real["oversampled", 10] == (len(train) - lost, 0)
        assert real["balanced", 10] == (len(train) - lost, fill + lost)

    def test_a_training_set_is_balanced_or_has_the_labels_of_the_real_one(self):
        images, labels = np.zeros((6, 1, 8, 8), np.uint8), np.array([0, 0, 0, 1, 1, 2])
        pool = [np.full((9, 1, 8, 8), 10 * (k + 1), np.uint8) for k in range(3)]
        balanced = module.training_set("balanced", images, labels, pool)
        assert np.bincount(balanced.labels).tolist() == [3, 3, 3]
        assert balanced.images[6:, 0, 0, 0].tolist() == [20, 30, 30]
        synthetic = module.training_set("synthetic", images, labels, pool)
        assert np.bincount(synthetic.labels).tolist() == [3, 2, 1]
        assert (synthetic.images[:, 0, 0, 0] == 10 * (synthetic.labels + 1)).all()
        weights = module.training_set("oversampled", images, labels, pool).weights
        assert [weights[labels == k].sum() for k in range(3)] == pytest.approx([1, 1, 1])

    def test_a_cut_is_exact_and_part_of_a_larger_one(self, cells):
        few, more = (cut_class(cells.train, "neutrophil", n, seed=3) for n in (10, 30))
        assert cells.train.subset(few).class_counts["neutrophil"] == 10
        assert set(few) < set(more)
        others = {name: n for name, n in cells.train.class_counts.items() if name != "neutrophil"}
        assert {name: cells.train.subset(few).class_counts[name] for name in others} == others
        with pytest.raises(ValueError, match="Expected a class among"):
            cut_class(cells.train, "unicorn", 3)


class TestChoice:
    @pytest.mark.slow
    def test_test_labels_have_no_part_in_it(self, cells, fresh, perfect):
        """With the test labels shuffled validation says the same; only what is measured moves."""
        labels, test = cells.labels.copy(), np.arange(len(cells))[cells.splits["test"]]
        labels[test] = np.random.default_rng(0).permutation(labels[test])
        shuffled = LabelledImages(cells.images, labels, cells.class_names, cells.splits)
        again = usefulness(drawer(fresh), shuffled, plan=replace(PLAN, seeds=1))
        for before, after in zip(perfect.arms, again.arms, strict=True):
            for one, two in zip(before.runs[:1], after.runs, strict=True):
                assert (one.validation_loss, one.validation_macro_f1) == (two.validation_loss, two.validation_macro_f1)
        assert again.arm("real").mean("accuracy") < perfect.arm("real").mean("accuracy") - 0.2

    def test_all_arms_have_the_same_steps_and_seeds(self, cells, fresh, monkeypatch):
        seen = []
        real = module.fit_classifier

        def spy(*arguments, **options):
            training = arguments[3]
            seen.append((training.steps, training.batch_size, training.seed))
            return real(*arguments, **options)

        monkeypatch.setattr(module, "fit_classifier", spy)
        usefulness(drawer(fresh), cells, plan=StudyPlan(seeds=2, steps=3, batch_size=32, width=4, cuts=(10,)), seed=4)
        assert sorted(set(seen)) == [(3, 32, 4), (3, 32, 5)]
        assert len(seen) == 18


class TestFigures:
    def test_gains_are_paired_by_seed_over_the_better_baseline(self):
        def runs(validation, values):
            return tuple(Run(k, validation, 0.5, 0.0, v, v, (v, v)) for k, v in enumerate(values))

        arms = (
            Arm("real", None, 9, 0, runs(0.5, (0.5, 0.6))),
            Arm("oversampled", None, 9, 0, runs(0.7, (0.4, 0.62))),  # better on validation, worse on test
            Arm("synthetic", None, 0, 9, runs(0.5, (0.3, 0.5))),
            Arm("balanced", None, 9, 3, runs(0.5, (0.6, 0.8))),
        )
        found = usefulness_measures(Usefulness(arms, ("a", "b"), "b", {}, PLAN, 0, ()))
        assert found["balanced_gain"].overall == pytest.approx(((0.6 - 0.4) + (0.8 - 0.62)) / 2)
        assert found["synthetic_accuracy"].overall == pytest.approx(0.4)
        assert found["synthetic_accuracy"].floor == pytest.approx(0.55)
        low, high = found["balanced_gain"].interval  # differences 0.2 and 0.18: standard error 0.01
        reach = 0.01 * math.tan(0.95 * math.pi / 2)  # Student's quantile with one degree of freedom is Cauchy's
        assert (low, high) == (pytest.approx(0.19 - reach), pytest.approx(0.19 + reach))

    def test_everything_can_be_written(self, brief):
        content = json.loads(json.dumps(brief.to_json(), allow_nan=False))
        assert len(content["arms"]) == 9
        assert content["plan"]["steps"] == 2
        assert len(brief.rows()) == 9
        assert any("knows more" in note for note in brief.notes)


class TestCache:
    PLAN = StudyPlan(seeds=1, steps=3, batch_size=32, width=4, cuts=(10,))

    def test_real_arms_are_trained_once(self, cells, fresh, tmp_path, monkeypatch):
        first = usefulness(drawer(fresh), cells, plan=self.PLAN, cache=tmp_path)
        count, real = [], module.train_and_test
        monkeypatch.setattr(module, "train_and_test", lambda *a, **k: count.append(1) or real(*a, **k))
        again = usefulness(drawer(fresh), cells, plan=self.PLAN, cache=tmp_path)
        assert len(count) == 3  # synthetic, balanced, balanced after the cut
        assert again == first
        (file,) = tmp_path.iterdir()
        file.write_text("{")
        with pytest.warns(UserWarning, match="damaged"):
            mended = usefulness(drawer(fresh), cells, plan=self.PLAN, cache=tmp_path)
        assert mended == first
        assert len(count) == 3 + 9


class TestErrors:
    def test_what_the_generator_gives_is_checked(self, cells, fresh, unchecked):
        def given(change):
            draw = drawer(fresh)
            return usefulness(lambda labels, seed: change(draw(labels, seed)), cells, plan=TestCache.PLAN)

        with pytest.raises(TypeError, match="uint8"):
            given(lambda images: images / 255.0)
        with pytest.raises(ValueError, match=r"Expected \d+ uint8 images of"):
            given(lambda images: images[:-1])
        with pytest.raises(ValueError, match=r"Expected \d+ uint8 images of"):
            given(lambda images: images[..., 1:])

    def test_a_class_that_cannot_be_drawn_is_named(self, cells):
        def draw(*_):
            raise ValueError("no more of these")

        with pytest.raises(ValueError, match=f"'{cells.class_names[0]}'.*no more of these"):
            usefulness(draw, cells, plan=TestCache.PLAN)

    def test_data_need_splits_and_classes(self, cells, fresh):
        with pytest.raises(ValueError, match="split"):
            usefulness(drawer(fresh), cells.train, plan=TestCache.PLAN)
        continuous = LabelledImages(cells.images, cells.labels[:, None] + 0.5, splits=cells.splits)
        with pytest.raises(ValueError, match="class"):
            usefulness(drawer(fresh), continuous, plan=TestCache.PLAN)
        with pytest.raises(ValueError, match="positive"):
            StudyPlan(seeds=0)
        with pytest.raises(ValueError, match="every cut once"):
            StudyPlan(cuts=(20, 20))


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
    """Classifiers end in state 1, and were in another one before; what they were trained on is kept by seed."""
    sets = defaultdict(list)

    def fit(network, images, labels, training, *, weights, milestones, on_milestone):
        sets[training.seed].append((images, labels, weights, training.cutmix))
        for state, step in enumerate(sorted(milestones)):
            network.state.fill_(state)
            on_milestone(step, network)
        assert (network.state, step) == (1, training.steps)

    monkeypatch.setattr(module, "ResidualClassifier", Reader)
    monkeypatch.setattr(module, "fit_classifier", fit)
    return sets


class TestWhatIsMeasured:
    def test_the_last_state_on_validation_and_test(self, states):
        data = labelled((6, 5, 4), (4, 5, 1), (4, 1, 5))
        result = usefulness(draw, data, plan=SHORT)
        for run in (run for arm in result.arms for run in arm.runs):
            for truth, accuracy, macro_f1 in (
                (data.test.labels, run.accuracy, run.macro_f1),
                (data.validation.labels, None, run.validation_macro_f1),
            ):
                guesses = np.where(truth == 1, 1, 0)
                assert accuracy in (None, pytest.approx(accuracy_score(truth, guesses)))
                assert macro_f1 == pytest.approx(f1_score(truth, guesses, average="macro"))
            truth = data.test.labels
            assert run.recall == tuple(recall_score(truth, np.where(truth == 1, 1, 0), average=None, zero_division=0))
            assert run.guesses == tuple(np.where(truth == 1, 1, 0))

    def test_how_far_the_loss_still_fell(self, states):
        """Logits are 1 for the class that is said: the loss is log(e + 2) less 1 where that is right."""
        data = labelled((6, 5, 4), (4, 5, 1), (4, 1, 5))
        (run, *_) = usefulness(draw, data, plan=SHORT).arm("real").runs
        nothing = np.log(np.e + 2)
        before, after = (
            nothing - right / 10 for right in (4, 9)
        )  # first all are taken for class 0, then class 1 is known
        assert run.validation_loss == pytest.approx(after)
        assert run.still_falling == pytest.approx(1 - after / before)

    def test_the_test_split_is_seen_once_a_classifier(self, states, monkeypatch):
        seen = []
        real = module.scores
        monkeypatch.setattr(module, "scores", lambda network, split: seen.append(split.name) or real(network, split))
        usefulness(draw, labelled((6, 5, 4), (4, 5, 1), (4, 1, 5)), plan=SHORT)
        assert seen == [*["images validation"] * 3, "images test"] * 18


class TestSets:
    def test_every_arm_of_a_seed_is_trained_on_what_it_says(self, states):
        sets, data = states, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2))
        result = usefulness(draw, data, plan=SHORT, seed=7)
        assert sorted(sets) == [7, 8]
        counts = [np.bincount(labels).tolist() for _, labels, *_ in sets[7]]
        assert counts == [*[[6, 5, 4]] * 4, [6, 6, 6], *[[6, 5, 2]] * 3, [6, 6, 6]]
        assert [arm.real + arm.generated for arm in result.arms] == [sum(row) for row in counts]
        for images, labels, weights, _ in sets[7]:
            assert (images[:, 0, 0, 0] == 100 * labels).all()
            if weights is not None:
                assert np.bincount(labels, weights) == pytest.approx([1, 1, 1])
        drawn = [weights is not None for _, _, weights, _ in sets[7]]
        assert drawn == [False, True, True, False, False, False, True, True, False]
        assert [cutmix for *_, cutmix in sets[7]] == [0, 0, CUTMIX, 0, 0, 0, 0, CUTMIX, 0]

    def test_classes_and_seeds_are_drawn_apart(self, states):
        asked = []

        def noting(labels, seed):
            asked.append((seed, int(labels[0])))
            return images_of(labels)

        usefulness(noting, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=SHORT)
        assert len(asked) == len({seed for seed, _ in asked}) == 6

    def test_the_cut_is_recorded_and_depends_on_the_seed(self, states):
        data = labelled((40, 30, 20), (2, 2, 2), (2, 2, 2))
        one, again, other = (usefulness(draw, data, plan=SHORT, seed=seed) for seed in (0, 0, 1))
        assert one == again
        assert set(one.cuts) == {2}
        assert len(one.cuts[2]) == 2
        assert (data.train.labels[list(one.cuts[2])] == 2).all()
        assert one.cuts != other.cuts

    def test_another_class_can_be_cut(self, states):
        result = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=SHORT, rare="a")
        # With two of the largest class left, the next largest is what classes are filled up to.
        assert (result.arm("balanced", 2).real, result.arm("balanced", 2).generated) == (2 + 5 + 4, 3 + 0 + 1)


class TestNotes:
    def test_a_cut_that_cuts_nothing_is_left_out_and_told(self, states):
        notes = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=SHORT).notes
        assert "c has 4 training images: there is no cut to 50." in notes

    @pytest.mark.parametrize(("saw", "told"), [(None, True), (3, True), (2, False)])
    def test_a_generator_that_saw_more_than_the_cut_is_told(self, states, saw, told):
        notes = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=SHORT, saw=saw).notes
        assert any("knows more" in note for note in notes) == told

    def test_classes_that_cannot_be_measured_are_told(self, states):
        result = usefulness(draw, labelled((6, 5, 4), (2, 0, 2), (2, 2, 0)), plan=SHORT)
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
            return Arm(kind, cut, 9, 0, tuple(Run(k, v, v, 0.0, v, v, (v, v, v)) for k, v in enumerate(values)))

        arms = (
            *(arm(kind, None, 0.9, 0.7) for kind in KINDS),
            arm("real", 2, 0.5, 0.4),
            arm("oversampled", 2, 0.3, 0.2),
            arm("balanced", 2, 0.8, 0.4),
        )
        found = usefulness_measures(Usefulness(arms, NAMES, "c", {2: (0, 1)}, SHORT, 0, ()))["rare_2_gain"]
        assert found.overall == pytest.approx(0.15)
        assert found.floor == pytest.approx(0.35)
        assert "'real, 2 c'" in found.meaning

    def test_one_seed_has_an_interval_over_images_and_none_of_a_gain(self, states):
        data = labelled((6, 5, 4), (2, 2, 2), (2, 2, 2))
        found = usefulness_measures(
            usefulness(draw, data, plan=StudyPlan(seeds=1, steps=4, batch_size=2, width=4, cuts=(2,)))
        )
        assert all(measure.interval is None for name, measure in found.items() if name.endswith("gain"))
        accuracy = found["synthetic_accuracy"]
        low, high = accuracy.interval
        assert low <= accuracy.overall <= high
        assert "over test images alone" in accuracy.meaning

    def test_a_name_for_every_class(self, states):
        result = usefulness(draw, labelled((6, 5, 4), (2, 2, 2), (2, 2, 2)), plan=SHORT)
        assert list(usefulness_measures(result)["balanced_gain"].per_class) == list(NAMES)
