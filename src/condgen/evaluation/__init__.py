"""Evaluation: are these images good enough to train on? Every measure beside its floor on real images, in one call.

A measure is a function of real and generated images (or of a model) that returns :class:`Measure` objects: a value, its
floor on held-out real images, and intervals. Networks that look at images here never appear in a loss.

- :mod:`condgen.evaluation.run`: all of it, for a model or for images; `sources`, `sets`, `parts`, `context`: its parts
- :mod:`condgen.evaluation.records`: a measure with floor and interval, and the table of what every measure is
- :mod:`condgen.evaluation.statistics`: means, intervals, half-samples
- :mod:`condgen.evaluation.comparison`: value, floor and intervals of any function of two sets
- :mod:`condgen.evaluation.classifier`: a classifier, its training (`classifier_training`, `settings`) and its network
- :mod:`condgen.evaluation.teacher`: a classifier's probabilities as labels
- :mod:`condgen.evaluation.judge`: the classifier in whose features images are measured, and where it is kept
- :mod:`condgen.evaluation.fidelity`: distances, variety, sharpness, truth to the label
- :mod:`condgen.evaluation.reconstruction`, :mod:`condgen.evaluation.likelihood`, :mod:`condgen.evaluation.latents`
- :mod:`condgen.evaluation.copies`, :mod:`condgen.evaluation.membership`, :mod:`condgen.evaluation.privacy`
- :mod:`condgen.evaluation.usefulness`: what a classifier learns from the images; `arms` and `training_sets`
- :mod:`condgen.evaluation.verdict`: what the measures say
- :mod:`condgen.evaluation.report`: the page, and the table that compares several
"""

__all__ = ["Classifier", "Evaluation", "Measure", "Verdict", "evaluate", "load_judge", "read_evaluation"]

from condgen.evaluation.classifier import Classifier
from condgen.evaluation.judge import load_judge
from condgen.evaluation.records import Measure
from condgen.evaluation.run import Evaluation, evaluate, read_evaluation
from condgen.evaluation.verdict import Verdict
