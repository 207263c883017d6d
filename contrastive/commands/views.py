"""``contrastive views``: a contact sheet."""

from pathlib import Path

from contrastive import recipes
from contrastive.commands.console import console
from contrastive.commands.options import check_counts, known_recipe
from contrastive.report.contact_sheet import first_originals, originals_in, save_contact_sheet
from contrastive.runs.load import build
from contrastive.runs.signature import JSON, SEE_HELP, CommandLine, UsageError, to_json


def views(
    *, out: Path, data_dir: Path | None = None, recipe: str = recipes.DEMO, num_images: int = 6, seed: int = 0
) -> None:
    """Draw images beside the views that a recipe trains on, with what was drawn for each: crop, flip, colours, blur.

    Args:
        out: The PNG file to write.
        data_dir: A folder of images, or one with a folder train/ of images, each drawn at its original size; the
            recipe's own images unless given.
        recipe: Whose views; see contrastive recipes.
        num_images: How many images: the first that a run with this seed trains on.
        seed: Of the choice of images and of what is drawn.
    """
    check_counts(num_images=num_images)
    arguments: dict[str, JSON] = {"seed": seed}
    if "data_dir" in CommandLine(known_recipe(recipe)).parameters:
        if data_dir is None:
            raise UsageError(f"Missing: --data-dir, for recipe {recipe} has no images of its own. {SEE_HELP}")
        arguments |= to_json({"data_dir": data_dir})
    chosen = build(recipe, arguments)
    if data_dir is None:
        originals = first_originals(chosen.open_data(), num_images)
    else:
        train = data_dir / "train"
        originals = originals_in(train if train.is_dir() else data_dir, num_images, seed)
    title = f"{recipe}: images and their views in the first epoch, seed {seed}"
    save_contact_sheet(originals, chosen.method.make_views, out, seed, title=title)
    console.print(f"Wrote {out}: {len(originals.names)} images and their views", soft_wrap=True)
