"""A function's signature as a command line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from contrastive.runs.signature import CommandLine, UsageError, argument_helps, defaults, to_json


def example(
    source: Path,
    *,
    data_dir: Path,
    max_epochs: int = 200,
    limit: int | None = None,
    lr: float = 1.0,
    blur: bool = False,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    sizes: tuple[int, ...] = (1, 2),
) -> None:
    """An example.

    Args:
        source: Comes first.
        data_dir: Where the images are.
        max_epochs: How long to train,
            in epochs.
        limit: Fewer images.
        lr: Learning rate.
        blur: Whether to blur.
        precision: Of the arithmetic.
        sizes: One or more.
    """


def parsed(words: str) -> dict[str, object]:
    return CommandLine(example).parse(words.split())


def refused(words: str) -> str:
    with pytest.raises(UsageError) as error:
        parsed(words)
    return str(error.value)


def test_options_have_the_parameters_names_types_and_defaults() -> None:
    assert parsed("a.ckpt --data-dir images --lr 1e-3 --blur --limit 5 --precision bf16-mixed") == {
        "source": Path("a.ckpt"),
        "data_dir": Path("images"),
        "max_epochs": 200,
        "limit": 5,
        "lr": 0.001,
        "blur": True,
        "precision": "bf16-mixed",
        "sizes": (1, 2),
    }


def test_an_option_of_several_values_takes_them_one_after_the_other() -> None:
    assert parsed("a.ckpt --sizes 3 4 --data-dir images")["sizes"] == (3, 4)
    assert refused("a --data-dir b --sizes 3 x") == "--sizes takes one or more, each a whole number, got x."


def test_help_says_what_the_docstring_says_of_each_parameter() -> None:
    text = " ".join(CommandLine(example).parser.format_help().split())
    assert "--max-epochs MAX_EPOCHS How long to train, in epochs." in text
    assert "--debug" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("a --data-dir b --max-epoch 3", "There is no option --max-epoch. Did you mean --max-epochs?"),
        ("a --data_dir=b", "There is no option --data_dir. Did you mean --data-dir?"),
        ("a --data-dir b --max-epochs many", "--max-epochs takes a whole number, got many."),
        ("a", "Missing: --data-dir. Add --help to see all options."),
        ("--data-dir b", "Missing: SOURCE. Add --help to see all options."),
        ("a b --data-dir c", "'b' is one word too many: options begin with --. Add --help to see all options."),
        ("a --data-dir b --precision 8-bit", "--precision takes 32-true or bf16-mixed, got 8-bit."),
        ("a --data-dir b --limit 1.5", "--limit takes a whole number or null, got 1.5."),
        ("a --data-dir", "argument --data-dir: expected one argument"),
    ],
)
def test_a_mistake_is_explained_in_one_line(words: str, message: str) -> None:
    assert refused(words) == message


def test_json_keeps_arguments_and_gives_them_back() -> None:
    values = parsed("a.ckpt --data-dir images --limit 5")
    kept = to_json(values)
    assert kept["data_dir"] == str(Path("images").resolve())  # means the same from any working directory
    assert CommandLine(example).from_json(kept) == {
        **values,
        "source": Path("a.ckpt").resolve(),
        "data_dir": Path("images").resolve(),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"source": "a", "data_dir": "b", "max_epoch": 3},
            "There is no argument 'max_epoch'. Did you mean max_epochs?",
        ),
        ({"source": "a", "data_dir": "b", "lr": "fast"}, "--lr takes a number, got fast."),
    ],
)
def test_json_that_does_not_fit_the_function_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as error:
        CommandLine(example).from_json(arguments)
    assert str(error.value) == message


@dataclass(frozen=True, kw_only=True)
class Common:
    """What many can be told.

    Attributes:
        folder: Where it goes.
        count: How many.
    """

    folder: Path
    count: int


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    """More of it.

    Attributes:
        width: How wide.
    """

    folder: Path = Path("here")
    width: int | None = None


USUAL = Options(count=3)


def grouped(options: Options = USUAL, *, lr: float = 0.1) -> None:
    """Do it.

    Args:
        options: See ``Options``.
        lr: How fast.
    """


def test_a_dataclass_stands_for_its_fields() -> None:
    line = CommandLine(grouped)
    assert list(line.parameters) == ["folder", "count", "width", "lr"]
    assert line.parse([]) == {"options": Options(count=3), "lr": 0.1}
    given = line.parse(["--count", "5", "--lr", "1", "--folder", "there"])
    assert given == {"options": Options(folder=Path("there"), count=5), "lr": 1.0}
    kept = json.loads(json.dumps(to_json(given)))
    assert kept == {"folder": str(Path("there").resolve()), "count": 5, "width": None, "lr": 1.0}
    assert line.from_json(kept) == {"options": Options(folder=Path("there").resolve(), count=5), "lr": 1.0}
    assert defaults(grouped) == {"folder": Path("here"), "count": 3, "width": None, "lr": 0.1}


def test_help_of_a_dataclasses_fields_comes_from_it_and_its_bases() -> None:
    expected = {"folder": "Where it goes.", "count": "How many.", "width": "How wide.", "lr": "How fast."}
    assert argument_helps(grouped) == expected


def test_a_mistake_in_a_field_is_explained_as_any_other() -> None:
    with pytest.raises(UsageError, match=r"^--count takes a whole number, got many\.$"):
        CommandLine(grouped).parse(["--count", "many"])
