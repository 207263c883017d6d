"""A typed function's signature as a command line, and as the arguments a run's record keeps."""

import dataclasses
import inspect
import re
from argparse import ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from contrastive.recipes import did_you_mean

JSON = str | int | float | bool | None
DEBUG = "--debug"
SEE_HELP = "Add --help to see all options."


class UsageError(ValueError):
    """The command line cannot be understood; the message is the one line to print."""


class _AsWritten(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help whose description keeps its lines: a recipe's holds commands."""


class CommandLine:
    """The parameters of one or more functions as words: keyword-only ones are options, the others come by position.

    An option of type ``tuple[X, ...]`` takes one word or more. A parameter that is a dataclass stands for its fields,
    which are options; its default says what they are unless given. Help comes from the ``Args:`` and ``Attributes:``
    sections of docstrings. Every command line takes ``--debug``, which is the shell's.

    Args:
        functions: Their parameters differ in name.
        prog: How the command is called.
        description: What it does, for ``--help``.
    """

    def __init__(
        self, *functions: Callable[..., object], prog: str | None = None, description: str | None = None
    ) -> None:
        self.parameters: dict[str, inspect.Parameter] = {}
        self.groups: dict[str, type] = {}  # a function's parameters that are dataclasses
        self.parser = ArgumentParser(
            prog=prog,
            description=description,
            formatter_class=_AsWritten,
            exit_on_error=False,
            allow_abbrev=False,
        )
        for function in functions:
            helps = argument_helps(function)
            for parameter in flat_parameters(function):
                self.parameters[parameter.name] = parameter
                self._add(parameter, helps[parameter.name])
            self.groups |= _groups(function)
        self.parser.add_argument(DEBUG, action="store_true", help="After an error, show where it came from.")

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The parameters' values, converted and checked.

        Raises:
            UsageError: In one line, what is wrong with which option.
        """
        try:
            return self._values(self.parser.parse_args(list(words)))
        except ArgumentError as error:
            raise UsageError(self._explained(str(error))) from error

    def from_json(self, arguments: Mapping[str, JSON]) -> dict[str, Any]:
        """The inverse of :func:`to_json`: values of the parameters' own types.

        Raises:
            UsageError: An argument is unknown, missing or of a wrong type.
        """
        unknown = [name for name in arguments if name not in self.parameters]
        if unknown:
            raise UsageError(f"There is no argument {unknown[0]!r}. {did_you_mean(unknown[0], list(self.parameters))}")
        try:
            lists = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
            return self._values(self.parser.parse_object(lists))
        except ArgumentError as error:
            raise UsageError(self._explained(str(error))) from error

    def _add(self, parameter: inspect.Parameter, help: str) -> None:
        option, kind = _option(parameter), parameter.annotation
        if not option.startswith("-"):
            self.parser.add_argument(parameter.name, metavar=option, type=kind, help=help)
        elif parameter.default is inspect.Parameter.empty:
            self.parser.add_argument(option, type=kind, required=True, help=help)
        elif kind is bool and parameter.default is False:
            self.parser.add_argument(option, action="store_true", help=help)
        elif get_origin(kind) is tuple:
            usual = list(parameter.default)  # the parser changes it in place
            self.parser.add_argument(option, type=get_args(kind)[0], nargs="+", default=usual, help=help)
        else:
            self.parser.add_argument(option, type=kind, default=parameter.default, help=help)

    def _values(self, parsed: Namespace) -> dict[str, Any]:
        values = {name: getattr(parsed, name) for name in self.parameters}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        for name, group in self.groups.items():
            values[name] = group(**{one.name: values.pop(one.name) for one in dataclasses.fields(group)})
        return values

    def _explained(self, message: str) -> str:
        """The parser's message in this command's own words, as one line."""
        wrong = re.match(r'Parser key "(\w+)"(?: element \d+)?:.*(?:Got|Given) value: (.*)', message, flags=re.DOTALL)
        if wrong and wrong[1] in self.parameters:
            parameter = self.parameters[wrong[1]]
            return f"{_option(parameter)} takes {_described(parameter.annotation)}, got {wrong[2].strip()}."
        missing = re.match(r"the following arguments are required: (.*)", message)
        if missing:
            names = (name.strip() for name in missing[1].split(","))
            wanted = (_option(self.parameters[name]) if name in self.parameters else name for name in names)
            return f"Missing: {', '.join(wanted)}. {SEE_HELP}"
        extra = re.match(r"unrecognized arguments: (\S+)", message)
        if extra and extra[1].startswith("-"):
            word = extra[1].partition("=")[0]
            options = [o for o in map(_option, self.parameters.values()) if o.startswith("-")]
            return f"There is no option {word}. {did_you_mean(word.replace('_', '-'), options)}"
        if extra:
            return f"{extra[1]!r} is one word too many: options begin with --. {SEE_HELP}"
        return " ".join(message.split())


def flat_parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    """A function's parameters, the fields of its dataclasses in their place as keyword-only ones."""
    flat: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if not dataclasses.is_dataclass(parameter.annotation):
            flat.append(parameter)
            continue
        for one in dataclasses.fields(parameter.annotation):
            usual = getattr(parameter.default, one.name)
            kind = inspect.Parameter.KEYWORD_ONLY
            flat.append(inspect.Parameter(one.name, kind, default=usual, annotation=one.type))
    return flat


def argument_helps(function: Callable[..., object]) -> dict[str, str]:
    """What docstrings say of each flat parameter: the function's, and those of its dataclasses and their bases."""
    groups = _groups(function)
    sources = [base for group in groups.values() for base in reversed(group.__mro__)]
    described = [one for source in (*sources, function) for one in docstring_parser.parse(source.__doc__ or "").params]
    helps = {one.arg_name: " ".join((one.description or "").split()) for one in described}
    return {name: text for name, text in helps.items() if name not in groups}


def defaults(function: Callable[..., object]) -> dict[str, Any]:
    """The default of every flat parameter that has one."""
    return {one.name: one.default for one in flat_parameters(function) if one.default is not inspect.Parameter.empty}


def to_json(arguments: Mapping[str, Any]) -> dict[str, JSON]:
    """Arguments as JSON holds them, flat: paths become absolute strings, so that a record means the same anywhere."""
    flat: dict[str, JSON] = {}
    for name, value in arguments.items():
        if dataclasses.is_dataclass(value):
            flat |= to_json({one.name: getattr(value, one.name) for one in dataclasses.fields(value)})
        else:
            flat[name] = str(value.resolve()) if isinstance(value, Path) else value
    return flat


def _groups(function: Callable[..., object]) -> dict[str, type]:
    """The parameters that are dataclasses."""
    annotations = {name: one.annotation for name, one in inspect.signature(function).parameters.items()}
    return {name: one for name, one in annotations.items() if isinstance(one, type) and dataclasses.is_dataclass(one)}


def _option(parameter: inspect.Parameter) -> str:
    """How a parameter is called in the shell."""
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        return "--" + parameter.name.replace("_", "-")
    return parameter.name.upper()


def _described(kind: Any) -> str:
    """A type in words for people."""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"one or more, each {_described(get_args(kind)[0])}"
    if get_args(kind):
        return " or ".join(_described(one) for one in get_args(kind))
    words = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", type(None): "null"}
    return words.get(kind, str(kind))
