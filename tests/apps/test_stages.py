"""Stages of recipes: parts that add up, and a part that is known to take the time."""

import time

import pytest

import condgen
from condgen.apps.stages import stage_times
from condgen.cli import main
from condgen.recipes import RECIPES

SMALL = RECIPES["sharp"].changed(batch_size=8, components=1)


def slow(x, *_):
    time.sleep(0.1)
    return x


@pytest.mark.slow
def test_stages_of_sharp():
    found = list(stage_times(SMALL, condgen.load_smears(160, size=16), steps=1))
    assert [stage.stage for stage in found] == [
        "autoencoder",
        "with its discriminator",
        "prior",
        "distillation",
        "sampling",
    ]
    for stage in found[:-1]:
        assert sum(stage.shares.values()) == pytest.approx(1)
        assert min(stage.shares.values()) >= 0
        assert stage.shares["backward"] > stage.shares["optimizer"]
        assert 0 < stage.of_layers <= 1
    assert found[2].shares["augmentation"] == 0  # latents are turned once, before
    assert set(found[-1].shares) == {"noise", "prior", "decoder", "rest"}


def test_a_slow_augmentation_is_told():
    """A pause of a tenth of a second a step, beside steps of milliseconds."""
    model = condgen.conditional_vae((3, 16, 16), 8, latent=4, width=4)
    recipe = RECIPES["default"].changed(batch_size=8, augment=slow)
    training, _ = stage_times(recipe, condgen.load_smears(40, size=16), model=model, steps=3)
    assert training.stage == "autoencoder"
    assert training.shares["augmentation"] > 0.5
    assert training.rate < 8 / 0.1


@pytest.mark.slow
def test_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "stages"
    main(["benchmark", "--recipe", "gan", "--precisions", "[float32]", "--data", "smears", "--out", str(out)])
    assert "training" in capsys.readouterr().out
    assert "## float32" in out.with_suffix(".md").read_text()


def test_a_recipe_that_is_none(capsys):
    assert main(["benchmark", "--recipe", "none"])
    assert "Expected a recipe, one of default" in capsys.readouterr().err
