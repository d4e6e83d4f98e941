"""Augmentations: each image by numbers of its own, and each kind does what it says."""

import pytest
import torch
import torch.nn.functional as F

from condgen.data.augmentation import Augmentation, coloured, erased, moved, refocused, symmetries, turned

KINDS = {
    "flips": True,
    "quarter_turns": True,
    "rotation": 30.0,
    "shift": 0.2,
    "colour": 0.3,
    "erasing": 0.5,
    "blur": 1.0,
    "sharpen": 1.0,
}


def images(n=6, shape=(3, 12, 12)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 8, 13)], ids=["square", "grey and wide"])
class TestEachKind:
    def test_it_changes_images_within_the_range(self, kind, shape):
        x = images(32, shape)
        changed = Augmentation(**{kind: KINDS[kind]})(x, 0, torch.arange(32), 0)
        assert changed.shape == x.shape
        assert 0 <= changed.min() <= changed.max() <= 1
        if not (kind == "colour" and shape[0] == 1):
            assert not torch.equal(changed, x)

    def test_an_image_does_not_depend_on_its_batch(self, kind, shape):
        x, augmentation = images(8, shape), Augmentation(**{kind: KINDS[kind]})
        whole = augmentation(x, 3, torch.arange(8), 5)
        torch.testing.assert_close(whole[2:5], augmentation(x[2:5], 3, torch.arange(2, 5), 5))

    def test_seed_and_epoch_count(self, kind, shape):
        x, augmentation = images(32, shape), Augmentation(**{kind: KINDS[kind]})
        first = augmentation(x, 0, torch.arange(32), 0)
        assert torch.equal(first, augmentation(x, 0, torch.arange(32), 0))
        assert not torch.equal(first, augmentation(x, 1, torch.arange(32), 0))
        assert not torch.equal(first, augmentation(x, 0, torch.arange(32), 1))


def test_nothing_asked_for_changes_nothing():
    x = images()
    assert Augmentation()(x, 0, torch.arange(6), 0) is x


def test_flips_and_turns_are_all_symmetries():
    x = images(1).expand(400, -1, -1, -1)
    changed = Augmentation(flips=True, quarter_turns=True)(x, 0, torch.arange(400), 0)
    expected = {turned(x[:1], torch.tensor([code])).numpy().tobytes() for code in range(8)}
    counts = [sum(image[None].numpy().tobytes() == own for image in changed) for own in expected]
    assert len(expected) == symmetries(12, 12) == 8
    assert sum(counts) == 400
    assert min(counts) > 25  # 50 expected


def test_quarter_turns_by_rotation():
    """Two routes to one image: a rotation by 90 degrees samples every pixel from its place."""
    x = images(1)
    angle = torch.tensor([torch.pi / 2])
    torch.testing.assert_close(moved(x, angle, torch.zeros(1, 2)), x.rot90(1, (2, 3)), atol=1e-4, rtol=0)


def test_a_shift_of_whole_pixels_is_a_roll():
    x = images(1)
    shifted = moved(x, torch.zeros(1), torch.tensor([[2 * 3 / 12, 0.0]]))
    torch.testing.assert_close(shifted[..., :-3], x[..., 3:], atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[..., -1], x[..., -1], atol=1e-5, rtol=0)


def test_shifts_blend_no_pixels():
    """Of every shifted image it can be said by how many: up to the share asked for, either way, edges repeated."""
    x = images(1)[..., :8]
    changed = Augmentation(shift=0.25)(x.expand(2000, -1, -1, -1), 0, torch.arange(2000), 0)
    padded, down, right = F.pad(x, (2, 2, 3, 3), mode="replicate"), range(7), range(5)
    crops = torch.stack([padded[0, :, i : i + 12, j : j + 8] for i in down for j in right])
    distances = (changed[:, None] - crops).abs().amax((2, 3, 4))
    assert distances.min(1).values.max() < 1e-5
    assert set(distances.argmin(1).tolist()) == set(range(len(crops)))


def test_colour_factors():
    x = 0.4 + 0.2 * images(1)
    torch.testing.assert_close(coloured(x, torch.tensor([[1.2, 1.0, 1.0]])), 1.2 * x)
    flat = coloured(x, torch.tensor([[1.0, 0.0, 1.0]]))
    torch.testing.assert_close(flat, x.mean().expand_as(x))
    grey = coloured(x, torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_blur_takes_detail_away_and_sharpening_adds_it():
    x = 0.3 + 0.4 * images(1)

    def detail(image):
        return image.diff(dim=3).square().mean()

    assert detail(refocused(x, torch.tensor([1.0]))) < detail(x) < detail(refocused(x, torch.tensor([-0.5])))
    torch.testing.assert_close(refocused(torch.full((1, 1, 8, 8), 0.3), torch.tensor([1.0])).mean(), torch.tensor(0.3))


def test_a_square_is_erased():
    x = images(2)
    found = erased(x, torch.tensor([0.5, 0.0]), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    mean = x[0].mean((1, 2))
    torch.testing.assert_close(found[0, :, :6, 6:], mean[:, None, None].expand(3, 6, 6))
    assert torch.equal(found[0, :, 6:], x[0, :, 6:])
    assert torch.equal(found[0, :, :, :6], x[0, :, :, :6])
    assert torch.equal(found[1], x[1])


@pytest.mark.parametrize("options", [{"shift": -0.1}, {"rotation": 200.0}, {"blur": 1.5}])
def test_strengths_out_of_range(options):
    with pytest.raises(ValueError, match=f"Expected {next(iter(options))} from 0 to"):
        Augmentation(**options)
