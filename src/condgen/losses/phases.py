"""Losses: what training minimises, in phases that follow each other at every step, one optimizer each.

Contract: a loss is a module with `loss(model, x, y, noise, **scheduled) → terms`, a dictionary of numbers with "loss"
among them: one phase, over all parameters. It says more where that is needed:

* `phases`, several of :class:`Phase`, in order, instead of `loss`;
* `schedules`, name → :class:`condgen.losses.elbo.Schedule`: their values at each step are handed over by name, as
  tensors, and validation uses their final ones;
* `select`, which term of the first phase chooses the best epoch, and whether its lowest, highest or last value:
  ("loss", "min"), "max" or "last";
* `after_step(model, x)`, called once per batch after the gradients are computed and the optimizer has stepped, for
  running statistics such as a likelihood's scale;
* `noise_shapes(model)`, name → shape of the noise that it needs per image, if that is not `model.noise_shapes`;
* `graph_key`, if the work of a step depends on more than its inputs and the phases that run: a value that is another
  one whenever the work is; a step recorded as a CUDA graph is replayed only for the same value;
* `trial(model, x, y, noise)`, which runs the model forward once, if that is not `model.trial`.

Networks of a loss's own are trained, saved and reloaded with the run.
"""

__all__ = ["Phase", "noise_shapes_of", "phases_of", "schedules_of", "selection_of", "trial_of"]

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor, nn

from condgen.losses.elbo import Schedule


@dataclass(frozen=True)
class Phase:
    """One optimizer's share of a training step.

    Attributes:
        loss: called with model, x, y, noise and what is scheduled, by name; its terms are means over the batch, "loss"
            among them.
        parameters: model → what this phase moves.
        name: before its terms in the history, but for the first phase.
        every: it runs at every so many steps.
        start: it runs from this share of the training on, in [0, 1).
        after: called with model and x once per batch, after the phase's gradients are computed and its optimizer has
            stepped; for running statistics.

    Raises:
        ValueError: for numbers out of range.

    Example:
        >>> Phase(loss=lambda *_: {}, parameters=lambda model: model.decoder.parameters(), name="critic", every=0)
        Traceback (most recent call last):
            ...
        ValueError: Expected every of 1 or more and start in [0, 1); got 0 and 0.0.
    """

    loss: Callable[..., dict[str, Tensor]]
    parameters: Callable[[nn.Module], Iterable[nn.Parameter]]
    name: str = ""
    every: int = 1
    start: float = 0.0
    after: Callable[[nn.Module, Tensor], object] | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.start < 1:
            raise ValueError(f"Expected every of 1 or more and start in [0, 1); got {self.every} and {self.start}.")


def phases_of(objective: Any) -> Sequence[Phase]:
    """The phases of an objective: its own, or one over all parameters of model and objective.

    Raises:
        ValueError: if two phases have one name, or the first begins after the start.

    Example:
        >>> from condgen.losses.elbo import ELBO
        >>> [phase.name for phase in phases_of(ELBO())]
        ['']
    """
    own = getattr(objective, "phases", None)
    if own is None:
        after = getattr(objective, "after_step", None)
        return [Phase(objective.loss, lambda model: chain(model.parameters(), objective.parameters()), after=after)]
    names = [phase.name for phase in own]
    if not own or len(set(names)) < len(names) or own[0].start > 0 or own[0].every > 1:
        raise ValueError(
            f"Expected phases with names of their own, the first of them at every step; got {names or 'none'}."
        )
    return own


def noise_shapes_of(objective: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """Name → shape of the noise that training needs for one image.

    Example:
        >>> import condgen
        >>> from condgen.losses.elbo import ELBO
        >>> noise_shapes_of(ELBO(), condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4))
        {'z': (4,)}
    """
    return objective.noise_shapes(model) if hasattr(objective, "noise_shapes") else model.noise_shapes


def trial_of(objective: Any, model: Any) -> Callable[..., object]:
    """What runs the model forward as training does: called with x, y and noise.

    Example:
        >>> import condgen
        >>> from condgen.losses.elbo import ELBO
        >>> trial_of(ELBO(), condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4)).__name__
        'trial'
    """
    return partial(objective.trial, model) if hasattr(objective, "trial") else model.trial


def schedules_of(objective: Any) -> Mapping[str, Schedule]:
    """What changes over time.

    Example:
        >>> from condgen.losses.elbo import ELBO
        >>> schedules_of(ELBO(0.5))
        {'beta': Constant(beta=0.5)}
    """
    return getattr(objective, "schedules", {})


def selection_of(objective: Any) -> tuple[str, str]:
    """The term that chooses the best epoch, and which value of it: "min", "max" or "last".

    Raises:
        ValueError: for another choice.

    Example:
        >>> from condgen.losses.elbo import ELBO
        >>> selection_of(ELBO())
        ('loss', 'min')
    """
    term, direction = getattr(objective, "select", ("loss", "min"))
    if direction not in ("min", "max", "last"):
        raise ValueError(f'Expected select as (term, "min", "max" or "last"); got {(term, direction)}.')
    return term, direction
