"""A command line read into a dataclass: each field is a flag, each class it inherits from a group in --help.

Not transformers' HfArgumentParser, which takes a second to import, makes one group of a class and all that it inherits,
and answers a mistake with the usage of all flags: here a mistake is one line.
"""

import argparse
from dataclasses import MISSING, Field, field, fields
from inspect import get_annotations
from typing import NoReturn

from emmental.utils.errors import InputError


def flag(default, text: str, choices=None, nargs=None, kind=None, affects_training=True):
    """One command line flag; `kind` is given where the default does not show its type.

    A resumed run may change what does not affect the numbers of training.
    """
    kind = kind or type(default)
    given = {"default": default} if not isinstance(default, tuple) else {"default_factory": lambda: list(default)}
    about = {"help": text, "choices": choices, "nargs": nargs, "kind": kind, "affects_training": affects_training}
    return field(**given, metadata=about)


def default_of(item: Field):
    return item.default if item.default is not MISSING else item.default_factory()


def defaults_of(kind) -> dict:
    """Every flag's default, by name."""
    return {item.name: default_of(item) for item in fields(kind)}


def given_of(arguments, names: set[str]) -> list[Field]:
    """The fields of these names whose value is not the default."""
    return [
        item for item in fields(arguments) if item.name in names and getattr(arguments, item.name) != default_of(item)
    ]


def refuse(wrong: bool, message: str) -> None:
    if wrong:
        raise InputError(message)


class Parser(argparse.ArgumentParser):
    """argparse, its errors as InputError: one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse(kind: type, argv: list[str] | None = None):
    """Reads the command line into a `kind`; InputError in one line for what is wrong.

    `kind` is a dataclass of flags with two strings for --help: USAGE before, EPILOG behind.
    """
    parser = Parser(usage=kind.USAGE, description=kind.__doc__, epilog=kind.EPILOG, allow_abbrev=False)
    groups = {}
    for item in fields(kind):
        owner = [base for base in kind.__mro__ if item.name in get_annotations(base)][-1]
        if owner not in groups:
            title = owner.__name__.removesuffix("Arguments").lower()
            groups[owner] = parser.add_argument_group(title, None if owner is kind else owner.__doc__)
        add_flag(groups[owner], item)
    return kind(**vars(parser.parse_args(argv)))


def add_flag(group, item: Field) -> None:
    about = dict(item.metadata)
    default = default_of(item)
    if about["kind"] is bool:
        group.add_argument(f"--{item.name}", action="store_true", help=about["help"])
        return
    shown = " ".join(default) if isinstance(default, list) else default
    text = about["help"] + ("" if default in ("", None) else f" (default: {shown})")
    given = {key: about[key] for key in ("choices", "nargs") if about[key]}
    if not about["choices"]:
        given["metavar"] = {int: "N", float: "X"}.get(about["kind"], "TEXT")
    group.add_argument(f"--{item.name}", type=about["kind"], default=default, help=text, **given)
