"""Verdicts: what the measures of an evaluation say, in plain sentences, worst first.

Every threshold is relative to what real images reach on the same measure. Collapse is looked for before fidelity:
distances between classes can be right while every image of a class is nearly the same picture.
"""

__all__ = ["Finding", "Verdict", "judge_measures"]

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from condgen.metrics.measures import Measure

Severity = Literal["bad", "warn", "good"]
Answer = Literal["yes", "not yet", "no", "unknown"]
Measures = Mapping[str, Measure]

COLLAPSED, UNIFORM, MIXED = 0.35, 0.75, 1.5  # of the pairwise distance within a class of real images
COPIED, SUSPICIOUS = 0.05, 0.02  # share of near copies beyond that of held-out real images
LEAKS, LEAKS_SOME = 0.7, 0.6  # area under the curve of the membership attack
MISLABELLED, DOUBTFUL = 0.6, 0.92  # of the judge's accuracy on real images
BLURRED, SOFT, NOISY = 0.5, 0.8, 1.5  # of the fine detail of real images
FAR, OFF = 10.0, 3.0  # times the floor
UNLIKE, MISSING = 0.5, 0.5  # of what held-out real images reach
AS_GOOD, NEARLY = 0.95, 0.85  # of the accuracy after training on real images


@dataclass(frozen=True)
class Finding:
    """One thing that the measures say.

    Attributes:
        severity: "bad", "warn" or "good".
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
        marks = {"bad": "✗", "warn": "!", "good": "✓"}
        lines = [f"  {marks[finding.severity]} {finding.title}: {finding.text}" for finding in self.findings]
        return "\n".join([f"{self.answer.upper()}. {self.headline}", *lines])


def judge_measures(measures: Measures, weaknesses: Sequence[str] = (), latents: str = "") -> Verdict:
    """The verdict on a set of measures; measures that are missing or could not be taken say nothing.

    Args:
        measures: by the names that :func:`condgen.evaluate` gives them.
        weaknesses: of the judge, in its own words.
        latents: what :func:`condgen.metrics.latents.latent_health` says.

    Example:
        >>> alike = Measure(overall=0.1, floor=1.0, per_class={"round": 0.1, "lobed": 0.1}, better="floor")
        >>> verdict = judge_measures({"diversity": alike, "diversity_early": alike})
        >>> verdict.answer, verdict.findings[0].title
        ('no', 'Collapse')
    """
    findings = [finding for rule in RULES for finding in rule(measures)]
    if latents:
        bad = "collapse" in latents or "holes" in latents
        findings.append(Finding("warn" if bad else "good", "active_latents", "Latents", sentence(latents)))
    findings += [Finding("warn", "label_accuracy", "The judge itself is weak", text) for text in weaknesses]
    order = {"bad": 0, "warn": 1, "good": 2}
    findings.sort(key=lambda finding: order[finding.severity])  # stable: rules stand in order of importance
    answer, headline = conclusion(measures, findings)
    return Verdict(answer, headline, tuple(findings))


def collapse(measures: Measures) -> Iterator[Finding]:
    """Images of a class that are nearly one picture, in pixels and in the judge's early features."""
    found = [measures[name] for name in ("diversity", "diversity_early") if known(measures, name)]
    if not found:
        return
    classes = [name for name in found[0].per_class if all(m.per_class.get(name) is not None for m in found)]
    # Where one of the two still sees variety it may be colour alone, or one picture moved about: the smaller counts.
    share = {name: min(relative(m.per_class[name], m.per_class_floor.get(name)) for m in found) for name in classes}
    share = share or {"any kind": min(relative(m.overall, m.floor) for m in found)}
    worst = sorted(share, key=lambda name: share[name])
    gone, uniform = ([name for name in worst if share[name] < limit] for limit in (COLLAPSED, UNIFORM))
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
            f"images of {listed(uniform)} differ less than real ones do, down to {share[worst[0]]:.0%} of it.",
        )
    elif share[worst[-1]] > MIXED:
        text = f"images of {worst[-1]} differ {share[worst[-1]]:.1f} times as much as real ones do."
        yield Finding("warn", "diversity", "Too much variety", text)
    else:
        yield Finding("good", "diversity", "Variety", "images of a class differ about as much as real ones do.")


def copies(measures: Measures) -> Iterator[Finding]:
    """Training images handed out again, or recognised by their likelihood."""
    if known(measures, "near_copies"):
        share, floor = measures["near_copies"].overall or 0.0, measures["near_copies"].floor or 0.0
        text = f"{share:.1%} of the images are near copies of a training image; of held-out real images {floor:.1%}."
        # Some share is always near by chance: only what the interval leaves above the floor counts.
        certain = measures["near_copies"].interval is None or measures["near_copies"].interval[0] > floor
        excess = share - floor if certain else 0.0
        severity: Severity = "bad" if excess > COPIED else "warn" if excess > SUSPICIOUS else "good"
        yield Finding(severity, "near_copies", "No copies" if severity == "good" else "Copies of training images", text)
    if known(measures, "membership_auc"):
        auc = measures["membership_auc"].overall or 0.5
        if auc > LEAKS_SOME:
            text = (
                f"from the likelihood one can tell training images from others (AUC {auc:.2f}; 0.5 would be guessing)."
            )
            yield Finding("bad" if auc > LEAKS else "warn", "membership_auc", "Memory of training images", text)


def labels(measures: Measures) -> Iterator[Finding]:
    """Images that are not of the class they were asked for."""
    if not known(measures, "label_accuracy"):
        return
    measure = measures["label_accuracy"]
    share = relative(measure.overall, measure.floor)
    text = f"the judge recognises {measure.overall:.0%} of the images as the class asked for"
    text += "" if measure.floor is None else f", and {measure.floor:.0%} of real ones"
    wrong = [
        name
        for name, value in sorted(measure.per_class.items(), key=lambda item: item[1] or 0)
        if value is not None and relative(value, measure.per_class_floor.get(name)) < MISLABELLED
    ]
    text += f"; often wrong: {listed(wrong)}." if wrong else "."
    if share < MISLABELLED:
        yield Finding("bad", "label_accuracy", "Not true to the label", text)
    elif share < DOUBTFUL or wrong:
        yield Finding("warn", "label_accuracy", "Labels in doubt", text)
    else:
        yield Finding("good", "label_accuracy", "True to the label", text)


def detail(measures: Measures) -> Iterator[Finding]:
    """Blur and noise."""
    if not known(measures, "sharpness"):
        return
    share = relative(measures["sharpness"].overall, measures["sharpness"].floor)
    text = f"the images hold {share:.0%} of the fine detail of real ones."
    if share < SOFT:
        yield Finding("bad" if share < BLURRED else "warn", "sharpness", "Blurred", text)
    elif share > NOISY:
        yield Finding("bad", "sharpness", "Noisy", text)
    else:
        yield Finding("good", "sharpness", "Sharp", text)


def fidelity(measures: Measures) -> Iterator[Finding]:
    """Distance of the whole set from real images."""
    name = "fid" if known(measures, "fid") else "kid"
    if not known(measures, name) or not measures[name].floor or measures[name].floor <= 0:  # type: ignore[operator]
        return
    measure = measures[name]
    times, floor = relative(measure.overall, measure.floor), measure.floor
    ratio = f"{times:,.0f}" if times > 10 else f"{times:.1f}"
    text = f"{name.upper()} {measure.overall:.3g}, {ratio} times that of held-out real images ({floor:.3g})."
    if times > OFF:
        yield Finding("bad" if times > FAR else "warn", name, "Unlike real images as a set", text)
    else:
        yield Finding("good", name, "Like real images as a set", text)


def neighbours(measures: Measures) -> Iterator[Finding]:
    """Images that look like no real one, and real ones that no image looks like."""
    for name, limit, title, meaning in (
        ("precision", UNLIKE, "Images that look like no real one", "of the images look like real ones"),
        ("coverage", MISSING, "Real images without a counterpart", "of real images have a generated one close by"),
    ):
        if known(measures, name) and relative((measure := measures[name]).overall, measure.floor) < limit:
            real = "" if measure.floor is None else f"; with held-out real images it is {measure.floor:.0%}"
            yield Finding("bad", name, title, f"{measure.overall:.0%} {meaning}{real}.")


def usefulness(measures: Measures) -> Iterator[Finding]:
    """What a classifier learns from the images."""
    if known(measures, "synthetic_accuracy"):
        measure = measures["synthetic_accuracy"]
        share = relative(measure.overall, measure.floor)
        severity: Severity = "good" if share >= AS_GOOD else "warn" if share >= NEARLY else "bad"
        text = (
            f"trained on these images alone, a classifier reaches {measure.overall:.1%} on real ones; trained on real "
            f"images {measure.floor or 1:.1%}."
        )
        yield Finding(severity, "synthetic_accuracy", "Training on these images alone", text)
    for name, measure in measures.items():
        if name.endswith("_gain") and measure.overall is not None and measure.interval:
            low, high = measure.interval
            what = "recall of the rarest class" if name.endswith("_recall_gain") else "macro-F1"
            where = (
                found := re.match(r"rare_(\d+)_", name)
            ) and f" with only {found[1]} real images of the rarest class"
            text = f"{what}{where or ''} {measure.overall:+.3f} ({low:+.3f} to {high:+.3f}) beside real images alone."
            if low > 0:
                yield Finding("good", name, "Generated images help real ones", text)
            elif high < 0:
                yield Finding("warn", name, "Generated images harm beside real ones", text)


RULES: tuple[Callable[[Measures], Iterator[Finding]], ...] = (
    collapse,
    copies,
    labels,
    detail,
    fidelity,
    neighbours,
    usefulness,
)


def conclusion(measures: Measures, findings: Sequence[Finding]) -> tuple[Answer, str]:
    """The answer and its sentence."""
    bad = [finding for finding in findings if finding.severity == "bad" and finding.measure != "synthetic_accuracy"]
    faults = listed([finding.title.lower() for finding in bad], most=3)
    if known(measures, "synthetic_accuracy"):
        measure = measures["synthetic_accuracy"]
        share = relative(measure.overall, measure.floor)
        reached = (
            f"a classifier trained on them alone reaches {measure.overall:.0%} on real images, one trained on real "
            f"images {measure.floor or 1:.0%}"
        )
        if share >= AS_GOOD and not bad:
            return "yes", f"These images are good enough to train on: {reached}."
        if share >= AS_GOOD:
            return "not yet", f"Useful, but not to be trusted yet ({faults}): {reached}."
        if share >= NEARLY:
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


def relative(value: float | None, floor: float | None) -> float:
    """A value as a share of what real images reach; as it is where that is not known."""
    return (value or 0.0) / floor if floor else (value or 0.0)


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names as a phrase, the first few of many.

    Example:
        >>> listed(["a", "b", "c"]), listed(["a", "b", "c", "d"], most=2)
        ('a, b and c', 'a, b and 2 more')
    """
    names = [*names[:most], f"{len(names) - most} more"] if len(names) > most else list(names)
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def sentence(text: str) -> str:
    """Ends with a full stop."""
    return text if text.endswith(".") else f"{text}."
