"""``contrastive recipes`` and ``contrastive protocols``: what there is to choose from."""

from rich.table import Table
from rich.text import Text

from contrastive import recipes
from contrastive.commands.console import console, program
from contrastive.evaluation.protocols import PROTOCOLS


def list_recipes() -> None:
    """List the recipes, a line each."""
    table = Table(box=None, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("what it trains")
    for name in recipes.names():
        table.add_row(name, recipes.summary(name))
    console.print(table)
    console.print(f"\nNext: {program()} fit RECIPE --help")


def list_protocols() -> None:
    """List the evaluation protocols, with what each does and where it comes from."""
    for name, one in PROTOCOLS.items():
        console.print(Text.assemble((name, "bold"), f": {one.description}\n  Source: {one.source}\n"), soft_wrap=True)
    console.print(f"Next: {program()} evaluate ENCODER --protocol NAME NAME ...", soft_wrap=True)
