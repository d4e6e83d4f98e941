"""Export: a trained model as a graph that runs without condgen, with noise and labels as explicit inputs.

`draw` turns noise and labels into images, `encode` images and labels into the posterior's mean and standard deviation.
A model with grain takes the noise of its grain besides; zeros leave the grain out.
Both take batches of any size. Class labels beyond those of the model are taken for the nearest class, since a graph
cannot refuse them.
"""

__all__ = ["export", "graphs"]

import copy
import io
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

import condgen
from condgen.io.archives import weights_hash
from condgen.io.atomic import check_writable, write_atomically
from condgen.models.latents import levels
from condgen.nn.conditioners import Continuous, Joint, without_dropout

CARD = "export.json"  # beside the graphs: inputs, class names, what model they are of
NUMBERS = "z"  # of a single level of latents


class Draw(nn.Module):
    """Draw images in [0, 1] from standard normal noise and labels; a model with grain takes its noise as `grain`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        noise: Float[Tensor, "batch *numbers"],
        labels: Shaped[Tensor, "batch ..."],
        grain: Float[Tensor, "batch channels height width"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The image that the noise stands for."""
        given = {NUMBERS: noise} if grain is None else {NUMBERS: noise, "grain": grain}
        return self.model.draw(known(self.model, labels), given)


class Encode(nn.Module):
    """Images in [0, 1] and labels → mean and standard deviation of the posterior."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Float[Tensor, "batch channels height width"], labels: Shaped[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch *latent"], Float[Tensor, "batch *latent"]]:
        """Of q(z | x, c)."""
        (q,) = levels(self.model.posterior(images, known(self.model, labels)))
        return q.mean, q.stddev


def known(model: Any, labels: Tensor) -> Tensor:
    """Class labels brought within those that the model knows: a graph cannot raise an error for others."""
    own = without_dropout(model.conditioner)
    classes = getattr(own, "num_classes", None)
    if labels.is_floating_point() or classes is None:
        return labels
    lowest = 0 if own is model.conditioner else -1  # -1 stands for a missing label, where the model knows of those
    return labels.clamp(lowest, classes - 1)


def label_type(model: Any) -> torch.dtype:
    """The type of labels that a model takes: numbers for continuous conditions, whole numbers otherwise."""
    return torch.float32 if isinstance(without_dropout(model.conditioner), Continuous | Joint) else torch.int64


def graphs(model: Any) -> dict[str, tuple[nn.Module, dict[str, Tensor]]]:
    """Name → module and example inputs, of what can be exported; a copy of the model, in evaluation mode.

    Raises:
        ValueError: for models of several levels of latents, of an unknown image shape, or that mix labels or latents.

    Example:
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4)
        >>> {name: list(inputs) for name, (_, inputs) in graphs(model).items()}
        {'draw': ['noise', 'labels'], 'encode': ['images', 'labels']}
    """
    drawing = model.sampling_noise_shapes
    if next(iter(drawing)) != NUMBERS or set(drawing) - {NUMBERS, "grain"} or model.image_shape is None:
        raise ValueError(
            "Expected a model with one level of latents, a known image_shape, and nothing mixed. Set label_mixing and "
            "latent_mixing to 0."
        )
    model = constant(copy.deepcopy(model).cpu().float().eval())
    columns = model.conditioner.columns
    labels = torch.zeros((3, columns) if columns > 1 else (3,), dtype=label_type(model))
    images = torch.zeros(3, *model.image_shape)
    inputs = {"noise": torch.zeros(3, *drawing[NUMBERS]), "labels": labels}
    inputs |= {"grain": images} if "grain" in drawing else {}
    found: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {"draw": (Draw(model), inputs)}
    if hasattr(model, "posterior"):
        found["encode"] = (Encode(model), {"images": images, "labels": labels})
    return found


def constant(model: Any) -> Any:
    """The model with what it computes once and keeps as plain buffers."""
    for module in model.modules():
        if hasattr(module, "factors"):
            module.register_buffer("exported_factors", module.factors().detach().clone(), persistent=False)
            module.factors = lambda module=module: module.exported_factors
            module.register_buffer("exported_shares", module.class_shares().detach().clone(), persistent=False)
            module.class_shares = lambda module=module: module.exported_shares
            module.half_way = partial(float, module.half_way())
    return model


def export(model: Any, path: str | Path, to: Literal["onnx", "torch-export"] = "onnx") -> Path:
    """Write `draw` and `encode` as graphs, and what they take as `export.json`.

    Args:
        model: of any family; of a conditional VAE, with one level of latents.
        path: a folder, made where it is missing.
        to: "onnx" (`draw.onnx`, for ONNX Runtime; needs the packages onnx and onnxscript) or "torch-export"
            (`draw.pt2`, for `torch.export.load`).

    Returns:
        The folder.

    Raises:
        ValueError: as :func:`graphs`.
        ImportError: if onnx is asked for and not installed.

    Example:
        >>> import tempfile
        >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2, latent=4).eval()
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
        ...     program = torch.export.load(export(model, folder, to="torch-export") / "draw.pt2").module()
        ...     program(torch.zeros(5, 4), torch.tensor([0, 1, 0, 1, 0])).shape
        torch.Size([5, 1, 8, 8])
    """
    path = Path(path)
    check_writable(path)
    if to == "onnx":
        needs_onnx()
    path.mkdir(parents=True, exist_ok=True)
    card: dict[str, Any] = {
        "condgen": condgen.__version__,
        "weights": weights_hash(model.state_dict()),
        "class_names": list(model.class_names),
        "image_shape": list(model.image_shape or ()),
        "labels": "Labels beyond the classes are taken for the nearest class." if model.class_names else "",
        "graphs": {},
    }
    for name, (module, inputs) in graphs(model).items():
        batch = torch.export.Dim("batch", min=1, max=2**20)
        program = torch.export.export(
            module, (), dict(inputs), dynamic_shapes={key: {0: batch} for key in inputs}, strict=False
        )
        file = path / f"{name}.{'onnx' if to == 'onnx' else 'pt2'}"
        content = io.BytesIO()
        if to == "onnx":
            found: Any = torch.onnx.export(program, (), dynamo=True, verbose=False)
            content.write(found.model_proto.SerializeToString())
        else:
            torch.export.save(program, content)
        write_atomically(file, content.getvalue())
        card["graphs"][name] = {"file": file.name, "inputs": described(inputs)}
    write_atomically(path / CARD, json.dumps(card, indent=1).encode())
    return path


def described(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Kinds and shapes of inputs, the batch left open."""
    return {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": ["batch", *value.shape[1:]]}
        for name, value in inputs.items()
    }


def needs_onnx() -> None:
    """Raise unless the packages are there."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"Expected the packages onnx and onnxscript; {error}. pip install onnx onnxscript."
        ) from error
