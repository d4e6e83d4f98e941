"""Parsing: what people type as the parser knows it, and what the parser says in sentences."""

__all__ = ["OPTIONS", "Parser", "bounded", "one_line", "spelled_out", "usage"]

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

OPTIONS: set[str] = set()  # names of all commands' options
SWITCHES = ("--quick", "--include_real", "--overwrite")  # may stand without a value, which is then true
LISTS = ("--labels", "--networks", "--widths", "--sizes", "--batches", "--precisions", "--modes", "--layouts")
LONGEST = 300  # characters of an error
BOUNDS = {
    **dict.fromkeys(("epochs", "batch_size", "images", "size", "latent", "width", "per_class", "count"), (1, 10**9)),
    **{"seed": (0, 2**64 - 1), "start": (0, 2**62), "learning_rate": (1e-9, 10), "temperature": (0, 100)},
    **dict.fromkeys(("beta", "warmup", "free_bits", "adversarial", "matching", "guidance"), (0, 10**6)),
    **dict.fromkeys(("depth", "components", "steps", "sampler_epochs"), (1, 1000)),
    **{
        "seconds": (1e-3, 3600),
        "minutes": (1e-3, 10**6),
        "clip": (1e-9, 10**9),
        "ema": (1e-9, 1 - 1e-9),
        "weight_decay": (0, 10),
    },
    **dict.fromkeys(("rise", "decay"), (0, 1)),
}


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Arguments as the parser knows them: switches get their value, several runs or labels become one list.

    Raises:
        ValueError: for an option with an empty value, which would be read as the current folder.

    Example:
        >>> spelled_out(["evaluate", "run", "--quick", "--include-real"])
        ['evaluate', 'run', '--quick', 'true', '--include_real', 'true']
        >>> spelled_out(["compare", "a", "b", "--out", "c.html"])
        ['compare', '["a", "b"]', '--out', 'c.html']
        >>> spelled_out(["sample", "run", "--labels", "neutrophil", "6"])
        ['sample', 'run', '--labels', '["neutrophil", 6]']
    """
    words: list[str] = []
    for word, after in pairwise([*map(dashed, arguments), "--"]):
        words.append(word)
        if word in SWITCHES and (after.startswith("--") or after.lower() not in ("true", "false")):
            words.append("true")
        if re.fullmatch(r"\d+(,\d+)+", word) and words[-2:-1] == ["--latent"]:
            words[-1] = f"[{word}]"
        if word.startswith("--") and (after == "" or word.endswith("=")):
            raise ValueError(f"Expected a value for {word.rstrip('=')}; got an empty one.")
    if words[:1] == ["compare"]:
        gather(words, 1, numbers=False)
    for option in LISTS:
        if option in words:
            gather(words, words.index(option) + 1)
    return words


def gather(words: list[str], first: int, numbers: bool = True) -> None:
    """Make the words from `first` to the next option one list, unless they are one; whole numbers as numbers."""
    end = next((k for k in range(first, len(words)) if words[k].startswith("--")), len(words))
    if end > first and not words[first].startswith("["):
        parts: list[Any] = [part for word in words[first:end] for part in word.split(",")]
        if numbers:
            parts = [int(part) if re.fullmatch(r"-?\d+", part) else part for part in parts]
        words[first:end] = [json.dumps(parts)]


def dashed(argument: str) -> str:
    """`--per-class` as the parser knows it, `--per_class`; values stay as they are."""
    return re.sub(r"^--[\w.-]+", lambda name: "--" + name[0][2:].replace("-", "_"), argument)


class Parser(ArgumentParser):
    """Wrong usage is one line, too."""

    command = "condgen"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say which option expected what, and exit with 2."""
        print(f"condgen: {one_line(usage(message))} See {self.command} --help.", file=sys.stderr)
        sys.exit(2)


def usage(message: str) -> str:
    r"""What the parser says of an option, in a sentence.

    Example:
        >>> usage("Parser key \"n\":\n  Expected a <class 'int'>. Got value: many")
        "Expected a value of type int for --n; got 'many'."
    """
    if missing := re.search(r"arguments are required: (?:\w+\.)*(\w+)", message):
        return f"Expected {missing[1].upper()}; got nothing in its place."
    option = re.search(r"[Pp]arser key \"(?:\w+\.)*(\w+)\"", message)
    given = re.search(r"Given value: (.*)|[Gg]ot value: (.*)", message)
    wanted = re.search(r"Expected an? (?:typing\.)?(?:Literal\[([^]]*)\]|<class '(\w+)'>)", message)
    if not (option and given and wanted):
        return f"{f'--{option[1]}: ' if option else ''}{message}".rstrip(".") + "."
    kind = f"one of {wanted[1]}" if wanted[1] else f"a value of type {wanted[2]}"
    return f"Expected {kind} for --{option[1].replace('_', '-')}; got {given[1] or given[2]!r}."


def one_line(message: str) -> str:
    r"""A message on one line, its middle left out where it is too long, in the words of the command line.

    Example:
        >>> one_line("Choose another folder,\n or pass overwrite=True.")
        'Choose another folder, or pass --overwrite.'
    """

    def as_option(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2]
        return f"--{name} {value}" if value and value != "True" else f"--{name}"

    message = re.sub(rf"(?<![\w.])({'|'.join(sorted(OPTIONS))})=(\w*)", as_option, " ".join(message.split()))
    end = LONGEST // 3
    return message if len(message) <= LONGEST else f"{message[: LONGEST - end - 3]} … {message[-end:]}"


def bounded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, its numbers known to be within bounds before anything is done."""

    @wraps(command)
    def checked(**options: Any) -> None:
        for name, value in options.items():
            low, high = BOUNDS.get(name, (-math.inf, math.inf))
            if isinstance(value, int | float) and not low <= value <= high:
                raise ValueError(
                    f"Expected a number from {low:,} to {high:,} for --{name.replace('_', '-')}; got {value}."
                )
        command(**options)

    # jsonargparse looks a function up by name in every package on its way; `condgen.evaluate` is another one.
    checked.__module__ = "__main__"
    return checked
