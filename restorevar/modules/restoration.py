"""Test and predict: whole photos at their own size, restored as users restore them."""

import hashlib
import logging
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restorevar.datamodules.batch import RestorationBatch
from restorevar.datamodules.sources import Record
from restorevar.errors import UserError
from restorevar.evaluation.baselines import CLASSICAL, oracle_deconvolution, run_command
from restorevar.evaluation.metrics import DEFAULT_METRICS, METRICS
from restorevar.evaluation.protocol import ProtocolName, find_protocol
from restorevar.evaluation.report import Results
from restorevar.evaluation.scores import INPUT_METHOD, MODEL_METHOD, Role, Score, ScoreTable, gather_objects, summarize
from restorevar.models import RestoreVAR
from restorevar.restoration.color import ColorFix
from restorevar.restoration.restorer import GlobalCorrection, Restorer

__all__ = ["RestorationModule", "RestoredPhoto"]

logger = logging.getLogger(__name__)

Pixels = NDArray[Any]
BaselineGroup = Literal["classical", "tokenizer", "oracle"]

ORACLE_METHOD = "Wiener, fitted kernel"
PRECISIONS = ("32-true", "bf16-mixed")
CEILINGS = {"tokenizer, discrete": True, "tokenizer, continuous": False}


@dataclass(frozen=True)
class RestoredPhoto:
    """One restored photo, for callbacks.

    Attributes:
        path: File of the degraded photo, or of the clean one if it was degraded on the fly.
        dataset: Name of the set.
        kind: Kind of degradation.
        severity: Of a made degradation, in [0, 1]; None where not known.
        degraded: (H, W, 3) uint8, as it was given to the model.
        restored: The same; None if the model folder cannot restore.
        clean: The same; None without ground truth.
        score: The model's score; None without ground truth.
        before: The degraded photo's score.
    """

    path: str
    dataset: str
    kind: str
    severity: float | None
    degraded: NDArray[np.uint8]
    restored: NDArray[np.uint8] | None
    clean: NDArray[np.uint8] | None = None
    score: Score | None = None
    before: Score | None = None


class _Labels(TypedDict):
    """What `ScoreTable.update` wants to know of one sample."""

    kind: list[str]
    dataset: list[str]
    path: list[str]
    scene: list[str]
    severity: list[float] | None
    parameters: list[str] | None


@dataclass(frozen=True)
class _Sample:
    """One sample of a batch as arrays, prepared by its protocol."""

    degraded: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    labels: _Labels

    @property
    def kind(self) -> str:
        return str(self.labels["kind"][0])


@dataclass(frozen=True)
class _RoundTrip:
    """The tokenizer alone, in the shape of a model: encodes and decodes what it gets."""

    model: RestoreVAR
    discrete: bool

    @property
    def image_size(self) -> tuple[int, int]:
        return self.model.image_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    def generate(self, degraded: Tensor, fidelity: float | None = None) -> "_Image":
        tokenizer = self.model.tokenizer
        latent = tokenizer.encode(degraded.to(self.model.dtype).contiguous(memory_format=torch.channels_last))
        if self.discrete:
            latent = tokenizer.quantizer.quantize(latent, self.model.scales).latent
        return _Image((tokenizer.decode(latent).float() + 1) / 2)


@dataclass(frozen=True)
class _Image:
    image: Tensor


class RestorationModule(L.LightningModule):
    """Scores a model folder on whole photos, beside baselines, or restores photos (predict).

    The model is blind: it never sees the kind of degradation. Each process scores its own photos; scores are collected
    over all processes at the end, each sample once.

    Args:
        model: A shipped name, a model folder, or a hub id.
        protocol: What is done to the images before they are scored; see `docs/evaluation.md`.
        dataset_protocols: Other protocols of single data sets, by the data set's name.
        metrics: Names of metrics; the no-reference ones need the extra `metrics` and downloaded weights.
        baselines: Groups of methods in the same table; the degraded input is always there.
        rivals: Name to a command that restores a folder of PNG files into another, such as
            `python rival.py {input} {output}`; it runs once, at the end.
        compare_fidelities: More rows of the model, with these weights of its detail path.
        tile: Side of the tiles in pixels; `auto` is the model's own size.
        overlap: Pixels over which tiles cross-fade; None is an eighth of the tile.
        fidelity: Weight of the detail path, from 0 (method only) to 1; None leaves it to the model.
        color_fix: Colour fix after restoration; part of what is scored.
        global_correction: Whether tiles are levelled by a restoration of the whole photo at reduced size.
    """

    def __init__(
        self,
        model: str,
        protocol: ProtocolName = "native",
        dataset_protocols: dict[str, ProtocolName] | None = None,
        metrics: list[str] | None = None,
        baselines: list[BaselineGroup] | None = None,
        rivals: dict[str, str] | None = None,
        compare_fidelities: list[float] | None = None,
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
        fidelity: float | None = None,
        color_fix: ColorFix = "none",
        global_correction: GlobalCorrection = "on",
    ) -> None:
        super().__init__()
        self.model_name = model
        self.protocol = find_protocol(protocol)
        self.dataset_protocols = {name: find_protocol(other) for name, other in (dataset_protocols or {}).items()}
        self.metrics = tuple(DEFAULT_METRICS if metrics is None else metrics)
        groups: Sequence[BaselineGroup] = ("classical", "tokenizer", "oracle") if baselines is None else baselines
        self.baselines = tuple(groups)
        self.rivals = dict(rivals or {})
        taken = {INPUT_METHOD, MODEL_METHOD, ORACLE_METHOD, *CEILINGS, *(method.name for method in CLASSICAL)}
        if same := sorted(taken.intersection(self.rivals)):
            raise UserError(f"rivals: '{same[0]}' is the name of another row; give the command another name")
        self.compare_fidelities = list(compare_fidelities or [])
        self.tile: int | Literal["auto"] = tile
        self.overlap = overlap
        self.fidelity = fidelity
        self.color_fix: ColorFix = color_fix
        self.global_correction: GlobalCorrection = global_correction
        self.results: Results | None = None
        self.network: RestoreVAR | None = None
        self._restorers: dict[str, Restorer] = {}
        self._ceilings: dict[str, Restorer] = {}
        self._rival_folder: tempfile.TemporaryDirectory[str] | None = None
        self._rival_samples: list[tuple[str, _Labels]] = []
        self._skipped: dict[str, str] = {}

    # ---------------------------------------------------------------------------------------------------- set-up
    def setup(self, stage: str) -> None:
        """Loads the model and prepares the metrics.

        Raises:
            UserError: There is no such model or metric, or the precision does not fit the model.
        """
        if str(self.trainer.precision) not in PRECISIONS:
            raise UserError(
                f"trainer.precision is {self.trainer.precision}; expected {' or '.join(PRECISIONS)}: float16 "
                "overflows in this model, and its quantizer needs float32."
            )
        self.table = ScoreTable(self.metrics, self.protocol, self.dataset_protocols)
        if self.network is None:
            self.network = RestoreVAR.from_pretrained(self.model_name).requires_grad_(False)

    def _start(self) -> None:
        """What needs the model on its device."""
        network = self._network()
        self.results = None
        self._skipped = {}
        self._restorers, self._ceilings = {}, {}
        if network.transformer is None:
            self._skipped[MODEL_METHOD] = "the model folder holds a tokenizer only"
        else:
            self._restorers[MODEL_METHOD] = self._restorer(self.fidelity)
            for fidelity in self.compare_fidelities:
                self._restorers[f"{MODEL_METHOD}, fidelity {fidelity:g}"] = self._restorer(fidelity)
        if "tokenizer" in self.baselines:
            for name, discrete in CEILINGS.items():
                trip = _RoundTrip(network, discrete)
                self._ceilings[name] = Restorer(trip, global_correction="off")

    def _restorer(self, fidelity: float | None) -> Restorer:
        network = self._network()
        network.resolve_fidelity(fidelity)
        return Restorer(
            network,
            tile=self.tile,
            overlap=self.overlap,
            fidelity=fidelity,
            color_fix=self.color_fix,
            global_correction=self.global_correction,
            note=logger.warning,
        )

    def _network(self) -> RestoreVAR:
        if self.network is None:
            raise RuntimeError("the model is loaded in setup, which has not run")
        return self.network

    # ------------------------------------------------------------------------------------------------------ test
    def on_test_start(self) -> None:
        """Prepares restorers, and a folder for rivals.

        Raises:
            UserError: A data set that is given a protocol of its own is not among those tested.
        """
        self._start()
        tested = sorted({record.dataset for record in self._records_to_test()})
        for name in self.dataset_protocols:
            if name not in tested:
                raise UserError(f"dataset_protocols: no data set '{name}' is tested; there are: {', '.join(tested)}")
        self._rival_samples = []
        if self.rivals:
            self._rival_folder = tempfile.TemporaryDirectory(prefix="restorevar-rivals-")
            for name in ("input", "clean"):
                (Path(self._rival_folder.name) / name).mkdir()

    def _records_to_test(self) -> list[Record]:
        loaders = self.trainer.test_dataloaders
        return [
            record
            for loader in (loaders if isinstance(loaders, list) else [loaders])
            for record in getattr(getattr(loader, "dataset", None), "records", [])
        ]

    def test_step(self, batch: RestorationBatch, batch_idx: int) -> dict[str, Any]:
        """Restores and scores each photo of a batch by every method that applies to it.

        Returns:
            `photos`: a list of `RestoredPhoto` for callbacks.

        Raises:
            UserError: The photos cannot be scored.
        """
        if "clean" not in batch:
            raise UserError("The test set has no clean photos; expected pairs. Use `restorevar predict` without them.")
        return {"photos": [self._test(self._sample(batch, index)) for index in range(len(batch["path"]))]}

    def _sample(self, batch: RestorationBatch, index: int) -> _Sample:
        protocol = self.table.protocol_of(batch["dataset"][index])
        clean = _to_pixels(batch["clean"][index])
        labels = _Labels(
            kind=[batch["kind"][index]],
            dataset=[batch["dataset"][index]],
            path=[batch["path"][index]],
            scene=[hashlib.sha256(clean.tobytes()).hexdigest()],  # sets hold many degraded versions of one photo
            severity=[batch["severity"][index]] if "severity" in batch else None,
            parameters=[batch["parameters"][index]] if "parameters" in batch else None,
        )
        return _Sample(
            protocol.resize_photo(_to_pixels(batch["degraded"][index])),
            protocol.resize_photo(clean),
            labels,
        )

    def _test(self, sample: _Sample) -> RestoredPhoto:
        protocol = self.table.protocol_of(sample.labels["dataset"][0])
        before = self._score(sample, sample.degraded, INPUT_METHOD, "input")
        restored, score = None, None
        for name, restorer in self._restorers.items():
            # unrounded only where the protocol does not round anyway
            given = sample.degraded if protocol.round_to_8_bits else sample.degraded.astype(np.float32) / 255
            result = restorer.restore(given)
            own = self._score(sample, result, name, "model")
            if name == MODEL_METHOD:
                restored, score = _to_8_bits(result), own
        for name, restorer in self._ceilings.items():
            self._score(sample, restorer.restore(sample.clean), name, "ceiling")
        if "classical" in self.baselines:
            for method in CLASSICAL:
                if sample.kind in method.kinds:
                    self._score(sample, method(sample.degraded), method.name, method.role)
        if "oracle" in self.baselines and sample.kind == "motion_blur":
            self._score(sample, oracle_deconvolution(sample.degraded, sample.clean), ORACLE_METHOD, "oracle")
        if self._rival_folder is not None:
            self._keep_for_rivals(sample)
        return RestoredPhoto(
            path=before.path,
            dataset=before.dataset,
            kind=before.kind,
            severity=before.severity,
            degraded=sample.degraded,
            restored=restored,
            clean=sample.clean,
            score=score,
            before=before,
        )

    def _score(self, sample: _Sample, restored: Pixels, method: str, role: Role) -> Score:
        tensor, clean = self._tensor(restored), self._tensor(sample.clean)
        return self.table.update(tensor, clean, method=method, role=role, **sample.labels)[0]

    def _tensor(self, pixels: Pixels) -> Tensor:
        """(H, W, 3) to (1, 3, H, W) in [0, 1]."""
        tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(2, 0, 1)[None]
        return tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()

    def on_test_epoch_end(self) -> None:
        """Runs rivals, collects the scores of all processes and logs the means."""
        self._run_rivals()
        skipped: dict[str, str] = {}
        for part in gather_objects(self._skipped):
            skipped |= part
        # a rival that failed on one process has no row at all
        scores = [score for score in self.table.gather() if score.method not in skipped]
        summaries = summarize(scores)
        self.results = Results(scores, summaries, self.table.metrics.unavailable, skipped, self._facts())
        for summary in summaries:
            if summary.method != MODEL_METHOD or summary.group not in ("all", "kind"):
                continue
            where = "" if summary.group == "all" else f"_{summary.kind}"
            protocol = "" if summary.protocol == self.table.protocol else f"_{summary.protocol.name}"
            if summary.group == "all" or summary.metric == "psnr":
                self.log(f"test/{summary.metric}{where}{protocol}", summary.estimate.mean)
            if summary.metric == "psnr" and summary.gain is not None:
                self.log(f"test/gain{where}{protocol}", summary.gain.mean)
        for metric, reason in self.results.unavailable.items():
            logger.warning("%s is missing: %s", METRICS[metric].label, reason)
        for method, reason in skipped.items():
            logger.warning("%s is left out: %s", method, reason)

    def _keep_for_rivals(self, sample: _Sample) -> None:
        from PIL import Image

        assert self._rival_folder is not None
        stem = Path(sample.labels["path"][0]).stem
        name = f"{len(self._rival_samples):06d}_{sample.kind}_{stem}.png"
        Image.fromarray(sample.degraded).save(Path(self._rival_folder.name, "input", name))
        Image.fromarray(sample.clean).save(Path(self._rival_folder.name, "clean", name), compress_level=1)
        self._rival_samples.append((name, sample.labels))

    def _run_rivals(self) -> None:
        """One run of each command over this process's photos; a failure leaves the rival out, not the other rows."""
        from restorevar.restoration.photo import read_rgb

        if self._rival_folder is None:
            return
        root = Path(self._rival_folder.name)
        for rival, command in self.rivals.items():
            output = root / "output"
            output.mkdir()
            try:
                run_command(command, root / "input", output)
                found = {path.stem: path for path in output.rglob("*") if path.is_file()}
                missing = [name for name, _ in self._rival_samples if Path(name).stem not in found]
                if missing:
                    raise UserError(
                        f"it left {len(missing)} of {len(self._rival_samples)} photos undone ({missing[0]})"
                    )
                for name, labels in self._rival_samples:
                    sample = _Sample(read_rgb(root / "input" / name), read_rgb(root / "clean" / name), labels)
                    self._score(sample, read_rgb(found[Path(name).stem]), rival, "rival")
            except UserError as error:
                self._skipped[rival] = str(error).splitlines()[0]
            for path in sorted(output.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            output.rmdir()
        self._rival_folder.cleanup()
        self._rival_folder = None

    # --------------------------------------------------------------------------------------------------- predict
    def on_predict_start(self) -> None:
        """Prepares the restorer."""
        self._start()

    def predict_step(self, batch: RestorationBatch, batch_idx: int) -> list[RestoredPhoto]:
        """Restores each photo of a batch.

        Returns:
            One `RestoredPhoto` each.

        Raises:
            UserError: The model folder holds a tokenizer only.
        """
        if MODEL_METHOD not in self._restorers:
            raise UserError(f"{self.model_name} holds a tokenizer only; expected a model with a transformer.")
        photos = []
        for index, path in enumerate(batch["path"]):
            degraded = _to_pixels(batch["degraded"][index])
            restored = self._restorers[MODEL_METHOD].restore(degraded)
            known = "severity" in batch and math.isfinite(batch["severity"][index])
            severity = batch["severity"][index] if known else None
            labels = (path, batch["dataset"][index], batch["kind"][index], severity)
            photos.append(RestoredPhoto(*labels, degraded, restored))
        return photos

    def _facts(self) -> dict[str, Any]:
        """What a reader needs to do the run again."""
        network = self._network()
        parameters = sum(parameter.numel() for parameter in network.parameters())
        height, width = network.image_size
        options = {
            "tile": self.tile,
            "overlap": "auto" if self.overlap is None else self.overlap,
            "fidelity": "the model's own" if self.fidelity is None else self.fidelity,
            "color fix": self.color_fix,
            "global correction": self.global_correction,
        }
        return {
            "model": f"{self.model_name} ({parameters / 1e6:.2f} M parameters, own size {width} x {height} px)",
            "weights": _weights_digest(self.model_name),
            "restoration": ", ".join(f"{name} {value}" for name, value in options.items()),
            "seed": os.environ.get("PL_GLOBAL_SEED", "not set"),
            "device": f"{self.device} ({_device_name(self.device)}), {self.trainer.world_size} process(es)",
            "precision": str(self.trainer.precision),
            "versions": ", ".join(f"{name} {version}" for name, version in _versions().items()),
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }


def _to_pixels(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [-1, 1] to (H, W, 3) uint8; exact for images that were 8 bits."""
    values = ((image.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy())


def _to_8_bits(pixels: Pixels) -> NDArray[np.uint8]:
    return pixels if pixels.dtype == np.uint8 else (pixels.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _weights_digest(model: str) -> str:
    from restorevar.models.pretrained import find_folder, weights_digest

    return weights_digest(find_folder(model))


def _device_name(device: torch.device) -> str:
    import platform

    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in (
        "restorevar",
        "torch",
        "lightning",
        "torchmetrics",
        "numpy",
        "opencv-python-headless",
        "scikit-image",
    ):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
