"""``contrastive fit``: a recipe trained in a folder of its own."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only

from contrastive import recipes
from contrastive.commands.console import console, program
from contrastive.commands.evaluate import USUAL_PROTOCOLS, write_scores
from contrastive.commands.options import device
from contrastive.data.module import ImageData
from contrastive.recipes.recipe import Recipe
from contrastive.report.pictures import save_curves, save_pairs
from contrastive.report.screen import RunProgress, Told
from contrastive.runs.environment import processor
from contrastive.runs.evaluation import Images, Wanted, choose_protocols
from contrastive.runs.evaluation import evaluate as score
from contrastive.runs.evaluation_record import Provenance
from contrastive.runs.folder import RunFolder, create
from contrastive.runs.load import build
from contrastive.runs.signature import JSON, CommandLine, to_json
from contrastive.runs.targets import baselines as untrained
from contrastive.runs.targets import open_target
from contrastive.runs.training import train


def fit(name: str, words: Sequence[str]) -> None:
    """Train a recipe in a folder of its own, and say what came out."""
    function = recipes.load(name)
    prog, description = f"contrastive fit {name}", sys.modules[function.__module__].__doc__
    values = CommandLine(function, run_options, prog=prog, description=description).parse(words)
    run_dir = values.pop("run_dir")
    arguments = to_json(values)
    recipe = build(name, arguments)
    _announce(name, recipe)
    data = recipe.open_data()
    # Only the first rank has a folder to make; the others write nothing.
    folder = _make_folder(name, arguments, run_dir) or RunFolder(run_dir or Path("runs", name))
    trainer = train(recipe, data, folder, name=name, arguments=arguments, callbacks=[RunProgress(console)])
    if trainer.is_global_zero:
        _finish(name, recipe, data, folder)


def run_options(*, run_dir: Path | None = None) -> None:
    """Options of ``contrastive fit`` that are no recipe's.

    Args:
        run_dir: The run's folder, new or empty; runs/RECIPE-YYYYmmdd-HHMMSS unless given.
    """


@rank_zero_only
def _announce(name: str, recipe: Recipe) -> None:
    precision = recipe.trainer.get("precision", "32-true")
    console.print(f"[bold]{name}[/]: {recipes.summary(name)}", soft_wrap=True)
    console.print(f"On {processor()}, precision {precision}, seed {recipe.seed}", soft_wrap=True)


@rank_zero_only
def _make_folder(name: str, arguments: dict[str, JSON], run_dir: Path | None) -> RunFolder:
    folder = create(name, arguments, at=run_dir)
    console.print(f"Everything goes to {folder.path}\n", soft_wrap=True)
    return folder


def _finish(name: str, recipe: Recipe, data: ImageData, folder: RunFolder) -> None:
    """Pictures, the table where it is cheap, where things lie, and what to try next."""
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
