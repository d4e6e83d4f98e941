"""The judge: learns the real training images alone, is a function of them and a seed, and is kept by their content."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import condgen
from condgen.data.images import LabelledImages
from condgen.evaluation import classifier as classifying
from condgen.evaluation import classifier_training as classifier
from condgen.evaluation import judge as judging
from condgen.evaluation.classifier import Classifier, load_classifier
from condgen.evaluation.classifier_training import fit_classifier, symmetry_codes, turned
from condgen.evaluation.judge import check_judge, load_judge, train_judge
from condgen.evaluation.network import ResidualClassifier, network_features
from condgen.evaluation.settings import ClassifierTraining
from condgen.io import archives

TINY = {"epochs": 1, "width": 4}


@pytest.fixture(scope="module")
def smears():
    return condgen.load_smears(100, size=16)


@pytest.fixture(scope="module")
def judge(smears):
    return train_judge(smears, **TINY)


@pytest.fixture
def untrainable(monkeypatch):
    """Whoever trains a judge now fails."""

    def refuse(*_, **__):
        raise AssertionError("trained a judge")

    monkeypatch.setattr(judging, "train_judge", refuse)


class Recorder(nn.Module):
    """A classifier that remembers what it was shown."""

    def __init__(self, classes=2):
        super().__init__()
        self.bias, self.seen = nn.Parameter(torch.zeros(classes)), []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.bias.expand(len(x), -1)


def teach(network, images, labels, *, weights=None, milestones=(), on_milestone=None, states=None, **settings):
    """Train with hard targets, unless told."""
    how = ClassifierTraining(**{"label_smoothing": 0.0, **settings})
    fit_classifier(
        network, images, labels, how, weights=weights, milestones=milestones, on_milestone=on_milestone, states=states
    )


def weights_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def with_images(data, images):
    return LabelledImages(images, data.labels, data.class_names, data.splits, name=data.name)


def blank(n, classes=2, shape=(1, 8, 8)):
    images = np.random.default_rng(0).integers(0, 256, (n, *shape)).astype(np.uint8)
    return LabelledImages(images, np.arange(n) % classes, [f"kind {k}" for k in range(classes)])


# The network


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 28, 28), (1, 64, 64), (2, 12, 30), (3, 9, 40), (4, 128, 128)])
def test_network_takes_any_shape_and_embeds_as_it_classifies(shape):
    network = ResidualClassifier(shape, num_classes=5, width=4).eval()
    x = torch.rand(3, *shape)
    late, early, logits = network.embed(x)
    assert (late.shape, early.shape, logits.shape) == ((3, 16), (3, 8), (3, 5))
    torch.testing.assert_close(logits, network(x))
    torch.testing.assert_close(logits, network.head(late))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 20, 33)])
def test_features_by_a_second_route(shape):
    network, maps = ResidualClassifier(shape, num_classes=3, width=4).eval(), {}
    for k in (0, 2):
        network.stages[k].register_forward_hook(lambda _, __, out, k=k: maps.update({k: out.detach().numpy()}))
    with torch.no_grad():
        late, early, _ = network.embed(torch.rand(4, *shape))
    first = maps[0].reshape(4, 4, -1)
    assert maps[0].shape[2:] == shape[1:]
    assert maps[2].shape[2:] == tuple(-(-side // 4) for side in shape[1:])
    np.testing.assert_allclose(early, np.concatenate([first.mean(2), first.std(2)], 1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(late, maps[2].mean((2, 3)), rtol=1e-4, atol=1e-6)


def multiply_adds(shape, width=32):
    network, counts = ResidualClassifier(shape, 8, width).eval(), []

    def count(layer, _, out):
        counts.append(out[0].numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, *shape))
    return sum(counts)


def test_the_network_is_cheap_at_every_size():
    small = multiply_adds((3, 28, 28))
    assert round(small / 1e6) == 52
    assert all(multiply_adds((3, size, size)) < 3 * small for size in (32, 47, 48, 64, 128, 224))


@pytest.mark.parametrize("size", [28, 64, 128, 224])
def test_every_pixel_counts(size):
    network = ResidualClassifier((1, size, size), 2, 4)
    x = torch.rand(1, 1, size, size, requires_grad=True)
    network.stem[0](x).square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(((3, 7, 28), 2, 4), "at least 8x8; got 7x28"), (((3, 8, 8), 0, 4), "at least one"), (((3, 8, 8), 2, 0), "one")],
)
def test_networks_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResidualClassifier(*arguments)


# Training


def symmetries(image):
    """All that flips and (half) turns make of an image, by numpy."""
    square = image.shape[1] == image.shape[2]
    turns = [np.rot90(image, k, (1, 2)) for k in (range(4) if square else (0, 2))]
    return [t for turn in turns for t in (turn, turn[:, :, ::-1])]


@pytest.mark.parametrize(("shape", "count"), [((3, 9, 9), 8), ((2, 8, 11), 4)])
def test_the_codes_are_the_symmetries(shape, count):
    image = torch.rand(shape)
    shown = {x.numpy().tobytes() for x in turned(image.expand(count, *shape), torch.arange(count))}
    assert shown == {x.tobytes() for x in symmetries(image.numpy())}
    assert len(shown) == count
    codes = torch.cat([symmetry_codes(0, step, shape, 500) for step in range(1, 5)])
    frequency = torch.bincount(codes, minlength=count) / 2000
    assert len(frequency) == count
    assert (frequency - 1 / count).abs().max() < 4 * (1 / count / 2000) ** 0.5


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 9)])
def test_training_shows_every_image_once_a_pass_turned_each_time_anew(shape):
    images = blank(12, shape=shape).images
    recorder = Recorder()
    teach(recorder, images, np.arange(12) % 2, steps=21, batch_size=4)  # seven passes
    which = {s.astype(np.float32).tobytes(): (i, k) for i in range(12) for k, s in enumerate(symmetries(images[i]))}
    seen = [which[np.rint(x.numpy() * 255).astype(np.float32).tobytes()] for x in torch.cat(recorder.seen)]
    order = np.array([i for i, _ in seen]).reshape(7, 12)
    assert (np.sort(order, 1) == np.arange(12)).all()
    assert len({tuple(row) for row in order}) == 7
    assert len({k for _, k in seen}) == (8 if shape[1] == shape[2] else 4)
    assert all(len({k for i, k in seen if i == image}) > 1 for image in range(12))


def test_images_and_labels_stay_together():
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 8, 8)
    labels = torch.arange(10) % 2
    network = ResidualClassifier((1, 8, 8), 2, 4)
    network.forward = lambda x: (
        nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long() % 2, 2) * 50.0
        + 0 * sum(p.sum() for p in network.parameters())
    )
    losses = []
    measured = nn.functional.cross_entropy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier.F, "cross_entropy", lambda *a, **k: losses.append(measured(*a, **k)) or losses[-1])
        teach(network, images, labels, steps=5, batch_size=4)
        teach(network, images, labels, steps=5, batch_size=4, weights=np.ones(10))
    assert len(losses) == 10
    assert max(losses) < 1e-6


def test_weights_draw_in_proportion():
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 1, 8, 8), np.uint8)
    recorder = Recorder()
    teach(recorder, images, np.zeros(4), steps=50, batch_size=100, weights=np.array([0.0, 1.0, 3.0, 0.0]))
    drawn = [torch.bincount((x[:, 0, 0, 0] * 255).round().long(), minlength=4) for x in recorder.seen]
    total = torch.stack(drawn).sum(0) / 5000
    assert total[0] == total[3] == 0
    assert abs(total[2] - 0.75) < 4 * (0.75 * 0.25 / 5000) ** 0.5
    assert len({tuple(row.tolist()) for row in drawn}) > 5  # no two steps draw alike


@pytest.mark.parametrize("weights", [None, torch.arange(20.0)])
def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(weights):
    data = blank(20)
    torch.manual_seed(0)
    start = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2))
    found = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)).eval()
        network.load_state_dict(start.state_dict())
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        teach(network, data.images, data.labels, steps=4, batch_size=8, seed=seed, weights=weights)
        assert torch.equal(before, torch.get_rng_state())
        assert not any(module.training for module in network.modules())
        found.append(weights_of(network))
    assert equal_weights(found[0], found[1])
    assert not equal_weights(found[0], found[2])
    assert not equal_weights(found[0], start.state_dict())


def test_milestones_see_the_network_as_it_is_and_change_nothing():
    data, x, found, seen = blank(20), torch.rand(4, 1, 8, 8), [], []

    def look(step, network):
        assert not any(module.training for module in network.modules())
        seen.append((step, network(x).detach()))
        network.train()

    for milestones in ((), (2, 5, 6)):
        torch.manual_seed(0)
        network = ResidualClassifier((1, 8, 8), 2, 4).train()
        options = {"steps": 6, "batch_size": 8, "milestones": milestones, "on_milestone": look}
        teach(network, data.images, data.labels, **options)
        assert all(module.training for module in network.modules())
        found.append(weights_of(network))
    assert equal_weights(*found)
    assert [step for step, _ in seen] == [2, 5, 6]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[2][1], network.eval()(x))


def test_one_step_is_training_too():
    network = ResidualClassifier((1, 8, 8), 2, 4)
    before, data = weights_of(network), blank(4)
    teach(network, data.images, data.labels, steps=1, batch_size=4)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())
    assert not equal_weights(before, network.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(3)}, r"one class label for each.*labels \(3,\)"),
        ({"images": np.zeros((0, 1, 8, 8), np.uint8), "labels": np.zeros(0)}, "at least one"),
        ({"steps": 0}, "steps of 1 or more"),
        ({"batch_size": 1}, "batch_size of 2 or more"),
        ({"milestones": (9,)}, r"milestones in \[1, 3\]"),
        ({"weights": np.ones(3)}, r"a weight for each of 4 images.*\(3,\)"),
        ({"weights": np.array([1.0, 1.0, 1.0, -1.0])}, "none negative"),
        ({"weights": np.zeros(4)}, "not all 0"),
        ({"weights": np.full(4, np.nan)}, "a weight for each"),
    ],
)
def test_training_that_cannot_be(changes, message):
    call = {"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": np.zeros(4), "steps": 3, **changes}
    with pytest.raises(ValueError, match=message):
        teach(Recorder(), call.pop("images"), call.pop("labels"), **call)


def test_a_loss_that_is_not_finite_stops_training():
    recorder = Recorder()
    recorder.bias.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="loss is nan in step 1"):
        teach(recorder, np.zeros((4, 1, 8, 8), np.uint8), np.zeros(4), steps=2)


# The judge


def test_a_judge_learns_the_labels_whatever_a_teacher_says(smears, judge):
    soft = np.full((len(smears), 8), 1 / 8, np.float32)
    other = train_judge(replace(smears, factors={"probabilities": soft}), **TINY)
    assert equal_weights(weights_of(judge.network), weights_of(other.network))


def test_the_judge_learns_smears():
    smears = condgen.load_smears(600, size=16, balance="equal")
    judge = train_judge(smears, epochs=8, width=12)
    assert judge.accuracy > 0.8  # guessing gives 1/8
    right = judge.embed(smears.test.images).probabilities.argmax(1).numpy() == smears.test.labels
    assert right.mean() > 0.8


def test_a_judge_is_a_function_of_images_and_seed(smears, judge):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again, other = train_judge(smears, **TINY), train_judge(smears, seed=1, **TINY)
    assert torch.equal(before, torch.get_rng_state())
    images = smears.test.images
    for part in ("late", "early", "probabilities"):
        assert torch.equal(getattr(judge.embed(images), part), getattr(again.embed(images), part))
    assert not torch.equal(judge.embed(images).late, other.embed(images).late)
    assert (judge.accuracy, judge.recalls) == (again.accuracy, again.recalls)


def test_a_judge_sees_the_training_split_alone(smears, judge):
    images = smears.images.copy()
    for split in ("validation", "test"):
        images[smears.splits[split]] = 0
    other = train_judge(with_images(smears, images), **TINY)
    assert equal_weights(judge.network.state_dict(), other.network.state_dict())


def test_accuracy_recalls_and_counts_by_a_second_route(smears, judge):
    validation = smears.validation
    with torch.no_grad():
        given = judge.network(torch.tensor(validation.images) / 255).argmax(1).numpy()
    assert judge.accuracy == pytest.approx(np.mean(given == validation.labels))
    for k, name in enumerate(smears.class_names):
        members = given[validation.labels == k]
        expected = None if len(members) == 0 else pytest.approx(np.mean(members == k))
        assert judge.recalls[name] == expected
    assert None in judge.recalls.values()
    assert judge.counts == smears.train.class_counts
    assert judge.validation_counts == validation.class_counts


def test_features_do_not_depend_on_batches_or_modes(smears, judge):
    images = smears.images
    whole = judge.embed(images)
    before = weights_of(judge.network)
    judge.network.train()
    parts = judge.embed(images, batch_size=7)
    assert judge.network.training
    judge.network.eval()
    assert equal_weights(before, judge.network.state_dict())  # running statistics included
    for part in ("late", "early", "probabilities"):
        one, other = getattr(whole, part), getattr(parts, part)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.dtype == torch.float32
        assert not one.requires_grad
    torch.testing.assert_close(whole.probabilities.sum(1), torch.ones(100))
    assert len(whole) == 100


def test_images_may_come_in_any_form(smears, judge):
    images = smears.test.images
    expected = judge.embed(images)
    read_only = images.copy()
    read_only.flags.writeable = False
    for form in (torch.tensor(images), read_only, images / np.float32(255), torch.tensor(images).double() / 255):
        torch.testing.assert_close(judge.embed(form).late, expected.late)
    empty = judge.embed(images[:0])
    assert (empty.late.shape, empty.early.shape, empty.probabilities.shape) == ((0, 16), (0, 8), (0, 8))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 3, 28, 28), np.uint8), ValueError, r"shape \(n, 3, 16, 16\).*got \(2, 3, 28, 28\). Resize"),
        (np.zeros((3, 16, 16), np.uint8), ValueError, r"got \(3, 16, 16\)"),
        (torch.full((1, 3, 16, 16), 255.0), ValueError, r"float images in \[0, 1\]"),
        (torch.full((1, 3, 16, 16), torch.nan), ValueError, r"float images in \[0, 1\]"),
        (torch.zeros((1, 3, 16, 16), dtype=torch.int64), TypeError, "uint8 or as floats"),
    ],
)
def test_images_that_cannot_be_judged(judge, images, error, message):
    with pytest.raises(error, match=message):
        judge.embed(images)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (2, 64, 40), (1, 10, 24)])
def test_two_classes_of_any_shape(shape):
    data = blank(40, shape=shape)
    data.images[data.labels == 1] //= 3
    judge = train_judge(data.split(), epochs=40, width=4)
    assert judge.accuracy == 1.0
    assert judge.image_shape == shape


def test_the_default_dtype_does_not_matter(smears):
    torch.set_default_dtype(torch.float64)
    try:
        found = train_judge(smears, **TINY).embed(smears.test.images)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.late.dtype == found.probabilities.dtype == torch.float32


@pytest.mark.parametrize(
    ("n", "epochs", "steps", "batch_size"),
    [
        (16_000, None, 12 * 12_800 // 128, 128),  # 12 passes
        (1000, None, 600, 32),
        (250, None, 600, 32),
        (50, None, 200 * 40 // 32, 32),  # no more than 200 passes
        (250, 1.5, 10, 32),
    ],
)
def test_small_sets_are_seen_more_often(monkeypatch, n, epochs, steps, batch_size):
    calls = []
    monkeypatch.setattr(classifying, "fit_classifier", lambda *args, **_: calls.append((len(args[1]), args[3])))
    cut = n * 4 // 5
    train_judge(replace(blank(n), splits={"train": slice(cut), "validation": slice(cut, n)}), epochs=epochs, width=2)
    ((images, training),) = calls
    assert images == cut
    assert training.updates(images) == (steps, batch_size)


def test_what_a_judge_says_about_itself(judge):
    names = ("round", "lobed")
    good = Classifier(
        judge.network,
        names,
        "",
        0,
        1,
        accuracy=0.9,
        recalls={"round": 0.95, "lobed": 0.5},
        counts={"round": 50, "lobed": 500},
        validation_counts={"round": 20, "lobed": 50},
    )
    assert good.weaknesses() == []
    (said,) = replace(good, accuracy=0.79).weaknesses()
    assert "only 79%" in said
    (said,) = replace(good, recalls={"round": 0.95, "lobed": 0.4}).weaknesses()
    assert "lobed (40%)" in said
    (said,) = replace(good, counts={"round": 49, "lobed": 500}).weaknesses()
    assert "fewer than 50 training images of round (49)" in said
    (said,) = replace(
        good, validation_counts={"round": 20, "lobed": 0}, recalls={"round": 1.0, "lobed": None}
    ).weaknesses()
    assert "Fewer than 20 validation images of lobed (0)" in said


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelledImages(np.zeros((9, 1, 8, 8), np.uint8), np.zeros((9, 2), int)).split(), "multi-label labels"),
        (lambda: LabelledImages(np.zeros((9, 1, 8, 8), np.uint8), np.zeros((9, 2))).split(), "continuous labels"),
        (lambda: blank(9), r"has none for train and validation. Split it"),
        (lambda: blank(30, classes=1).split(), "two classes or more"),
        (lambda: replace(blank(30).split(), class_names=("a", "b", "c")), "has none of c"),
        (lambda: replace(blank(30), splits={"train": slice(30), "validation": slice(0)}), "has none for validation"),
    ],
)
def test_data_that_make_no_judge(make, message):
    for train in (train_judge, load_judge):
        with pytest.raises(ValueError, match=message):
            train(make())


def test_epochs_are_positive(smears):
    with pytest.raises(ValueError, match="positive number of epochs; got 0"):
        train_judge(smears, epochs=0)


# What it was trained on


def test_the_fingerprint_is_of_content(smears):
    same = smears.content_hash("train")
    assert len(same) == 64
    renamed = LabelledImages(smears.images, smears.labels, list("abcdefgh"), smears.splits, name="x")
    assert renamed.content_hash("train") == same
    assert renamed.fingerprint != smears.fingerprint
    pixel, label = smears.images.copy(), smears.labels.copy()
    pixel[0, 0, 0, 0] ^= 1
    label[0] = (label[0] + 1) % 8
    changed = [
        with_images(smears, pixel),
        LabelledImages(smears.images, label, smears.class_names, smears.splits),
        LabelledImages(smears.images, smears.labels, [*smears.class_names, "more"], smears.splits),
        replace(smears, splits={**smears.splits, "train": slice(0, 79)}),
        with_images(smears, smears.images.reshape(100, 3, 8, 32)),
    ]
    assert len({same, *(data.content_hash("train") for data in changed)}) == 6
    elsewhere = smears.images.copy()
    elsewhere[smears.splits["test"]] ^= 1
    assert with_images(smears, elsewhere).content_hash("train") == same
    assert with_images(smears, elsewhere).content_hash("test") != smears.content_hash("test")


def test_the_fingerprint_does_not_depend_on_how_images_are_held(smears, tmp_path, monkeypatch):
    same = smears.content_hash("train")
    np.save(tmp_path / "images.npy", smears.images)
    mapped = with_images(smears, np.load(tmp_path / "images.npy", mmap_mode="r"))
    strided = with_images(smears, np.asfortranarray(smears.images))
    mask = np.zeros(100, bool)
    mask[smears.splits["train"]] = True
    views = [replace(smears, splits={"train": members}) for members in (mask, np.flatnonzero(mask))]
    for data in (mapped, strided, *views):
        assert data.content_hash("train") == same
    monkeypatch.setattr(condgen.data.images, "CHUNK", 7)
    assert smears.content_hash("train") == same


def test_no_fingerprint_without_the_split(smears):
    with pytest.raises(ValueError, match=r"not 'holdout'. Split it"):
        smears.content_hash("holdout")


def test_a_judge_of_other_images_is_refused(smears, judge):
    check_judge(judge, smears)
    check_judge(judge, LabelledImages(smears.images, smears.labels, list("abcdefgh"), smears.splits))
    pixel = smears.images.copy()
    pixel[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="was trained on others"):
        check_judge(judge, with_images(smears, pixel))
    with pytest.raises(ValueError, match=r"images of \(3, 8, 32\).*trained on \(3, 16, 16\)"):
        check_judge(judge, with_images(smears, smears.images.reshape(100, 3, 8, 32)))
    with pytest.raises(ValueError, match="judge of 9 classes"):
        check_judge(judge, LabelledImages(smears.images, smears.labels, [*smears.class_names, "x"], smears.splits))


# Files


def test_a_judge_comes_back_bit_for_bit(smears, judge, tmp_path):
    again = load_classifier(judge.save(tmp_path / "new" / "judge.safetensors"))
    for part in ("late", "early", "probabilities"):
        assert torch.equal(getattr(again.embed(smears.images), part), getattr(judge.embed(smears.images), part))
    for fact in ("class_names", "image_shape", "fingerprint", "seed", "epochs", "accuracy", "recalls", "counts"):
        assert getattr(again, fact) == getattr(judge, fact), fact
    assert again.validation_counts == judge.validation_counts
    assert not again.network.training
    assert next(again.network.parameters()).requires_grad
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["judge.safetensors"]


def test_the_cache_spares_training(smears, judge, tmp_path, request):
    first = load_judge(smears, cache=tmp_path, **TINY)
    (file,) = tmp_path.iterdir()
    request.getfixturevalue("untrainable")
    renamed = LabelledImages(smears.images, smears.labels, list("abcdefgh"), smears.splits, name="mine")
    again = load_judge(renamed, cache=tmp_path, **TINY)
    assert torch.equal(first.embed(smears.images).late, again.embed(smears.images).late)
    assert torch.equal(first.embed(smears.images).late, judge.embed(smears.images).late)
    assert again.class_names == tuple("abcdefgh")
    assert list(again.counts) == list(again.recalls) == list(again.validation_counts) == list("abcdefgh")
    assert list(again.counts.values()) == list(first.counts.values())
    assert again.accuracy == first.accuracy
    pixel, held_out = smears.images.copy(), smears.images.copy()
    pixel[0, 0, 0, 0] ^= 1
    held_out[smears.splits["validation"]] ^= 1
    calls = [
        (smears, {"epochs": 2}),
        (smears, {"width": 5}),
        (smears, {"seed": 1}),
        (with_images(smears, pixel), {}),
        (with_images(smears, held_out), {}),  # its accuracy would be another
    ]
    for data, change in calls:
        with pytest.raises(AssertionError, match="trained a judge"):
            load_judge(data, cache=tmp_path, **{**TINY, **change})
    assert list(tmp_path.iterdir()) == [file]


def test_where_judges_are_kept(smears, tmp_path, monkeypatch):
    monkeypatch.setenv("CONDGEN_CACHE", str(tmp_path / "there"))
    load_judge(smears, **TINY)
    monkeypatch.delenv("CONDGEN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_judge(smears, **TINY)
    (one,), (other,) = (tmp_path / "there").iterdir(), (tmp_path / "home" / ".cache" / "condgen").iterdir()
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def garbled(path):
    path.write_bytes(b"no judge" * 20)


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def foreign(path):
    save_file({"x": torch.zeros(3)}, path)


def tampered(path, **changes):
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[archives.HEADER])["about"]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about |= changes
    header = {"kind": "judge", "about": about, "sha256": archives.archive_hash(about, tensors)}
    save_file(tensors, path, {archives.HEADER: json.dumps(header)})


DAMAGES = {
    "truncated": truncated,
    "garbled": garbled,
    "emptied": emptied,
    "flipped bit": flipped,
    "foreign": foreign,
    "not JSON": lambda path: save_file({"x": torch.zeros(3)}, path, {archives.HEADER: "{"}),
    "not a table": lambda path: save_file({"x": torch.zeros(3)}, path, {archives.HEADER: "[]"}),
    "another network": lambda path: tampered(path, arguments={"image_shape": [3, 16, 16], "num_classes": 8}),
    "a huge network": lambda path: tampered(
        path, arguments={"image_shape": [3, 16, 16], "num_classes": 8, "width": 1 << 30}
    ),
    "unknown arguments": lambda path: tampered(path, arguments={"depth": 3}),
    "no arguments": lambda path: tampered(path, arguments=None),
    "too few names": lambda path: tampered(path, class_names=["a"]),
    "no accuracy": lambda path: tampered(path, accuracy=float("nan")),
    "newer": lambda path: tampered(path, format=99),
    "other images": lambda path: tampered(path, fingerprint="0" * 64),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_mended(smears, judge, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(judging, "train_judge", lambda *_, **__: judge)
    load_judge(smears, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    DAMAGES[damage](path)
    if damage != "other images":
        with pytest.raises(ValueError, match=path.name):
            load_classifier(path)
    with pytest.warns(UserWarning, match="Training another judge"):
        again = load_judge(smears, cache=tmp_path)
    assert again is judge
    assert path.read_bytes() == whole


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="No classifier at"):
        load_classifier(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="No classifier at"):
        load_classifier(tmp_path)


def test_a_cache_that_cannot_be_written(smears, judge, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "train_judge", lambda *_, **__: judge)
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"could not be kept in .*file.*CONDGEN_CACHE"):
        assert load_judge(smears, cache=tmp_path / "file") is judge

    def refuse(path, _):
        raise PermissionError(f"Read-only: {path}")

    monkeypatch.setattr(archives, "write_atomically", refuse)
    with pytest.warns(UserWarning, match="Read-only"):
        assert load_judge(smears, cache=tmp_path / "folder") is judge


# A network of the user's own


def test_features_of_any_network(smears):
    network = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    network[1].eval()
    before = weights_of(network)
    found = network_features(network, smears.images, batch_size=7)
    assert [module.training for module in network] == [True, False, True, True, True]
    assert equal_weights(before, network.state_dict())
    with torch.no_grad():
        expected = network.eval()(torch.tensor(smears.images) / 255)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    doubled = network_features(network.double(), torch.tensor(smears.images) / 255)
    torch.testing.assert_close(doubled, expected)
    assert doubled.dtype == torch.float32


class Returning(nn.Module):
    """Whatever is asked for."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda x: x, r"float32 of shape \(5, 1, 8, 8\)"),
        (lambda x: x.mean((1, 2, 3)), r"float32 of shape \(5,\)"),
        (lambda x: x.flatten(1)[:3], r"float32 of shape \(3, 64\)"),
        (lambda x: x.flatten(1) / 0, "NaN or infinity"),
        (lambda x: x.flatten(1).long(), "int64 of shape"),
        (lambda x: (x, x), "got tuple"),
        (lambda x: x.numpy(), "got ndarray"),
    ],
)
def test_networks_without_features(function, got):
    network = Returning(function).train()
    with pytest.raises(ValueError, match=rf"(?s)finite float tensor of shape \(5, features\).*{got}"):
        network_features(network, blank(5).images)
    assert network.training


def test_features_of_what_is_no_batch():
    for images in (np.zeros((1, 8, 8), np.uint8), np.zeros((0, 1, 8, 8), np.uint8)):
        with pytest.raises(ValueError, match="at least one"):
            network_features(nn.Flatten(), images)


def test_a_progress_bar_says_nothing_on_standard_output(smears, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_judge(smears, progress=True, **TINY)
    assert capsys.readouterr().out == ""
