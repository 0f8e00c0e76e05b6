"""Scores of images, collected over batches and processes, averaged and written to files."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from restorevar.errors import UserError
from restorevar.evaluation.metrics import DEFAULT_METRICS, METRICS, ImageMetrics
from restorevar.evaluation.protocol import PROTOCOLS, Protocol
from restorevar.evaluation.statistics import Estimate, bootstrap_mean
from restorevar.files import atomic_write

__all__ = [
    "INPUT_METHOD",
    "MODEL_METHOD",
    "ROLES",
    "Role",
    "Score",
    "ScoreTable",
    "Summary",
    "gather_objects",
    "gather_scores",
    "summarize",
    "write_json",
    "write_scores",
    "write_summary",
]

ValueT = TypeVar("ValueT")
Role = Literal["input", "blind", "rival", "model", "ceiling", "oracle"]
ROLES: tuple[Role, ...] = get_args(Role)
"""In the order of tables. `blind` sees the degraded photo only; `ceiling` and `oracle` use what no user has."""

MODEL_METHOD = "RestoreVAR"
INPUT_METHOD = "degraded input"

GroupName = Literal["all", "kind", "dataset", "dataset_kind"]
ALL = "all"


@dataclass(frozen=True)
class Score:
    """What one method reached on one image.

    Attributes:
        method: Name of the method.
        role: What kind of method it is.
        dataset: Name of the set.
        kind: Kind of degradation.
        path: File of the image.
        scene: What it has in common with other degraded versions of one clean image; `path` where nothing is known.
        severity: Of a synthetic degradation, in [0, 1]; None where not known.
        parameters: JSON of the degradation's parameters.
        height: Pixels scored.
        width: Pixels scored.
        protocol: What was done before scoring.
        shift: (down, right) shift that was undone.
        values: Metric name to value; None where the metric is not defined for the image.
    """

    method: str
    role: Role
    dataset: str
    kind: str
    path: str
    scene: str
    severity: float | None
    parameters: str
    height: int
    width: int
    protocol: Protocol
    shift: tuple[int, int]
    values: dict[str, float | None]

    @property
    def image_key(self) -> tuple[Any, ...]:
        """What identifies the degraded image; equal for all methods."""
        return (self.dataset, self.kind, self.path, -1.0 if self.severity is None else self.severity, self.parameters)

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the score; two processes that saw the same sample give equal keys."""
        return (*self.image_key, self.method)

    def as_dict(self) -> dict[str, Any]:
        """Flat, for files; the protocol by all its fields."""
        return {
            "method": self.method,
            "role": self.role,
            "dataset": self.dataset,
            "kind": self.kind,
            "path": self.path,
            "severity": self.severity,
            **self.values,
            "height": self.height,
            "width": self.width,
            "shift_down": self.shift[0],
            "shift_right": self.shift[1],
            **_protocol_columns(self.protocol),
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Summary:
    """Average of one metric of one method over a group of images.

    Attributes:
        method: Name of the method.
        role: What kind of method it is.
        group: `all`, `kind`, `dataset` or `dataset_kind`.
        dataset: Name of the set, or `all`.
        kind: Kind of degradation, or `all`.
        metric: Name of the metric.
        estimate: Mean, 95 % bootstrap interval and number of images.
        gain: The same of the difference to the degraded input, image by image; None for the input itself.
        protocol: Protocol of the scores.
    """

    method: str
    role: Role
    group: GroupName
    dataset: str
    kind: str
    metric: str
    estimate: Estimate
    gain: Estimate | None
    protocol: Protocol

    def as_dict(self) -> dict[str, Any]:
        """Flat, for files; the protocol by all its fields."""
        gain = self.gain
        return {
            "group": self.group,
            "dataset": self.dataset,
            "kind": self.kind,
            "method": self.method,
            "role": self.role,
            "metric": self.metric,
            "mean": self.estimate.mean,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "images": self.estimate.images,
            "gain": None if gain is None else gain.mean,
            "gain_low": None if gain is None else gain.low,
            "gain_high": None if gain is None else gain.high,
            **_protocol_columns(self.protocol),
        }


class ScoreTable:
    """Scores of the images seen so far by this process.

    The way to use it: `update` with each batch, then `gather` on every process, and `summarize`.

    Args:
        metrics: Keys of `restorevar.evaluation.metrics.METRICS`.
        protocol: What is done before scoring; `native` if not given.
        dataset_protocols: Other protocols of single data sets, by name.
    """

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT_METRICS,
        protocol: Protocol | None = None,
        dataset_protocols: Mapping[str, Protocol] | None = None,
    ) -> None:
        self.metrics = ImageMetrics(metrics)
        self.protocol = protocol or PROTOCOLS["native"]
        self._protocols = dict(dataset_protocols or {})
        self.scores: list[Score] = []

    def protocol_of(self, dataset: str) -> Protocol:
        """The protocol of a data set."""
        return self._protocols.get(dataset, self.protocol)

    def update(
        self,
        restored: Tensor,
        clean: Tensor | None,
        kind: Sequence[str],
        dataset: Sequence[str],
        path: Sequence[str],
        *,
        method: str = MODEL_METHOD,
        role: Role = "model",
        scene: Sequence[str] | None = None,
        severity: Sequence[float] | None = None,
        parameters: Sequence[str] | None = None,
    ) -> list[Score]:
        """Scores a batch and keeps the result.

        Args:
            restored: (B, 3, H, W) in [0, 1].
            clean: The same shape, or None where there is no ground truth (no-reference metrics only).
            kind: B kinds of degradation.
            dataset: B names of data sets; all of one protocol.
            path: B files.
            method: Name of what restored the images.
            role: What kind of method it is.
            scene: B names of clean images, such as digests; `path` if not given.
            severity: B severities, NaN where not known.
            parameters: B JSON texts.

        Returns:
            The B scores of this batch.

        Raises:
            UserError: The images cannot be scored (shape, range, NaN, empty).
        """
        protocol = self.protocol_of(dataset[0])
        if clean is None:
            compared, shifts, values = protocol.prepare_single(restored), [(0, 0)] * restored.shape[0], None
            values = self.metrics(compared, None)
        else:
            pair = protocol.prepare(restored, clean)
            compared, shifts = pair.restored, pair.shifts
            values = self.metrics(pair.restored, pair.clean)
        scores = [
            Score(
                method=method,
                role=role,
                dataset=dataset[index],
                kind=kind[index],
                path=path[index],
                scene=(path if scene is None else scene)[index],
                severity=_finite(severity[index]) if severity is not None else None,
                parameters=parameters[index] if parameters is not None else "{}",
                height=compared.shape[-2],
                width=compared.shape[-1],
                protocol=protocol,
                shift=shifts[index],
                values={name: _finite(float(value[index])) for name, value in values.items()},
            )
            for index in range(restored.shape[0])
        ]
        self.scores.extend(scores)
        return scores

    def gather(self) -> list[Score]:
        """All processes' scores, each sample once, in an order that does not depend on the number of processes."""
        return gather_scores(self.scores)


def gather_objects(value: ValueT) -> list[ValueT]:
    """Every process's value, in the order of ranks; call it on every process.

    Args:
        value: This process's; anything that can be pickled.

    Returns:
        The same list on every process; just the value where there is one process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, value)
    return parts


def gather_scores(scores: list[Score]) -> list[Score]:
    """All processes' scores on every process, each sample once, sorted by sample, role and method.

    Args:
        scores: This process's.

    Returns:
        The same list on every process.
    """
    unique: dict[tuple[Any, ...], Score] = {}
    for part in gather_objects(scores):
        for score in part:
            unique.setdefault(score.key, score)  # samplers may repeat samples to fill the last step
    return sorted(unique.values(), key=lambda score: (score.image_key, ROLES.index(score.role), score.method))


def summarize(scores: Sequence[Score]) -> list[Summary]:
    """Averages of all metrics for all images, each kind, each data set and each kind of each data set.

    Data sets whose protocol is outside the averages appear by themselves only. Images of one scene form one cluster of
    the bootstrap.

    Args:
        scores: From `gather_scores`.

    Returns:
        Summaries, groups of `all` first, methods by role and name.

    Raises:
        UserError: There are no scores.
    """
    if not scores:
        raise UserError("No image was scored: the set is empty; check the data paths.")
    inputs = {score.image_key: score for score in scores if score.role == "input"}
    groups: dict[tuple[GroupName, str, str, str], list[Score]] = {}
    for score in scores:
        name = score.protocol.name  # scores of different protocols are never averaged together
        places: list[tuple[GroupName, str, str, str]] = [
            ("dataset", score.dataset, ALL, name),
            ("dataset_kind", score.dataset, score.kind, name),
        ]
        if score.protocol.in_averages:
            places += [("all", ALL, ALL, name), ("kind", ALL, score.kind, name)]
        for place in places:
            groups.setdefault(place, []).append(score)
    order: dict[str, int] = {name: place for place, name in enumerate(("all", "kind", "dataset", "dataset_kind"))}
    summaries = []
    for (group, dataset, kind, _), members in sorted(
        groups.items(), key=lambda item: (order[item[0][0]], *item[0][1:])
    ):
        for _, method in sorted({(ROLES.index(score.role), score.method) for score in members}):
            own = [score for score in members if score.method == method]
            for metric in METRICS:
                found = [(score, value) for score in own if (value := score.values.get(metric)) is not None]
                if not found:
                    continue
                scenes = [(score.dataset, score.scene) for score, _ in found]
                gains = [
                    (value - before, scene)
                    for (score, value), scene in zip(found, scenes, strict=True)
                    if (before := _value(inputs.get(score.image_key), metric)) is not None
                ]
                is_input = own[0].role == "input"
                summaries.append(
                    Summary(
                        method=method,
                        role=own[0].role,
                        group=group,
                        dataset=dataset,
                        kind=kind,
                        metric=metric,
                        estimate=bootstrap_mean([value for _, value in found], scenes),
                        gain=bootstrap_mean(*map(list, zip(*gains, strict=True))) if gains and not is_input else None,
                        protocol=own[0].protocol,
                    )
                )
    return summaries


def write_scores(path: Path, scores: Iterable[Score]) -> None:
    """One CSV row an image and method."""
    _write_csv(path, [score.as_dict() for score in scores])


def write_summary(path: Path, summaries: Iterable[Summary]) -> None:
    """One CSV row a group, method and metric."""
    _write_csv(path, [summary.as_dict() for summary in summaries])


def write_json(path: Path, scores: Iterable[Score], summaries: Iterable[Summary], facts: dict[str, Any]) -> None:
    """Everything in one JSON file.

    Args:
        path: File to write.
        scores: One each image and method.
        summaries: Their averages.
        facts: What else a reader needs: versions, seed, configuration, metrics that are missing.
    """
    content = {
        **facts,
        "summary": [summary.as_dict() for summary in summaries],
        "images": [score.as_dict() for score in scores],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    metrics = [name for name in METRICS if name in columns]
    if metrics:  # all metrics side by side, whichever row has them
        first = min(columns.index(name) for name in metrics)
        rest = [column for column in columns if column not in metrics]
        columns = rest[:first] + metrics + rest[first:]
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _protocol_columns(protocol: Protocol) -> dict[str, Any]:
    size = protocol.resize
    return {
        "protocol": protocol.name,
        "color": protocol.color,
        "resize": "none" if size is None else f"{size[0]}x{size[1]} lanczos",
        "round_to_8_bits": protocol.round_to_8_bits,
        "crop_border": protocol.crop_border,
        "max_shift": protocol.max_shift,
        "data_range": protocol.data_range,
        "in_averages": protocol.in_averages,
    }


def _value(score: Score | None, metric: str) -> float | None:
    return None if score is None else score.values.get(metric)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
