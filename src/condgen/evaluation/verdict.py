"""Verdict: what the measures of an evaluation say, in plain sentences, worst first.

Every threshold is relative to what real images reach on the same measure, and a fault is only named where chance does
not explain it: the whole interval must lie beyond. Where a set is too small to tell, that is said instead. Collapse is
looked for before fidelity: distances between classes can be right while every image of a class is nearly the same
picture. How often each sentence is wrong was measured: docs/evaluation.md.
"""

__all__ = ["Finding", "Verdict", "judge_measures"]

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from condgen.evaluation.arms import Usefulness
from condgen.evaluation.latents import LatentHealth
from condgen.evaluation.records import Measure, listed
from condgen.evaluation.statistics import Interval

Severity = Literal["bad", "warn", "open", "good"]
Answer = Literal["yes", "not yet", "no", "unknown"]
Measures = Mapping[str, Measure]

COLLAPSED, UNIFORM, MIXED = 0.35, 0.75, 1.5  # of the pairwise distance within a class of real images
SAME = 0.05  # of that distance, which no few images have by chance
REPEATED, SEVERAL = 0.3, 0.05  # share of images that come again beyond that of held-out real images
COPIED, SUSPICIOUS = 0.05, 0.02  # share of near copies beyond that of held-out real images
ENOUGH = 150  # images of which none is a copy, and as many held-out ones, for an interval that ends below COPIED
LEAKS, LEAKS_SOME = 0.7, 0.6  # area under the curve of the membership attack
MISLABELLED, DOUBTFUL = 0.6, 0.92  # of the judge's accuracy on real images
BLURRED, SOFT, NOISY = 0.5, 0.8, 1.5  # of the fine detail of real images
FAR, OFF = 10.0, 3.0  # times the floor
UNLIKE, MISSING = 0.5, 0.5  # of what held-out real images reach
WIDER = 1.5  # intervals of single classes: three spreads instead of two
AS_GOOD, NEARLY = 0.98, 0.9  # of the accuracy after training on real images
MARKS = {"bad": "✗", "warn": "!", "open": "?", "good": "✓"}  # worst first


@dataclass(frozen=True)
class Finding:
    """One thing that the measures say.

    Attributes:
        severity: "bad", "warn", "good", or "open" where too little was measured to tell.
        measure: the measure it rests on.
        title: a few words.
        text: a sentence with the figures.

    Example:
        >>> Finding("bad", "sharpness", "Blurred", "the images hold 30% of the fine detail of real ones.").severity
        'bad'
    """

    severity: Severity
    measure: str
    title: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The answer to "are these images good enough to train on?", and why.

    Attributes:
        answer: "yes", "not yet", "no", or "unknown" where that was not measured and nothing speaks against it.
        headline: one sentence.
        findings: worst first.

    Example:
        >>> print(Verdict("no", "Not these.", (Finding("bad", "sharpness", "Blurred", "all of them."),)))
        NO. Not these.
          ✗ Blurred: all of them.
    """

    answer: Answer
    headline: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        lines = [f"  {MARKS[finding.severity]} {finding.title}: {finding.text}" for finding in self.findings]
        return "\n".join([f"{self.answer.upper()}. {self.headline}", *lines])


def judge_measures(
    measures: Measures,
    *,
    weaknesses: Sequence[str] = (),
    latents: LatentHealth | None = None,
    useful: Usefulness | None = None,
) -> Verdict:
    """The verdict on a set of measures; measures that are missing or could not be taken say nothing.

    Args:
        measures: by the names that :func:`condgen.evaluate` gives them.
        weaknesses: of the judge, in its own words.
        latents: of the model.
        useful: what classifiers learned, for the gains.

    Example:
        >>> alike = Measure(overall=0.1, floor=1.0, per_class={"round": 0.1, "lobed": 0.1}, better="floor")
        >>> verdict = judge_measures({"diversity": alike, "diversity_early": alike})
        >>> verdict.answer, verdict.findings[0].title
        ('no', 'Collapse')
    """
    short = useful.plan.shortfall if useful is not None else ""
    findings = [finding for rule in RULES for finding in rule(measures)]
    if short and known(measures, "synthetic_accuracy"):
        findings.append(Finding("open", "synthetic_accuracy", "What a good classifier learns from them", short))
    if useful is not None:
        findings += gains(measures, useful)
    if latents is not None:
        severity: Severity = "warn" if latents.collapsed or latents.holes else "good"
        findings.append(Finding(severity, "active_latents", "Latents", f"{latents.verdict}."))
    findings += [Finding("warn", "label_accuracy", "The judge itself is weak", text) for text in weaknesses]
    findings.sort(key=lambda finding: list(MARKS).index(finding.severity))  # stable: rules stand in order of importance
    answer, headline = conclusion(measures, findings, "small classifier" if short else "classifier")
    return Verdict(answer, headline, tuple(findings))


def collapse(measures: Measures) -> Iterator[Finding]:
    """Images of a class that are nearly one picture, in pixels and in the judge's early features."""
    found = [measures[name] for name in ("diversity", "diversity_early") if known(measures, name)]
    if not found:
        return
    classes = [name for name in found[0].per_class if all(m.per_class.get(name) is not None for m in found)]
    # Where one of the two still sees variety it may be colour alone, or one picture moved about: the smaller counts.
    # Diversity is a share of that of real images already, and the floor, of few images, may stray from 1 by itself.
    ranges = {name: min(class_range(m, name, most=1.0) for m in found) for name in classes}
    ranges["any kind"] = min(of_floor(m, most=1.0) for m in found)
    share = {name: value for name, (value, _, _) in ranges.items()}
    worst = sorted(share, key=lambda name: share[name])
    gone = [name for name in worst if share[name] < SAME or (share[name] < COLLAPSED and ranges[name][2] < UNIFORM)]
    uniform = [name for name in worst if share[name] < UNIFORM and ranges[name][2] < UNIFORM]
    if gone:
        yield Finding(
            "bad",
            "diversity",
            "Collapse",
            f"images of {listed(gone)} are nearly the same picture: they differ by {share[worst[0]]:.0%} of what real "
            "ones do. A good FID means little here.",
        )
    elif uniform:
        yield Finding(
            "warn",
            "diversity",
            "Too little variety",
            f"images of {listed(uniform)} differ less than real ones do, down to {share[uniform[0]]:.0%} of it.",
        )
    elif mixed := [name for name in worst if ranges[name][1] > MIXED]:
        text = f"images of {mixed[-1]} differ {share[mixed[-1]]:.1f} times as much as real ones do."
        yield Finding("warn", "diversity", "Too much variety", text)
    elif (doubted := ranges[worst[0]])[0] < UNIFORM:
        reach = f"; it may be {doubted[2]:.0%}" if math.isfinite(doubted[2]) else ""
        text = f"the few images of {worst[0]} differ by {doubted[0]:.0%} of what real ones do{reach}."
        yield Finding("open", "diversity", "Too few images to tell their variety", text)
    else:
        yield Finding("good", "diversity", "Variety", "images of a class differ about as much as real ones do.")


def repeats(measures: Measures) -> Iterator[Finding]:
    """Pictures that come again and again beside others, which neither FID nor distances on average need show."""
    if not known(measures, "repeats"):
        return
    measure = measures["repeats"]
    share, floor = measure.overall or 0.0, measure.floor or 0.0
    text = (
        f"{share:.0%} of the images have another one that is nearly the same; of held-out real images {floor:.0%} do."
    )
    low, _ = measure.excess or (-math.inf, math.inf)
    if share - floor <= SEVERAL:
        yield Finding("good", "repeats", "Few repeats", text)
    elif low > 0:
        severity: Severity = "bad" if share - floor > REPEATED else "warn"
        yield Finding(severity, "repeats", "The same pictures again", text)
    else:
        yield Finding("open", "repeats", "Too few images to tell whether they repeat", text)


def copies(measures: Measures) -> Iterator[Finding]:
    """Training images handed out again, or recognised by their likelihood."""
    if known(measures, "near_copies"):
        measure = measures["near_copies"]
        share, floor = measure.overall or 0.0, measure.floor or 0.0
        text = f"{share:.1%} of the images are near copies of a training image; of held-out real images {floor:.1%}."
        # Some share is always near by chance: only what the interval leaves above the floor counts.
        low, high = measure.excess or (share - floor, share - floor)
        if share - floor > SUSPICIOUS and low > 0:
            severity: Severity = "bad" if share - floor > COPIED else "warn"
            yield Finding(severity, "near_copies", "Copies of training images", text)
        elif high > COPIED:
            text += f" They are too few to tell: it takes some {ENOUGH} images."
            yield Finding("open", "near_copies", "Too few images to rule out copies", text)
        else:
            yield Finding("good", "near_copies", "No copies", text)
    if known(measures, "membership_auc"):
        auc, low, _ = around(measures["membership_auc"])
        if auc > LEAKS_SOME and low > 0.5:
            text = (
                f"from the likelihood one can tell training images from others (AUC {auc:.2f}; 0.5 would be guessing)."
            )
            yield Finding("bad" if auc > LEAKS else "warn", "membership_auc", "Memory of training images", text)


def labels(measures: Measures) -> Iterator[Finding]:
    """Images that are not of the class they were asked for."""
    if not known(measures, "label_accuracy"):
        return
    measure = measures["label_accuracy"]
    share, _, high = of_floor(measure)
    text = f"the judge recognises {measure.overall:.0%} of the images as the class asked for"
    text += "" if measure.floor is None else f", and {measure.floor:.0%} of real ones"
    ranked = sorted(measure.per_class.items(), key=lambda item: item[1] or 0)
    wrong = [name for name, value in ranked if value is not None and class_range(measure, name)[2] < MISLABELLED]
    text += f"; often wrong: {listed(wrong)}." if wrong else "."
    if share < MISLABELLED and high < DOUBTFUL:
        yield Finding("bad", "label_accuracy", "Not true to the label", text)
    elif high < DOUBTFUL or wrong:
        yield Finding("warn", "label_accuracy", "Labels in doubt", text)
    elif share < DOUBTFUL:
        yield Finding("open", "label_accuracy", "Too few images to tell the truth to the label", text)
    else:
        yield Finding("good", "label_accuracy", "True to the label", text)


def detail(measures: Measures) -> Iterator[Finding]:
    """Blur and noise."""
    if not known(measures, "sharpness"):
        return
    share, low, high = of_floor(measures["sharpness"])
    text = f"the images hold {share:.0%} of the fine detail of real ones."
    if high < SOFT:
        yield Finding("bad" if share < BLURRED else "warn", "sharpness", "Blurred", text)
    elif low > NOISY:
        yield Finding("bad", "sharpness", "Noisy", text)
    elif SOFT <= share <= NOISY:
        yield Finding("good", "sharpness", "Sharp", text)
    else:
        yield Finding("open", "sharpness", "Too few images to tell how sharp they are", text)


def likeness(measures: Measures) -> Iterator[Finding]:
    """Distance of the whole set from real images: FID against its floor; KID, whose floor is about 0, beyond it."""
    if known(measures, "fid") and measures["fid"].floor:
        fid, floor = measures["fid"].overall or 0.0, measures["fid"].floor
        times, least, _ = of_floor(measures["fid"])
        ratio = f"{times:,.0f}" if times > 10 else f"{times:.1f}"
        text = f"FID {fid:.3g}, {ratio} times that of held-out real images ({floor:.3g})."
        if least > OFF:
            yield Finding("bad" if least > FAR else "warn", "fid", "Unlike real images as a set", text)
        elif times > OFF:
            yield Finding("open", "fid", "Too few images to tell them from real ones", text)
        else:
            yield Finding("good", "fid", "Like real images as a set", text)
    elif known(measures, "kid") and (excess := measures["kid"].excess) is not None:
        text = f"KID is {excess[0]:.3g} to {excess[1]:.3g} above that of held-out real images."
        if excess[0] > (excess[1] - excess[0]) / 4:  # three spreads: of few images they are estimated too small
            yield Finding("warn", "kid", "Unlike real images as a set", text)
        else:
            text += " There are too few images for an FID."
            yield Finding("open", "kid", "Too few images to tell them from real ones", text)


def neighbours(measures: Measures) -> Iterator[Finding]:
    """Images that look like no real one, and real ones that no image looks like."""
    for name, limit, title, meaning in (
        ("precision", UNLIKE, "Images that look like no real one", "of the images look like real ones"),
        ("coverage", MISSING, "Real images without a counterpart", "of real images have a generated one close by"),
    ):
        if known(measures, name) and of_floor(measure := measures[name])[2] < limit:
            real = "" if measure.floor is None else f"; with held-out real images it is {measure.floor:.0%}"
            yield Finding("bad", name, title, f"{measure.overall:.0%} {meaning}{real}.")


def alone(measures: Measures) -> Iterator[Finding]:
    """What a classifier learns from the images alone."""
    if known(measures, "synthetic_accuracy"):
        measure = measures["synthetic_accuracy"]
        text = (
            f"trained on these images alone, a classifier reaches {measure.overall:.1%} on real ones; trained on real "
            f"images {measure.floor or 1:.1%}."
        )
        yield Finding(taught(measure), "synthetic_accuracy", "Training on these images alone", text)


def taught(measure: Measure) -> Severity:
    """Whether a classifier learns as much as from real images; less only where the whole interval lies below."""
    share, _, most = of_floor(measure)
    if most < NEARLY:
        return "bad"
    if most < AS_GOOD:
        return "warn"
    return "good" if share >= AS_GOOD else "open"


def gains(measures: Measures, useful: Usefulness) -> Iterator[Finding]:
    """What the images add to real ones: to macro-F1, and where a class was cut to the recall of that class.

    One gain each, named beforehand: of many gains some would exceed 0 by chance.
    """
    named = {"balanced_gain": ("macro-F1", "")}
    for n in useful.cuts:
        named[f"rare_{n}_recall_gain"] = (f"recall of {useful.rare}", f" with only {n} real images of it")
    for name, (what, where) in named.items():
        if not known(measures, name) or (interval := measures[name].interval) is None:
            continue
        low, high = interval
        text = f"{what}{where} {measures[name].overall:+.3f} ({low:+.3f} to {high:+.3f}) beside real images alone."
        if low > 0:
            yield Finding("good", name, "Generated images help real ones", text)
        elif high < 0:
            yield Finding("warn", name, "Generated images harm beside real ones", text)
        else:
            said = f"{text} {useful.plan.seeds} seeds cannot tell it from nothing."
            yield Finding("open", name, "Whether generated images help real ones is open", said)


RULES: tuple[Callable[[Measures], Iterator[Finding]], ...] = (
    *(collapse, repeats, copies, labels, detail, likeness, neighbours, alone),
)


def conclusion(measures: Measures, findings: Sequence[Finding], who: str = "classifier") -> tuple[Answer, str]:
    """The answer and its sentence; `who` learns from the images."""
    bad = [finding for finding in findings if finding.severity == "bad" and finding.measure != "synthetic_accuracy"]
    faults = listed([finding.title.lower() for finding in bad], most=3)
    if known(measures, "synthetic_accuracy"):
        measure = measures["synthetic_accuracy"]
        severity = taught(measure)
        reached = (
            f"a {who} trained on them alone reaches {measure.overall:.0%} on real images, one trained on real "
            f"images {measure.floor or 1:.0%}"
        )
        if severity == "good" and not bad:
            return "yes", f"These images are good enough to train on: {reached}."
        if severity == "good":
            return "not yet", f"Useful, but not to be trusted yet ({faults}): {reached}."
        if severity == "open":
            return (
                "not yet",
                f"Whether these images are good enough to train on is uncertain: {reached}.",
            )
        if severity == "warn":
            return "not yet", f"These images are not yet good enough to train on: {reached}."
        return "no", f"These images are not good enough to train on: {reached}."
    unmeasured = "whether a classifier learns from them was not measured"
    if bad:
        return "no", f"These images are not good enough to train on: {faults}."
    if any(finding.severity == "warn" for finding in findings):
        return "not yet", f"Nothing is badly wrong with these images, but doubts remain; {unmeasured}."
    return "unknown", f"Nothing speaks against these images; {unmeasured}."


def known(measures: Measures, name: str) -> bool:
    """Whether there is such a measure and it has a value."""
    return name in measures and measures[name].overall is not None


def around(measure: Measure) -> tuple[float, float, float]:
    """Value and ends of its interval. Where others have one and it has none, nothing is certain of it."""
    value = measure.overall or 0.0
    return (value, *(measure.interval or without(measure, value)))


def without(measure: Measure, value: float) -> Interval:
    """What stands for an interval that is not there."""
    return (-math.inf, math.inf) if measure.per_class_interval else (value, value)


def of_floor(measure: Measure, most: float = math.inf) -> tuple[float, float, float]:
    """The same as shares of what real images reach, or of the most they should; as they are where that is not known."""
    value, low, high = around(measure)
    floor = min(measure.floor or 1.0, most)
    return value / floor, low / floor, high / floor


def class_range(measure: Measure, name: str, most: float = math.inf) -> tuple[float, float, float]:
    """The same of one class; of many classes some stray by chance, so intervals are half as wide again."""
    value, floor = measure.per_class.get(name) or 0.0, min(measure.per_class_floor.get(name) or 1.0, most)
    low, high = measure.per_class_interval.get(name) or without(measure, value)
    low, high = value + WIDER * (low - value), value + WIDER * (high - value)
    return value / floor, low / floor, high / floor
