"""What a person sees of an evaluation: tables in the shell, ``evaluation.md``, and pictures beside it."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from contrastive.report.confusion import save_confusion, save_per_class
from contrastive.runs.disk import write_text
from contrastive.runs.evaluation_record import DataSet, EvaluationRecord, ProtocolResult, Provenance, Trial, store
from contrastive.runs.folder import RunFolder

TOP1, MEAN_PER_CLASS = "top1", "mean_per_class"
NAMES = {
    TOP1: "top-1",
    "top5": "top-5",
    MEAN_PER_CLASS: "mean per class",
    "nmi": "NMI",
    "ari": "ARI",
    "mean_average_precision": "mAP",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "rankme": "RankMe",
    "alpha_req": "alpha-ReQ",
    "lidar": "LiDAR",
}
SHARES = re.compile(r"(top\d+|mean_per_class|.*accuracy|recall|r_precision|mean_average_precision|map_at_r)( at .*)?")

# Kornblith et al. 2019, "Do Better ImageNet Models Transfer Better?", table 1; SimCLR (Chen et al. 2020), appendix B.8:
# top-1 for Food-101, CIFAR-10, CIFAR-100, Birdsnap, SUN397, Stanford Cars and DTD. The same in linear.py of
# https://github.com/linusericsson/ssl-transfer.
OF_CLASSES = re.compile(r"(fgvc)?aircrafts?|(oxford)?(iiit)?pets?|caltech101|(oxford|vgg)?(102)?flowers?(102)?")
MULTI_LABEL = re.compile(r"(pascal)?voc((20)?\d\d)?")

AT_EDGE = "* Chosen at the edge of its grid: a wider grid might do better. Widen it before you compare."
SIGNS = re.compile(r"(?P<url>https?://[^\s,;<>()]*[^\s,;<>().])|[\\`*_{}\[\]<>|#~$&]")
DATA_SETS_A_TABLE = 3  # side by side in 80 columns
LEAST_CHOSEN = 10  # columns, of 80, that chosen hyper-parameters keep beside long scores
PICTURES = "evaluation"  # the folder beside evaluation.md
TRANSFER = "accuracy in percent, by the metric customary for each data set"

Row = Sequence[str]
Side = Literal["left", "right"]
OF_A_DATA_SET: tuple[Side, ...] = ("left", "left", "right", "left", "right", "right")  # the columns of its table


@dataclass(frozen=True)
class Saved:
    """What ``save`` did.

    Attributes:
        record: What the folder holds now: the new results, and earlier ones of the same weights.
        files: What was written: ``evaluation.json``, ``evaluation.md``, pictures.
        aside: Where an earlier record of other weights or images went; None where there was none.
    """

    record: EvaluationRecord
    files: tuple[Path, ...]
    aside: Path | None


def save(record: EvaluationRecord, folder: Path) -> Saved:
    """Write ``evaluation.json``, ``evaluation.md`` and the pictures of the new results into a folder.

    The pictures are of the first seed. What lies there already is treated as ``store`` says; its pictures stay.
    """
    stored = store(record, folder)
    pictures = [
        file
        for data in record.data_sets
        for result in data.results
        for file in _save_pictures(record, data, result, folder)
    ]
    file = RunFolder(folder).evaluation_file
    page = file.with_suffix(".md")
    write_text(page, markdown(stored.record, folder))
    return Saved(stored.record, (file, page, *pictures), stored.aside)


def customary_metric(data_set: str) -> str:
    """The score that papers on transfer report for a data set, by its name in whatever spelling; ``top1`` for others.

    ``mean_per_class`` for FGVC Aircraft, Oxford-IIIT Pets, Caltech-101 and Oxford Flowers (Kornblith et al. 2019,
    table 1; SimCLR, appendix B.8).

    Raises:
        ValueError: It is Pascal VOC, whose images have several labels each.
    """
    name = re.sub(r"[\W_]", "", data_set).lower()
    if MULTI_LABEL.fullmatch(name):
        raise ValueError(
            f"{data_set} has several labels an image and is reported by 11-point mean average precision, which is not "
            "supported. Leave it out; if your folder has one label an image, give it another name."
        )
    return MEAN_PER_CLASS if OF_CLASSES.fullmatch(name) else TOP1


# ---------------------------------------------------------------------------------------------------------- the screen


def screen(record: EvaluationRecord) -> Group:
    """A table for each data set; with several of them, or baselines, also the transfer table."""
    tables = []
    for data in record.data_sets:
        title = f"{record.encoder.name} on {data.name}"
        tables.append(_rich(data_set_rows(data), OF_A_DATA_SET, _about(data), title=title))
    if len(record.data_sets) > 1 or record.baselines:
        for start in range(0, len(record.data_sets), DATA_SETS_A_TABLE):
            rows = transfer_rows(record, record.data_sets[start : start + DATA_SETS_A_TABLE])
            sides: list[Side] = ["left" if place < 2 else "right" for place in range(len(rows[0]))]
            tables.append(_rich(rows, sides, _about_transfer(record), title=f"Side by side: {TRANSFER}"))
    return Group(*(part for table in tables for part in ("", table)))


def data_set_rows(data: DataSet) -> list[Row]:
    """A header and a row for each protocol: scores, what was chosen, how many images, seconds. Lines within a cell."""
    rows: list[Row] = [("protocol", "score", "", "chosen", "train\ntest", "time\n(s)")]
    for result in data.results:
        scores = [line for score in result.scores for line in _lines(result, score)]
        counts = [(trial.evaluation.num_train, trial.evaluation.num_test) for trial in result.trials]
        rows.append(
            (
                result.protocol,
                "\n".join(name for name, _ in scores),
                "\n".join(number for _, number in scores),
                "\n".join(_chosen(result)),
                "\n".join(map(_count, zip(*counts, strict=True))),
                f"{sum(trial.seconds for trial in result.trials):,.1f}",
            )
        )
    return rows


def transfer_rows(record: EvaluationRecord, data_sets: Sequence[DataSet]) -> list[Row]:
    """A header and a row for each encoder and protocol: the metric customary for each data set, in percent.

    A cell is empty where there is no such score, and so has no number; protocols without any have no row.
    """
    metrics = {data.name: customary_metric(data.name) for data in data_sets}
    rows: list[Row] = [("encoder", "protocol", *(f"{name}\n{score_name(one)}" for name, one in metrics.items()))]
    for encoder in (*record.baselines, record):
        results = {data.name: {one.protocol: one for one in data.results} for data in encoder.data_sets}
        name = encoder.encoder.name
        for protocol in dict.fromkeys(protocol for found in results.values() for protocol in found):
            cells = [_cell(results.get(data, {}).get(protocol), metric) for data, metric in metrics.items()]
            if any(cells):
                rows.append((name, protocol, *cells))
                name = ""  # once
    return rows


def score_name(score: str) -> str:
    """What people call it."""
    return NAMES.get(score, score.replace("_", " "))


def _cell(result: ProtocolResult | None, metric: str) -> str:
    if result is None or metric not in result.scores:
        return ""
    return _number(result, metric) + ("*" if _edges(result) else "")


def _lines(result: ProtocolResult, score: str) -> Iterator[tuple[str, str]]:
    """A score's name with its unit, and its number; the same of its spread over draws."""
    what, at, where = score.partition(" at ")
    yield f"{score_name(what)}{' %' if SHARES.fullmatch(score) else ''}{at}{where}", _number(result, score)
    spread = result.spread(score)
    if spread is not None:
        yield "  over draws", f"± {_scaled(score, spread)}"


def _number(result: ProtocolResult, score: str) -> str:
    """Plus and minus is over the seeds."""
    mean, std = result.mean(score), result.std(score)
    return _scaled(score, mean) + ("" if std is None or math.isnan(mean) else f" ± {_scaled(score, std)}")


def _count(counts: Sequence[int]) -> str:
    """Of images; seeds may differ in what they hold out or draw."""
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to\n{most:,}"


def _scaled(score: str, value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{100 * value:.2f}" if SHARES.fullmatch(score) else f"{value:.4g}"


def _chosen(result: ProtocolResult) -> list[str]:
    """A line for each chosen hyper-parameter, with a mark where it lies at its grid's edge."""
    edges = _edges(result)
    names = dict.fromkeys(name for trial in result.trials for name in trial.evaluation.chosen)
    lines = []
    for name in names:
        values = dict.fromkeys(_value(trial.evaluation.chosen.get(name)) for trial in result.trials)
        lines.append(f"{name.replace('_', ' ')} {' / '.join(values)}{'*' if name in edges else ''}")
    return lines


def _edges(result: ProtocolResult) -> list[str]:
    return list(dict.fromkeys(name for trial in result.trials for name in trial.evaluation.at_edge))


def _value(value: Any) -> str:
    """A hyper-parameter in a few characters."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {_value(one)}" for name, one in value.items())
    if isinstance(value, list | tuple) and value:
        if len(value) > 6 and all(isinstance(one, int | float) for one in value):
            return f"{len(value)} values from {_value(min(value))} to {_value(max(value))}"
        return ", ".join(map(_value, value))
    if value is None or isinstance(value, bool | list | tuple):
        return "yes" if value is True else "no" if value is False else "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _about(data: DataSet) -> list[str]:
    """What stands beneath a data set's table."""
    results = data.results
    lines = []
    if any(len(result.trials) > 1 for result in results):
        lines.append("±: standard deviation over the seeds (n - 1). Time: of all seeds.")
    if any(result.spread(score) is not None for result in results for score in result.scores):
        lines.append("Over draws: standard deviation over the draws within a seed.")
    if data.duplicates_removed is None:
        lines.append("Training images that may be test images too were not looked for.")
    elif data.duplicates_removed:
        lines.append(f"{data.duplicates_removed:,} training images are test images too and were left out.")
    if any(map(_edges, results)):
        lines.append(AT_EDGE)
    return lines + [f"{result.protocol}: {caveat}" for result in results for caveat in caveats(result)]


def _about_transfer(record: EvaluationRecord) -> list[str]:
    results = [one for encoder in (record, *record.baselines) for data in encoder.data_sets for one in data.results]
    return [AT_EDGE] if any(map(_edges, results)) else []


def _rich(rows: Sequence[Row], sides: Sequence[Side], notes: Sequence[str], *, title: str) -> Table:
    """Nothing in it is markup, whatever classes and data sets are called. Names and numbers stay on one line."""
    table = Table(box=SIMPLE_HEAD, header_style="", title=Text(title, "bold"), title_justify="left")
    table.pad_edge, table.collapse_padding = False, True
    header, *body = rows
    for name, side in zip(header, sides, strict=True):
        whole = side == "right" or name in ("protocol", "score")
        least = LEAST_CHOSEN if name == "chosen" else None
        table.add_column(Text(name), justify=side, no_wrap=whole, overflow="fold", min_width=least)
    for row in body:
        table.add_row(*map(Text, row))
    if notes:
        table.caption, table.caption_justify = Text("\n".join(notes)), "left"
    return table


# ------------------------------------------------------------------------------------------------------- evaluation.md


def markdown(record: EvaluationRecord, folder: Path) -> str:
    """The record as a page: tables, what each protocol did, what to be careful about, pictures, the machine.

    Args:
        record: What was found.
        folder: Where the page will lie; pictures there are linked.
    """
    encoder = record.encoder
    facts = {
        "checkpoint": encoder.checkpoint,
        "epochs of training": encoder.epochs,
        "parameters": f"{encoder.num_parameters:,}",
        "feature width": f"{encoder.num_features:,}",
        "weights, SHA-256": encoder.weights_sha256,
    }
    parts = [f"# Evaluation of {_md(encoder.name)}", _list(facts)]
    if len(record.data_sets) > 1 or record.baselines:
        parts += ["## Side by side", f"{TRANSFER.capitalize()}.", _md_table(transfer_rows(record, record.data_sets))]
        parts += [_md(note) for note in _about_transfer(record)]
    for data in record.data_sets:
        parts += _md_data_set(record, data, folder)
    parts += ["## Where the numbers come from", *_md_origins(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def caveats(result: ProtocolResult) -> list[str]:
    """What a reader should know before believing a number, in sentences."""
    details: dict[str, Any] = {}
    for trial in result.trials:
        details |= {name: value for name, value in trial.evaluation.details.items() if name not in details}
    found = []
    if any(trial.evaluation.details.get("converged") is False for trial in result.trials):
        weak = {one for trial in result.trials for one in trial.evaluation.details.get("not_converged_l2", ())}
        where = f" at l2 {', '.join(map(_value, sorted(weak)))}" if weak else ""
        found.append(f"A solver stopped short of its optimum{where}; evaluation.json says how far.")
    for name, wanted in details.items():
        if name.endswith("_lowered_from"):
            what = name.removesuffix("_lowered_from")
            now = f" to {_value(details[what])}" if what in details else ""
            found.append(f"Lowered for want of images: {what.replace('_', ' ')} from {_value(wanted)}{now}.")
    lost = [score_name(score) for score in result.scores if math.isnan(result.mean(score))]
    if lost:
        found.append(f"{', '.join(lost)}: not a number.")
    return found


def _md_data_set(record: EvaluationRecord, data: DataSet, folder: Path) -> list[str]:
    extraction = None if data.extraction_seconds is None else f"{data.extraction_seconds:,.1f} s"
    facts = {
        "images": f"{data.num_train:,} for training, {data.num_test:,} for testing, {len(data.classes):,} classes",
        "training images that are test images too": _left_out(data),
        "folder": data.root or None,
        "files, SHA-256 of their list": data.manifest_sha256,
        "what the encoder sees": data.transform,
        "features took": extraction,
    }
    parts = [f"## {_md(data.name)}", _list(facts), _md_table(data_set_rows(data))]
    parts += [_md(note) for note in _about(data)]
    for result in data.results:
        parts += [f"### {_md(data.name)}: {_md(result.protocol)}", _md_protocol(result)]
        for kind in ("confusion", "classes"):
            file = _picture(record, data, result, folder, kind)
            if file.exists():
                parts.append(f"![{_md(result.protocol)}, {kind}]({PICTURES}/{file.name})")
    return parts


def _left_out(data: DataSet) -> str:
    if data.duplicates_removed is None:
        return "nobody looked for any"
    return f"{data.duplicates_removed:,}, left out" if data.duplicates_removed else "none"


def _md_protocol(result: ProtocolResult) -> str:
    """What was done, with its numbers and their source."""
    numbers = {name: value for name, value in result.hyper_parameters.items() if name != "source"}
    given = "; ".join(f"{name.replace('_', ' ')} {_value(value)}" for name, value in numbers.items())
    seeds = ", ".join(str(trial.seed) for trial in result.trials)
    lines = [
        result.description,
        f"Set to: {given}." if given else "",
        f"Source: {result.hyper_parameters.get('source', 'not stated').rstrip('.')}.",
        f"Chosen on training images: {'; '.join(_chosen(result))}." if _chosen(result) else "",
        f"Seed {seeds}." if len(result.trials) == 1 else f"Seeds {seeds}.",
        AT_EDGE.removeprefix("* ") if _edges(result) else "",
        *caveats(result),
    ]
    return " ".join(_md(line) for line in lines if line)


def _md_origins(record: EvaluationRecord) -> Iterator[str]:
    """The machine, the versions and the command, each origin once with the results that have it."""
    origins: list[tuple[Provenance, dict[str, list[str]]]] = []
    for one in (record, *record.baselines):
        for data in one.data_sets:
            for result in data.results:
                found = next((names for origin, names in origins if origin == result.provenance), None)
                if found is None:
                    found = {}
                    origins.append((result.provenance, found))
                found.setdefault(f"{one.encoder.name} on {data.name}", []).append(result.protocol)
    for origin, names in origins:
        yield _list(
            {
                "results": "; ".join(f"{where}: {', '.join(protocols)}" for where, protocols in names.items()),
                "when": origin.when,
                "command": origin.command,
                "commit": origin.commit,
                "versions": _value(origin.versions),
                "machine": _value({name: one for name, one in origin.hardware.items() if one not in (None, [])}),
            }
        )


def _list(facts: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_md(str(fact))}" for name, fact in facts.items() if fact is not None)


def _md_table(rows: Sequence[Row]) -> str:
    lines = [" | ".join(_md(cell, newline="<br>") for cell in row) for row in rows]
    header, *body = (f"| {line} |" for line in lines)
    return "\n".join([header, "|" + " --- |" * len(rows[0]), *body])


def _md(text: str, *, newline: str = " ") -> str:
    """A text whose signs Markdown takes for nothing else, on one line; addresses become links."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return newline.join(SIGNS.sub(lambda sign: f"<{sign[0]}>" if sign["url"] else f"\\{sign[0]}", one) for one in lines)


# ------------------------------------------------------------------------------------------------------------ pictures


def _save_pictures(record: EvaluationRecord, data: DataSet, result: ProtocolResult, folder: Path) -> Iterator[Path]:
    first: Trial = result.trials[0]
    title = f"{record.encoder.name} on {data.name}, {result.protocol}, seed {first.seed}"
    if first.evaluation.confusion is not None:
        file = _picture(record, data, result, folder, "confusion")
        save_confusion(first.evaluation.confusion, data.classes, file, title=title)
        yield file
    if first.per_class is not None:
        file = _picture(record, data, result, folder, "classes")
        save_per_class(first.per_class.num_correct, first.per_class.num_test, data.classes, file, title=title)
        yield file


def _picture(record: EvaluationRecord, data: DataSet, result: ProtocolResult, folder: Path, kind: str) -> Path:
    """Of other weights or images the file is another one, so that a page that was put aside keeps its pictures."""
    of = hashlib.sha256(repr((record.encoder.weights_sha256, data.identity)).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", f"{data.name[:80]}-{result.protocol}")
    return folder / PICTURES / f"{name}-{of}-{kind}.png"
