"""Checks of a saved model, before anything large is built and before its weights are believed."""

__all__ = []

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from condgen.models.generator import Generator
from condgen.nn.conditioners import without_dropout
from condgen.nn.parts import evaluating

DEPTHS = {"depth", "transforms"}  # arguments that say how often layers are repeated, each with tensors of its own
FEW_NUMBERS = 1000  # in a list of a description, whatever the number of tensors
LARGEST = 2**24  # values of an image, a condition or a latent
FLOATS = ("F64", "F32", "F16", "BF16")
SAFETENSORS = {torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


def check_depths(weights: Path, assembly: Any) -> None:
    """Raise if a description repeats a layer more often than the file has tensors: building it would take minutes.

    Raises:
        ValueError: naming the number.
    """
    with safe_open(weights, "pt") as file:
        tensors = len(file.keys())
    waiting: list[Any] = [assembly]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            if len(part) > max(tensors, FEW_NUMBERS):
                raise ValueError(f"{weights} is damaged: it describes {len(part)} layers, with {tensors} tensors.")
            waiting += part
        if isinstance(part, dict):
            for name in DEPTHS & set(part):
                if isinstance(part[name], int | float) and part[name] > tensors:
                    raise ValueError(f"{weights} is damaged: it describes {name}={part[name]}, with {tensors} tensors.")
            waiting += part.values()


def check_header(weights: Path, model: nn.Module) -> None:
    """Raise unless the weights file holds just the names, shapes and kinds of number of the model."""
    with safe_open(weights, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {
            n: (tuple(s.get_shape()), "float" if s.get_dtype() in FLOATS else s.get_dtype()) for n, s in slices.items()
        }
    expected = {
        name: (tuple(tensor.shape), "float" if tensor.is_floating_point() else SAFETENSORS.get(tensor.dtype, "?"))
        for name, tensor in model.state_dict().items()
    }
    if found != expected:
        differ = sorted(set(found.items()) ^ set(expected.items()))[:2]
        raise ValueError(f"{weights} does not fit its description; first differences: {differ}.")


def check_sizes(weights: Path, model: Generator) -> None:
    """Raise if what weights do not tell, such as a plain prior's latents, is beyond any use."""
    shapes = {"image": model.image_shape or (), "condition": (model.conditioner.dim,), **model.noise_shapes}
    shapes |= {f"sampler's {name}": shape for name, shape in model.sampling_noise_shapes.items()}
    for name, shape in shapes.items():
        if math.prod(shape) > LARGEST or min(shape, default=0) < 0:
            raise ValueError(f"{weights} is damaged: it describes a {name} of shape {tuple(shape)}.")


def check_assembly(weights: Path, model: Generator) -> None:
    """Raise unless the parts fit together: one image goes through them."""
    if model.image_shape is None:
        return
    columns, kinds = model.conditioner.columns, {"dtype": model.dtype, "device": "cpu"}
    try:
        with torch.no_grad(), evaluating(model):
            y = torch.zeros((1, columns) if columns > 1 else (1,), dtype=torch.int64)
            noise, drawing = (
                {name: torch.zeros(1, *shape, **kinds) for name, shape in shapes.items()}
                for shapes in (model.noise_shapes, model.sampling_noise_shapes)
            )
            tried = model.trial(torch.zeros(1, *model.image_shape, **kinds), y, noise)
            drawn = model.draw(y, drawing).shape[1:]
        if tuple(drawn) != model.image_shape or tried.shape != (1,):
            raise ValueError(f"it draws images of {tuple(drawn)}, not of {model.image_shape}")
    except Exception as error:  # torch has its own words for every misfit
        reason = " ".join(str(error).split())
        raise ValueError(f"{weights} is damaged: its parts do not fit together ({reason}).") from error


def check_names(weights: Path, model: Generator, names: list[str]) -> None:
    """Raise unless there is a name of its own for every class, or none at all."""
    classes = getattr(without_dropout(model.conditioner), "num_classes", len(names))
    if names and (len(set(names)) < len(names) or len(names) != classes):
        raise ValueError(
            f"{weights} is damaged: expected a name of its own for each of {classes} classes; got {len(names)}, "
            f"{len(set(names))} of them different."
        )
