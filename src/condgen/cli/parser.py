"""Parsing: what people type as the parser knows it, and what the parser says in sentences."""

__all__ = ["OPTIONS", "Parser", "bounded", "one_line", "parser_for", "spelled_out", "usage"]

import difflib
import inspect
import json
import math
import re
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from condgen.cli.settings import add_settings, given

OPTIONS: set[str] = set()  # names of all commands' options
SWITCHES = ("--quick", "--include_real", "--overwrite")  # may stand without a value, which is then true
LISTS = ("--labels", "--networks", "--widths", "--sizes", "--batches", "--precisions", "--modes", "--layouts")
LONGEST = 300  # characters of an error
BOUNDS = {  # of numbers that are no settings of training
    **dict.fromkeys(("images", "size", "per_class", "count", "epochs"), (1, 10**9)),
    **{"seed": (0, 2**64 - 1), "start": (0, 2**62), "temperature": (0, 100), "seconds": (1e-3, 3600)},
    "strength": (0, 1),
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
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    for word, after in pairwise([*map(dashed, arguments), "--"]):
        words.append(word)
        if word in SWITCHES and (after.startswith("--") or after.lower() not in ("true", "false")):
            words.append("true")
        if re.fullmatch(r"[\d.]+(,[\d.]+)+", word) and words[-2:-1] in (["--latent"], ["--betas"]):
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
    options: frozenset[str] = frozenset()  # names of the options that the command takes

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say which option expected what, and exit with 2."""
        print(f"condgen: {one_line(usage(message, self.options))} See {self.command} --help.", file=sys.stderr)
        sys.exit(2)

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """No option is meant by its beginning: a word that is mistyped is an error, not another option."""
        return []


def usage(message: str, options: Iterable[str] = ()) -> str:
    r"""What the parser says of an option, in a sentence; `options` are the names among which a mistyped one is sought.

    Example:
        >>> usage("unrecognized arguments: --epoch 3", ["epochs", "out"])
        'There is no option --epoch. Did you mean --epochs?'
        >>> usage("Parser key \"n\":\n  Expected a <class 'int'>. Got value: many")
        "Expected a value of type int for --n; got 'many'."
    """
    if unknown := re.search(r"unrecognized arguments: (--\w+)", message):
        return f"There is no option {unknown[1].replace('_', '-')}.{nearest(unknown[1][2:], options, '--')}"
    if wrong := re.search(r"subcommand: invalid choice: '(.*?)' \(choose from (.*)\)", message):
        return f"There is no command {wrong[1]!r}.{nearest(wrong[1], re.findall(r'[a-z]+', wrong[2]))}"
    if missing := re.search(r"arguments are required: (?:\w+\.)*(\w+)", message):
        return f"Expected {missing[1].upper()}; got nothing in its place."
    option = re.search(r"[Pp]arser key \"(?:\w+\.)*(\w+)\"", message)
    given = re.search(r"Given value: (.*)|[Gg]ot value: (.*)", message)
    wanted = re.search(r"Expected an? (?:typing\.)?(?:Literal\[([^]]*)\]|<class '(\w+)'>)", message)
    if not (option and given and wanted):
        return f"{f'--{option[1]}: ' if option else ''}{message}".rstrip(".") + "."
    kind = f"one of {wanted[1]}" if wanted[1] else f"a value of type {wanted[2]}"
    return f"Expected {kind} for --{option[1].replace('_', '-')}; got {given[1] or given[2]!r}."


def nearest(word: str, known: Iterable[str], before: str = "") -> str:
    """A question that names what was probably meant; nothing where nothing is near.

    Example:
        >>> nearest("trian", ["train", "sample"])
        ' Did you mean train?'
    """
    near = difflib.get_close_matches(word, sorted(known), 1, 0.7)
    return f" Did you mean {before}{near[0].replace('_', '-')}?" if near else ""


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


def parser_for(
    commands: Mapping[str, Callable[..., None]], command: str, version: str, everything: bool = True
) -> ArgumentParser:
    """The parser of all commands: options from their arguments, and from the settings that they take.

    Args:
        commands: name → function; its docstring is the help. Its attribute `settings` names dataclasses, each field of
            which becomes an option.
        command: the one that was asked for, for messages.
        version: of condgen.
        everything: whether help shows all options, or only those that `shown` of the command names among its settings.
    """
    if "add_print_completion_argument" in inspect.signature(set_parsing_settings).parameters:
        set_parsing_settings(add_print_completion_argument=find_spec("shtab") is not None)
    kind = type("Parser", (Parser,), {"command": f"condgen {command}" if command in commands else "condgen"})
    parser = kind(
        prog="condgen",
        version=version,
        formatter_class=Formatter,
        description="Conditional generative models for small labelled image sets. Start with: condgen demo",
        epilog="--debug shows where an error came from; --config FILE reads a command's options from YAML.",
        usage="condgen COMMAND [--OPTION VALUE ...]",
    )
    chosen = parser.add_subcommands(required=True)
    for name, function in commands.items():
        text = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
        needed = (p for p in inspect.signature(function).parameters.values() if p.default is p.empty)
        first = [p.name.upper() for p in needed if p.name != "given"]
        examples = "".join(f"\n    {line}" for line in getattr(function, "examples", ()))
        own = kind(
            description=f"{text}{examples and f'{chr(10)}{chr(10)}Examples:{examples}'}",
            formatter_class=Formatter,
            usage=" ".join(["condgen", name, *first, "[--OPTION VALUE ...]"]),
            epilog=None if everything or not hasattr(function, "shown") else "All options: --help-all.",
        )
        own.add_argument("--config", action="config", help="A YAML file with options of this command.")
        settings = getattr(function, "settings", ())
        skip: set[str | int] = {"given"} if settings else set()
        own.add_function_arguments(function, as_group=False, as_positional=True, fail_untyped=True, skip=skip)
        for group in settings:
            add_settings(own, group)
        if name == command:
            kind.options = frozenset(action.dest for action in own._actions)
        if not everything and hasattr(function, "shown"):
            known = {entry.name for group in settings for entry in fields(group)}
            hide(own, known - set(function.shown))  # type: ignore[attr-defined]
        chosen.add_subcommand(name, own, help=text)
    return parser


def hide(parser: Any, names: set[str]) -> None:
    """Leave options out of the help; they can be given all the same."""
    for action in parser._actions:
        if action.dest.split(".")[0] in names:
            action.help = SUPPRESS


class Formatter(DefaultHelpFormatter):
    """Help whose types and defaults are words rather than Python, and whose examples keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        said, *examples = text.split("\n\n")
        return "\n\n".join([super()._fill_text(said, width, indent), *examples])

    def _get_help_string(self, action: Any) -> str:
        text = super()._get_help_string(action)
        return re.sub(r"\(type: %\(type\)s, default: %\(default\)s\)", lambda _: self.usual(action), text)

    def usual(self, action: Any) -> str:
        """The type and the default of an option, in brackets."""
        kind = re.sub(r"(Optional|Union)\[(.*)\]$", r"\2", str(self._get_type_str(action)))
        kind = re.sub(r"Literal\[([^]]*)\]", lambda found: found[1].replace("'", "").replace(", ", "|"), kind)
        kind = re.sub(r" \| null|, null|, NoneType", "", kind)
        default = "" if action.default is None else f"; default: {action.default}"
        return f"({kind}{default})".replace("%", "%%")


def bounded(command: Callable[..., None]) -> Callable[..., None]:
    """The command, its numbers known to be within bounds before anything is done."""
    settings = getattr(command, "settings", ())

    @wraps(command)
    def checked(**options: Any) -> None:
        if settings:
            options["given"] = given(settings, options)
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
