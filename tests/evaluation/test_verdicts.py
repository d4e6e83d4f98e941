"""What is said of figures: the fault that is there, worst first, and nothing where all is well."""

import pytest
import torch

from condgen.evaluation.arms import QUICK, Usefulness
from condgen.evaluation.latents import LatentHealth
from condgen.evaluation.records import Measure, listed
from condgen.evaluation.verdict import judge_measures

NAMES = ("basophil", "neutrophil")
USEFUL = Usefulness((), NAMES, "neutrophil", {20: ()}, QUICK, 0, ())


def measure(value, floor=1.0, better="higher", classes=None, interval=None, excess=None):
    values = dict(zip(NAMES, classes or (value, value), strict=True))
    return Measure(value, values, floor, interval, dict.fromkeys(NAMES, floor), excess=excess, better=better)


def good():
    """A generator whose figures are those of real images."""
    return {
        "fid": measure(1.1),
        "precision": measure(0.9, 0.9),
        "coverage": measure(0.9, 0.95),
        "diversity": measure(1.0),
        "diversity_early": measure(0.98),
        "sharpness": measure(1.0),
        "label_accuracy": measure(0.96, 0.97),
        "repeats": measure(0.02, 0.01, "lower"),
        "near_copies": measure(0.01, 0.01, "lower"),
        "membership_auc": measure(0.51, 0.5),
        "synthetic_accuracy": measure(0.96, 0.97),
        "balanced_gain": measure(0.0, interval=(-0.01, 0.01)),
    }


def health(active, latents=128, kl=5.0):
    """Of latents of which some are active."""
    empty = torch.zeros(0)
    return LatentHealth(latents, active, empty, torch.full((9,), kl), empty, None, None, {}, {})


def titles(verdict, severity):
    return [finding.title for finding in verdict.findings if finding.severity == severity]


def test_real_figures_are_good_enough():
    verdict = judge_measures(good())
    assert verdict.answer == "yes"
    assert not titles(verdict, "bad")
    assert not titles(verdict, "warn")
    assert "96%" in verdict.headline
    assert str(verdict).startswith("YES. ")


@pytest.mark.parametrize(
    ("name", "broken", "title", "severity"),
    [
        ("diversity_early", measure(0.2), "Collapse", "bad"),
        ("diversity", measure(0.6, classes=(1.0, 0.2)), "Collapse", "bad"),
        ("diversity", measure(0.6), "Too little variety", "warn"),
        ("repeats", measure(0.5, 0.01, "lower", excess=(0.4, 0.6)), "The same pictures again", "bad"),
        ("repeats", measure(0.1, 0.01, "lower", excess=(0.05, 0.13)), "The same pictures again", "warn"),
        ("near_copies", measure(0.5, 0.01, "lower"), "Copies of training images", "bad"),
        ("near_copies", measure(0.04, 0.01, "lower"), "Copies of training images", "warn"),
        ("membership_auc", measure(0.8, 0.5), "Memory of training images", "bad"),
        ("label_accuracy", measure(0.3, 0.97), "Not true to the label", "bad"),
        ("label_accuracy", measure(0.95, 0.97, classes=(0.5, 1.0)), "Labels in doubt", "warn"),
        ("sharpness", measure(0.3), "Blurred", "bad"),
        ("sharpness", measure(3.0), "Noisy", "bad"),
        ("fid", measure(20.0), "Unlike real images as a set", "bad"),
        ("fid", measure(5.0), "Unlike real images as a set", "warn"),
        ("precision", measure(0.2, 0.9), "Images that look like no real one", "bad"),
        ("coverage", measure(0.2, 0.9), "Real images without a counterpart", "bad"),
        ("synthetic_accuracy", measure(0.6, 0.97), "Training on these images alone", "bad"),
        ("balanced_gain", measure(-0.05, interval=(-0.06, -0.04)), "Generated images harm beside real ones", "warn"),
    ],
)
def test_one_fault_is_named_and_no_other(name, broken, title, severity):
    verdict = judge_measures({**good(), name: broken}, useful=USEFUL)
    assert titles(verdict, severity) == [title]
    assert not titles(verdict, "bad" if severity == "warn" else "warn")
    assert verdict.findings[0].title == title
    assert verdict.findings[0].measure == name or title in ("Collapse", "Too little variety")
    if severity == "bad":
        assert verdict.answer != "yes"


def test_collapse_comes_before_praise_for_fid_and_names_the_class():
    verdict = judge_measures({**good(), "diversity": measure(0.6, classes=(1.0, 0.1)), "fid": measure(20.0)})
    assert titles(verdict, "bad") == ["Collapse", "Unlike real images as a set"]
    assert "neutrophil" in verdict.findings[0].text
    assert "basophil" not in verdict.findings[0].text


def test_a_useful_set_of_copies_is_not_to_be_trusted():
    verdict = judge_measures({**good(), "near_copies": measure(0.9, 0.01, "lower")})
    assert verdict.answer == "not yet"
    assert "copies of training images" in verdict.headline


def test_what_was_not_measured_is_not_claimed():
    figures = good()
    del figures["synthetic_accuracy"], figures["balanced_gain"]
    assert judge_measures(figures).answer == "unknown"
    assert "not measured" in judge_measures(figures).headline
    assert judge_measures({}).answer == "unknown"
    assert judge_measures({**figures, "fid": Measure(None, reason="too few")}).answer == "unknown"
    assert judge_measures({**figures, "sharpness": measure(0.7)}).answer == "not yet"
    assert judge_measures({**figures, "sharpness": measure(0.3)}).answer == "no"


def test_a_weak_judge_and_unused_latents_are_mentioned():
    verdict = judge_measures(
        good(),
        weaknesses=["The judge recognises only 60% of real validation images."],
        latents=health(active=3),
    )
    assert titles(verdict, "warn") == ["Latents", "The judge itself is weak"]
    assert "3 of 128" in verdict.findings[0].text


def test_gains_say_how_few_images_there_were():
    gain = measure(0.2, interval=(0.1, 0.3))
    (finding,) = judge_measures({"rare_20_recall_gain": gain}, useful=USEFUL).findings
    assert (finding.severity, finding.title) == ("good", "Generated images help real ones")
    assert "recall of neutrophil with only 20 real images" in finding.text


def test_gains_that_were_not_named_beforehand_say_nothing():
    gain = measure(0.2, interval=(0.1, 0.3))
    assert not judge_measures({"rare_20_gain": gain, "balanced_recall_gain": gain}, useful=USEFUL).findings


def test_a_gain_that_may_be_nothing_is_open():
    verdict = judge_measures({"balanced_gain": measure(0.2, interval=(-0.1, 0.5))}, useful=USEFUL)
    assert titles(verdict, "open") == ["Whether generated images help real ones is open"]
    assert verdict.answer == "unknown"


@pytest.mark.parametrize(
    ("name", "broken", "title"),
    [
        ("sharpness", measure(0.7, interval=(0.5, 0.9)), "Too few images to tell how sharp they are"),
        ("label_accuracy", measure(0.8, interval=(0.6, 0.95)), "Too few images to tell the truth to the label"),
        ("diversity", measure(0.7, classes=(1.0, 1.0), interval=(0.5, 0.9)), "Too few images to tell their variety"),
        ("near_copies", measure(0.04, 0.01, "lower", excess=(-0.02, 0.09)), "Too few images to rule out copies"),
        ("repeats", measure(0.2, 0.01, "lower", excess=(-0.02, 0.4)), "Too few images to tell whether they repeat"),
        ("repeats", measure(0.2, 0.01, "lower"), "Too few images to tell whether they repeat"),
        ("kid", measure(0.1, -0.1, "lower", excess=(-0.1, 0.5)), "Too few images to tell them from real ones"),
    ],
)
def test_what_chance_may_explain_is_said_to_be_open(name, broken, title):
    figures = good()
    del figures["fid" if name == "kid" else "balanced_gain"]
    verdict = judge_measures({**figures, name: broken})
    assert titles(verdict, "open") == [title]
    assert not titles(verdict, "warn") + titles(verdict, "bad")


def test_kid_speaks_where_there_is_no_fid_by_the_difference_from_its_floor():
    """Its floor is 0 on average, so no ratio says anything."""
    kid = measure(0.5, -0.01, "lower", excess=(0.2, 0.8))
    figures = {**good(), "fid": Measure(None, reason="too few images"), "kid": kid}
    assert titles(judge_measures(figures), "warn") == ["Unlike real images as a set"]
    assert titles(judge_measures({**good(), "kid": kid}), "warn") == []  # the FID speaks


def test_copies_count_beyond_chance_alone():
    assert "Copies of training images" in titles(
        judge_measures({"near_copies": measure(0.2, 0.01, "lower", excess=(0.1, 0.3))}), "bad"
    )
    assert not titles(judge_measures({"near_copies": measure(0.2, 0.01, "lower", excess=(-0.01, 0.3))}), "bad")


def test_too_much_variety_and_some_memory():
    mixed = judge_measures({**good(), "diversity": measure(1.0, classes=(1.0, 1.8)), "diversity_early": measure(1.8)})
    assert titles(mixed, "warn") == ["Too much variety"]
    assert titles(judge_measures({**good(), "membership_auc": measure(0.65, 0.5)}), "warn") == [
        "Memory of training images"
    ]
    unsure = measure(0.65, 0.5, interval=(0.45, 0.8))
    assert not titles(judge_measures({**good(), "membership_auc": unsure}), "warn")


@pytest.mark.parametrize(("accuracy", "answer"), [(0.96, "yes"), (0.93, "not yet"), (0.80, "no")])
def test_what_classifiers_reach_decides(accuracy, answer):
    assert judge_measures({**good(), "synthetic_accuracy": measure(accuracy, 0.97)}).answer == answer


@pytest.mark.parametrize(
    ("interval", "severity", "words"),
    [
        ((0.90, 0.94), "warn", "are not yet good enough"),
        ((0.88, 0.98), "open", "is uncertain"),
        ((0.80, 0.86), "bad", "are not good enough"),
    ],
)
def test_a_classifier_learns_less_only_where_the_whole_interval_says_so(interval, severity, words):
    less = measure(sum(interval) / 2, 0.97, interval=interval)
    verdict = judge_measures({**good(), "synthetic_accuracy": less})
    assert words in verdict.headline
    assert "Training on these images alone" in titles(verdict, severity)


@pytest.mark.parametrize(
    ("interval", "severity", "title"),
    [
        ((2.5, 5.5), "open", "Too few images to tell them from real ones"),
        ((3.5, 4.5), "warn", "Unlike real images as a set"),
        ((8.0, 16.0), "warn", "Unlike real images as a set"),
        ((11.0, 13.0), "bad", "Unlike real images as a set"),
    ],
)
def test_an_fid_is_off_only_where_the_whole_interval_is(interval, severity, title):
    fid = measure(sum(interval) / 2, 1.0, "lower", interval=interval)
    assert title in titles(judge_measures({**good(), "fid": fid}), severity)


def test_lists():
    assert listed(["a"]) == "a"
    assert listed(list("abcdef"), most=2) == "a, b and 4 more"


def test_precision_without_a_floor_is_said_without_one():
    verdict = judge_measures({**good(), "precision": measure(0.1, None)})
    (finding,) = [f for f in verdict.findings if f.measure == "precision"]
    assert finding.text == "10% of the images look like real ones."
