"""Where models are found: in the folder of a run, or under the name of one that comes with condgen.

Nothing here imports torch.
"""

__all__ = ["SHIPPED", "WEIGHTS", "shipped", "weights_file"]

from pathlib import Path

WEIGHTS = "model.safetensors"
SHIPPED = Path(__file__).parents[1] / "models" / "weights"  # models that come with the package


def shipped() -> list[str]:
    """The names of the models that come with condgen, for :func:`condgen.load`.

    Example:
        >>> "bloodmnist" in shipped()
        True
    """
    return sorted(file.parent.name for file in SHIPPED.glob(f"*/{WEIGHTS}"))


def weights_file(path: str | Path) -> Path:
    """The file of a model: in a folder, the file itself, or that of a shipped model if there is no such folder.

    Raises:
        FileNotFoundError: if there is none.

    Example:
        >>> weights_file("/no/such/run")
        Traceback (most recent call last):
            ...
        FileNotFoundError: No model in /no/such/run: expected the file model.safetensors there. Check the path...
    """
    weights = Path(path) / WEIGHTS
    if Path(path).is_file() and Path(path).suffix == ".safetensors":
        return Path(path)
    if str(path) in shipped() and not Path(path).exists():
        weights = SHIPPED / str(path) / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"No model in {weights.parent}: expected the file {WEIGHTS} there. Check the path.")
    return weights
