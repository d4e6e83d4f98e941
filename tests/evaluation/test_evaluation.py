"""Evaluation against known truth: generators that are perfect or broken in one known way, and what is said of them."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import condgen
from condgen.data.images import LabelledImages
from condgen.evaluation import evaluate, read_evaluation
from condgen.evaluation.judge import load_judge
from condgen.io.archives import weights_hash
from condgen.losses.vaegan import VAEGANLoss
from condgen.nn.discriminators import ConvDiscriminator

SIZE = 16


def smears(n, seed):
    return condgen.load_smears(n, size=SIZE, seed=seed, balance="equal")


@pytest.fixture(scope="module")
def cells():
    """The real images."""
    return smears(3000, 0)


@pytest.fixture(scope="module")
def skilled(cells, tmp_path_factory):
    """A judge that knows the classes well."""
    return load_judge(cells, cache=tmp_path_factory.mktemp("judges"), epochs=8, width=16)


@pytest.fixture(scope="module")
def judge(cells, tmp_path_factory):
    """A judge that knows enough for whatever does not depend on how good it is."""
    return load_judge(cells, cache=tmp_path_factory.mktemp("judges"), epochs=1, width=8)


@pytest.fixture(scope="module")
def perfect(cells, judge, fresh):
    """The evaluation of a perfect generator."""
    return evaluate(whole(fresh), cells, judge=judge, usefulness="none")


@pytest.fixture(scope="module")
def fresh():
    """What a perfect generator draws: images of the same kind that nobody has met."""
    return smears(1600, 7)


def whole(images):
    """The set without its splits: a generated set has none."""
    return LabelledImages(images.images, images.labels, images.class_names, name="generated")


def changed(images, arrays):
    return LabelledImages(arrays, images.labels, images.class_names, name="generated")


def blurred(images):
    x = torch.as_tensor(images.images).float()
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (kernel[:, None] * kernel)[None, None].expand(3, 1, 5, 5)
    return changed(images, F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=3).round().byte().numpy())


def one_picture_each(images):
    """A single good image per class, moved by up to a pixel and slightly noisy."""
    generator = np.random.default_rng(0)
    first = {label: images.images[np.flatnonzero(images.labels == label)[0]] for label in range(8)}
    drawn = []
    for label in images.labels:
        image = np.roll(first[label], generator.integers(-1, 2, 2), (1, 2)).astype(int)
        drawn.append(np.clip(image + generator.integers(-3, 4, image.shape), 0, 255).astype(np.uint8))
    return changed(images, np.stack(drawn))


def favourites(images):
    """A third of the images are nearly one of the class's first two; the others are as they should be."""
    drawn = images.images.copy()
    generator = np.random.default_rng(0)
    for label in range(8):
        own = np.flatnonzero(images.labels == label)
        for k, place in enumerate(own[: len(own) // 3]):
            grain = generator.integers(-3, 4, drawn.shape[1:])
            drawn[place] = np.clip(images.images[own[k % 2]].astype(int) + grain, 0, 255)
    return changed(images, drawn)


def copies(images, cells):
    """Training images, given out again with a little noise."""
    generator = np.random.default_rng(0)
    train = cells.train.subset(generator.permutation(len(cells.train))[: len(images)])
    noise = generator.integers(-2, 3, train.images.shape)
    return changed(train, np.clip(train.images.astype(int) + noise, 0, 255).astype(np.uint8))


def without_regard_to_labels(images):
    return LabelledImages(
        images.images, np.random.default_rng(0).permutation(images.labels), images.class_names, name="generated"
    )


def noise(images):
    return changed(images, np.random.default_rng(0).integers(0, 256, images.images.shape, dtype=np.uint8))


@pytest.fixture(scope="module")
def judged(cells, skilled, fresh):
    """Name of a generator → its evaluation."""
    generators = {
        "perfect": whole(fresh),
        "copies": copies(fresh, cells),
        "one picture": one_picture_each(fresh),
        "favourites": favourites(fresh),
        "any label": without_regard_to_labels(fresh),
        "blurred": blurred(fresh),
        "noise": noise(fresh),
    }

    class WhenAskedFor(dict):
        def __missing__(self, name):
            self[name] = evaluate(generators[name], cells, judge=skilled, usefulness="none")
            return self[name]

    return WhenAskedFor()


def bad(evaluation):
    return {finding.title for finding in evaluation.verdict.findings if finding.severity == "bad"}


@pytest.mark.slow
class TestKnownGenerators:
    def test_fresh_images_are_at_the_floor_on_everything(self, judged):
        found = judged["perfect"]
        assert not bad(found), found.verdict
        assert found.verdict.answer != "no"
        for name in ("fid", "fid_early"):
            assert found[name].overall < 1.5 * found[name].floor, name
        for name in ("precision", "recall", "density", "coverage", "label_accuracy"):
            assert found[name].overall == pytest.approx(found[name].floor, abs=0.1), name
        for name in ("diversity", "diversity_early", "sharpness"):
            assert found[name].overall == pytest.approx(found[name].floor, abs=0.1), name
        assert found["near_copies"].overall <= found["near_copies"].floor + 0.02
        assert found["repeats"].overall == pytest.approx(found["repeats"].floor, abs=0.03)
        assert found["kid"].interval[0] < found["kid"].floor + 0.002

    def test_copies_are_caught_by_privacy_alone(self, judged):
        found = judged["copies"]
        assert found["near_copies"].overall > 0.9
        assert found["near_copies"].floor < 0.05
        assert "Copies of training images" in bad(found)
        assert found["fid"].overall < 2 * found["fid"].floor  # which is why fidelity alone says nothing
        assert found.verdict.answer == "no"

    def test_one_picture_per_class_is_caught_by_diversity_and_coverage(self, judged):
        found = judged["one picture"]
        # Pixels alone would not do: a picture that moves by a pixel differs from itself nearly as cells differ.
        assert found["diversity_early"].overall < 0.35 * found["diversity_early"].floor
        assert found["fid"].overall > 10 * found["fid"].floor
        assert found["coverage"].overall < 0.5 * found["coverage"].floor
        assert found.verdict.findings[0].title == "Collapse"
        assert found.verdict.answer == "no"

    def test_favourite_pictures_are_caught_by_repeats_alone(self, judged):
        found = judged["favourites"]
        assert found["repeats"].overall == pytest.approx(1 / 3, abs=0.06)
        assert found["fid"].overall < 3 * found["fid"].floor
        assert found["diversity_early"].overall > 0.9 * found["diversity_early"].floor
        assert not {"Collapse", "Real images without a counterpart"} & bad(found)
        assert "The same pictures again" in {finding.title for finding in found.verdict.findings}

    def test_ignored_labels_are_caught_by_label_truth(self, judged):
        found = judged["any label"]
        assert found["label_accuracy"].overall == pytest.approx(1 / 8, abs=0.06)
        assert "Not true to the label" in bad(found)
        for name in ("precision", "recall", "coverage"):  # the set as a whole is perfect
            assert found[name].overall == pytest.approx(found[name].floor, abs=0.1), name

    def test_blur_is_caught_by_fid_and_named(self, judged):
        found = judged["blurred"]
        assert found["fid"].overall > 3 * found["fid"].floor
        assert found["fid_early"].overall > 10 * found["fid_early"].floor
        assert found["sharpness"].overall < 0.5
        assert "Blurred" in bad(found)
        assert found.verdict.answer == "no"

    def test_noise_is_caught_by_everything(self, judged):
        found = judged["noise"]
        assert found["fid"].overall > 10 * found["fid"].floor
        assert found["precision"].overall < 0.1
        assert found["coverage"].overall < 0.1
        assert found["label_accuracy"].overall < 0.3
        assert found["sharpness"].overall > 1.5
        assert {"Noisy", "Not true to the label", "Unlike real images as a set"} <= bad(found)


class TestWhatIsWritten:
    def test_json_has_every_figure_finite_or_with_its_reason(self, perfect, tmp_path):
        page = perfect.write(tmp_path / "report")
        content = read_evaluation(page.parent)
        assert content["format"] == 2
        listed = {name for group in content["groups"] for name in group["measures"]}
        assert listed == set(content["measures"])  # the page leaves none out
        for name, measure in content["measures"].items():
            assert {"overall", "per_class", "floor", "interval", "reason", "meaning"} <= set(measure), name
            assert measure["meaning"], name
            assert measure["overall"] is not None or measure["reason"], name
            values = [measure["overall"], measure["floor"], *(measure["interval"] or ())]
            values += [*measure["per_class"].values(), *measure["per_class_floor"].values()]
            assert all(value is None or math.isfinite(value) for value in values), name
            if None in measure["per_class"].values():
                assert measure["reason"], name
        assert content["verdict"]["answer"] == perfect.verdict.answer
        assert sum(map(sum, content["confusion"]["rows"])) == content["settings"]["images"] == 300

    def test_the_same_call_gives_the_same_figures(self, perfect, cells, judge, fresh):
        again = evaluate(whole(fresh), cells, judge=judge, usefulness="none")
        assert again.measures == perfect.measures

    def test_damaged_and_missing_files_are_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="condgen evaluate"):
            read_evaluation(tmp_path)
        (tmp_path / "evaluation.json").write_text("{")
        with pytest.raises(ValueError, match="damaged"):
            read_evaluation(tmp_path)
        (tmp_path / "evaluation.json").write_text(json.dumps({"format": 99}))
        with pytest.raises(ValueError, match="Upgrade"):
            read_evaluation(tmp_path)

    @pytest.mark.slow
    def test_real_images_are_shown_only_when_asked_for(self, cells, judge, fresh):
        with_real = evaluate(copies(fresh, cells), cells, judge=judge, usefulness="none", include_real=True)
        assert "real" in with_real.pictures
        without = evaluate(copies(fresh, cells), cells, judge=judge, usefulness="none")
        assert "real" not in without.pictures
        # Beside each copy stands the training image it was made from: twice the height.
        assert len(with_real.pictures["copies"]) > 1.5 * len(without.pictures["copies"])


class TestModels:
    @pytest.fixture(scope="class")
    @staticmethod
    def model(cells):
        model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=8, width=8)
        condgen.fit(model, cells, epochs=2, progress=False, accelerator="cpu")
        return model

    def test_a_model_is_asked_for_likelihood_latents_and_reconstructions(self, model, cells, judge, tmp_path):
        found = evaluate(model, cells, judge=judge, usefulness="none", images=100)
        for name in ("psnr", "ssim", "elbo", "kl", "importance_weighted", "active_latents", "membership_auc"):
            assert found[name].overall is not None, name
        assert found["elbo"].overall == pytest.approx(found["log_likelihood"].overall - found["kl"].overall, rel=1e-4)
        assert found["bits_per_dimension"].overall is None
        assert "grey" in found["bits_per_dimension"].reason
        assert found["membership_auc"].overall == pytest.approx(0.5, abs=0.15)
        assert found.details["settings"]["images"] == pytest.approx(100, abs=8)
        assert found.write(tmp_path).is_file()
        assert "images were compared" in " ".join(found.details["warnings"])  # fewer than 200

    def test_a_model_without_labels_is_judged_without_them(self, cells, judge):
        model = condgen.conditional_vae(cells.image_shape, 0, latent=8, width=8)
        found = evaluate(model, cells, judge=judge, usefulness="quick", images=100)
        assert "label_accuracy" not in found.measures
        assert not found["kid"].per_class
        assert found["fid_early"].overall is not None
        assert found["synthetic_accuracy"].overall is None
        assert "labels" in found["synthetic_accuracy"].reason

    def test_a_second_look_stands_beside_the_judge(self, perfect, cells, judge, fresh, unchecked):
        network = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten())  # 8x8, as pixels are looked at
        only = {"judge": judge, "usefulness": "none", "measure": ("fidelity",)}
        one, other = (evaluate(whole(fresh), cells, features=f, **only) for f in (network, "pixels"))
        assert one["kid"] == perfect["kid"]
        assert one["kid_other"].overall == pytest.approx(other["kid_other"].overall, rel=1e-3)
        assert one["kid_other"].title == "KID, other features"
        assert not any(name.endswith("_other") for name in perfect.measures)
        with pytest.raises(ValueError, match="a network, or 'pixels'"):
            evaluate(whole(fresh), cells, features="late", **only)

    def test_parts_are_measured_as_asked(self, cells, judge, fresh, unchecked):
        found = evaluate(whole(fresh), cells, judge=judge, measure=("privacy",))
        assert set(found.measures) == {"near_copies", "nearest_distance_ratio"}
        assert "parts" in found.details["settings"]
        for wrong in ((), ("fid",)):
            with pytest.raises(ValueError, match="Expected parts among fidelity, privacy"):
                evaluate(whole(fresh), cells, judge=judge, measure=wrong)

    def test_a_part_that_fails_says_why_and_leaves_the_others(self, cells, judge, fresh, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("no memory for it")

        monkeypatch.setattr("condgen.evaluation.parts.near_copies", broken)
        found = evaluate(whole(fresh), cells, judge=judge, usefulness="none")
        assert "privacy could not be measured: no memory for it" in found.details["warnings"]
        assert "fid" in found.measures
        assert "near_copies" not in found.measures
        with pytest.raises(RuntimeError, match="no memory"):  # nothing is left to write
            evaluate(whole(fresh), cells, judge=judge, measure=("privacy",))

    def test_no_repetition_and_no_cap_without_a_word(self, cells, judge, fresh, monkeypatch):
        from condgen.evaluation import usefulness

        monkeypatch.setitem(
            usefulness.PLANS,
            "quick",
            usefulness.StudyPlan(seeds=1, steps=4, batch_size=32, width=4, cuts=(20,), cutmix=False),
        )
        few = whole(fresh.subset(fresh.stratified(0.1)))
        said = evaluate(few, cells, judge=judge, usefulness="quick", measure=("usefulness",)).details["warnings"]
        assert any("they repeat" in text for text in said)
        only = {"judge": judge, "measure": ("privacy",)}
        for asked in (100_000, 2):
            said = evaluate(whole(fresh), cells, images=asked, **only).details["warnings"]
            assert any(f"{asked:,} images were asked for" in text for text in said)
        assert not evaluate(whole(fresh), cells, **only).details["warnings"]

    @pytest.mark.slow
    def test_usefulness_of_a_perfect_generator(self, cells, judge, monkeypatch):
        from condgen.evaluation import usefulness

        monkeypatch.setitem(
            usefulness.PLANS, "quick", usefulness.StudyPlan(seeds=2, steps=50, batch_size=32, width=8, cuts=(20,))
        )
        perfect = whole(smears(2000, 9))
        found = evaluate(perfect, cells, judge=judge, usefulness="quick")
        assert found["synthetic_accuracy"].overall > 0.8 * found["synthetic_accuracy"].floor
        assert {"rare_20_gain", "balanced_macro_f1"} <= set(found.measures)
        assert found.details["usefulness"]["rows"]


class TestOtherSets:
    def test_grey_images_of_two_classes(self, tmp_path):
        generator = np.random.default_rng(0)
        labels = np.arange(600) % 2
        shade = np.where(labels, 170, 60)[:, None, None, None]
        images = (shade + generator.integers(-40, 40, (600, 1, 12, 12))).astype(np.uint8)
        data = LabelledImages(images, labels, ("dim", "bright")).split(0.25, 0.25)
        judge = load_judge(data, cache=tmp_path, epochs=4, width=8)
        given = LabelledImages(images[::3].copy(), labels[::3].copy())
        found = evaluate(given, data, judge=judge, usefulness="none")
        assert found["label_accuracy"].overall > 0.9
        assert found["near_copies"].overall > 0.5  # half of them are of the training split

    def test_a_class_of_twenty_images(self, tmp_path):
        cells = condgen.load_smears(500, size=16, balance="equal")
        few = np.flatnonzero(cells.labels == 3)[20:]
        some = cells.subset(np.setdiff1d(np.arange(len(cells)), few)).split()
        judge = load_judge(some, cache=tmp_path, epochs=10, width=8)
        found = evaluate(whole(condgen.load_smears(400, size=16, seed=3)), some, judge=judge, usefulness="none")
        said = " ".join(finding.text for finding in found.verdict.findings)
        assert f"{cells.class_names[3]} (" in said  # the judge says which class it knows little of
        assert "rough" in " ".join(found.details["warnings"])
        assert found["fid"].overall is None or math.isfinite(found["fid"].overall)
        assert found["fid"].reason
        found.write(tmp_path / "report")

    def test_larger_images(self, tmp_path):
        cells = condgen.load_smears(120, size=64, balance="equal")
        model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=4, width=4)
        judge = load_judge(cells, cache=tmp_path, epochs=1, width=8)
        found = evaluate(model, cells, judge=judge, usefulness="none")
        assert found["sharpness"].overall is not None
        found.write(tmp_path / "report")


class TestClassNamesDecide:
    """Not the numbers that two sets happen to give their classes."""

    @pytest.mark.slow
    def test_generated_images_in_another_order(self, cells, judge, fresh, perfect):
        order = np.roll(np.arange(8), 3)
        names = tuple(np.array(fresh.class_names)[order])
        swapped = LabelledImages(fresh.images, np.argsort(order)[fresh.labels], names, name="generated")
        found = evaluate(swapped, cells, judge=judge, usefulness="none")
        assert found["label_accuracy"] == perfect["label_accuracy"]

    def test_classes_of_other_names_are_refused(self, cells, judge, fresh):
        names = ("ant", *fresh.class_names[1:])
        with pytest.raises(ValueError, match=r"'generated' has others: ant. Rename"):
            evaluate(LabelledImages(fresh.images, fresh.labels, names, name="generated"), cells, judge=judge)

    @pytest.mark.slow
    def test_a_model_in_another_order(self, tmp_path):
        """A model that draws the class mean of each name is recognised, whatever numbers it uses."""
        data = condgen.load_smears(400, size=16, balance="equal")
        means = np.stack([data.images[data.labels == k].mean(0) for k in range(8)]) / 255
        accuracies = []
        for order in (np.arange(8), np.arange(8)[::-1].copy()):
            model = condgen.conditional_vae(data.image_shape, 8, latent=2, width=4)
            model.class_names = tuple(np.array(data.class_names)[order])
            model.draw = lambda y, _, order=order: torch.tensor(means[order][y.numpy()], dtype=torch.float32)
            reordered = data.ordered(model.class_names)
            judge = load_judge(reordered, cache=tmp_path, epochs=20, width=8)
            found = evaluate(model, data, judge=judge, usefulness="none", images=80)
            accuracies.append(found["label_accuracy"].overall)
        assert min(accuracies) > 0.5


class OnlyDraws(torch.nn.Module):
    """A sampler without a density."""

    noise_shape = (2,)

    def draw(self, c, noise):
        return noise

    def forward(self, c):
        raise NotImplementedError


def test_a_sampler_without_a_density_has_its_reasons(cells, judge):
    model = condgen.conditional_vae(cells.image_shape, 8, latent=2, width=4)
    model.sampler = OnlyDraws()
    found = evaluate(model, cells, judge=judge, usefulness="none", images=50)
    for name in ("importance_weighted", "membership_auc"):
        assert found[name].overall is None
        assert "Not available: Expected a sampler with a density; OnlyDraws only draws" in found[name].reason
    assert found["elbo"].overall is not None
    assert found["active_latents"].overall is not None


class TestWhatIsKnownOfTheRun:
    def test_weights_and_data_are_named(self, cells, judge):
        model = condgen.conditional_vae(cells.image_shape, 8, latent=2, width=4)
        found = evaluate(model, cells, judge=judge, usefulness="none", images=50)
        assert found.details["model"]["weights"] == weights_hash(model.state_dict())
        assert found.details["data"]["fingerprint"] == cells.fingerprint

    @pytest.mark.slow
    def test_a_model_trained_on_other_images_is_said(self, cells, judge):
        model = condgen.conditional_vae(cells.image_shape, 8, latent=2, width=4)
        condgen.fit(model, smears(60, 5), epochs=1, progress=False, accelerator="cpu")
        found = evaluate(model, cells, judge=judge, usefulness="none", images=50)
        assert "trained on other images" in " ".join(found.details["warnings"])

    @pytest.mark.slow
    def test_that_the_decoder_left_the_bound_is_said(self, cells, judge):
        model = condgen.conditional_vae(cells.image_shape, 8, latent=2, width=4)
        critic = ConvDiscriminator(cells.image_shape, 8, widths=(4, 4))
        condgen.fit(model, cells, epochs=1, objective=VAEGANLoss(critic), progress=False, accelerator="cpu")
        found = evaluate(model, cells, judge=judge, usefulness="none", images=50)
        assert "trained by VAEGANLoss, not by the bound alone" in " ".join(found.details["warnings"])
        assert found["elbo"].overall is not None

    @pytest.mark.slow
    def test_a_run_that_stopped_on_nan_is_evaluated_all_the_same(self, cells, judge, fresh, tmp_path):
        history = condgen.History([{"epoch": 1, "train_loss": 3.0}, {"epoch": 2, "train_loss": math.nan}])
        found = evaluate(whole(fresh), cells, judge=judge, usefulness="none", history=history)
        found.write(tmp_path)
        assert read_evaluation(tmp_path)["history"]["train_loss"] == [3.0, None]


class TestErrors:
    def test_generated_images_must_fit_the_data(self, cells, judge, fresh, unchecked):
        def judge_of(images):
            return evaluate(images, cells, judge=judge, usefulness="none")

        with pytest.raises(ValueError, match="got none"):
            judge_of(fresh.subset([]))
        with pytest.raises(ValueError, match=r"\(3, 16, 16\).*Resize"):
            judge_of(condgen.load_smears(100, size=28))
        with pytest.raises(ValueError, match="none of neutrophil"):
            judge_of(whole(fresh).subset(np.flatnonzero(fresh.labels != fresh.class_names.index("neutrophil"))))
        with pytest.raises(ValueError, match="Expected 8 classes"):
            judge_of(LabelledImages(fresh.images, np.arange(len(fresh)) % 9))
        with pytest.raises(TypeError, match="LabelledImages"):
            judge_of(fresh.images)

    def test_samples_out_of_range_are_refused(self, cells, judge):
        model = condgen.conditional_vae(cells.image_shape, cells.num_classes, latent=4, width=4)
        model.draw = lambda y, _: torch.full((len(y), *cells.image_shape), 1.5)
        with pytest.raises(ValueError, match=r"in \[0, 1\]; got values from 1.5"):
            evaluate(model, cells, judge=judge, usefulness="none")

    def test_a_model_of_other_classes_is_refused(self, cells, judge):
        model = condgen.conditional_vae(cells.image_shape, 5, latent=4, width=4)
        with pytest.raises(ValueError, match="8 classes"):
            evaluate(model, cells, judge=judge, usefulness="none")

    def test_the_judge_of_other_images_is_refused(self, judge, fresh, tmp_path):
        with pytest.raises(ValueError, match="trained on"):
            evaluate(whole(fresh), smears(400, 3), judge=judge, usefulness="none")
        path = judge.save(tmp_path / "judge.safetensors")
        with pytest.raises(ValueError, match="trained on"):
            evaluate(whole(fresh), smears(400, 3), judge=path, usefulness="none")

    def test_data_need_splits_and_classes(self, fresh, judge):
        with pytest.raises(ValueError, match="split"):
            evaluate(whole(fresh), whole(fresh), judge=judge)
        with pytest.raises(ValueError, match="class"):
            evaluate(whole(fresh), LabelledImages(fresh.images, fresh.labels[:, None] + 0.5, splits=fresh.splits))
