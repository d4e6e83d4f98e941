"""The main job from outside: a user's script, a user's own networks, and the reference on real data."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import condgen
from condgen.distributions.likelihoods import Bernoulli
from condgen.distributions.priors.standard import StandardNormal
from condgen.distributions.reparameterizers import Gaussian
from condgen.nn.conditioners import OneHot
from condgen.nn.layers import Concatenate
from condgen.training.optimizers import adam

TRAIN = """
import sys
import numpy as np
import condgen

folder = sys.argv[1]
smears = condgen.load_smears(300, size=16)
model = condgen.conditional_vae(smears.image_shape, smears.num_classes, latent=8, width=8)
history = condgen.fit(model, smears, epochs=4, batch_size=32, out=f"{folder}/run", progress=False)
assert history["validation_elbo"][-1] > history["validation_elbo"][0]

images = model.sample(["neutrophil"] * 70 + ["platelet"] * 30, seed=0)
assert images.shape == (100, 3, 16, 16)
assert 0 <= images.min() and images.max() <= 1
np.save(f"{folder}/images.npy", images.numpy())
condgen.save(model, f"{folder}/cells")
"""

RELOAD = """
import sys
import numpy as np
import condgen

folder = sys.argv[1]
model = condgen.load(f"{folder}/cells")
images = model.sample(["neutrophil"] * 70 + ["platelet"] * 30, seed=0)
assert np.array_equal(images.numpy(), np.load(f"{folder}/images.npy"))
assert np.array_equal(images[65:75].numpy(), model.sample([6] * 5 + [7] * 5, seed=0, start=65).numpy())
"""


@pytest.mark.slow
def test_a_users_script_trains_samples_saves_and_reloads(tmp_path):
    """Each script in a process of its own, warnings being errors."""
    source = str(Path(importlib.util.find_spec("condgen").origin).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
    for number, script in enumerate((TRAIN, RELOAD)):
        file = tmp_path / f"script{number}.py"
        file.write_text(script)
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning:condgen", str(file), str(tmp_path)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""


class Encoder(nn.Module):
    """A user's own, written without a word of condgen."""

    def __init__(self):
        super().__init__()
        self.image, self.label = nn.Linear(3 * 16 * 16, 32), nn.Linear(8, 32)
        self.out = nn.Linear(32, 2 * 6)

    def forward(self, x, c):
        return self.out(torch.tanh(self.image(x.flatten(1)) + self.label(c)))


class Decoder(nn.Module):
    """A user's own; `deaf` to the label if asked."""

    def __init__(self, deaf=False):
        super().__init__()
        self.latent, self.label = nn.Linear(6, 32), nn.Linear(8, 32)
        self.out, self.deaf = nn.Linear(32, 3 * 16 * 16), deaf

    def forward(self, z, c):
        h = self.latent(z) + (0 if self.deaf else self.label(c))
        return self.out(torch.tanh(h)).unflatten(1, (3, 16, 16))


def plain_encoder():
    return Concatenate(
        nn.Sequential(nn.Conv2d(3 + 8, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 2 * 6))
    )


def plain_decoder():
    first = nn.Sequential(nn.Linear(6 + 8, 8 * 64), nn.ReLU(), nn.Unflatten(1, (8, 8, 8)))
    return Concatenate(nn.Sequential(first, nn.Upsample(scale_factor=2), nn.Conv2d(8, 3, 1)))


def assembled(encoder, decoder):
    return condgen.ConditionalVAE(
        conditioner=OneHot(8),
        encoder=encoder,
        reparameterizer=Gaussian(),
        prior=StandardNormal(6),
        decoder=decoder,
        likelihood=Bernoulli(),
        image_shape=(3, 16, 16),
    )


@pytest.fixture(scope="module")
def smears():
    return condgen.load_smears(120, size=16, balance="equal")


@pytest.mark.filterwarnings("ignore:The code of")
@pytest.mark.parametrize("encoder", [Encoder, plain_encoder])
@pytest.mark.parametrize("decoder", [Decoder, plain_decoder])
def test_own_networks_are_assembled_trained_and_reloaded(encoder, decoder, smears, tmp_path):
    torch.manual_seed(0)
    model = assembled(encoder(), decoder())
    history = condgen.fit(model, smears, epochs=3, batch_size=16, optimizer=partial(adam, lr=1e-2), progress=False)
    assert history["train_elbo"][-1] > history["train_elbo"][0]
    own = {"encoder": Encoder, "decoder": Decoder}
    parts = {name: make() for name, make in own.items() if isinstance(getattr(model, name), make)}
    again = condgen.load(condgen.save(model, tmp_path), parts=parts)
    y = list(smears.class_names) * 2
    assert torch.equal(again.sample(y, seed=1), model.sample(y, seed=1))
    x = smears.images[:5]
    assert torch.equal(again.reconstruct(x, smears.labels[:5]), model.reconstruct(x, smears.labels[:5]))


def label_matters(model):
    """Whether the same noise under other labels gives other images; what a user may ask of any model."""
    latent = torch.randn(1, 6, generator=torch.Generator().manual_seed(0)).expand(8, 6)
    images = model.decode(latent, torch.arange(8)).mean
    return bool((images - images[:1]).abs().flatten(1).amax(1)[1:].min() > 1e-3)


def test_a_decoder_that_is_deaf_to_the_label_is_caught(smears):
    torch.manual_seed(0)
    for decoder, matters in ((Decoder(), True), (plain_decoder(), True), (Decoder(deaf=True), False)):
        model = assembled(Encoder(), decoder)
        condgen.fit(model, smears, epochs=1, batch_size=32, progress=False)
        assert label_matters(model) is matters


def test_a_decoder_of_another_size_says_what_to_do():
    model = assembled(Encoder(), Concatenate(nn.Sequential(nn.Linear(6 + 8, 48), nn.Unflatten(1, (3, 4, 4)))))
    with pytest.raises(ValueError, match=r"decoder output of shape \(batch, 3, 16, 16\).*got \(8, 3, 4, 4\)\. Change"):
        model.sample([0])


def test_every_class_is_drawn_as_often_as_asked(smears):
    """Exact counts are the point of conditional sampling."""
    torch.manual_seed(0)
    model = condgen.conditional_vae(smears.image_shape, smears.num_classes, latent=4, width=4)
    counts = [3, 0, 70, 1, 0, 5, 2, 64]
    y = np.repeat(np.arange(8), counts)
    images = model.sample(y, seed=0)
    assert images.shape == (sum(counts), 3, 16, 16)
    for k in (0, 2, 3, 72, 73, 80, len(y) - 1):
        assert torch.equal(images[k : k + 1], model.sample([y[k]], seed=0, start=k))


DATA = os.environ.get("CONDGEN_DATA")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is not the official file:UserWarning")  # another split is as good here
@pytest.mark.skipif(
    not DATA or not Path(DATA, "bloodmnist.npz").is_file(),
    reason="needs bloodmnist.npz in the folder that the environment variable CONDGEN_DATA names",
)
def test_the_reference_learns_bloodmnist(tmp_path):
    blood = condgen.load_medmnist("bloodmnist", root=DATA, download=False)
    torch.manual_seed(0)
    model = condgen.recipes.bloodmnist_reference()
    history = condgen.fit(model, blood, epochs=2, out=tmp_path, progress=False)
    assert history["validation_elbo"][1] > history["validation_elbo"][0]
    assert history["validation_label_log_likelihood"][1] > history["validation_label_log_likelihood"][0]
    assert condgen.load(tmp_path).sample([6] * 4).shape == (4, 3, 28, 28)


def test_the_readmes_ten_lines_run(tmp_path, monkeypatch):
    """As written, but with fewer images and epochs."""
    readme = Path(__file__).parents[1] / "README.md"
    code = re.search(r"## Ten lines\n+```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    lines = code[1].replace("6000", "100").replace("epochs=20", "epochs=1, progress=False")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(lines, names)
    assert torch.equal(names["one"], names["images"][63:])
    assert torch.equal(names["model"].sample([6] * 64), names["images"])
