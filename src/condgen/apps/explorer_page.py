"""The explorer's page, made with gradio."""

__all__ = ["explore", "page"]

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from PIL import Image

from condgen.apps.explorer import MOST, REACH, Cell, Explorer, Pictures, enlarged
from condgen.evaluation.classifier import Classifier
from condgen.io.pictures import grid_png

HOST = "127.0.0.1"


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
.gradio-container {max-width: 1260px !important; width: 100% !important; margin: auto}
.grid-container {grid-template-columns: repeat(8, minmax(0, 1fr)) !important}
@media (max-width: 600px) {.grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}}
img {image-rendering: pixelated}
footer {display: none !important}
"""


class Answers:
    """What the page shows when something on it is pressed, moved or picked.

    Args:
        explorer: of the model.
    """

    def __init__(self, explorer: Explorer) -> None:
        self.explorer, self.names = explorer, list(explorer.names)
        self.folder = tempfile.TemporaryDirectory(prefix="condgen_")  # gone with the page
        explorer.draw(0, 16)  # what is done once is done before anybody waits
        type(self).picked.__annotations__["event"] = gradio().SelectData

    @said
    def draw(self, name: str, count: float, seed: float) -> tuple[Any, ...]:
        """Cells of a class, the first of them picked."""
        label, wanted, of = self.names.index(name), whole(count, "count"), whole(seed, "seed")
        drawn = {"label": label, "count": wanted, "seed": of}
        cells = shown(self.explorer.draw(label, wanted, of))
        return gradio().update(value=cells, selected_index=None), drawn, *self.pick(drawn, 0)

    def pick(self, drawn: Any, index: int) -> tuple[Any, ...]:
        """A cell, as itself and as every class, with all sliders in the middle."""
        cell = Cell(drawn["label"], drawn["seed"], int(index))
        text = f"Cell {index + 1} of class {self.names[cell.label]} (sample {index} of seed {cell.seed})"
        columns = [self.explorer.as_every_class(cell)] if self.explorer.moves else []
        classes = beside([*columns, self.explorer.drawn_as_every_class(cell)], self.names)
        still = [0.0] * len(self.explorer.knobs)
        return cell, text, enlarged(self.explorer.moved(cell, ()), 224), classes, *still

    def picked(self, drawn: Any, event: Any) -> tuple[Any, ...]:
        """The cell that was pressed."""
        return self.pick(drawn, event.index)

    @said
    def move(self, cell: Cell, *amounts: float) -> Any:
        """The cell, moved along the directions of the sliders."""
        return enlarged(self.explorer.moved(cell, amounts), 224)

    @said
    def hold(self, cell: Cell) -> tuple[Any, ...]:
        """A cell that is to be an end of the way."""
        return cell, enlarged(self.explorer.moved(cell, ()))

    @said
    def walk(self, first: Cell | None, second: Cell | None) -> Any:
        """Cells on the way from one to the other."""
        if first is None or second is None:
            raise ValueError("Pick a cell and press 'Take as first', another one and press 'Take as second'.")
        return shown(self.explorer.between(first, second))

    @said
    def look(self, file: str | None, name: str | None) -> tuple[Any, ...]:
        """A picture of one's own, as the model sees it and drawn back."""
        if not file:
            raise ValueError("Choose a picture first.")
        found = self.explorer.look_at(file, self.names.index(name) if name in self.names else None)
        rows = {"as the model sees it": found.image, "drawn back": found.reconstruction}
        if found.nearest is not None:
            rows["nearest training image"] = found.nearest
        pictures = beside([np.stack(list(rows.values()))], list(rows))
        return pictures, shown(found.variations), enlarged(found.latent, 84), "\n\n".join(found.sentences)

    @said
    def save(self, drawn: Any) -> Any:
        """Write the cells that the page shows to a PNG and an npz file, and offer both for download."""
        saved = self.explorer.save(self.folder.name, drawn["label"], drawn["count"], drawn["seed"])
        return gradio().update(value=[str(file) for file in saved], visible=True)


def shown(images: Pictures) -> list[Any]:
    """Pictures as a gallery takes them."""
    return [enlarged(image) for image in images]


def beside(columns: Sequence[Pictures], names: Sequence[str]) -> Any:
    """Draw columns of pictures as one picture, with the names of the rows to the left of them."""
    images = torch.as_tensor(np.stack(columns, 1)).permute(0, 1, 4, 2, 3) / 255
    picture = grid_png(images, [name.split("(")[0] for name in names], zoom=max(1, 56 // images.shape[3]))
    return Image.open(io.BytesIO(picture))


def page(explorer: Explorer, title: str = "condgen") -> Any:
    """The page as a `gradio.Blocks`, not yet served; see :func:`explore`.

    Raises:
        ImportError: if gradio is not installed.

    Example:
        >>> # blocks = page(Explorer(condgen.load("bloodmnist"))); blocks.launch()
    """
    # Longer than a function should be: the layout, from top to bottom, as it is seen.
    gr, answers = gradio(), Answers(explorer)
    names, knobs = answers.names, explorer.knobs
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
        gr.Markdown(f"### {title}\n{', '.join(names)}. Generated images; not for clinical use.")
        with gr.Row():
            with gr.Column(min_width=360):
                with gr.Row():
                    kind = gr.Dropdown(names, value=names[0], label="Class", elem_id="class", min_width=120)
                    count = gr.Slider(1, MOST, 16, step=1, label="Cells", elem_id="count", min_width=120)
                    seed = gr.Number(0, precision=0, label="Seed", elem_id="seed", min_width=80)
                cells = gr.Gallery(label="Pick a cell", elem_id="cells", **small)
                with gr.Row():
                    draw_button = gr.Button("Draw", variant="primary", elem_id="draw", min_width=80)
                    save_button = gr.Button("Save as PNG and npz", elem_id="save", min_width=80)
                files = gr.Files(label="Saved", interactive=False, visible=False, elem_id="files")
            with gr.Column(min_width=360):
                about = gr.Markdown(elem_id="about")
                with gr.Tab("Latents" if explorer.moves else "Cell"), gr.Row():
                    one = gr.Image(label="The cell, moved", elem_id="moved", height=240, **alone)
                    with gr.Column():
                        sliders = [
                            gr.Slider(-REACH, REACH, 0.0, step=0.1, label=name, elem_id=f"knob{k}")
                            for k, (name, _) in enumerate(knobs)
                        ]
                with gr.Tab("Classes"):
                    same = "left: the same latent as each class; right: drawn anew" if explorer.moves else "drawn anew"
                    classes = gr.Image(label=f"As each class ({same} from the same noise)", elem_id="classes", **alone)
                if explorer.moves:
                    with gr.Tab("Between"):
                        with gr.Row():
                            first_button = gr.Button("Take as first", elem_id="first")
                            second_button = gr.Button("Take as second", elem_id="second")
                        with gr.Row():
                            one_end = gr.Image(label="First", height=150, elem_id="first_cell", **alone)
                            other_end = gr.Image(label="Second", height=150, elem_id="second_cell", **alone)
                        walk_button = gr.Button("Go from one to the other", variant="primary", elem_id="walk")
                        way = gr.Gallery(label="On the way", elem_id="way", **small)
                        first_button.click(answers.hold, cell, [first, one_end])
                        second_button.click(answers.hold, cell, [second, other_end])
                        walk_button.click(answers.walk, [first, second], way)
                if explorer.sees:
                    with gr.Tab("Image"):
                        look_tab(gr, answers, small, alone)
        chosen = [cell, about, one, classes, *sliders]
        for redraws in (draw_button.click, kind.change, count.release, seed.submit, blocks.load):
            redraws(answers.draw, [kind, count, seed], [cells, drawn, *chosen])
        cells.select(answers.picked, [drawn], chosen)
        for slider in sliders:
            slider.change(answers.move, [cell, *sliders], one, show_progress="hidden", trigger_mode="always_last")
        save_button.click(answers.save, drawn, files)
    return blocks


def look_tab(gr: Any, answers: Answers, small: dict[str, Any], alone: dict[str, Any]) -> None:
    """Where a picture of one's own is looked at."""
    names, judge = answers.names, answers.explorer.judge
    guess = ["the judge's guess"] if judge is not None and len(names) > 1 else []
    with gr.Row():
        upload = gr.File(label="A picture (PNG, JPEG)", type="filepath", elem_id="upload", height=120)
        truth = gr.Dropdown([*guess, *names], value=[*guess, *names][0], label="Its class", elem_id="truth")
    look_button = gr.Button("Look at it", variant="primary", elem_id="look")
    verdict = gr.Markdown(elem_id="verdict")
    back = gr.Image(label="Image and reconstruction", elem_id="back", **alone)
    near = gr.Gallery(label="Variations of it", elem_id="near", **small)
    code = gr.Image(label="Means of its latents: black -3, grey 0, white 3", elem_id="code", **alone)
    look_button.click(answers.look, [upload, truth], [back, near, code, verdict])


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
    judge: Classifier | None = None,
    *,
    data: Any = None,
    port: int | None = None,
    title: str = "condgen",
    inbrowser: bool = False,
    block: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> Any:
    """Serve the page on this machine alone (127.0.0.1), until it is stopped. Nothing is fetched from elsewhere.

    Args:
        model: as for :class:`~condgen.apps.explorer.Explorer`.
        judge: as for :class:`~condgen.apps.explorer.Explorer`.
        data: as for :class:`~condgen.apps.explorer.Explorer`.
        port: of the page; by default the first free one from 7860 on.
        title: of the page.
        inbrowser: open it in a browser.
        block: until Ctrl-C; False returns at once, and `close()` of what is returned ends it.
        say: called with the page's address.

    Raises:
        ImportError: if gradio is not installed.
        ValueError: as :class:`~condgen.apps.explorer.Explorer`.
        OSError: if the port is taken.

    Example:
        >>> # explore(condgen.load("bloodmnist"), inbrowser=True)
    """
    blocks = page(Explorer(model, judge, data), title)
    fonts = {name: ["system-ui", "sans-serif"] for name in ("font",)} | {"font_mono": ["monospace"]}
    theme = gradio().themes.Default(**fonts)
    options = {"server_name": HOST, "share": False, "quiet": True, "ssr_mode": False, "inbrowser": inbrowser}
    blocks.launch(server_port=port, theme=theme, css=STYLE, prevent_thread_lock=True, footer_links=[], **options)
    say(f"Open {blocks.local_url} (Ctrl-C ends it).")
    if block:
        blocks.block_thread()
    return blocks
