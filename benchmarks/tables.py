"""Tables for the README, made of measured rows and of nothing else.

    python -m benchmarks.tables            # write them into README.md
    python -m benchmarks.tables --check    # fail if README.md says anything else

A table stands between two comments, which stay: ``<!-- table: quality -->`` and ``<!-- /table -->``. What is between
them is replaced. Tables: ``quality``, ``import_time``.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import RESULTS, Spread, read_rows, spread
from contrastive.recipes import load
from contrastive.runs.signature import defaults

README = Path(__file__).resolve().parents[1] / "README.md"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- /table -->)", flags=re.DOTALL)
Rows = Sequence[Mapping[str, Any]]


def quality_table(rows: Rows) -> str:
    """One line for each recipe, arguments and machine: the last score of each seed, median and range over the seeds."""
    runs: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["linear_evaluation"] is not None:  # the last of its run; a repeated seed replaces the older run
            runs.setdefault(_settings(row), {})[row["seed"]] = row
    lines = []
    for settings, by_seed in runs.items():
        last = list(by_seed.values())
        accuracies = [[knn["top1"] for knn in row["knn"]] for row in last]
        lines.append(
            [
                *settings,
                *(_percent(spread(one)) for one in zip(*accuracies, strict=True)),
                _percent(spread([row["linear_evaluation"]["top1"] for row in last])),
                _number(spread([row["train_minutes"] for row in last]), ".1f"),
                _number(spread([row["images_per_s"] for row in last]), ".0f"),
                _number(spread([row["peak_memory_mib"] for row in last]), ".0f"),
            ]
        )
    header = ["recipe", "epochs", "changed options", "on", "kNN k 200, T 0.1", "kNN k 20, T 0.07", "linear evaluation"]
    return _markdown([*header, "minutes of training", "images/s", "peak MiB"], lines)


def import_time_table(rows: Rows) -> str:
    """The newest row of each machine: both imports, and the ratio of neighbours."""
    newest = {_machine(row): row for row in rows}
    lines = [
        [
            machine,
            *(_number(spread(times), ".2f") for times in row["seconds"].values()),
            _number(spread(row["ratios"]), ".3f"),
        ]
        for machine, row in newest.items()
    ]
    return _markdown(["on", "`import pytorch_lightning, torchvision`, s", "`import contrastive`, s", "ratio"], lines)


TABLES: dict[str, Callable[[Rows], str]] = {"quality": quality_table, "import_time": import_time_table}


def fill(text: str, results: Path = RESULTS) -> str:
    """The text with every marked table made anew from the rows in ``results``.

    Raises:
        ValueError: A marker names no table.
    """

    def table(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in TABLES:
            raise ValueError(f"There is no table {name!r}. There are: {', '.join(TABLES)}.")
        rows = read_rows(results / f"{name}.jsonl")
        content = TABLES[name](rows) if rows else f"Nothing has been measured yet: `python -m benchmarks.{name}`.\n"
        return f"{begin}\n{content}\n{end}"

    return MARKED.sub(table, text)


def main(words: list[str] | None = None) -> int:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of date")
    parser.add_argument("--file", type=Path, default=README, help="the file with the markers")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the rows")
    options = parser.parse_args(words)
    text = options.file.read_text(encoding="utf-8")
    filled = fill(text, options.results)
    if options.check:
        if filled != text:
            print(f"error: tables in {options.file} are out of date; run python -m benchmarks.tables", file=sys.stderr)
        return int(filled != text)
    options.file.write_text(filled, encoding="utf-8")
    return 0


def _settings(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs of one line of the table have in common: recipe, epochs, options unlike the recipe's, machine."""
    usual = {**defaults(load(row["recipe"])), "seed": row["seed"], "max_epochs": row["arguments"]["max_epochs"]}
    changed = [
        f"{name.replace('_', '-')} {value}" for name, value in row["arguments"].items() if value != usual.get(name)
    ]
    if row["compile"]:
        changed.append("compile")
    return row["recipe"], str(row["arguments"]["max_epochs"]), ", ".join(changed), _machine(row)


def _machine(row: Mapping[str, Any]) -> str:
    hardware = row["hardware"]
    return ", ".join(hardware["gpus"]) or f"{hardware['cpu_cores']} cores of {hardware['cpu']}"


def _percent(measured: Spread) -> str:
    scaled = Spread(100 * measured.median, 100 * measured.low, 100 * measured.high, measured.count)
    return _number(scaled, ".2f", unit=" %")


def _number(measured: Spread, digits: str, unit: str = "") -> str:
    if measured.count == 1:
        return f"{measured.median:{digits}}{unit} (1 run)"
    low, high = f"{measured.low:{digits}}", f"{measured.high:{digits}}"
    return f"{measured.median:{digits}}{unit} ({low} to {high}, {measured.count} runs)"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in table)


if __name__ == "__main__":
    sys.exit(main())
