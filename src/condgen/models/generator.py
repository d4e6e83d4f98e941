"""What all conditional models have in common: labels and noise in, images out; a sample is the same in any batch.

Contract of a family: `draw(y, noise)` makes images of labels and of the noise that `sampling_noise_shapes` names;
`objective()` is what it is trained by unless told otherwise, on the noise that `noise_shapes` names; `trial(x, y,
noise)` takes the parts that training needs once; `flows` says of each part what goes in and comes out. What people do
with a model (:class:`Generator`) is the same for all: labels by name, checked images, samples by number.
"""

__all__ = ["Generator"]

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from condgen.data.batches import image_tensor
from condgen.data.convert import forwards
from condgen.models.latents import tempered
from condgen.nn.cuda_graphs import Replays, replayable
from condgen.nn.memory import keep_freed_memory
from condgen.nn.parts import Part, evaluating
from condgen.random import Use, normals

if TYPE_CHECKING:
    import matplotlib.figure

BLOCK = 64  # images drawn at once on a GPU; fixed, so that a sample's bits never depend on the request
PIECE = 8  # the same on a CPU, where a whole block is drawn at once if that gives the same bits and is asked for
RECORDED = 16  # blocks in a request from which on a GPU is worth recording one for
Labels = Sequence[Any] | np.ndarray | Tensor
Images = Float[Tensor, "batch channels height width"]


class Generator(Part):
    """A conditional model of some family.

    Args:
        conditioner: y → c.
        image_shape: (channels, height, width), where it is known.

    Raises:
        ValueError: for an image_shape of other than three numbers, each at least 1.

    Example:
        >>> import condgen
        >>> isinstance(condgen.conditional_vae((1, 8, 8), num_classes=2), Generator)
        True
    """

    # Any module that honours a shelf's contract is welcome, so the type checker is told no more than that.
    conditioner: Any
    choices = 0  # leading numbers of a sample's noise that choose and are not scaled by the temperature

    def __init__(self, conditioner: nn.Module, image_shape: tuple[int, int, int] | None = None) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.image_shape = tuple(image_shape or ()) or None
        if self.image_shape and not (len(self.image_shape) == 3 and min(self.image_shape) >= 1):
            raise ValueError(f"Expected image_shape as (channels, height, width), each at least 1; got {image_shape}.")
        self._tried: tuple[Any, bool] = (None, True)  # of `_block`
        self.class_names: tuple[str, ...] = ()
        self.provenance: dict[str, Any] = {}  # where the weights come from: data, run, epoch; goes into files

    # What a family says of itself.

    def draw(self, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Images:
        """Draw one image in [0, 1] for each label, from the noise that `sampling_noise_shapes` names."""
        raise NotImplementedError

    def objective(self) -> nn.Module:
        """The loss that the model is trained by unless another one is given."""
        raise NotImplementedError

    def trial(self, x: Images, y: Shaped[Tensor, "batch ..."], noise: dict[str, Tensor]) -> Float[Tensor, " batch"]:
        """Runs one training forward pass, so that parts with mismatched shapes fail early; one number per image."""
        raise NotImplementedError

    @property
    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that training on one image needs."""
        raise NotImplementedError

    @property
    def sampling_noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that drawing one image needs."""
        raise NotImplementedError

    @property
    def flows(self) -> dict[str, str]:
        """Name of each part → what goes in and comes out."""
        raise NotImplementedError

    # What all share.

    def condition(self, y: Shaped[Tensor, "batch ..."], noise: Tensor | None = None) -> Float[Tensor, "batch dim"]:
        """C of these labels, in the precision of the weights; noise only for conditioners that use it."""
        return (self.conditioner(y) if noise is None else self.conditioner(y, noise)).to(self.dtype)

    def labels(self, y: Labels) -> Tensor:
        """Labels as a tensor on the model's device: integers, class names, arrays of shape (n,) or (n, 1).

        Raises:
            ValueError: for labels the conditioner does not take, or names the model does not know.

        Example:
            >>> import condgen
            >>> condgen.conditional_vae((1, 8, 8), num_classes=2).labels([[1], [0]])
            tensor([1, 0])
        """
        if isinstance(y, str) or np.ndim(y) == 0:
            raise ValueError(f"Expected a sequence of labels; got {y!r}. Pass one per image, e.g. [{y!r}] * 10.")
        if not isinstance(y, Tensor) and np.asarray(y).dtype.kind in "USO":
            unknown = sorted({str(name) for name in y} - set(self.class_names))
            if unknown:
                known = ", ".join(self.class_names) or "no names; pass integers"
                raise ValueError(f"Expected class names among {known}; got {', '.join(unknown)}.")
            y = [self.class_names.index(str(name)) for name in y]
        if isinstance(y, np.ndarray) and y.dtype.kind == "u":  # torch computes with signed integers
            y = y.astype(np.int64)
        labels = torch.as_tensor(forwards(y), device=self.device)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        self.conditioner.check(labels)
        return labels

    def images(self, x: np.ndarray | Tensor) -> Float[Tensor, "batch channels height width"]:
        """Images as floats in [0, 1] on the model's device, from uint8 or floats.

        Raises:
            ValueError: if the shape is not the model's, or values leave [0, 1].
        """
        x = image_tensor(torch.as_tensor(forwards(x), device=self.device)).to(self.dtype)
        if x.ndim != 4 or (self.image_shape and tuple(x.shape[1:]) != self.image_shape):
            expected = ("batch", *(self.image_shape or ("channels", "height", "width")))
            raise ValueError(
                f"Expected images of shape {shape(expected)}; got {tuple(x.shape)}. Resize or reorder them."
            )
        return x

    def pair(self, x: np.ndarray | Tensor, y: Labels) -> tuple[Tensor, Tensor]:
        """Images and their labels, as many of each.

        Raises:
            ValueError: as :meth:`images` and :meth:`labels`, or if their numbers differ.
        """
        images, labels = self.images(x), self.labels(y)
        if len(images) != len(labels):
            raise ValueError(f"Expected a label for each of {len(images)} images; got {len(labels)}.")
        return images, labels

    def sample(
        self, y: Labels, *, seed: int = 0, start: int = 0, temperature: float = 1.0
    ) -> Float[Tensor, "batch channels height width"]:
        """One new image for every label, in order, in [0, 1].

        Sample i of seed s is one image: image k of the result is sample `start + k`, bit for bit the same however
        a request is sliced (on one machine with one number of threads; within one grey level elsewhere).

        Args:
            y: labels; their number is the number of images.
            seed: in [0, 2**64).
            start: number of the first sample.
            temperature: scales the noise; below 1 images are more typical and less varied.

        Raises:
            ValueError: for no labels, labels the model does not know, a negative start or temperature.

        Example:
            >>> import condgen
            >>> model = condgen.conditional_vae((1, 8, 8), num_classes=2)
            >>> whole, part = model.sample([0, 1, 1, 0]), model.sample([1, 0], start=2)
            >>> torch.equal(whole[2:], part)
            True
        """
        return torch.cat(list(self.sample_blocks(y, seed=seed, start=start, temperature=temperature)))

    def sample_blocks(
        self, y: Labels, *, seed: int = 0, start: int = 0, temperature: float = 1.0
    ) -> Iterator[Float[Tensor, "block channels height width"]]:
        """The images of :meth:`sample` as they are made, at most 64 at a time."""
        if not (0 <= start < 2**62 and 0 <= temperature <= 100):
            raise ValueError(
                f"Expected start in [0, 2**62) and temperature in [0, 100]; got {start} and {temperature}."
            )
        labels = self.labels(y)
        if not len(labels):
            raise ValueError("Expected at least one label; got none.")
        keep_freed_memory()
        many = len(labels) >= RECORDED * BLOCK and self.device.type == "cuda"
        replays = Replays(many and replayable([self]))

        def work(given: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"images": self._drawn(given["y"], given["index"], seed, temperature)}

        def draw(first: int, size: int) -> Tensor:
            index = torch.arange(first, first + size, device=self.device)
            # Places of the block that were not asked for are filled with any label and thrown away.
            given = {"y": labels[(index - start).clamp(0, len(labels) - 1)], "index": index}
            return replays("block", work, given)["images"]

        end = start + len(labels)
        for first in range(start // BLOCK * BLOCK, end, BLOCK):
            low, high = max(first, start), min(first + BLOCK, end)  # what is asked for of this block
            if self.device.type != "cpu":
                images, begins = draw(first, BLOCK), first
            elif high - low > BLOCK // 2:
                images, begins = self._block(first, draw), first
            else:
                begins = low // PIECE * PIECE
                images = torch.cat([draw(piece, PIECE) for piece in range(begins, high, PIECE)])
            yield images[low - begins : high - begins].clone()

    def _drawn(self, y: Tensor, index: Tensor, seed: int, temperature: float) -> Tensor:
        """The samples of these numbers, drawn at once."""
        noise = normals(self.sampling_noise_shapes, seed, index, Use.SAMPLING, dtype=self.dtype)
        noise = tempered(noise, temperature, self.choices)
        # Not as a decorator: one on a generator ends before it begins where another wraps the function.
        with torch.no_grad(), evaluating(self):
            return self.draw(y, noise)

    def _block(self, first: int, draw: Callable[[int, int], Tensor]) -> Tensor:
        """A block of samples with the bits that its pieces have: drawn at once if that gives them, else in pieces.

        Which algorithm a layer takes depends on the shape of its input alone: what holds for one block holds for all.
        So it is tried once for these parts, device and threads, on the first and the last piece of the first block.
        """
        key = (*map(id, self.children()), self.device, self.dtype, torch.get_num_threads())
        if self._tried == (key, False):
            return torch.cat([draw(piece, PIECE) for piece in range(first, first + BLOCK, PIECE)])
        whole = draw(first, BLOCK)
        if self._tried != (key, True):
            same = all(torch.equal(whole[at : at + PIECE], draw(first + at, PIECE)) for at in (0, BLOCK - PIECE))
            self._tried = (key, same)
            return whole if same else self._block(first, draw)
        return whole

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next((p.dtype for p in self.parameters()), torch.get_default_dtype())

    @property
    def drawing(self) -> dict[str, Any]:
        """The settings that decide how images are drawn, such as steps, guidance and label mixing, with their values.

        Example:
            >>> import condgen
            >>> condgen.conditional_flow((1, 8, 8), num_classes=2).drawing
            {'steps': 12, 'solver': 'heun', 'guidance': 0.0}
        """
        drawn = [part for part in self.children() if hasattr(part, "draw")]
        ways = itertools.product(drawn, ("steps", "solver", "guidance"))
        found = {name: getattr(part, name) for part, name in ways if hasattr(part, name)}
        mixing = {name: getattr(self, name, 0.0) for name in ("label_mixing", "latent_mixing")}
        return found | {name: value for name, value in mixing.items() if value}

    @property
    def label_noise(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the noise that the conditioner needs in training, if it does."""
        return {"label": tuple(self.conditioner.noise_shape)} if hasattr(self.conditioner, "noise_shape") else {}

    @property
    def condition_text(self) -> str:
        """The condition, as `flows` write it."""
        return f"c ({self.conditioner.dim})" if self.conditioner.dim else "no c"

    @torch.no_grad()
    def show(self, per_class: int = 10, *, seed: int = 0, temperature: float = 1.0) -> "matplotlib.figure.Figure":
        """A picture of new images of every class, a row each with its name; a notebook shows it.

        Args:
            per_class: images in a row.
            seed: of the samples.
            temperature: scales the noise; below 1 images are more typical and less varied.

        Raises:
            ValueError: for a model whose labels are no classes, or fewer than one image a row.

        Example:
            >>> import condgen
            >>> figure = condgen.conditional_vae((1, 8, 8), num_classes=3).show(per_class=2)
        """
        from condgen.io.pictures import class_grid
        from condgen.models.classes import class_names
        from condgen.models.classes import per_class as of_every_class

        return class_grid(of_every_class(self, per_class, seed=seed, temperature=temperature), class_names(self))

    def _repr_html_(self) -> str:
        """What a notebook shows: the parts, their sizes, and what the weights come from."""
        from condgen.io.pictures import html_table

        parts = [
            [name, type(getattr(self, name)).__name__, flow, f"{count(getattr(self, name)):,}"]
            for name, flow in self.flows.items()
        ]
        known = [[name, str(value)[:200]] for name, value in self.provenance.items()]
        trained = f"<p>Trained on:</p>{html_table(known)}" if known else "<p>Not trained yet.</p>"
        table = html_table(parts, ["part", "class", "in → out", "parameters"])
        return f"<p><b>{type(self).__name__}</b>: {count(self):,} parameters</p>{table}{trained}"

    def __repr__(self) -> str:
        flows = self.flows
        lines, width = [f"{type(self).__name__}: {count(self):,} parameters"], max(map(len, flows.values()))
        kind = max(16, *(len(type(getattr(self, name)).__name__) for name in flows))
        for name, flow in flows.items():
            part = getattr(self, name)
            lines.append(f"  {name:<15} {type(part).__name__:<{kind}} {flow:<{width}} {count(part):>10,}")
        return "\n".join(lines)


def count(module: nn.Module) -> int:
    """Number of trainable and other parameters."""
    return sum(p.numel() for p in module.parameters())


def shape(sizes: Sequence[Any]) -> str:
    """(3, 28, 28) as it is written, without the comma of a single size."""
    return f"({', '.join(map(str, sizes))})"
