"""Distillation: what a flow of latents does in many steps is learnt by a network that does it in one.

The flow starts from a mixture, near to where it ends, so that one step has little to do; and the flow may take as many
steps as it likes, guided too, because its samples are drawn once and learnt from many times.
"""

__all__ = ["distil"]

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condgen.data.adapters import as_labelled
from condgen.distributions.priors.flow_matching import FlowMatching, check_guidance, one_step
from condgen.io.archives import weights_hash
from condgen.io.atomic import undisturbed
from condgen.io.progress import working
from condgen.losses.flow_matching import Distillation
from condgen.models.cvae import ConditionalVAE
from condgen.nn.parts import evaluating
from condgen.nn.precision import choose_precision
from condgen.random import Use, normals, stream, uniform
from condgen.training.budget import Budget, budget_of
from condgen.training.checkpoints import Checkpoints
from condgen.training.fit import resolve_splits
from condgen.training.fit_prior import KEPT, check_identity, train_in_memory
from condgen.training.run_folder import repr_of
from condgen.training.set_up import check_hardware, set_up
from condgen.training.settings import Hardware, Sampler, Training, changed

USUAL = Training(
    batch_size=128,
    optimizer="adamw",
    learning_rate=8e-4,
    betas=(0.9, 0.95),
    weight_decay=0.0,
    lr_warmup=0.02,
    lr_decay=0.5,
    clip=1.0,
    ema=0.998,
)
TEACHER = Sampler("flow_matching", distil_pairs=20_000)
BLOCK, SMALL_BLOCK = 250, 50  # pairs drawn at once; the same under a budget
PAIRS_SHARE = 0.4  # of a budget, for drawing pairs
HELD_OUT, FEW_STEPS = 256, 2  # pairs that tell whether the student is of use, beside so many steps of the flow
Pairs = tuple[Tensor, Tensor, Tensor]  # starts and ends (n, 2, *latent), conditions (n, dim), components (n,)


def distil(
    model: ConditionalVAE,
    data: Any,
    teacher: Sampler | None = None,
    training: Training | None = None,
    *,
    hardware: Hardware | None = None,
    checkpoints: str | Path | None = None,
    progress: bool = True,
    **changes: Any,
) -> FlowMatching:
    """Distil the flow that a model samples from into a network of one step, and sample with it from now on.

    Starts are drawn from the flow's source under the conditions of the data, each condition equally often, and followed
    to their ends by the flow; a copy of its velocity network learns to go there in one step. The flow stays as it is:
    `model.sampler.steps = 2` follows it again.

    Args:
        model: that samples from flow matching, see :func:`condgen.fit_prior`.
        data: whose labels it is to be drawn for, such as what it was trained on; of a set with splits its `train` part.
        teacher: number of pairs, passes over them, and the steps and guidance that their ends are drawn with; by
            default 20,000 pairs, ten passes, four steps of guidance 0.8.
        training: how the network is trained; by default AdamW in batches of 128. A budget of minutes replaces the
            passes; fewer pairs are drawn then, if they take more than two fifths of it.
        hardware: where it is trained.
        checkpoints: folder for pairs and training states. If it holds any, they are gone on from.
        progress: show it.
        **changes: single settings of :class:`~condgen.training.settings.Sampler`,
            :class:`~condgen.training.settings.Training` and :class:`~condgen.training.settings.Hardware`, such as
            `distil_pairs=10_000`.

    Returns:
        The model's sampler, with its `student`, at `steps=1` and without guidance. If the student ends farther from the
        teacher's samples than two steps of the flow, as after little training, the sampler has `steps=2`.

    Warns:
        UserWarning: in that case.

    Raises:
        ValueError: if the model does not sample from flow matching, guidance is asked of a flow that cannot be guided,
            no pairs are asked for, or `checkpoints` holds the training state of another flow, other data or settings.

    References:
        Knowledge distillation in iterative generative models for improved sampling speed (Luhman & Luhman, 2021),
        https://arxiv.org/abs/2101.02388; from guided samples: On distillation of guided diffusion models (Meng et al.,
        2023), https://arxiv.org/abs/2210.03142

    Example:
        >>> import condgen
        >>> images = condgen.load_smears(100, size=16)
        >>> model = condgen.conditional_vae(images.image_shape, images.num_classes, latent=4, width=4)
        >>> flow = FlowMatching(4, condition_dim=8)
        >>> _ = condgen.fit_prior(model, images, flow, epochs=1, progress=False)
        >>> _ = distil(model, images, distil_pairs=100, distil_epochs=1, progress=False)
        >>> model.sampler.steps, model.sample([0, 1]).shape
        (1, torch.Size([2, 3, 16, 16]))
    """
    own, how, where = changed(teacher or TEACHER, training or USUAL, hardware or Hardware(), **changes)
    flow = check_teacher(model, own)
    if how.epochs is None and how.minutes is None:
        (how,) = changed(how, epochs=own.distil_epochs)
    check_hardware(how, where)
    budget = budget_of(how.minutes)
    images = resolve_splits(as_labelled(data), None)[0].ordered(model.class_names)
    conditions = model.condition(model.labels(images.labels)).unique(dim=0)
    identity = {
        "flow": weights_hash({k: v for k, v in flow.state_dict().items() if not k.startswith("student.")}),
        "conditions": weights_hash({"c": conditions}),
        **{name: getattr(own, name) for name in ("distil_pairs", "teacher_steps", "teacher_guidance")},
        **{name: repr_of(getattr(how, name)) for name in KEPT},
    }
    folder = Checkpoints(checkpoints, where.save_every)
    kept = Checkpoints(None if checkpoints is None else Path(checkpoints) / "pairs", where.save_every, keep=1)
    saved = folder.read()
    if saved:
        check_identity(saved, identity, checkpoints)
        if how.precision == "auto":
            (how,) = changed(how, precision=saved["precision"])
    student = copy.deepcopy(flow.velocity).requires_grad_(True)
    draw, limit = partial(pairs_of, flow, conditions, how), budget and budget.part(PAIRS_SHARE)
    with torch.no_grad(), evaluating(flow), teaching(flow, own, where):
        pairs = draw_pairs(draw, own.distil_pairs, kept, identity, limit, progress)
        if limit is None:
            others = draw(range(own.distil_pairs, own.distil_pairs + HELD_OUT))
        else:
            some = min(HELD_OUT, -(-len(pairs[0]) // 10))
            others, pairs = part_of(pairs, slice(some)), part_of(pairs, slice(min(some, len(pairs[0]) - 1), None))
    (how,) = changed(how, minutes=budget)
    train_student(student, pairs, how, where, folder, {"of": identity}, saved, progress)
    kept.clear()
    folder.clear()
    flow.student, flow.guidance = student.to(model.device).eval(), 0.0
    flow.steps = 1 if is_closer(flow, others) else FEW_STEPS
    if flow.steps > 1:
        warnings.warn(
            f"The distilled network ends farther from its teacher's samples than {FEW_STEPS} steps of the flow: "
            "samples are drawn in these. Train it on more pairs, or for longer, to draw in one.",
            stacklevel=2,
        )
    return flow


def check_teacher(model: Any, teacher: Sampler) -> FlowMatching:
    """The flow that a model samples from.

    Raises:
        ValueError: unless it can be distilled as asked.
    """
    flow = getattr(model, "sampler", None)
    if not isinstance(flow, FlowMatching):
        raise ValueError(
            f"Expected a model that samples from flow matching; this one samples from "
            f"{type(getattr(model, 'source', model)).__name__}. Fit one first: "
            "condgen.fit_prior(model, data, FlowMatching(...))."
        )
    if not teacher.distil_pairs:
        raise ValueError("Expected distil_pairs of 1 or more; got 0.")
    check_guidance(teacher.teacher_guidance, flow.drop)
    return flow


@torch.no_grad()
def is_closer(flow: FlowMatching, pairs: Pairs) -> bool:
    """Whether one step of a flow's student ends nearer to where its teacher ended than a few steps of the flow do."""
    device = next(flow.parameters()).device
    x, c, component = (own.to(device) for own in pairs)
    start, end = x.unbind(1)
    found, dt = start, 1 / FEW_STEPS
    for k in range(FEW_STEPS):
        found = flow.advance(found, (k * dt, (k + 1) * dt), dt, c, component)
    errors = (
        (own - end).flatten(1).square().mean(1).sqrt().mean()
        for own in (one_step(flow.student, start, c, component), found)
    )
    student, steps = errors
    return bool(student <= steps)


@contextmanager
def teaching(flow: FlowMatching, teacher: Sampler, hardware: Hardware) -> Iterator[None]:
    """The flow on the device that trains, with its teacher's steps and guidance; then as it was."""
    from lightning_fabric import Fabric

    before, home = (flow.steps, flow.guidance, flow.student), next(flow.parameters()).device
    flow.to(Fabric(accelerator=hardware.accelerator, devices=1).device)
    flow.steps, flow.guidance, flow.student = teacher.teacher_steps, teacher.teacher_guidance, None
    try:
        yield
    finally:
        flow.steps, flow.guidance, flow.student = before
        flow.to(home)


def draw_pairs(
    draw: Callable[[range], Pairs],
    count: int,
    kept: Checkpoints,
    identity: dict[str, Any],
    limit: Budget | None,
    progress: bool,
) -> Pairs:
    """So many pairs, or as many as there is time for; those that a stopped run kept are not drawn again.

    Args:
        draw: numbers → pairs.
        count: how many.
        kept: where they are kept.
        identity: what they are pairs of.
        limit: of time.
        progress: tell how far it is.
    """
    earlier = kept.read() or {}
    parts: list[Pairs] = [earlier["pairs"]] if earlier.get("of") == identity else []
    done = len(parts[0][0]) if parts else 0
    first = done
    with undisturbed() as stop_if_asked, working("drawing pairs to distil from", count, progress) as advance:
        advance(done)
        while done < count and not (parts and limit and limit.left() < 0):
            numbers = range(done, min(done + (BLOCK if limit is None else SMALL_BLOCK), count))
            parts.append(draw(numbers))
            done = numbers.stop
            advance(len(numbers))
            if kept.due():
                parts = [joined(parts)]
                kept.write({"of": identity, "pairs": parts[0]})
            stop_if_asked()
    pairs = joined(parts)
    if done > first:
        kept.write({"of": identity, "pairs": pairs})
    return pairs


def pairs_of(flow: FlowMatching, conditions: Tensor, training: Training, numbers: range) -> Pairs:
    """Draw pairs of a start and the sample that a flow carries it to; pair i is a function of the seed and i.

    Returns:
        Pairs (n, 2, *latent) in standardised coordinates, conditions (n, dim) and components (n,), on the CPU.
    """
    device = next(flow.parameters()).device
    index, seed = torch.arange(numbers.start, numbers.stop, device=device), training.seed
    u = uniform(seed, index, stream(Use.DISTILLATION, level=1), ())
    c = conditions.to(device)[(u * len(conditions)).long()]
    noise = normals({"z": flow.noise_shape}, seed, index, Use.DISTILLATION, dtype=c.dtype)["z"]
    start, component = flow.start(c, noise)
    trial = partial(one_step, flow.velocity, start[:1], c[:1], component[:1])
    low = choose_precision(training.precision, device, trial, flow.velocity).name == "bf16-mixed"
    end = start
    for k in range(flow.steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            end = flow.step(end, k, c, component)
    return torch.stack([start, end.to(start.dtype)], 1).cpu(), c.cpu(), component.cpu()


def part_of(pairs: Pairs, places: slice) -> Pairs:
    """Cut a slice of pairs, with their conditions and components."""
    x, c, component = pairs
    return x[places], c[places], component[places]


def joined(parts: list[Pairs]) -> Pairs:
    """Blocks of pairs as one."""
    pairs, c, component = (torch.cat(own) for own in zip(*parts, strict=True))
    return pairs, c, component


def train_student(
    student: Any,
    pairs: Pairs,
    training: Training,
    hardware: Hardware,
    folder: Checkpoints,
    identity: dict[str, Any],
    saved: Mapping[str, Any] | None,
    progress: bool,
) -> None:
    """Train a student on pairs, in place, from the beginning or from a saved state."""
    x, *y = pairs
    trainer, state = set_up(
        student,
        Distillation(),
        (x[:1], tuple(own[:1] for own in y)),
        len(x),
        training,
        hardware,
        checkpoints=folder.folder,
        prepare=nn.Identity(),
    )
    trainer.identity = identity
    if saved:
        state.load_state_dict(saved)
    train_in_memory(trainer, state, x, tuple(y), progress)
