"""The report: one HTML file that needs nothing else, and the same tables as Markdown."""

import base64
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from restorevar.evaluation.metrics import METRICS
from restorevar.evaluation.published import PUBLISHED, PUBLISHED_DATASETS, PUBLISHED_MEMBERS, PUBLISHED_METRICS
from restorevar.evaluation.scores import ALL, MODEL_METHOD, ROLES, Score, Summary, gather_objects
from restorevar.files import atomic_write

__all__ = ["Case", "CasePool", "Results", "gather_cases", "write_html", "write_markdown"]

Pixels = NDArray[np.uint8]

PICTURE_SIDE = 720
"""Long side of the pictures in the report, in pixels; the scores are of the full size."""

FAILURES_SHOWN = 6
LABEL = 26  # letters beside a plot
EMPTY = "-"


@dataclass(frozen=True)
class Results:
    """All that is reported about a run.

    Attributes:
        scores: One each image and method, from all processes.
        summaries: Their averages.
        unavailable: Metric to the reason why it has no number.
        skipped: Methods that were left out, and why.
        facts: Model, versions, seed, command and configuration: what to know to do it again.
    """

    scores: list[Score]
    summaries: list[Summary]
    unavailable: dict[str, str]
    skipped: dict[str, str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One photo to look at.

    Attributes:
        score: The model's score.
        before: The degraded input's score.
        pictures: WebP files: `input`, `restored`, `clean`.
    """

    score: Score
    before: Score
    pictures: dict[str, bytes]

    @property
    def group(self) -> str:
        """Kind of degradation; the data set where it is outside the averages."""
        return self.score.kind if self.score.protocol.in_averages else self.score.dataset

    @property
    def gain(self) -> float:
        """PSNR over the degraded input's, in dB."""
        return (self.score.values["psnr"] or 0.0) - (self.before.values["psnr"] or 0.0)


class CasePool:
    """Keeps the pictures of the best, worst and some other cases of each group, in bounded memory.

    The median shown is exact for up to `limit` images of a group, then the nearest of those kept.

    Args:
        limit: Cases kept of a group on a process.
        extremes: Of these, the worst and the best that are always kept.
    """

    def __init__(self, limit: int = 40, extremes: int = FAILURES_SHOWN) -> None:
        self.limit, self.extremes = limit, extremes
        self._groups: dict[str, list[Case]] = {}

    def add(self, score: Score, before: Score, pictures: dict[str, Pixels]) -> None:
        """Offers a case.

        Args:
            score: The model's score; it is left out if it has no PSNR.
            before: The degraded input's.
            pictures: (H, W, 3) uint8 by `input`, `restored`, `clean`.
        """
        if score.values.get("psnr") is None or before.values.get("psnr") is None:
            return
        case = Case(score, before, {})
        group = self._groups.setdefault(case.group, [])
        group.append(case)
        group.sort(key=lambda member: member.gain)
        if len(group) > self.limit:
            middle = group[self.extremes : -self.extremes]
            dropped = min(middle, key=lambda member: zlib.crc32(repr(member.score.image_key).encode()))
            group.remove(dropped)
            if dropped is case:
                return
        case.pictures.update({name: _webp(picture) for name, picture in pictures.items()})

    @property
    def cases(self) -> list[Case]:
        """All cases kept by this process."""
        return [case for group in self._groups.values() for case in group]


def gather_cases(cases: list[Case]) -> list[Case]:
    """All processes' cases on every process, each photo once, from the smallest gain to the largest."""
    unique: dict[tuple[Any, ...], Case] = {}
    for part in gather_objects(cases):
        for case in part:
            unique.setdefault(case.score.image_key, case)
    return sorted(unique.values(), key=lambda case: (case.gain, case.score.image_key))


# ---------------------------------------------------------------------------------------------------------- tables
class Cell(NamedTuple):
    """One number of a table, ready to print.

    Attributes:
        text: The mean.
        interval: Its 95 % interval.
        gain: Difference to the degraded input with a sign, or empty.
        best: Whether it is the best of the methods that see the degraded photo only.
        worse: Whether it is worse than the degraded input.
    """

    text: str
    interval: str = ""
    gain: str = ""
    best: bool = False
    worse: bool = False


class Row(NamedTuple):
    """A method's cells."""

    method: str
    role: str
    cells: list[Cell]


class Table(NamedTuple):
    """A table of one metric, or of one data set.

    Attributes:
        title: What it shows.
        note: What else a reader must know.
        columns: Headings after the method.
        rows: One a method.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[Row]


@dataclass
class Plot:
    """Scores of one kind as an SVG strip plot: positions are in SVG units.

    Attributes:
        title: Kind of degradation and number of images.
        rows: Methods with their points.
        ticks: (position, label) of the axis.
        height: Height of the drawing.
    """

    title: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    ticks: list[tuple[float, str]] = field(default_factory=list)
    height: float = 0.0
    middle: float | None = None


def kind_tables(results: Results) -> list[Table]:
    """For each metric: methods by kinds, and the mean over all images."""
    tables = []
    protocols = _protocols(results.summaries)
    for protocol in protocols:
        chosen = [s for s in results.summaries if s.group in ("all", "kind") and s.protocol.name == protocol]
        kinds = list(dict.fromkeys(s.kind for s in chosen if s.group == "kind"))
        for metric in METRICS:
            members = [s for s in chosen if s.metric == metric]
            if members:
                by_place = {(s.method, s.kind): s for s in members}
                images = {kind: _most_images(members, kind) for kind in (*kinds, ALL)}
                columns = [f"{_words(kind)} ({images[kind]})" for kind in kinds] + [f"all images ({images[ALL]})"]
                rows = _rows(members, by_place, [*kinds, ALL])
                title = _metric_title(metric) + (f", {protocol}" if len(protocols) > 1 else "")
                tables.append(Table(title, f"protocol {protocol}", columns, rows))
    return tables


def dataset_tables(results: Results) -> list[Table]:
    """For each data set: methods by metrics."""
    tables = []
    chosen = [s for s in results.summaries if s.group == "dataset"]
    for dataset in dict.fromkeys(s.dataset for s in chosen):
        members = [s for s in chosen if s.dataset == dataset]
        metrics = [metric for metric in METRICS if any(s.metric == metric for s in members)]
        by_place = {(s.method, s.metric): s for s in members}
        columns = [_metric_title(metric) for metric in metrics]
        protocol = members[0].protocol
        images = max(s.estimate.images for s in members)
        note = f"{images} images; protocol {protocol.name}: {protocol.describe()}"
        tables.append(Table(dataset, note, columns, _rows(members, by_place, metrics)))
    return tables


def published_table(results: Results) -> Table | None:
    """The published table with our row, if anything was scored under the protocol `paper`."""
    ours = [s for s in results.summaries if s.group == "dataset" and s.protocol.name == "paper" and s.role != "ceiling"]
    if not ours:
        return None
    columns = [f"{name} {METRICS[metric].label}" for name in PUBLISHED_DATASETS for metric in PUBLISHED_METRICS]
    rows = [
        Row(
            row.method,
            "published",
            [
                Cell(f"{value:.{2 if place == 0 else 3}f}")
                for name in PUBLISHED_DATASETS
                for place, value in enumerate(row.scores[name])
            ],
        )
        for row in PUBLISHED
    ]
    for method, role in dict.fromkeys((s.method, str(s.role)) for s in ours):
        if role not in ("input", "model", "rival"):
            continue
        cells = []
        for name in PUBLISHED_DATASETS:
            for place, metric in enumerate(PUBLISHED_METRICS):
                found = [
                    s.estimate
                    for s in ours
                    if s.method == method and s.metric == metric and s.dataset in PUBLISHED_MEMBERS[name]
                ]
                images = sum(estimate.images for estimate in found)
                mean = sum(estimate.mean * estimate.images for estimate in found) / max(images, 1)
                cells.append(Cell(f"{mean:.{2 if place == 0 else 3}f}" if found else EMPTY))
        rows.append(Row(method, f"{role}, this run", cells))
    sources = "; ".join(dict.fromkeys(row.source for row in PUBLISHED))
    members = {name: [s.dataset for s in ours if s.dataset in sets] for name, sets in PUBLISHED_MEMBERS.items()}
    filled = "; ".join(f"{name}: {', '.join(dict.fromkeys(sets))}" for name, sets in members.items() if sets)
    filled = filled or "no set of the table"
    note = f"Published figures: {sources}. This run: protocol paper, mean over the images of {filled}."
    return Table("Beside the published scores", note, columns, rows)


def cards(results: Results) -> list[dict[str, str]]:
    """The model's PSNR and gain for each kind, for the top of the page."""
    return [
        {
            "kind": _words(summary.kind),
            "psnr": f"{summary.estimate.mean:.2f}",
            "gain": "" if summary.gain is None else f"{summary.gain.mean:+.2f}",
            "images": str(summary.estimate.images),
        }
        for summary in results.summaries
        if summary.group == "kind" and summary.method == MODEL_METHOD and summary.metric == "psnr"
    ]


def plots(results: Results) -> list[Plot]:
    """PSNR of every image by method: one plot a kind, and one a data set outside the averages."""
    groups: dict[str, list[Score]] = {}
    for score in sorted(results.scores, key=lambda score: (not score.protocol.in_averages, score.kind, score.dataset)):
        groups.setdefault(_words(score.kind) if score.protocol.in_averages else score.dataset, []).append(score)
    return [
        _plot(title, scores) for title, scores in groups.items() if any(_psnr(score) is not None for score in scores)
    ]


def choose_cases(cases: Sequence[Case]) -> tuple[list[Case], dict[str, list[tuple[str, Case]]]]:
    """The failures, and the worst, median and best case of each group.

    Args:
        cases: From `gather_cases`.

    Returns:
        Cases that are worse than their input, worst first; group to labelled cases.
    """
    failures = [case for case in cases if case.gain < 0 and case.score.protocol.in_averages][:FAILURES_SHOWN]
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    chosen = {}
    for group, members in sorted(groups.items()):
        places = {"worst": 0, "median": (len(members) - 1) // 2, "best": len(members) - 1}
        seen: dict[int, str] = {}
        for label, place in places.items():
            seen[place] = f"{seen[place]} and {label}" if place in seen else label
        chosen[group] = [(label, members[place]) for place, label in sorted(seen.items())]
    return failures, chosen


# ----------------------------------------------------------------------------------------------------------- files
def write_html(path: Path, results: Results, cases: Sequence[Case]) -> None:
    """Writes the report as one HTML file with everything inside.

    Args:
        path: File to write.
        results: What was found.
        cases: From `gather_cases`; may be empty.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["words"] = _words
    template = environment.from_string(
        files("restorevar.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    )
    failures, groups = choose_cases(cases)
    text = template.render(
        headline=headline(results),
        cards=cards(results),
        failures=[_case_view("", case) for case in failures],
        failure_count=_failures(results.scores),
        groups={_words(name): [_case_view(*labelled) for labelled in members] for name, members in groups.items()},
        kind_tables=kind_tables(results),
        dataset_tables=dataset_tables(results),
        published=published_table(results),
        plots=plots(results),
        picture_side=PICTURE_SIDE,
        **_appendix(results),
    )
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_markdown(path: Path, results: Results) -> None:
    """Writes the report's tables as Markdown.

    Args:
        path: File to write.
        results: What was found.
    """
    lines = ["# Restoration report", "", headline(results), ""]
    worse, total = _failures(results.scores)
    if total:
        lines += [f"{worse} of {total} images have a lower PSNR than their input.", ""]
    for table in kind_tables(results):
        lines += [f"## {table.title}, {table.note}", "", *_markdown_table(table), ""]
    lines += ["Mean [95 % bootstrap interval]; the best of the methods that see the degraded photo only is bold.", ""]
    for table in dataset_tables(results):
        lines += [f"## {table.title}", "", f"{table.note}.", "", *_markdown_table(table), ""]
    published = published_table(results)
    if published is not None:
        lines += [f"## {published.title}", "", published.note, "", *_markdown_table(published), ""]
    appendix = _appendix(results)
    lines += ["## How it was made", ""]
    lines += [f"- Protocol `{name}`: {text}." for name, text in appendix["protocols"].items()]
    lines += [f"- {label}: {text}." for label, text in appendix["metrics"].items()]
    lines += [f"- {label} is missing: {reason}." for label, reason in appendix["unavailable"].items()]
    lines += [f"- {method} is left out: {reason}." for method, reason in results.skipped.items()]
    lines += [f"- {name}: {text}" for name, text in appendix["facts"].items()]
    for name, text in appendix["blocks"].items():
        lines += ["", f"{name}:", "", "```yaml", text.rstrip(), "```"]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def headline(results: Results) -> str:
    """The result in a sentence or two."""
    chosen = [s for s in results.summaries if s.group == "all" and s.metric == "psnr" and s.role == "model"]
    if not chosen:
        reason = results.skipped.get(MODEL_METHOD)
        return f"The model was not scored: {reason}." if reason else "No image inside the averages has a PSNR."
    sentences = []
    for summary in chosen:
        estimate, gain = summary.estimate, summary.gain
        sentence = f"{summary.method}: {estimate.mean:.2f} dB PSNR over {estimate.images} images"
        if gain is not None:
            sentence += (
                f", {gain.mean:+.2f} dB over the degraded input (95 % interval {gain.low:+.2f} to {gain.high:+.2f})"
            )
        sentences.append(f"{sentence}; protocol {summary.protocol.name}.")
    return " ".join(sentences)


def _appendix(results: Results) -> dict[str, Any]:
    used = dict.fromkeys(metric for score in results.scores for metric in score.values)
    facts = {name: text for name, text in results.facts.items() if isinstance(text, str) and "\n" not in text}
    blocks = {name: text for name, text in results.facts.items() if isinstance(text, str) and "\n" in text}
    return {
        "protocols": {score.protocol.name: score.protocol.describe() for score in results.scores},
        "metrics": {METRICS[metric].label: METRICS[metric].definition for metric in METRICS if metric in used},
        "unavailable": {METRICS[metric].label: reason for metric, reason in results.unavailable.items()},
        "skipped": results.skipped,
        "facts": facts,
        "blocks": blocks,
    }


def _markdown_table(table: Table) -> list[str]:
    def cell(value: Cell) -> str:
        text = f"**{value.text}**" if value.best else value.text
        return f"{text} [{value.interval}]" if value.interval else text

    lines = ["| method | " + " | ".join(table.columns) + " |", "|---|" + "---|" * len(table.columns)]
    for row in table.rows:
        lines.append(f"| {row.method} ({row.role}) | " + " | ".join(cell(value) for value in row.cells) + " |")
    return lines


def _rows(members: Sequence[Summary], by_place: dict[tuple[str, str], Summary], columns: list[str]) -> list[Row]:
    """Rows of means over all images of a column: methods that were applied to fewer are not comparable there.

    Args:
        members: Summaries of the table.
        by_place: The same by method and column.
        columns: In their order.
    """
    methods = dict.fromkeys((s.method, s.role) for s in members)
    cells: dict[str, list[Cell]] = {method: [] for method, _ in methods}
    for column in columns:
        found = {method: s for (method, place), s in by_place.items() if place == column}
        images = max((s.estimate.images for s in found.values()), default=0)
        found = {method: s for method, s in found.items() if s.estimate.images == images}
        fair = [s for s in found.values() if s.role not in ("ceiling", "oracle")]
        winner = None
        if fair:
            lower = METRICS[fair[0].metric].better == "lower"
            winner = min(fair, key=lambda s: s.estimate.mean if lower else -s.estimate.mean).method
        for method, _ in methods:
            cells[method].append(_cell(found.get(method), winner))
    return [Row(method, role, cells[method]) for method, role in methods if any(c.text != EMPTY for c in cells[method])]


def _cell(summary: Summary | None, winner: str | None) -> Cell:
    if summary is None:
        return Cell(EMPTY)
    info = METRICS[summary.metric]
    estimate, digits = summary.estimate, info.digits
    gain = summary.gain
    return Cell(
        text=f"{estimate.mean:.{digits}f}",
        interval=f"{estimate.low:.{digits}f}, {estimate.high:.{digits}f}",
        gain="" if gain is None else f"{gain.mean:+.{digits}f}",
        best=summary.method == winner,
        worse=gain is not None and (gain.mean < 0) == (info.better == "higher") and abs(gain.mean) > 1e-12,
    )


def _plot(title: str, scores: Sequence[Score]) -> Plot:
    left, right, line = 175.0, 555.0, 25.0
    values = [value for score in scores if (value := _psnr(score)) is not None]
    low, high = math.floor(min(values)), max(math.ceil(max(values)), math.floor(min(values)) + 1)
    step = next(size for size in (1, 2, 5, 10, 20, 50, 100) if (high - low) / size <= 7)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)

    def place(value: float) -> float:
        return round(left + (right - left) * (value - low) / (high - low), 1)

    plot = Plot(title)
    methods = sorted({(score.role, score.method) for score in scores}, key=lambda it: (ROLES.index(it[0]), it[1]))
    for index, (role, method) in enumerate(methods):
        own = [(score, value) for score in scores if score.method == method and (value := _psnr(score)) is not None]
        if not own:
            continue
        mean = sum(value for _, value in own) / len(own)
        y = 14 + line * index
        plot.rows.append(
            {
                "method": method,
                "label": method if len(method) <= LABEL else method[: LABEL - 1] + "…",
                "role": role,
                "y": y,
                "mean": place(mean),
                "mean_text": f"{mean:.2f}",
                # points are spread a little so that equal scores stay visible
                "points": [
                    (place(value), round(y + (place_in % 5 - 2) * 2.2, 1), f"{Path(score.path).name}: {value:.2f} dB")
                    for place_in, (score, value) in enumerate(own)
                ],
            }
        )
        if role == "input":
            plot.middle = place(mean)
    plot.ticks = [(place(tick), f"{tick:g}") for tick in range(low, high + 1, step)]
    plot.height = 14 + line * len(methods) + 22
    images = len({score.image_key for score in scores})
    plot.title = f"{title} ({images} {'image' if images == 1 else 'images'})"
    return plot


def _case_view(label: str, case: Case) -> dict[str, Any]:
    def values(score: Score) -> str:
        shown = (name for name in ("psnr", "ssim", "lpips") if score.values.get(name) is not None)
        return ", ".join(
            f"{METRICS[n].label} {score.values[n]:.{METRICS[n].digits}f}{' dB' * (n == 'psnr')}" for n in shown
        )

    score = case.score
    return {
        "label": label,
        "name": Path(score.path).name,
        "dataset": score.dataset,
        "kind": _words(score.kind),
        "severity": "" if score.severity is None else f"severity {score.severity:.2f}",
        "gain": f"{case.gain:+.2f} dB",
        "before": values(case.before),
        "after": values(score),
        "width": score.width,
        "height": score.height,
        "pictures": {
            name: "data:image/webp;base64," + base64.b64encode(data).decode("ascii")
            for name, data in case.pictures.items()
        },
    }


def _webp(picture: Pixels) -> bytes:
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


def _failures(scores: Sequence[Score]) -> tuple[int, int]:
    """How many of the model's images in the averages have a lower PSNR than their input, and how many there are."""
    before = {score.image_key: _psnr(score) for score in scores if score.role == "input"}
    pairs = [(_psnr(score), before.get(score.image_key)) for score in scores if _is_main(score)]
    known = [(after, first) for after, first in pairs if after is not None and first is not None]
    return sum(after < first for after, first in known), len(known)


def _is_main(score: Score) -> bool:
    return score.method == MODEL_METHOD and score.protocol.in_averages


def _psnr(score: Score) -> float | None:
    return score.values.get("psnr")


def _metric_title(metric: str) -> str:
    info = METRICS[metric]
    return f"{info.label} {'↑' if info.better == 'higher' else '↓'}{f' ({info.unit})' if info.unit else ''}"


def _most_images(members: Sequence[Summary], kind: str) -> int:
    return max((s.estimate.images for s in members if s.kind == kind), default=0)


def _protocols(summaries: Sequence[Summary]) -> list[str]:
    """Those of the averages."""
    return list(dict.fromkeys(s.protocol.name for s in summaries if s.protocol.in_averages))


def _words(name: str) -> str:
    """`low_light` as `low light`."""
    return name.replace("_", " ")
