import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from condgen.data.images import LabelledImages
from condgen.data.smears import check_arguments, load_smears

NAMES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
# Training images of BloodMNIST, from the MedMNIST v2 release.
BLOOD = np.array([852, 2181, 1085, 2026, 849, 993, 2330, 1643])
SHARES = {"blood": BLOOD / BLOOD.sum(), "equal": np.full(8, 1 / 8)}


@pytest.fixture(scope="module")
def smears() -> LabelledImages:
    return load_smears(2000, balance="equal")


def purple(smears):
    """How much bluer than green a pixel is: stained cells are, background and single red cells are not."""
    return np.clip(smears.images[:, 2].astype(float) - smears.images[:, 1] - 30, 0, None)


def from_centre(smears):
    """Horizontal and vertical distance of every pixel from the centre of its cell, in image widths."""
    size = smears.image_shape[-1]
    axis = (np.arange(size) + 0.5) / size - 0.5
    x, y = (smears.factors[name][:, None, None] for name in ("x", "y"))
    return axis - x, axis[:, None] - y


def members(smears, name):
    return smears.subset(smears.labels == NAMES.index(name))


def correlation(a, b):
    return np.corrcoef(a, b)[0, 1]


def test_set_is_complete(smears):
    assert smears.name == "smears"
    assert smears.class_names == NAMES
    assert smears.image_shape == (3, 28, 28)
    assert {column.shape for column in smears.factors.values()} == {(2000,)}
    assert {column.dtype for column in smears.factors.values()} == {np.dtype(np.float32)}


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 120),
    k=st.integers(1, 120),
    size=st.sampled_from([16, 28, 61, 256]),
    seed=st.integers(0, 2**64 - 1),
)
@pytest.mark.slow
def test_longer_set_begins_with_the_shorter(n, k, size, seed):
    n, k = (1 + count % 3 if size == 256 else count for count in (n, k))
    long, short = load_smears(max(n, k), size, seed), load_smears(min(n, k), size, seed)
    count = len(short)
    assert np.array_equal(long.images[:count], short.images)
    assert np.array_equal(long.labels[:count], short.labels)
    for name, column in short.factors.items():
        assert np.array_equal(long.factors[name][:count], column)


def test_number_of_threads_changes_nothing():
    threads = torch.get_num_threads()
    try:
        sets = []
        for count in (1, 2):
            torch.set_num_threads(count)
            sets.append(load_smears(100, seed=3).images)
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*sets)


@pytest.mark.parametrize("size", [16, 28, 64])
def test_another_size_is_the_same_scene(size):
    small, large = load_smears(64, size, balance="equal"), load_smears(64, 2 * size, balance="equal")
    halved = large.images.reshape(64, 3, size, 2, size, 2).mean((3, 5))
    difference = np.abs(small.images - halved)
    # Another scene differs by 36 grey levels; rounding alone makes half a level.
    assert difference.mean() < 2
    assert difference.max() < 50
    assert np.array_equal(small.labels, large.labels)
    for name, column in small.factors.items():
        assert np.array_equal(column, large.factors[name])


def test_seeds_give_different_images():
    a, b = load_smears(50, seed=0, balance="equal"), load_smears(50, seed=1, balance="equal")
    assert not (a.images == b.images).all((1, 2, 3)).any()
    assert abs(correlation(a.factors["turn"], b.factors["turn"])) < 0.5


def test_no_image_comes_twice(smears):
    assert len(np.unique(smears.images.reshape(2000, -1), axis=0)) == 2000


@pytest.mark.parametrize("balance", ["blood", "equal"])
@settings(max_examples=10, deadline=None)
@given(start=st.integers(0, 300), length=st.integers(8, 300), seed=st.integers(0, 1000))
def test_every_stretch_has_the_class_shares(balance, start, length, seed):
    labels = load_smears(start + length, 16, seed, balance).labels[start:]
    excess = np.bincount(labels, minlength=8) - length * SHARES[balance]
    assert np.abs(excess).max() < 2.5


def test_labels_do_not_foretell_the_factors(smears):
    # Neighbours in the golden-ratio sequence share classes; what else is drawn must not follow it.
    for name in ("x", "y", "turn", "stain", "hue", "brightness"):
        column = smears.factors[name]
        means = np.array([column[smears.labels == k].mean() for k in range(8)])
        standard_error = column.std() / np.sqrt(250)
        assert np.abs(means - column.mean()).max() < 4 * standard_error, name
        assert abs(correlation(column[1:], column[:-1])) < 4 / np.sqrt(2000), name


@pytest.mark.parametrize(("n", "sizes"), [(1000, (800, 100, 100)), (10, (8, 1, 1)), (19, (17, 1, 1))])
def test_splits_are_contiguous(n, sizes):
    smears = load_smears(n, 16)
    parts = [smears.train, smears.validation, smears.test]
    assert tuple(len(part) for part in parts) == sizes
    assert np.array_equal(np.concatenate([part.images for part in parts]), smears.images)


def test_few_images_have_no_splits():
    assert load_smears(9, 16).splits == {}


@pytest.mark.parametrize("name", ["basophil", "lymphocyte", "monocyte", "platelet"])
def test_radius_is_what_is_seen(smears, name):
    cells = members(smears, name)
    area = (purple(cells) > 0).mean((1, 2))
    assert correlation(area, cells.factors["cell_radius"] ** 2) > 0.8
    if name in ("basophil", "lymphocyte"):
        assert np.median(area / (np.pi * cells.factors["cell_radius"] ** 2)) == pytest.approx(1, abs=0.1)


def test_centre_is_where_the_cell_is(smears):
    cells = members(smears, "basophil")
    axis = (np.arange(28) + 0.5) / 28 - 0.5
    inked = purple(cells) * (np.hypot(axis, axis[:, None]) < 0.42)
    for name, place in (("x", axis), ("y", axis[:, None])):
        measured, drawn = (inked * place).sum((1, 2)) / inked.sum((1, 2)), cells.factors[name]
        assert correlation(measured, drawn) > 0.85, name
        assert np.polyfit(drawn, measured, 1)[0] == pytest.approx(1, abs=0.25), name


def test_turn_is_the_way_the_nucleus_points(smears):
    # The two lobes of an eosinophil lie across the axis that is turned.
    cells = members(smears, "eosinophil")
    dark = np.clip(130.0 - cells.images[:, 0], 0, None)
    x, y = from_centre(cells)
    angle = 0.5 * np.arctan2((2 * dark * x * y).sum((1, 2)), (dark * (x * x - y * y)).sum((1, 2)))
    assert np.cos(2 * (angle - cells.factors["turn"])).mean() < -0.7


def test_stain_and_brightness_are_what_is_seen(smears):
    usual = smears.subset(smears.factors["hue"] <= 1)
    brightest = np.percentile(usual.images[:, 1].reshape(len(usual), -1), 95, axis=1)
    assert correlation(brightest, usual.factors["brightness"]) > 0.9
    cells = members(usual, "lymphocyte")
    red, _, blue = cells.images[:, :, 11:17, 11:17].mean((2, 3)).T
    assert correlation(red, cells.factors["stain"]) < -0.6
    assert correlation(blue / red, cells.factors["hue"]) > 0.6


def test_bluish_slides_are_few_and_blue(smears):
    bluish = smears.factors["hue"] > 1
    assert 0.03 < bluish.mean() < 0.07  # 0.05, four standard errors of 0.005
    light = np.percentile(smears.images.reshape(2000, 3, -1), 90, axis=2)
    assert np.array_equal(light[:, 2] > light[:, 0], bluish)


def test_red_cells_are_what_is_seen(smears):
    cells = members(smears, "platelet")
    assert correlation(cells.images[:, 1].mean((1, 2)), cells.factors["red_cells"]) < -0.6


def test_lobes_are_those_of_the_kind(smears):
    lobes = {name: set(smears.factors["lobes"][smears.labels == k].tolist()) for k, name in enumerate(NAMES)}
    assert lobes["eosinophil"] == {2}
    assert lobes["erythroblast"] == lobes["lymphocyte"] == {1}
    assert lobes["neutrophil"] == {3, 4, 5}
    assert lobes["platelet"] == {0}


def test_kinds_look_their_part(smears):
    radius, redness, darkness = {}, {}, {}
    for name in NAMES:
        cells = members(smears, name)
        inside = np.hypot(*from_centre(cells)) < 0.75 * cells.factors["cell_radius"][:, None, None]
        red, green, blue = cells.images.transpose(1, 0, 2, 3)[:, inside].astype(float)
        radius[name] = cells.factors["cell_radius"].mean()
        redness[name], darkness[name] = (red - blue).mean(), -green.mean()
    assert radius["platelet"] < radius["erythroblast"] < radius["lymphocyte"] < radius["neutrophil"]
    assert max(radius, key=radius.get) == "monocyte"
    assert max(redness, key=redness.get) == "eosinophil"
    assert max(darkness, key=darkness.get) == "lymphocyte"
    assert min(darkness, key=darkness.get) == "neutrophil"


def test_edges_are_soft():
    # With hard edges an image of a lymphocyte would hold little but background, cell and nucleus.
    smears = load_smears(100, 128, balance="equal").images[:, 0].astype(int)
    assert np.abs(np.diff(smears, axis=2)).max() < 150


@pytest.mark.slow
def test_kinds_can_be_learnt():
    """A small network tells fresh images apart, far above the 12.5 % of chance."""
    torch.manual_seed(0)
    train, test = load_smears(1500, 16, balance="equal"), load_smears(400, 16, seed=1, balance="equal")
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 16, 8),
    )
    x, fresh = (torch.from_numpy(part.images) / 255 - 0.7 for part in (train, test))
    y = torch.from_numpy(train.labels)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(15):
        for index in torch.randperm(len(y)).split(50):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[index]), y[index]).backward()
            optimizer.step()
    accuracy = (network(fresh).argmax(1).numpy() == test.labels).mean()
    assert accuracy > 0.8


@pytest.mark.parametrize("size", [16, 256])
def test_smallest_and_largest(size):
    assert load_smears(2, size).image_shape == (3, size, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "Expected at least one image; got n=0"),
        ({"n": 5, "size": 15}, r"Expected a size in \[16, 256\]; got 15"),
        ({"n": 5, "size": 257}, r"Expected a size in \[16, 256\]; got 257"),
        ({"n": 5, "seed": -1}, "Expected a seed"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_smears(**arguments)


def test_refuses_unknown_balance():
    with pytest.raises(ValueError, match="Expected balance 'blood' or 'equal'; got 'uniform'"):
        check_arguments(5, 28, "uniform")
