"""``contrastive fit``: a recipe trained in a folder of its own."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only

from contrastive import recipes
from contrastive.commands.console import console, program
from contrastive.commands.evaluate import USUAL_PROTOCOLS, write_scores
from contrastive.commands.options import device
from contrastive.data.module import ImageData
from contrastive.recipes.recipe import Recipe
from contrastive.report.pictures import save_curves, save_pairs
from contrastive.report.screen import RunProgress, Told
from contrastive.runs import safe_load
from contrastive.runs.checkpoints import Newest
from contrastive.runs.continuity import ContinuityError
from contrastive.runs.disk import check_writable
from contrastive.runs.environment import processor
from contrastive.runs.evaluation import Images, Wanted, choose_protocols
from contrastive.runs.evaluation import evaluate as score
from contrastive.runs.evaluation_record import Provenance
from contrastive.runs.folder import RunFolder, check_free, new_folder
from contrastive.runs.load import build, newest_of
from contrastive.runs.lock import only_process_in
from contrastive.runs.signals import Preempted, preempted_at_once
from contrastive.runs.signature import JSON, CommandLine, UsageError, to_json
from contrastive.runs.targets import baselines as untrained
from contrastive.runs.targets import open_target
from contrastive.runs.training import train, trainer_of


def fit(name: str, words: Sequence[str]) -> None:
    """Train a recipe in a folder of its own, or go on with that, and say what came out.

    Raises:
        FileExistsError: The folder holds something else.
        FolderInUseError: Another process trains in it.
        CheckpointError: It holds checkpoints, but none that is whole.
        Preempted: A signal stopped it, and it can go on.
    """
    function = recipes.load(name)
    prog, description = f"contrastive fit {name}", sys.modules[function.__module__].__doc__
    values = CommandLine(function, run_options, prog=prog, description=description).parse(words)
    run_dir, skip_non_finite = values.pop("run_dir"), values.pop("skip_non_finite")
    if skip_non_finite < 0:
        raise UsageError(f"--skip-non-finite takes 0 or more, got {skip_non_finite}.")
    if run_dir is not None:
        rank_zero_only(check_free)(run_dir, name)  # and not after reading images for minutes
    arguments = to_json(values)
    with ExitStack() as until_the_end:
        with preempted_at_once():  # while LastCheckpoint does not listen
            recipe = build(name, arguments)
            _announce(name, recipe)
            data = recipe.open_data()
            # Only the first rank makes a folder and writes to it; the others do not learn what it is called.
            folder = RunFolder(run_dir or rank_zero_only(new_folder)(name) or Path("runs", f"{name}-*"))
            trainer = trainer_of(
                recipe,
                data,
                folder,
                name=name,
                arguments=arguments,
                skip_non_finite=skip_non_finite,
                callbacks=[RunProgress(console)],
            )
            if trainer.is_global_zero:  # where Lightning starts the others, it does so when this one holds the folder
                until_the_end.enter_context(_hold(folder, name))
            try:
                # The same for all ranks: none writes before all have begun, and a new folder holds nothing.
                found = Newest(None, {}) if run_dir is None else newest_of(folder)
                _begin(folder, name, arguments, found)
                train(trainer, recipe, data, folder, found.path)
            except (Preempted, KeyboardInterrupt):
                _tell(f"To go on: {_command(name, words, folder)}")
                raise
            except Exception as error:  # whatever it is goes on to the shell's border; here is only said how to go on
                if trainer.global_step and not isinstance(error, ContinuityError):
                    _tell(f"To go on, once the cause is removed: {_command(name, words, folder)}")
                raise
        if dist.is_available() and dist.is_initialized():  # still: the first rank would go on with its share of images
            dist.destroy_process_group()
        if trainer.is_global_zero:
            _finish(name, recipe, data, folder)


def run_options(*, run_dir: Path | None = None, skip_non_finite: int = 0) -> None:
    """Options of ``contrastive fit`` that are no recipe's.

    Args:
        run_dir: The run's folder; a run of this recipe that lies there goes on from its newest checkpoint;
            runs/RECIPE-YYYYmmdd-HHMMSS unless given.
        skip_non_finite: Leave out up to so many steps whose loss or gradient is not finite; the run ends at the first
            unless given.
    """


@contextmanager
def _hold(folder: RunFolder, name: str) -> Iterator[None]:
    check_writable(folder.path, "--run-dir")
    with only_process_in(folder.path):
        check_free(folder.path, name)  # another process may have come first, and be gone
        folder.sweep()
        yield


@rank_zero_only
def _tell(line: str) -> None:
    console.print(line, soft_wrap=True, markup=False)


@rank_zero_only
def _announce(name: str, recipe: Recipe) -> None:
    precision = recipe.trainer.get("precision", "32-true")
    console.print(f"[bold]{name}[/]: {recipes.summary(name)}", soft_wrap=True)
    console.print(f"On {processor()}, precision {precision}, seed {recipe.seed}", soft_wrap=True)


@rank_zero_only
def _begin(folder: RunFolder, name: str, arguments: dict[str, JSON], found: Newest) -> None:
    """Write down that the run begins or goes on, and say from where."""
    for reason in found.skipped.values():
        _tell(f"Skipped: {reason}")
    again = folder.record_file.exists()
    if found.path is None:
        folder.begin(name, arguments)
        _tell(
            f"There is no checkpoint in {folder.path} yet: the run begins anew\n"
            if again
            else f"Everything goes to {folder.path}\n"
        )
        return
    content = safe_load.header(found.path)
    step, epoch = content["global_step"], content["epoch"]
    folder.begin(name, arguments, checkpoint=found.path.name, step=step)
    _tell(f"Goes on in {folder.path} from {found.path.name}: step {step:,}, epoch {epoch + 1}\n")


def _command(name: str, words: Sequence[str], folder: RunFolder) -> str:
    """What goes on with a run, to be typed as it is."""
    given = any(word.partition("=")[0] == "--run-dir" for word in words)
    more = [] if given else ["--run-dir", str(folder.path)]
    return f"{program()} {shlex.join(['fit', name, *words, *more])}"


def _finish(name: str, recipe: Recipe, data: ImageData, folder: RunFolder) -> None:
    """Pictures, the table where it is cheap, where things lie, and what to try next; for one process alone."""
    save_curves(folder.metrics_file, folder.curves_picture, title=f"{name}: training")
    title = f"{name}: images, and the views of them that it trains on"
    batch = next(iter(data.train_dataloader()))
    save_pairs(batch["image"], batch["index"], recipe.method.make_views, folder.pairs_picture, recipe.seed, title=title)
    following = f"evaluate {folder.path} --baselines"
    if recipe.evaluate:
        with Told(console) as told:
            target = open_target(str(folder.path))
            wanted = Wanted(
                protocols=choose_protocols(USUAL_PROTOCOLS),
                device=device(),
                provenance=Provenance.here(sys.argv),
                progress=told,
            )
            images = Images(target.data_name or name, None, data)
            record = score(target, [images], wanted, baselines=untrained(target))
        write_scores(record, folder)
        following = f"export {folder.path}"
    pictures = f"{folder.pairs_picture.name} and {folder.curves_picture.name}"
    console.print(f"\nIn {folder.path}: {pictures}, metrics.csv, run.json, checkpoints", soft_wrap=True)
    console.print(f"Next: [bold]{program()} {following}[/]", soft_wrap=True)
