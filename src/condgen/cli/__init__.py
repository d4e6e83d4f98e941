"""The command line: one file per command, called `condgen COMMAND`.

A command is a function whose arguments are its options; its docstring is their help. It raises ValueError, OSError and
the like for whatever the user can mend, which becomes one line on standard error. Nothing here imports torch before a
command has checked its options: `--help` and usage errors answer at once.
"""

__all__ = [
    "balance",
    "benchmark",
    "compare",
    "demo",
    "evaluate",
    "explore",
    "export",
    "main",
    "reconstruct",
    "sample",
    "train",
    "vary",
]

import inspect
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import condgen
from condgen.cli.balance import balance
from condgen.cli.benchmark import benchmark
from condgen.cli.compare import compare
from condgen.cli.demo import demo
from condgen.cli.evaluate import evaluate
from condgen.cli.explore import explore
from condgen.cli.export import export
from condgen.cli.parser import OPTIONS, bounded, one_line, parser_for, spelled_out
from condgen.cli.reconstruct import reconstruct
from condgen.cli.sample import sample
from condgen.cli.shared import CLOCK
from condgen.cli.train import train
from condgen.cli.vary import vary

COMMANDS: dict[str, Any] = {
    command.__name__: bounded(command)
    for command in (demo, train, sample, vary, reconstruct, evaluate, compare, balance, explore, export, benchmark)
}
OPTIONS.update(name for command in COMMANDS.values() for name in inspect.signature(command).parameters)
for command in COMMANDS.values():
    OPTIONS.update(entry.name for kind in getattr(command, "settings", ()) for entry in fields(kind))
LEFT = {
    "demo": "what the run folder holds is complete up to its last epoch",
    "train": "what the run folder holds is complete up to its last epoch",
    "sample": "a folder that was begun is completed by the same command",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors are one line on standard error, and `--debug` shows where they came from.

    Args:
        arguments: by default those of the process.

    Returns:
        0, or 1 after an error, or 130 when interrupted. Wrong usage exits with 2.
    """
    CLOCK["began"] = time.perf_counter()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug, command = "--debug" in arguments, next(iter(arguments), "")
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"condgen: warning: {one_line(str(message))}", file=sys.stderr)
        try:
            words = spelled_out([argument for argument in arguments if argument != "--debug"]) or ["--help"]
            parser = parser_for(COMMANDS, command, condgen.__version__, everything="--help-all" in arguments)
            parsed = parser.instantiate(parser.parse_args(words))
            options = vars(parsed[parsed.subcommand])
            options.pop("config", None)
            COMMANDS[parsed.subcommand](**options)
        except KeyboardInterrupt:
            print(f"condgen: stopped; {LEFT.get(command, 'nothing was written')}.", file=sys.stderr)
            return 130
        except Exception as error:
            if debug:
                raise
            print(f"condgen: {one_line(str(error)) or type(error).__name__}", file=sys.stderr)
            return 1
    return 0
