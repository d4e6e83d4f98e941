"""Demo: train on built-in images and say what to do next."""

__all__ = ["demo"]

from pathlib import Path

from condgen.cli.shared import say
from condgen.cli.train import train


def demo(out: Path = Path("runs/demo"), epochs: int | None = None, images: int = 6000, seed: int = 0) -> None:
    """Train on built-in blood smears, sample every class, and say what to do next: offline, in under three minutes.

    Args:
        out: folder for the run.
        epochs: passes over the images; by default the recipe's.
        images: number of images to draw.
        seed: of images, weights, order and noise.
    """
    given = {"seed": seed, **({} if epochs is None else {"epochs": epochs})}
    train(data="smears", recipe="smears_demo", out=out, images=images, overwrite=True, given=given)
    say(f"\nLook at {out / 'samples.png'}: ten new cells of every class.")
    say(f"Next:  condgen sample {out} --per-class 20 --out cells.png")
    say("Then your own images, one subfolder per class:  condgen train --data FOLDER --out runs/mine")
