import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import condgen
from condgen.apps.explorer import REACH, Cell, Explorer, effect, opened, tiles
from condgen.evaluation.judge import train_judge
from condgen.sampling.grids import to_uint8


@pytest.fixture(scope="module")
def cells():
    return condgen.load_smears(120, size=16)


@pytest.fixture(scope="module")
def judge(cells):
    return train_judge(cells, epochs=2, width=4)


@pytest.fixture(params=["vector", "map"])
def explorer(request, cells):
    torch.manual_seed(0)
    latent = {"vector": 5, "map": (2, 4, 4)}[request.param]
    model = condgen.conditional_vae(cells.image_shape, 8, latent=latent, width=8)
    return Explorer(telling(model, cells))


def telling(model, cells):
    """With weights large enough that latents and labels matter."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.class_names = cells.class_names
    return model.eval()


@pytest.mark.parametrize("mixing", [0.0, 1.0])
def test_the_page_draws_the_models_samples(explorer, mixing):
    explorer.model.latent_mixing = mixing
    drawn = explorer.draw(3, 5, seed=7)
    of_model = to_uint8(explorer.model.sample([3] * 5, seed=7)).numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(drawn, of_model)
    for index in range(5):
        close(explorer.moved(Cell(3, 7, index), ()), drawn[index])


def close(a, b):
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 1  # blocks of another size


def test_a_cell_as_every_class_is_itself_as_its_own(explorer):
    cell = Cell(2, 0, 3)
    every = explorer.as_every_class(cell)
    assert every.shape == (8, 16, 16, 3)
    close(every[2], explorer.draw(2, 4)[3])
    assert not np.array_equal(every[2], every[5])
    anew = explorer.drawn_as_every_class(cell)
    for label in (2, 7):
        close(anew[label], explorer.draw(label, 4)[3])


def test_the_way_between_two_cells_ends_at_them(explorer):
    first, second = Cell(1, 0, 0), Cell(6, 5, 2)
    way = explorer.between(first, second, steps=5)
    close(way[0], explorer.draw(1, 1)[0])
    close(way[-1], explorer.draw(6, 3, seed=5)[2])
    assert len(way) == 5


def test_sliders_move_what_moves_the_picture_most(explorer):
    cell, still = Cell(0, 0, 0), explorer.moved(Cell(0, 0, 0), ())
    assert 1 < len(explorer.knobs) <= 6
    directions = torch.stack([direction.flatten() for _, direction in explorer.knobs])
    gram = directions @ directions.T
    assert torch.allclose(gram, gram.diag().diag(), atol=1e-4)  # none moves what another one does
    assert not np.array_equal(explorer.moved(cell, [2.0]), still)
    assert np.array_equal(explorer.moved(cell, [0.0] * len(explorer.knobs)), still)
    there = explorer.latent(cell) + 1.5 * explorer.knobs[1][1]
    by_hand = to_uint8(explorer.model.decode(there[None], torch.tensor([0])).mean.detach()).numpy()[0]
    close(explorer.moved(cell, [0.0, 1.5]), by_hand.transpose(1, 2, 0))


def test_sliders_of_a_vector_are_its_most_telling_latents(cells):
    model = condgen.conditional_vae(cells.image_shape, 8, latent=20, width=8)
    first = next(layer for layer in model.decoder.modules() if getattr(layer, "weight", None) is not None)
    with torch.no_grad():
        first.weight.zero_()
        for latent, strength in ((11, 9.0), (4, 3.0)):
            first.weight.select(1 if first.weight.shape[1] >= 20 else 0, latent).fill_(strength)
    names = [name for name, _ in Explorer(model.eval()).knobs]
    assert [name.split(":")[0] for name in names[:2]] == ["latent 11", "latent 4"]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (lambda x, a: x + 0.1 * a, ": lighter"),
        (lambda x, a: x - 0.1 * a, ": darker"),
        (lambda x, a: x + 0.1 * a * torch.tensor([1.0, -0.3, -1.0])[:, None, None], ": redder"),
        (lambda x, a: x + 0.1 * a * torch.tensor([-1.0, 0.3, 1.0])[:, None, None], ": bluer"),
        (lambda x, a: x + 0.05 * (a + 3) * torch.tensor([1.0, -1.0] * 8), ": more detail"),
        (lambda x, _: x, ""),
    ],
)
def test_a_direction_is_named_by_what_it_changes(changed, name):
    amounts, still = torch.linspace(-2, 2, 5), torch.full((4, 3, 16, 16), 0.5)
    assert effect(torch.stack([changed(still, a) for a in amounts], 1), amounts) == name


def test_a_direction_that_grows_the_cell():
    radius = torch.linspace(3, 7, 5)
    place = torch.arange(16) - 7.5
    far = (place[:, None] ** 2 + place**2).sqrt()
    images = torch.stack([torch.where(far < r, 0.2, 0.8).expand(3, 16, 16) for r in radius])[None]
    assert effect(images, torch.linspace(-2, 2, 5)) == ": larger"


def test_other_families_are_drawn_and_not_moved(cells):
    """What has no encoder or latents hides what it cannot do."""
    model = condgen.conditional_gan(cells.image_shape, 8)
    model.class_names = cells.class_names
    explorer = Explorer(model.eval())
    assert (explorer.moves, explorer.sees, explorer.knobs) == (False, False, ())
    anew = explorer.drawn_as_every_class(Cell(2, 5, 3))
    for label in (2, 7):
        close(anew[label], explorer.draw(label, 4, seed=5)[3])
    close(explorer.moved(Cell(2, 5, 3), ()), anew[2])
    with pytest.raises(ValueError, match="has no encoder"):
        explorer.look_at("any.png")


def test_an_image_comes_with_variations_and_the_nearest_training_image(explorer, cells, tmp_path):
    with_data = Explorer(explorer.model, data=cells.train.images)
    own = cells.train.images[7]
    Image.fromarray(own.transpose(1, 2, 0)).save(tmp_path / "cell.png")
    found = with_data.look_at(tmp_path / "cell.png", 4)
    assert np.array_equal(found.nearest, own.transpose(1, 2, 0))
    assert "The nearest training image is 0 grey levels away." in found.sentences
    again = condgen.vary(explorer.model, np.repeat(own[None], 8, 0), [4] * 8)
    close(found.variations, to_uint8(again).numpy().transpose(0, 2, 3, 1))
    assert explorer.look_at(tmp_path / "cell.png", 4).nearest is None
    with pytest.raises(ValueError, match="Expected training images of"):
        Explorer(explorer.model, data=np.zeros((1, 3, 8, 8), np.uint8))


def test_an_image_is_looked_at(explorer, cells, judge, tmp_path):
    judged = Explorer(explorer.model, judge)
    Image.fromarray(cells.images[0].transpose(1, 2, 0)).save(tmp_path / "cell.png")
    found = judged.look_at(tmp_path / "cell.png", 4)
    assert np.array_equal(found.image, cells.images[0].transpose(1, 2, 0))
    x = torch.as_tensor(cells.images[:1])
    close(found.reconstruction, to_uint8(explorer.model.reconstruct(x, [4])).numpy()[0].transpose(1, 2, 0))
    says = " ".join(found.sentences)
    guess = judge.class_names[int(judge.embed(x).probabilities[0].argmax())]
    assert f"The judge takes it for {guess}" in says
    assert f"as {cells.class_names[4]}" in says
    assert guess in judged.look_at(tmp_path / "cell.png").sentences[-1]  # the judge's guess stands in for a label


def test_pictures_of_any_size_and_kind_are_brought_to_the_models(tmp_path):
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(tmp_path / "wide.png")
    image, changed = opened(tmp_path / "wide.png", (1, 16, 16))
    assert image.shape == (16, 16, 1)
    assert changed == ("It was brought from 40x20 to 16x16 pixels.",)
    assert (image == 76).all()  # the luma of red
    image, changed = opened(tmp_path / "wide.png", (3, 20, 40))
    assert not changed
    assert (image == (255, 0, 0)).all()


def test_latents_are_shown_between_black_and_white():
    assert tiles(torch.tensor([-9.0, 0.0, REACH])).ravel().tolist() == [0, 128, 255]
    assert tiles(torch.zeros(4, 2, 3)).shape == (2, 12, 1)


def test_what_cannot_be_explored_is_refused(explorer, judge, tmp_path):
    (tmp_path / "cell.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"cell\.png is no picture that can be read"):
        explorer.look_at(tmp_path / "cell.png", 0)
    Image.new("L", (16, 16)).save(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="there is no judge to guess it"):
        explorer.look_at(tmp_path / "grey.png")
    with pytest.raises(ValueError, match="1 to 64 cells"):
        explorer.draw(0, 65)
    with pytest.raises(ValueError, match="judge of images of"):
        Explorer(condgen.conditional_vae((1, 8, 8), 2), judge)
    with pytest.raises(ValueError, match="ImageLess as it is built does not"):
        Explorer(type("ImageLess", (), {})())


def test_what_is_seen_is_saved(explorer, tmp_path):
    picture, file = explorer.save(tmp_path, 3, 4, seed=2)
    with Image.open(picture) as found:
        assert found.size[0] > 4 * 16
    with np.load(file) as again:
        assert np.array_equal(again["images"], explorer.draw(3, 4, seed=2))
        assert again["labels"].tolist() == [3] * 4


@pytest.fixture
def address(tmp_path, cells):
    """A page served by a process of its own, as the command does it."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    condgen.save(telling(condgen.conditional_vae(cells.image_shape, 8, latent=5, width=8), cells), tmp_path / "run")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "condgen",
        "explore",
        str(tmp_path / "run"),
        "--inbrowser",
        "false",
    ]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(600):
            said = (tmp_path / "log").read_text()
            if "Open http" in said or server.poll() is not None:
                break
            time.sleep(0.1)
        assert "Open http://127.0.0.1:" in said, said
        yield said.split("Open ")[1].split()[0]
    finally:
        server.terminate()
        server.wait()


def test_every_control_of_the_page_works(browser, address, tmp_path):
    view = browser.new_page(viewport={"width": 390, "height": 900})
    said, asked = [], []
    view.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(address)
    view.wait_for_selector("#cells img")

    def source(place):
        return view.locator(f"{place} img").first.get_attribute("src")

    def changes(place, act):
        before = source(place) if view.locator(f"{place} img").count() else None
        act()
        view.wait_for_function(
            "([place, before]) => { const i = document.querySelector(place + ' img'); return i && i.src != before; }",
            arg=[place, before],
        )

    def open_tab(name):
        if not view.get_by_role("tab", name=name).count():  # a phone has no room for all of them
            view.get_by_role("button", name="More tabs").click()
        view.locator(".tab-wrapper > :not([aria-hidden])").get_by_text(name, exact=True).click()

    assert view.evaluate("document.documentElement.scrollWidth") <= 390
    assert view.locator("#cells img").count() == 16
    view.locator("#class input").click()
    changes("#cells", view.get_by_role("option", name="monocyte").click)  # at once, without a button
    view.locator("#count input[type=number]").fill("5")
    view.locator("#seed input").fill("3")
    view.locator("#draw").click()
    view.wait_for_function("document.querySelectorAll('#cells img').length == 5")
    view.locator("#class input").focus()
    for _ in range(12):  # all of it is reached by the keyboard
        if view.evaluate("document.activeElement.id") == "draw":
            break
        view.keyboard.press("Tab")
    view.keyboard.press("Enter")
    assert view.evaluate("document.activeElement.id") == "draw"
    view.wait_for_timeout(300)
    changes("#moved", view.locator("#cells button.gallery-item, #cells button:has(img)").nth(2).click)
    assert "Cell 3 of class monocyte (sample 2 of seed 3)" in view.locator("#about").inner_text()
    for knob in range(5):
        slider = view.locator(f"#knob{knob} input[type=number]")
        changes("#moved", lambda own=slider: (own.fill("2.5"), own.press("Tab")))
    open_tab("Classes")
    view.wait_for_selector("#classes img")
    open_tab("Between")
    view.locator("#walk").click()
    assert "Take as first" in view.locator(".toast-body").first.inner_text()
    changes("#first_cell", view.locator("#first").click)
    changes("#second_cell", view.locator("#second").click)
    changes("#way", view.locator("#walk").click)
    assert view.locator("#way img").count() == 8
    open_tab("Image")
    Image.new("RGB", (30, 30), (200, 100, 150)).save(tmp_path / "own.png")
    (tmp_path / "bad.png").write_text("no picture")
    view.locator("#upload input[type=file]").set_input_files(tmp_path / "own.png")
    view.wait_for_selector("#upload :text('own')")
    changes("#back", view.locator("#look").click)
    assert "It was brought from 30x30 to 16x16 pixels." in view.locator("#verdict").inner_text()
    assert view.locator("#code img").count() == 1
    assert view.locator("#near img").count() == 8
    view.locator("#upload button[aria-label='Clear'], #upload button[aria-label='Remove this file']").first.click()
    view.locator("#upload input[type=file]").set_input_files(tmp_path / "bad.png")
    view.wait_for_selector("#upload :text('bad')")
    view.locator("#look").click()
    view.wait_for_selector(".toast-body :text('no picture that can be read')")
    view.locator("#seed input").fill("-3")
    view.locator("#draw").click()
    view.wait_for_selector(".toast-body :text('a seed of 0 or more; got 5 and -3')")
    view.locator("#save").click()
    view.wait_for_selector("#files a[href$='.npz']")
    assert view.locator("#files a[href$='.png']").count() == 1
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    view.close()


@pytest.mark.slow
def test_the_page_is_for_this_machine_alone(address):
    port = address.rstrip("/").rsplit(":", 1)[1]
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    here = f":{int(port):04X}"
    own = [words[1].removesuffix(here) for words in listening if words[1].endswith(here) and words[3] == "0A"]
    assert own == ["0100007F"]
