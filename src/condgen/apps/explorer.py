"""A page on your own machine to play with a model: draw cells, move their latents, swap labels, look at an image.

:class:`Explorer` is what the page does, without the page; :func:`page` puts controls around it (needs gradio).
"""

__all__ = ["Cell", "Explorer", "Look", "explore", "page"]

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from condgen.evaluation.judge import Judge
from condgen.models.latents import latent_noise
from condgen.nn.parts import evaluating
from condgen.random import Use, normals
from condgen.sampling.figures import save_grid
from condgen.sampling.grids import class_names, to_uint8
from condgen.sampling.latents import decoded, interpolate
from condgen.sampling.shards import write_samples

KNOBS = 6  # sliders
REACH = 3.0  # standard deviations to either side
MOST = 64  # cells on the page
TRIED = 256  # draws that directions are taken from
HOST = "127.0.0.1"
Pictures = UInt8[np.ndarray, "n height width channels"]


@dataclass(frozen=True)
class Cell:
    """One of a model's samples: number `index` of `seed`, drawn as class `label`.

    Example:
        >>> Cell(label=3, seed=0, index=17)
        Cell(label=3, seed=0, index=17)
    """

    label: int
    seed: int
    index: int


@dataclass(frozen=True)
class Look:
    """What a model makes of an image.

    Attributes:
        image: as the model sees it.
        reconstruction: of it.
        latent: means of its posterior as a grey picture, one tile a channel.
        sentences: about them.

    Example:
        >>> # See :meth:`Explorer.look_at`.
    """

    image: UInt8[np.ndarray, "height width channels"]
    reconstruction: UInt8[np.ndarray, "height width channels"]
    latent: UInt8[np.ndarray, "rows columns 1"]
    sentences: tuple[str, ...]


class Explorer:
    """What can be done with a model by hand. Images come and go as uint8, channels last.

    Args:
        model: with class labels (or none), one level of latents and a decoder.
        judge: a classifier of real images that says what it takes an image for.

    Raises:
        ValueError: for a model without latents to explore, or a judge of images of another shape.

    Example:
        >>> import condgen
        >>> explorer = Explorer(condgen.conditional_vae((1, 8, 8), num_classes=3, latent=4))
        >>> explorer.draw(label=1, count=5).shape
        (5, 8, 8, 1)
        >>> explorer.as_every_class(Cell(label=1, seed=0, index=2)).shape
        (3, 8, 8, 1)
    """

    def __init__(self, model: Any, judge: Judge | None = None) -> None:
        if not hasattr(model, "decode") or set(model.sampling_noise_shapes) != {"z"} or not model.image_shape:
            raise ValueError(
                f"Expected a model that decodes images of a known shape from one level of latents; "
                f"{type(model).__name__} as it is built does not. Draw from it with: condgen sample"
            )
        if judge is not None and judge.image_shape != tuple(model.image_shape):
            raise ValueError(f"Expected a judge of images of {model.image_shape}; got one of {judge.image_shape}.")
        self.model, self.judge, self.names = model, judge, class_names(model)

    def labels(self, label: int, count: int = 1) -> Tensor:
        """The labels of so many cells of a class."""
        return self.model.labels([label] * count)

    def draw(self, label: int, count: int, seed: int = 0) -> Pictures:
        """Samples 0 to count - 1 of a seed, as one class.

        Raises:
            ValueError: for a count out of range, or a negative seed.
        """
        if not 1 <= count <= MOST or seed < 0:
            raise ValueError(f"Expected 1 to {MOST} cells and a seed of 0 or more; got {count} and {seed}.")
        return channels_last(self.model.sample(self.labels(label, count), seed=seed))

    def latent(self, cell: Cell) -> Float[Tensor, "*latent"]:
        """The z that a sample is decoded from."""
        return self._latents(self.labels(cell.label), cell.seed, torch.tensor([cell.index]))[0]

    @torch.no_grad()
    def _latents(self, y: Tensor, seed: int, index: Tensor) -> Float[Tensor, "n *latent"]:
        model = self.model
        noise = normals(model.sampling_noise_shapes, seed, index.to(model.device), Use.SAMPLING, dtype=model.dtype)
        with evaluating(model):
            return model.source.draw(model.condition(y), latent_noise(noise))

    @cached_property
    def knobs(self) -> tuple[tuple[str, Float[Tensor, "*latent"]], ...]:
        """Names and directions of what sliders move, a standard deviation long.

        Of a vector, the latents that change the picture most; of a map, whose latents each reach only one place, the
        principal directions of what is drawn.
        """
        y = self.model.labels(torch.arange(TRIED) % len(self.names))
        z = self._latents(y, 0, torch.arange(TRIED))
        if z.ndim == 2:
            spread, some = z.std(0), slice(0, 8)
            still = decoded(self.model, z[some], y[some])
            moved = [
                (decoded(self.model, z[some] + spread * one, y[some]) - still).abs().mean()
                for one in torch.eye(z.shape[1], device=z.device, dtype=z.dtype)
            ]
            best = torch.stack(moved).argsort(descending=True, stable=True)[:KNOBS].tolist()
            return tuple((f"latent {k}", spread[k] * torch.eye(z.shape[1], device=z.device)[k]) for k in best)
        _, sizes, directions = torch.linalg.svd((z - z.mean(0)).flatten(1), full_matrices=False)
        sizes = sizes / len(z) ** 0.5
        return tuple(
            (f"direction {k + 1}", (sizes[k] * directions[k]).unflatten(0, z.shape[1:]))
            for k in range(min(KNOBS, len(sizes)))
        )

    def moved(self, cell: Cell, amounts: Sequence[float]) -> UInt8[np.ndarray, "height width channels"]:
        """A cell with its latent moved by so many standard deviations along each of the knobs."""
        z = self.latent(cell)
        for (_, direction), amount in zip(self.knobs, amounts, strict=False):
            z = z + amount * direction.to(z)
        return self._decoded(z[None], self.labels(cell.label))[0]

    def as_every_class(self, cell: Cell) -> Pictures:
        """The latent of a cell, decoded as each class."""
        classes = torch.arange(len(self.names))
        z = self.latent(cell)
        return self._decoded(z[None].expand(len(classes), *z.shape), self.model.labels(classes))

    def drawn_as_every_class(self, cell: Cell) -> Pictures:
        """The noise of a cell, drawn anew as each class: of maps, the label works on the latent as much as after it."""
        y = self.model.labels(torch.arange(len(self.names)))
        z = self._latents(y, cell.seed, torch.full((len(y),), cell.index))
        return self._decoded(z, y)

    def between(self, first: Cell, second: Cell, steps: int = 8) -> Pictures:
        """The way from one cell to another, both included; the label changes in the middle."""
        ends = self.latent(first), self.latent(second)
        images = interpolate(self.model, *ends, (first.label, second.label), steps=steps)
        return channels_last(images)

    def _decoded(self, z: Tensor, y: Tensor) -> Pictures:
        return channels_last(decoded(self.model, z, y))

    @property
    def sees(self) -> bool:
        """Whether the model can look at images."""
        return hasattr(self.model, "encode")

    def look_at(self, file: str | Path, label: int | None = None) -> Look:
        """What the model makes of an image file.

        Args:
            file: a picture; it is brought to the model's size and channels.
            label: what it is; by default what the judge takes it for.

        Raises:
            ValueError: for a file that is no picture, no label where there is no judge, or a model that cannot look.
        """
        if not self.sees:
            raise ValueError(f"{type(self.model).__name__} has no encoder: it draws images and cannot look at any.")
        image, changed = opened(file, self.model.image_shape)
        x = torch.as_tensor(image.transpose(2, 0, 1)[None].copy())
        sentences, judged = list(changed), None
        if self.judge is not None:
            judged = self.judge.embed(x).probabilities[0]
            best = judged.argsort(descending=True)[:2].tolist()
            said = " or ".join(f"{self.judge.class_names[k]} ({float(judged[k]):.0%})" for k in best)
            sentences.append(f"The judge takes it for {said}.")
        if label is None and len(self.names) > 1:
            if judged is None:
                raise ValueError("Expected the class of the image; there is no judge to guess it. Choose one.")
            name = self.judge.class_names[int(judged.argmax())]  # type: ignore[union-attr]
            label = self.names.index(name) if name in self.names else int(judged.argmax())
        y = self.labels(label or 0)
        z, back = self.model.encode(x, y)[0], self.model.reconstruct(x, y)
        error = float((back.cpu() - x / 255).square().mean())
        sentences.append(
            f"Drawn back as {self.names[label or 0]}: PSNR {-10 * np.log10(max(error, 1e-10)):.1f} dB. Its latent has "
            f"{z.numel()} numbers between {float(z.min()):.1f} and {float(z.max()):.1f}."
        )
        return Look(image, channels_last(back)[0], tiles(z), tuple(sentences))

    def save(self, folder: str | Path, label: int, count: int, seed: int) -> tuple[Path, Path]:
        """Write the cells of :meth:`draw` as a picture and as an `.npz` file (images and labels)."""
        name = f"{self.names[label].split('(')[0].strip().replace(' ', '_')}_{seed}"
        images = self.model.sample(self.labels(label, count), seed=seed)
        picture = save_grid(images[None], Path(folder) / f"{name}.png", self.names[label : label + 1])
        return picture, write_samples(self.model, self.labels(label, count), Path(folder) / f"{name}.npz", seed=seed)


def channels_last(images: Float[Tensor, "n channels height width"]) -> Pictures:
    """As pictures are stored."""
    return to_uint8(images.detach()).cpu().numpy().transpose(0, 2, 3, 1)


def opened(file: str | Path, image_shape: Sequence[int]) -> tuple[UInt8[np.ndarray, "h w c"], tuple[str, ...]]:
    """A picture in the model's size and channels, and what had to be changed about it.

    Raises:
        ValueError: for a file that is no picture.
    """
    channels, height, width = image_shape
    try:
        with Image.open(file) as found:
            found.load()
            picture, size = found.convert("L" if channels == 1 else "RGB"), found.size
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{Path(file).name} is no picture that can be read. Choose a PNG or JPEG file.") from error
    changed = []
    if size != (width, height):
        changed.append(f"It was brought from {size[0]}x{size[1]} to {width}x{height} pixels.")
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(height, width, channels), tuple(changed)


def tiles(z: Float[Tensor, "*latent"]) -> UInt8[np.ndarray, "rows columns 1"]:
    """A latent as a grey picture, black and white three standard deviations from 0; channels of a map side by side."""
    values = (z.detach().float().cpu() / REACH).clamp(-1, 1)
    plane = values.reshape(1, -1) if z.ndim == 1 else torch.cat(list(values.reshape(-1, *values.shape[-2:])), 1)
    return ((plane + 1) * 127.5).round().to(torch.uint8).numpy()[..., None]


def enlarged(image: UInt8[np.ndarray, "h w c"], height: int = 112) -> Image.Image:
    """A picture to be shown, about so high, its pixels enlarged without smoothing."""
    zoom = max(1, round(height / image.shape[0]))
    large = image.repeat(zoom, 0).repeat(zoom, 1)
    return Image.fromarray(large[..., 0] if large.shape[2] == 1 else large)


def said(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a user can mend is said in a sentence on the page."""

    @wraps(function)
    def wrapped(*arguments: Any) -> Any:
        import gradio

        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return wrapped


STYLE = """
.gradio-container {max-width: 1100px !important; width: 100% !important; margin: auto}
.grid-container {grid-template-columns: repeat(8, minmax(0, 1fr)) !important}
@media (max-width: 600px) {.grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}}
img {image-rendering: pixelated}
footer {display: none !important}
"""


def page(explorer: Explorer, title: str = "condgen") -> Any:
    """The page as a `gradio.Blocks`, not yet served; see :func:`explore`.

    Raises:
        ImportError: if gradio is not installed.

    Example:
        >>> # blocks = page(Explorer(condgen.load("bloodmnist"))); blocks.launch()
    """
    gr = gradio()
    names, knobs = list(explorer.names), explorer.knobs
    explorer.draw(0, 16)  # what is done once is done before anybody waits
    folder = tempfile.TemporaryDirectory(prefix="condgen_")  # gone with the page

    def shown(images: Pictures, captions: Sequence[str] = ()) -> list[Any]:
        pictures = [enlarged(image) for image in images]
        return list(zip(pictures, captions, strict=True)) if len(captions) else pictures

    def cell_of(drawn: Any, index: int) -> Cell:
        return Cell(drawn["label"], drawn["seed"], int(index))

    @said
    def draw(name: str, count: float, seed: float) -> tuple[Any, ...]:
        drawn = {"label": names.index(name), "count": whole(count, "count"), "seed": whole(seed, "seed")}
        cells = shown(explorer.draw(drawn["label"], drawn["count"], drawn["seed"]))
        return gr.update(value=cells, selected_index=None), drawn, *pick(drawn, 0)

    def pick(drawn: Any, index: int) -> tuple[Any, ...]:
        cell = cell_of(drawn, index)
        every = shown(explorer.as_every_class(cell), names)
        text = f"Cell {index + 1} of class {names[cell.label]} (sample {index} of seed {cell.seed})"
        anew = shown(explorer.drawn_as_every_class(cell), names)
        return cell, text, enlarged(explorer.moved(cell, ()), 224), every, anew, *[0.0] * len(knobs)

    def picked(drawn: Any, event: Any) -> tuple[Any, ...]:
        return pick(drawn, event.index)

    picked.__annotations__["event"] = gr.SelectData

    @said
    def move(cell: Cell, *amounts: float) -> Any:
        return enlarged(explorer.moved(cell, amounts), 224)

    @said
    def hold(cell: Cell) -> tuple[Any, ...]:
        return cell, enlarged(explorer.moved(cell, ()))

    @said
    def walk(first: Cell | None, second: Cell | None) -> Any:
        if first is None or second is None:
            raise ValueError("Pick a cell and press 'Take as first', another one and press 'Take as second'.")
        return shown(explorer.between(first, second))

    @said
    def look(file: str | None, name: str | None) -> tuple[Any, ...]:
        if not file:
            raise ValueError("Choose a picture first.")
        found = explorer.look_at(file, names.index(name) if name in names else None)
        images = [enlarged(found.image), enlarged(found.reconstruction)]
        pictures = list(zip(images, ("as the model sees it", "drawn back"), strict=True))
        return pictures, enlarged(found.latent, 84), "\n\n".join(found.sentences)

    @said
    def save(drawn: Any) -> Any:
        saved = explorer.save(folder.name, drawn["label"], drawn["count"], drawn["seed"])
        return gr.update(value=[str(file) for file in saved], visible=True)

    small: dict[str, Any] = {
        "columns": 8,
        "height": "auto",
        "object_fit": "contain",
        "allow_preview": False,
        "format": "png",
    }
    alone: dict[str, Any] = {"interactive": False, "buttons": [], "format": "png"}
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        drawn, cell, first, second = gr.State(), gr.State(), gr.State(), gr.State()
        gr.Markdown(f"# {title}\n{', '.join(names)}. Generated images; not for clinical use.")
        with gr.Row():
            kind = gr.Dropdown(names, value=names[0], label="Class", elem_id="class")
            count = gr.Slider(1, MOST, 16, step=1, label="Cells", elem_id="count")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed", elem_id="seed")
        draw_button = gr.Button("Draw", variant="primary", elem_id="draw")
        cells = gr.Gallery(label="Pick a cell", elem_id="cells", **small)
        with gr.Row():
            save_button = gr.Button("Save these as PNG and npz", elem_id="save")
            files = gr.Files(label="Saved", interactive=False, visible=False, elem_id="files")
        about = gr.Markdown(elem_id="about")
        with gr.Tab("Latents"), gr.Row():
            one = gr.Image(label="The cell, moved", elem_id="moved", **alone)
            with gr.Column():
                sliders = [
                    gr.Slider(-REACH, REACH, 0.0, step=0.1, label=name, elem_id=f"knob{k}")
                    for k, (name, _) in enumerate(knobs)
                ]
        with gr.Tab("Classes"):
            every = gr.Gallery(label="The same latent as each class", elem_id="every", **small)
            anew = gr.Gallery(label="The same noise, drawn anew as each class", elem_id="anew", **small)
        with gr.Tab("Between"):
            with gr.Row():
                first_button = gr.Button("Take as first", elem_id="first")
                second_button = gr.Button("Take as second", elem_id="second")
            with gr.Row():
                one_end = gr.Image(label="First", height=150, elem_id="first_cell", **alone)
                other_end = gr.Image(label="Second", height=150, elem_id="second_cell", **alone)
            walk_button = gr.Button("Go from one to the other", variant="primary", elem_id="walk")
            way = gr.Gallery(label="On the way", elem_id="way", **small)
        if explorer.sees:
            with gr.Tab("Image"):
                guess = ["the judge's guess"] if explorer.judge is not None and len(names) > 1 else []
                upload = gr.File(label="A picture (PNG, JPEG)", type="filepath", elem_id="upload")
                truth = gr.Dropdown([*guess, *names], value=[*guess, *names][0], label="Its class", elem_id="truth")
                look_button = gr.Button("Look at it", variant="primary", elem_id="look")
                verdict = gr.Markdown(elem_id="verdict")
                back = gr.Gallery(label="Image and reconstruction", elem_id="back", **small)
                code = gr.Image(
                    label="Means of its latents: black -3, grey 0, white 3",
                    interactive=False,
                    elem_id="code",
                    buttons=[],
                )
                look_button.click(look, [upload, truth], [back, code, verdict])
        chosen = [cell, about, one, every, anew, *sliders]
        draw_button.click(draw, [kind, count, seed], [cells, drawn, *chosen])
        blocks.load(draw, [kind, count, seed], [cells, drawn, *chosen])
        cells.select(picked, [drawn], chosen)
        for slider in sliders:
            slider.change(move, [cell, *sliders], one, show_progress="hidden", trigger_mode="always_last")
        first_button.click(hold, cell, [first, one_end])
        second_button.click(hold, cell, [second, other_end])
        walk_button.click(walk, [first, second], way)
        save_button.click(save, drawn, files)
    return blocks


def whole(number: float | None, what: str) -> int:
    """A number from a field that may be empty.

    Raises:
        ValueError: if it is.
    """
    if number is None:
        raise ValueError(f"Expected a {what}; the field is empty.")
    return int(number)


def gradio() -> Any:
    """The package, told to keep to itself.

    Raises:
        ImportError: if it is not installed.
    """
    for name, value in {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        os.environ.setdefault(name, value)
    try:
        import gradio as found
    except ImportError as error:
        raise ImportError('The page needs gradio. Install it: pip install "condgen[explore]".') from error
    return found


def explore(
    model: Any,
    judge: Judge | None = None,
    *,
    port: int | None = None,
    title: str = "condgen",
    inbrowser: bool = False,
    block: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> Any:
    """Serve the page on this machine alone (127.0.0.1), until it is stopped. Nothing is fetched from elsewhere.

    Args:
        model: as for :class:`Explorer`.
        judge: as for :class:`Explorer`.
        port: of the page; by default the first free one from 7860 on.
        title: of the page.
        inbrowser: open it in a browser.
        block: until Ctrl-C; False returns at once, and `close()` of what is returned ends it.
        say: called with the page's address.

    Raises:
        ImportError: if gradio is not installed.
        ValueError: as :class:`Explorer`.
        OSError: if the port is taken.

    Example:
        >>> # explore(condgen.load("bloodmnist"), inbrowser=True)
    """
    blocks = page(Explorer(model, judge), title)
    fonts = {name: ["system-ui", "sans-serif"] for name in ("font",)} | {"font_mono": ["monospace"]}
    theme = gradio().themes.Default(**fonts)
    options = {"server_name": HOST, "share": False, "quiet": True, "ssr_mode": False, "inbrowser": inbrowser}
    blocks.launch(server_port=port, theme=theme, css=STYLE, prevent_thread_lock=True, footer_links=[], **options)
    say(f"Open {blocks.local_url} (Ctrl-C ends it).")
    if block:
        blocks.block_thread()
    return blocks
