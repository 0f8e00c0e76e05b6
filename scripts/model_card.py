"""The model card (README.md) of a model folder, from a template in words and measured files.

    restorevar test --config configs/test.yaml --config configs/benchmarks/samples.yaml ...
    python benchmarks/latent_and_detail.py MODEL PHOTOS --output runs/latent_and_detail
    python scripts/training_curves.py runs/nano/{tokenizer,transformer,refiner,detail} --output MODEL
    python scripts/model_card.py MODEL --scores runs/samples/scores.json --latent runs/latent_and_detail.json \
        --stages MODEL/runs.csv --curves MODEL/curves.png --pictures MODEL/rain.jpg

Files given for MODEL must lie in its folder, since the card links to them. The words are in `model_card.md.jinja`.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import jinja2
import torch

from restorevar.benchmarking.latent_tables import latent_tables
from restorevar.datamodules.kinds import CLEAN_KIND
from restorevar.errors import UserError
from restorevar.evaluation.scores import INPUT_METHOD, MODEL_METHOD
from restorevar.files import atomic_write
from restorevar.models import RestoreVAR
from restorevar.models.pretrained import CARD, read_config, weights_digest

TEMPLATE = Path(__file__).with_suffix(".md.jinja")
IDLE = 0.5

Row = dict[str, Any]


def words(name: str) -> str:
    """`low_light` as `low light`."""
    return name.replace("_", " ")


def read_json(path: Path) -> dict[str, Any]:
    """A file of scores.

    Raises:
        UserError: It cannot be read or has no `summary`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); expected a file of scores") from error
    if not isinstance(content, dict) or "summary" not in content:
        raise UserError(f"{path} has no key 'summary'; expected scores.json of `restorevar test` or the latent's table")
    return content


def score_rows(content: dict[str, Any]) -> list[Row]:
    """One row a data set and kind, and one a data set of several kinds.

    Args:
        content: `scores.json` of `restorevar test`.

    Raises:
        UserError: The model was not scored.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in content["summary"]:
        if row["group"] in ("dataset", "dataset_kind"):
            groups.setdefault((row["dataset"], row["kind"]), []).append(row)
    kinds = {dataset: [kind for other, kind in groups if other == dataset] for dataset, _ in groups}
    rows = []
    for (dataset, kind), members in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] == "all")):
        if kind == "all" and len(kinds[dataset]) == 2:
            continue  # its one kind has a row already
        found = {(row["method"], row["metric"]): row for row in members}
        if (MODEL_METHOD, "psnr") not in found:
            raise UserError(f"the scores of {dataset} hold no row of the model; expected those of a whole model")
        model, before = found[MODEL_METHOD, "psnr"], found[INPUT_METHOD, "psnr"]
        blind = [
            r for r in members if r["role"] == "blind" and r["metric"] == "psnr" and r["images"] == model["images"]
        ]
        best = max(blind, key=lambda row: row["mean"], default=None)
        rows.append(
            {
                "dataset": dataset
                + ("" if model["protocol"] == "native" else f" (protocol {words(model['protocol'])})"),
                "kind": words(kind),
                "images": model["images"],
                "before": before["mean"],
                "psnr": model["mean"],
                "gain": model["gain"],
                "low": model["gain_low"],
                "high": model["gain_high"],
                "ssim_before": found[INPUT_METHOD, "ssim"]["mean"],
                "ssim": found[MODEL_METHOD, "ssim"]["mean"],
                "classical": f"{best['mean']:.2f} dB ({best['method']})" if best and kind != "all" else "",
            }
        )
    return rows


def latent_view(content: dict[str, Any]) -> dict[str, Any]:
    """The latent's tables, and the kinds in which it does nothing.

    Args:
        content: JSON of `benchmarks/latent_and_detail.py`.
    """
    tables = latent_tables(content["summary"], content["methods"])
    costs = {kind: cost for kind, cost in tables.costs.items() if kind not in ("mean", CLEAN_KIND)}
    return {
        "kinds": tables.kinds,
        "gains": tables.gains,
        "ssims": tables.ssims,
        "costs": costs,
        "idle": [kind for kind, cost in costs.items() if cost < IDLE],
        "facts": content["run"],
    }


def inside(folder: Path, path: Path) -> str:
    """Path of a file from the model's folder, for a link.

    Raises:
        UserError: The file is not there or not in the folder.
    """
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is not a file in {folder}; the card links to it: put it there")
    return path.resolve().relative_to(folder.resolve()).as_posix()


def card(options: argparse.Namespace) -> str:
    """The card's text.

    Args:
        options: Of the command line.
    """
    folder: Path = options.model
    with torch.device("meta"):
        model = RestoreVAR(read_config(folder))
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    stages = []
    if options.stages is not None:
        with options.stages.open(newline="", encoding="utf-8") as file:
            stages = list(csv.DictReader(file))
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=options.name or folder.resolve().name,
        parameters=sum(parts.values()),
        megabytes=sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6,
        image_size=model.image_size,
        parts=parts,
        digest=weights_digest(folder),
        scores=[{"rows": score_rows(content), "facts": content["run"]} for content in map(read_json, options.scores)],
        latent=latent_view(read_json(options.latent)) if options.latent is not None else None,
        pictures=[{"path": inside(folder, p), "caption": words(p.stem).replace("-", ", ")} for p in options.pictures],
        stages=stages,
        compute=options.compute,
        curves=inside(folder, options.curves) if options.curves is not None else None,
        curves_data=inside(folder, options.curves.with_suffix(".csv")) if options.curves is not None else None,
    )


def main(arguments: list[str] | None = None) -> None:
    """Writes the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--name", help="shipped name; the folder's if not given")
    parser.add_argument("--scores", type=Path, nargs="*", default=[], help="scores.json of `restorevar test`")
    parser.add_argument("--latent", type=Path, help="JSON of benchmarks/latent_and_detail.py")
    parser.add_argument("--stages", type=Path, help="runs.csv of scripts/training_curves.py")
    parser.add_argument("--compute", help="a sentence about the machine")
    parser.add_argument("--curves", type=Path, help="curves.png of scripts/training_curves.py, curves.csv beside it")
    parser.add_argument("--pictures", type=Path, nargs="*", default=[], help="their names become captions")
    options = parser.parse_args(arguments)
    try:
        text = card(options)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    with atomic_write(options.model / CARD) as temporary:
        temporary.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(options.model / CARD)


if __name__ == "__main__":
    main()
