"""Settings of augmentation, declared once; nothing here imports torch."""

__all__ = ["AugmentationSettings"]

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class AugmentationSettings:
    """How training images are changed: each change up to a strength, and 0 leaves it out.

    Args:
        flips: mirror half of the images from left to right.
        quarter_turns: turn by 0, 90, 180 or 270 degrees (by 0 or 180 where images are not square).
        rotation: rotate by up to so many degrees either way, edges repeated.
        shift: shift by up to this share of height and width either way, by whole pixels, edges repeated.
        colour: multiply brightness, contrast and saturation each by a factor within 1 ± this.
        erasing: set a square to the image's mean colour; its side is up to this share of the image's.
        blur: mix with a blurred copy (5x5 binomial), up to this share.
        sharpen: mix with a blurred copy with the opposite sign, up to this share.

    Raises:
        ValueError: for a negative strength, or a share above 1.

    Example:
        >>> AugmentationSettings(flips=True).rotation
        0.0
    """

    flips: bool = False
    quarter_turns: bool = False
    rotation: float = 0.0
    shift: float = 0.0
    colour: float = 0.0
    erasing: float = 0.0
    blur: float = 0.0
    sharpen: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, most = float(getattr(self, entry.name)), 180.0 if entry.name == "rotation" else 1.0
            if not 0 <= value <= most:
                raise ValueError(f"Expected {entry.name} from 0 to {most:g}; got {value:g}.")
