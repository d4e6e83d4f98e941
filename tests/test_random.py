"""Noise: the published generator, one row for every index whatever the batch, and normal numbers that are normal."""

import math
import re
from random import Random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from condgen.random import Use, normal, normals, permutation, philox, stream, uniform, words

SEEDS = st.integers(0, 2**64 - 1)
INDICES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8)


def python_philox(counter, key):
    """Philox-4x32-10 as in the paper (Salmon et al., 2011, section 3.3), in Python's unbounded integers."""
    x, k = list(counter), list(key)
    for _ in range(10):
        (high0, low0), (high1, low1) = divmod(0xD2511F53 * x[0], 2**32), divmod(0xCD9E8D57 * x[2], 2**32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


@pytest.mark.parametrize(
    ("counter", "key", "expected"),  # kat_vectors of the authors' Random123 library
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    k0, k1 = (int(word, 16) for word in key.split())
    result = philox([torch.tensor([int(word, 16)]) for word in counter.split()], (k0, k1))
    assert " ".join(f"{int(word):08x}" for word in result) == expected


@given(SEEDS, st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), st.integers(1, 9))
@settings(deadline=None, max_examples=50)
def test_words_are_philox_of_block_index_and_stream(seed, index, number, count):
    result = words(seed, torch.tensor([index]), number, count)[0].tolist()
    high, low = divmod(index, 2**32)
    key = (seed % 2**32, seed >> 32)
    blocks = [word for b in range(3) for word in python_philox((b, low, high, number), key)]
    assert result == blocks[:count]


def test_uniform_is_the_middle_of_the_word_s_cell():
    word = words(7, torch.tensor([5]), 3, 1).item()
    assert uniform(7, torch.tensor([5]), 3, (1,)).item() == (word + 0.5) / 2**32


def test_normal_is_box_muller_of_two_uniforms():
    index = torch.tensor([3, 2**40])
    u = uniform(11, index, 9, (2, 2)).tolist()
    expected = [
        [f(2 * math.pi * v) * math.sqrt(-2 * math.log(w)) for w, v in row for f in (math.cos, math.sin)] for row in u
    ]
    torch.testing.assert_close(
        normal(11, index, 9, (4,), torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14
    )


@given(SEEDS, INDICES, st.randoms(use_true_random=False))
@example(2**64 - 1, [2**32 - 1, 2**32, 2**33, 2**63 - 1], Random(0))
@settings(deadline=None, max_examples=50)
def test_a_row_depends_on_its_index_alone(seed, indices, random):
    """Whole batch, shuffled batch and single rows give the same bits."""
    whole = normal(seed, torch.tensor(indices), 1, (3, 5))
    order = random.sample(range(len(indices)), len(indices))
    assert torch.equal(normal(seed, torch.tensor(indices)[order], 1, (3, 5)), whole[order])
    for row, index in zip(whole, indices, strict=True):
        assert torch.equal(normal(seed, torch.tensor([index]), 1, (3, 5))[0], row)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 5)])
def test_every_shape_is_kept(shape):
    for draw in (uniform, normal):
        assert draw(0, torch.arange(2), 0, shape).shape == (2, *shape)
        assert draw(0, torch.arange(0), 0, shape).shape == (0, *shape)


def test_a_shape_only_arranges_the_numbers():
    index = torch.arange(4)
    assert torch.equal(normal(0, index, 0, (2, 3, 5)), normal(0, index, 0, (30,)).view(4, 2, 3, 5))


VARIANTS = {
    "seed": (1, 0, 0),
    "seed's upper word": (2**32, 0, 0),
    "index": (0, 1, 0),
    "index's upper word": (0, 2**32, 0),
    "stream": (0, 0, 1),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_everything_a_number_is_keyed_by_changes_all_of_them(variant):
    seed, index, number = variant
    first, second = words(0, torch.tensor([0]), 0, 64), words(seed, torch.tensor([index]), number, 64)
    assert len({*first[0].tolist(), *second[0].tolist()}) == 128  # 2e-6 chance of a coincidence, at a fixed seed


@given(st.sampled_from(Use), st.integers(0, 2**20 - 1), st.integers(0, 255))
@example(Use.DATA, 2**20 - 1, 255)
@settings(deadline=None)
def test_no_two_uses_share_a_stream(use, step, level):
    """Use, step and level can be read back from 4, 20 and 8 bits of the number."""
    number = stream(use, step, level)
    assert (number >> 28, number >> 8 & 0xFFFFF, number & 0xFF) == (use, step, level)


def test_uses_have_the_numbers_that_they_had():
    """Saved seeds, runs and provenance tables rely on them: a new use is added at the end."""
    names = "ORDER TRAINING VALIDATION SAMPLING POSTERIOR DEQUANTIZATION DATA AUGMENTATION VARIATION DISTILLATION"
    assert [(use.name, use.value) for use in Use] == [(name, k) for k, name in enumerate(names.split())]


@pytest.mark.parametrize(("step", "level"), [(-1, 0), (2**20, 0), (0, -1), (0, 256)])
def test_a_stream_out_of_range_is_refused(step, level):
    got = re.escape(f"Expected step in [0, 1048576) and level in [0, 256); got {step} and {level}.")
    with pytest.raises(ValueError, match=got):
        stream(Use.TRAINING, step, level)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed in \[0, 2\*\*64\); got {seed}. Pass a non-negative integer"):
        normal(seed, torch.arange(1), 0, (1,))


N = 2**18
MANY = normal(2024, torch.arange(N // 16), stream(Use.TRAINING), (16,), torch.float64)


@pytest.mark.parametrize(
    ("power", "moment", "variance"),  # of N(0, 1): E x^k, and E x^2k - (E x^k)^2
    [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)],
)
def test_moments_are_those_of_the_standard_normal(power, moment, variance):
    assert abs(MANY.pow(power).mean().item() - moment) < 4 * math.sqrt(variance / N)


@pytest.mark.parametrize("half", ["cosine", "sine"])
def test_kolmogorov_smirnov_against_the_normal_distribution(half):
    x = MANY.view(-1, 2)[:, int(half == "sine")].sort().values
    n, steps = len(x), torch.arange(len(x) + 1, dtype=torch.float64) / len(x)
    cdf = torch.special.ndtr(x)
    distance = torch.maximum((steps[1:] - cdf).max(), (cdf - steps[:-1]).max()).item()
    # Kolmogorov's bound: P(D > d) < 2 exp(-2 n d^2) (Massart, 1990), here at one in ten thousand.
    assert distance < math.sqrt(math.log(2 / 1e-4) / (2 * n))


@pytest.mark.parametrize("shift", ["latent", "pair", "index", "stream", "seed"])
def test_neighbours_are_uncorrelated(shift):
    """Products and products of squares: the cosine and sine of a pair share a radius, which squares would show."""
    index = torch.arange(N // 16)
    other = {
        "latent": MANY.roll(1, dims=1),
        "pair": MANY.view(-1, 8, 2).flip(2).reshape(-1, 16),
        "index": normal(2024, index + 1, stream(Use.TRAINING), (16,), torch.float64),
        "stream": normal(2024, index, stream(Use.TRAINING, step=1), (16,), torch.float64),
        "seed": normal(2025, index, stream(Use.TRAINING), (16,), torch.float64),
    }[shift]
    count = N / 2 if shift == "pair" else N  # every pair counts twice
    assert abs((MANY * other).mean().item()) < 4 / math.sqrt(count)
    squares = (MANY.square() - 1) * (other.square() - 1)
    assert abs(squares.mean().item()) < 4 * 2 / math.sqrt(count)


def test_uniform_fills_the_interval_evenly():
    counts = torch.histc(uniform(5, torch.arange(N // 16), 0, (16,)), bins=256, min=0, max=1)
    chi2 = ((counts - N / 256).square() / (N / 256)).sum().item()
    assert abs(chi2 - 255) < 4 * math.sqrt(2 * 255)  # mean and variance of chi-squared with 255 degrees of freedom


@given(st.integers(1, 300), SEEDS, st.integers(0, 2**20 - 1))
@settings(deadline=None, max_examples=30)
def test_a_permutation_is_one_and_repeats(n, seed, epoch):
    order = permutation(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, permutation(n, seed, epoch))


def test_a_permutation_sorts_the_words_of_its_stream():
    pairs = words(5, torch.arange(200), stream(Use.ORDER, 3), 2).tolist()
    assert permutation(200, seed=5, epoch=3).tolist() == sorted(range(200), key=pairs.__getitem__)


def test_every_epoch_and_seed_has_its_own_order():
    orders = {tuple(permutation(50, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_order_is_equally_likely():
    orders = [tuple(permutation(3, seed=0, epoch=epoch).tolist()) for epoch in range(3000)]
    counts = torch.tensor([orders.count(order) for order in sorted(set(orders))]).double()
    assert len(counts) == 6
    assert ((counts - 500).square() / 500).sum() < 5 + 4 * math.sqrt(2 * 5)  # chi-squared, 5 degrees of freedom


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    normal(0, torch.arange(3), 0, (4,))
    uniform(0, torch.arange(3), 0, (4,))
    permutation(9, 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_names_have_levels_of_their_own():
    noise = normals({"z": (4,), "label": ()}, 3, torch.arange(5), Use.TRAINING, step=2)
    assert torch.equal(noise["z"], normal(3, torch.arange(5), stream(Use.TRAINING, 2, 0), (4,)))
    assert torch.equal(noise["label"], normal(3, torch.arange(5), stream(Use.TRAINING, 2, 1), ()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_comes_in_the_precision_asked_for(dtype):
    noise = normals({"z": (4,)}, 0, torch.arange(2), Use.SAMPLING, dtype=dtype)["z"]
    assert noise.dtype == dtype
    assert torch.equal(noise, normal(0, torch.arange(2), stream(Use.SAMPLING), (4,), torch.float64).to(dtype))
