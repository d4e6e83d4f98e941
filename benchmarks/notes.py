"""What the scripts here have in common: one result, kept with the machine and the command that gave it."""

import sys
from pathlib import Path

from condgen.apps.timing import machine


def keep(path: Path | None, title: str, result: str, device: str = "cpu") -> None:
    """Print a result, and write it to a `.md` file where one is named."""
    print(result)
    if path is not None:
        about = ", ".join(f"{key} {value}" for key, value in machine(device).items())
        command = f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}"
        path.with_suffix(".md").write_text(f"# {title}\n\n{about}.\n\n    {command.strip()}\n\n{result}\n")
