"""Contrastive learning from the shell.

    contrastive fit [RECIPE] [--option VALUE ...]   train; without a recipe, a demo of a few minutes
    contrastive recipes                             what there is to train
    contrastive views --out FILE.png                images, their views, and what was drawn for each
    contrastive evaluate ENCODER                    an encoder's frozen features by the protocols papers report
    contrastive protocols                           which protocols there are
    contrastive finetune RUN                        the whole network on few or noisy labels, beside one from scratch
    contrastive embed RUN --output FILE.npz         features, labels and file names
    contrastive export RUN                          the encoder as plain weights, and as ONNX

RUN is a run's folder or a checkpoint. Add --help to any of them.

Exit codes: 0 finished; 75 a signal stopped a fit and its checkpoint is written, call the same command again with
--run-dir to go on; 130 interrupted, a fit by a second Ctrl-C; 1 failed; 2 not understood.
"""

import sys
import traceback
from collections.abc import Callable, Sequence

from lightning_fabric.utilities.exceptions import MisconfigurationException

from contrastive import recipes
from contrastive.commands.embed import embed
from contrastive.commands.evaluate import evaluate
from contrastive.commands.export import export
from contrastive.commands.finetune import finetune
from contrastive.commands.fit import fit
from contrastive.commands.listings import list_protocols, list_recipes
from contrastive.commands.options import known_recipe
from contrastive.commands.views import views
from contrastive.data.workers import LoadingError
from contrastive.report.screen import without_noise
from contrastive.runs.finite import NonFiniteError
from contrastive.runs.signals import Preempted
from contrastive.runs.signature import DEBUG, CommandLine, UsageError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130  # as argparse and shells have them
FOR_USERS = (  # errors whose messages say enough
    ValueError,
    TypeError,
    OSError,
    ModuleNotFoundError,
    MisconfigurationException,
    LoadingError,
    NonFiniteError,
)
LONGEST_CAUSE = 1000  # characters; some libraries put whole models into their messages

COMMANDS: dict[str, Callable[..., None]] = {
    "recipes": list_recipes,
    "protocols": list_protocols,
    "views": views,
    "evaluate": evaluate,
    "finetune": finetune,
    "embed": embed,
    "export": export,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; the text of ``--help`` lists them.

    Args:
        arguments: The words after the program's name; those of the process unless given.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with without_noise():
            _run(words)
    except UsageError as error:
        return _complain(str(error), MISUSED)
    except Preempted as stop:
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except Exception as error:  # the outermost border: whatever it is, one line for the user, and all with --debug
        if DEBUG in words:
            traceback.print_exc()
        return _complain(_cause(error), FAILED)
    return 0


def _run(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    command, rest = words[0], words[1:]
    if command == "fit":
        name, options = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else (recipes.DEMO, rest)
        known_recipe(name)
        fit(name, options)
    elif command in COMMANDS:
        function = COMMANDS[command]
        prog, description = f"contrastive {command}", (function.__doc__ or "").partition("Args:")[0]
        function(**CommandLine(function, prog=prog, description=description).parse(rest))
    else:
        raise UsageError(f"There is no command {command!r}. {recipes.did_you_mean(command, ['fit', *COMMANDS])}")


def _cause(error: Exception) -> str:
    """One line. Errors that are not made for users to read keep their type, and point at the traceback."""
    words = " ".join(str(error).split())
    if isinstance(error, FOR_USERS) and words:
        return words if len(words) <= LONGEST_CAUSE else f"{words[:LONGEST_CAUSE]} ... (add {DEBUG} to see all)"
    return f"{type(error).__name__}: {words} (add {DEBUG} to see where)"


def _complain(cause: str, code: int) -> int:
    print(f"error: {cause}", file=sys.stderr)
    return code
