"""What `restorevar test` leaves behind: tables for machines, and a report for people."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback

from restorevar.evaluation.metrics import METRICS
from restorevar.evaluation.report import CasePool, Results, gather_cases, write_html, write_markdown
from restorevar.evaluation.scores import write_json, write_scores, write_summary
from restorevar.modules.restoration import RestorationModule

__all__ = ["ReportWriter", "ScoreWriter"]

logger = logging.getLogger(__name__)


class ScoreWriter(L.Callback):
    """Writes `scores.csv` (one row an image and method), `summary.csv` (averages) and `scores.json` (all of it).

    Args:
        folder: Where; the run's own folder (`trainer.default_root_dir`) if not given.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._written: Path | None = None

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the files, on one process."""
        results = _results(pl_module)
        if results is None or not trainer.is_global_zero:
            return
        folder = _folder(self.folder, trainer)
        write_scores(folder / "scores.csv", results.scores)
        write_summary(folder / "summary.csv", results.summaries)
        facts = {
            "run": results.facts | _configuration(trainer),
            "protocols": {
                s.protocol.name: s.protocol.as_dict() | {"text": s.protocol.describe()} for s in results.scores
            },
            "metrics": {
                name: {"label": info.label, "unit": info.unit, "better": info.better, "definition": info.definition}
                for name, info in METRICS.items()
                if any(name in score.values for score in results.scores)
            },
            "unavailable": results.unavailable,
            "left_out": results.skipped,
        }
        write_json(folder / "scores.json", results.scores, results.summaries, facts)
        self._written = folder / "scores.csv"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Says where the files are, below Lightning's own table."""
        if self._written is not None:
            logger.info("scores: %s", self._written)
            self._written = None


class ReportWriter(L.Callback):
    """Writes `report.html`, which holds everything it shows, and `report.md`.

    Args:
        folder: Where; the run's own folder (`trainer.default_root_dir`) if not given.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._written: Path | None = None
        self._pool = CasePool()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the pictures of a test before."""
        self._pool = CasePool()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps pictures of cases that may be shown."""
        if not isinstance(pl_module, RestorationModule):
            return
        for photo in outputs["photos"]:
            if photo.score is not None and photo.before is not None:
                pictures = {"input": photo.degraded, "restored": photo.restored, "clean": photo.clean}
                self._pool.add(photo.score, photo.before, pictures)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collects the pictures of all processes and writes the files on one."""
        results = _results(pl_module)
        if results is None:
            return
        cases = gather_cases(self._pool.cases)
        if not trainer.is_global_zero:
            return
        folder = _folder(self.folder, trainer)
        results.facts.update(_configuration(trainer))
        write_html(folder / "report.html", results, cases)
        write_markdown(folder / "report.md", results)
        self._written = folder / "report.html"

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Says where the report is, below Lightning's own table."""
        if self._written is not None:
            logger.info("report: %s", self._written)
            self._written = None


def _results(module: L.LightningModule) -> Results | None:
    return module.results if isinstance(module, RestorationModule) else None


def _folder(folder: str | None, trainer: L.Trainer) -> Path:
    return Path(folder or trainer.default_root_dir)


def _configuration(trainer: L.Trainer) -> dict[str, str]:
    """The whole configuration as YAML, where the run came from the command line."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            return {"configuration": callback.parser.dump(callback.config, skip_none=False)}
    return {}
