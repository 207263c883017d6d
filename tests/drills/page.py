"""The table of drills, on the screen and as the page docs/reliability.md."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from contrastive.runs.environment import commit, hardware, versions
from tests.drills.drill import Drill

INTRODUCTION = """\
# What a run survives

Each row below is a promise, and a drill that tried to break it, at the moments that are worst: with real processes that
are killed, real signals, full disks, damaged and hostile files. A trial is lost if the promise did not hold; a promise
stands here only beside its number of trials. All drills are in `tests/drills/`, each under its own name.

The same weights means the same bits, on the same hardware. On CPUs that is so by itself; a GPU's kernels add up in an
order of their own unless told not to, by `Trainer(deterministic=True)`.
"""


def show(drills: Sequence[Drill]) -> None:
    """Print the table."""
    table = Table(title="Drills")
    for column in ("drill", "promise"):
        table.add_column(column, overflow="fold")
    for column in ("trials", "lost", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for drill in drills:
        lost = f"[red]{drill.lost}[/red]" if drill.lost else "0"
        table.add_row(drill.name, drill.promise, str(drill.trials), lost, f"{drill.seconds:.1f} s")
    Console(width=160).print(table)


def write(drills: Sequence[Drill], file: Path) -> None:
    """Write the page.

    Args:
        drills: The rows.
        file: Markdown; what it held is replaced.
    """
    found, machine = versions(), hardware()
    software = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "pytorch-lightning"))
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    trials, lost = sum(drill.trials for drill in drills), sum(drill.lost for drill in drills)
    minutes = sum(drill.seconds for drill in drills) / 60
    made = (
        f"Written by `make drills` on {datetime.now(UTC):%Y-%m-%d}, of commit {commit() or 'unknown'}, with "
        f"{software}, on {machine['platform']}, {machine['cpu_cores']} cores of {machine['cpu']}, {gpus}: "
        f"{len(drills)} promises, {trials} trials, {lost} lost, {minutes:.0f} minutes of drills."
    )
    lines = ["| Promise | Drill | Trials | Lost | Time |", "| --- | --- | ---: | ---: | ---: |"]
    lines += [
        f"| {_cell(drill.promise)} | {_cell(drill.name)} | {drill.trials} | {drill.lost} | {drill.seconds:.1f} s |"
        for drill in drills
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([INTRODUCTION, made, "", *lines, ""]), encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
