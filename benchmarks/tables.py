"""Tables for the README, made of measured rows and of the code, and of nothing else.

    python -m benchmarks.tables            # write them into README.md
    python -m benchmarks.tables --check    # fail if README.md says anything else

A table stands between two comments, which stay: ``<!-- table: quality -->`` and ``<!-- /table -->``. What is between
them is replaced. Tables: ``quality``, ``import_time``, ``bench_augmentations``, ``augmentation_exactness``,
``bench_losses``, ``bench_probes``, ``bench_runs``; and ``methods``, which is read from their files and not from rows.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_augmentations import faster_kornia, main_quantity, over
from benchmarks.bench_losses import CONTENDERS, share_of_matmul, speeds, times_as_fast
from benchmarks.bench_probes import told
from benchmarks.bench_runs import PLAIN, PROTECTED, shares, shares_of_hooks
from benchmarks.methods_table import HEADER, methods_rows
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


def bench_augmentations_table(rows: Rows) -> str:
    """The newest rows of each machine with float32 views: one thread of its CPU, and its GPU."""
    plain = [row for row in rows if row["dtype"] == "float32" and not row["channels_last"]]
    on_cpu = {(_device(row), row["size"]): row for row in plain if row["device"] == "cpu" and row["threads"] == 1}
    on_gpu = {(_device(row), row["size"]): row for row in plain if row["device"] == "cuda"}
    return "\n".join(_speeds(newest) for newest in (on_cpu, on_gpu) if newest)


def augmentation_exactness_table(rows: Rows) -> str:
    """The newest row of each backend and device: the largest differences over all images and sizes."""
    newest = {row["target"]: row["differences"] for row in rows}
    largest: dict[str, dict[str, float]] = {}
    torchvision = "torchvision's float32 from its float64"
    columns = [f"{target}, {of}" for target in newest for of in ("photographs and flat", "noise", "from float64")]
    for target, differences in newest.items():
        for one in differences:
            line = largest.setdefault(one["subject"], dict.fromkeys([*columns, torchvision], 0.0))
            images = "noise" if one["content"] == "noise" else "photographs and flat"
            for column, difference in (
                (f"{target}, {images}", one["from_float32"]),
                (f"{target}, from float64", one["from_float64"]),
                (torchvision, one["torchvision"]),
            ):
                line[column] = max(line[column], difference)
    lines = [[subject, *(f"{difference:.1e}" for difference in line.values())] for subject, line in largest.items()]
    return _markdown(["", *columns, torchvision], lines)


def bench_losses_table(rows: Rows) -> str:
    """The newest row of each machine, size and dtype, contenders side by side."""
    newest = {(_device(row), row["dtype"], row["dim"], row["rows"]): row for row in rows}
    lines = [
        [machine, f"{num_rows:,} x {dim}, {dtype}", *(_time_and_memory(row, one.name) for one in CONTENDERS)]
        for (machine, dtype, dim, num_rows), row in sorted(newest.items())
    ]
    return _markdown(["on", "projections", *(contender.name for contender in CONTENDERS)], lines)


def bench_probes_table(rows: Rows) -> str:
    """The newest row of each machine, part, size and features, a line for each contender."""
    newest = {(_processor(row), row["part"], row["images"], row["width"], row["features"]): row for row in rows}
    lines = []
    for (machine, part, images, width, features), row in newest.items():
        what = f"{part}: {images:,} x {width}, {row['classes']} classes; {features}"
        for name, one in row["contenders"].items():
            beside = told(one, row["contenders"]["ours"])
            lines.append([machine, what, name, _number(spread(one["seconds"]), ".3g", unit=" s"), *beside])
    header = ["on", "what", "who", "time", "ours is so many times as fast"]
    return _markdown([*header, "largest relative excess loss", "accuracy off by"], lines)


def bench_runs_table(rows: Rows) -> str:
    """The newest row of each machine and setting."""
    newest = {(_device(row), row["method"], row["queue_size"], row["batch_size"], row["ranks"]): row for row in rows}
    lines = []
    for (machine, method, queue_size, batch_size, ranks), row in sorted(newest.items()):
        queue = f", queue {queue_size:,}" if queue_size else ""
        what = f"{method}, ResNet-18 of width {row['width']}, {batch_size} images a rank, {ranks} rank(s){queue}"
        plain, protected = (row["contenders"][name] for name in (PLAIN, PROTECTED))
        lines.append(
            [
                machine,
                what,
                _number(spread(plain["wall_ms"]), ".1f", unit=" ms"),
                _number(spread(protected["wall_ms"]), ".1f", unit=" ms"),
                _number(spread(shares(row["contenders"], "wall_ms")), ".3f"),
                _number(spread(shares(row["contenders"], "processor_ms")), ".3f"),
                _percent(spread(shares_of_hooks(protected))),
                _number(spread(protected["checkpoint_ms"]), ".0f", unit=" ms"),
            ]
        )
    header = ["on", "what", "step, plain", "step, protected", "ratio of a round", "ratio of processor time"]
    return _markdown([*header, "share of a step within protections", "a checkpoint"], lines)


METHODS = "methods"
TABLES: dict[str, Callable[[Rows], str]] = {
    "quality": quality_table,
    "import_time": import_time_table,
    "bench_augmentations": bench_augmentations_table,
    "augmentation_exactness": augmentation_exactness_table,
    "bench_losses": bench_losses_table,
    "bench_probes": bench_probes_table,
    "bench_runs": bench_runs_table,
}


def fill(text: str, results: Path = RESULTS) -> str:
    """The text with every marked table made anew from the rows in ``results``.

    Raises:
        ValueError: A marker names no table.
    """

    def table(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name == METHODS:
            return f"{begin}\n{_markdown(HEADER, methods_rows())}\n{end}"
        if name not in TABLES:
            raise ValueError(f"There is no table {name!r}. There are: {', '.join([*TABLES, METHODS])}.")
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


def _speeds(newest: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """One line for each machine and contender, the sizes side by side; what compiling cost below."""
    sizes = sorted({size for _, size in newest})
    quantity = main_quantity(next(iter(newest.values())))
    unit = "pairs per CPU-second" if quantity == "pairs_per_cpu_s" else "pairs/s"
    header = ["on", "who", *(cell for size in sizes for cell in (f"{size} px, {unit}", "over Kornia"))]
    contenders = dict.fromkeys((machine, name) for (machine, _), row in newest.items() for name in row["contenders"])
    lines = []
    for machine, name in contenders:
        cells = [machine, name]
        for size in sizes:
            measured = newest.get((machine, size), {"contenders": {}})["contenders"]
            cells += _speed_and_ratio(measured, name, quantity) if name in measured else ["", ""]
        lines.append(cells)
    return _markdown(header, lines) + "".join(f"\n{_first_use(row)}\n" for row in newest.values() if row["first_use_s"])


def _first_use(row: Mapping[str, Any]) -> str:
    times = [
        f"`{backend}` {seconds['compiled']:.1f} s, or {seconds['from_disk']:.1f} s once compiled code is on disk"
        for backend, seconds in row["first_use_s"].items()
    ]
    return f"What a process's first call takes longer, {row['size']} px on {_device(row)}: {'; '.join(times)}."


def _speed_and_ratio(measured: Mapping[str, Mapping[str, Any]], name: str, quantity: str) -> list[str]:
    speed = _number(spread(measured[name][quantity]), ",.0f")
    if "host_ms" in measured[name]:
        speed += f", host {_number(spread(measured[name]['host_ms']), '.2f', unit=' ms')}"
    return [speed, over(measured, name, faster_kornia(measured, quantity), quantity)]


def _time_and_memory(row: Mapping[str, Any], name: str) -> str:
    """Of one loss; beside ours how much faster that is, beside ours on a GPU how fast its matrix products are."""
    if name in row["left_out"]:
        return re.split(r" \(|;", row["left_out"][name])[0]
    measured = row["contenders"][name]
    milliseconds = spread([1e3 * seconds for seconds in measured["seconds"]])
    cell = f"{_number(milliseconds, '.3g' if milliseconds.low < 100 else ',.0f', unit=' ms')}, "
    cell += f"{measured['peak_mib']:,.0f} MiB"
    if name != "ours":
        return f"{cell}; {times_as_fast(row, name)}"
    if row["device"] == "cuda":
        share = _number(spread(share_of_matmul(row, name)), ".2f")
        cell += f"; {_number(spread(speeds(row, name)), '.0f', unit=' TFLOP/s')}, {share} of a large product's"
    return cell


def _settings(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What runs of one line of the table have in common: recipe, epochs, options unlike the recipe's, machine."""
    usual = {**defaults(load(row["recipe"])), "seed": row["seed"], "max_epochs": row["arguments"]["max_epochs"]}
    changed = [
        f"{name.replace('_', '-')} {value}" for name, value in row["arguments"].items() if value != usual.get(name)
    ]
    if row["compile"]:
        changed.append("compile")
    if row.get("views", "auto") != "auto":
        changed.append(f"views {row['views']}")
    return row["recipe"], str(row["arguments"]["max_epochs"]), ", ".join(changed), _machine(row)


def _machine(row: Mapping[str, Any]) -> str:
    return ", ".join(row["hardware"]["gpus"]) or _processor(row)


def _device(row: Mapping[str, Any]) -> str:
    """Of the machine, what the row's device is."""
    return _processor(row) if row["device"] == "cpu" else _machine(row)


def _processor(row: Mapping[str, Any]) -> str:
    return f"{row['hardware']['cpu_cores']} cores of {row['hardware']['cpu']}"


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
