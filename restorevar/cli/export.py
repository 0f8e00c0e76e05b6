"""``restorevar export``: a model as a package that restores without the training code."""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from restorevar.errors import UserError
from restorevar.files import atomic_write, give_usual_mode

if TYPE_CHECKING:
    import torch

    from restorevar.models import RestoreVAR

__all__ = ["export"]

RECORD = "package.json"
"""Says what a package is and which files belong to it; written last."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}

log = logging.getLogger(__name__)


def export(
    output: Path,
    model: str = "restorevar-nano",
    format: Literal["onnx", "aoti", "parts"] = "onnx",
    batch: int = 1,
    fidelity: float | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    size: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a package that restores without this code, and checks it against the model on a random photo.

    A package has one photo size and one batch size. Photos go in as (B, 3, H, W) in [-1, 1] and come out in [0, 1].

    Args:
        output: Folder for the package.
        model: Name of a shipped model, a model folder, or a hub id.
        format: onnx is one model.onnx for onnxruntime; aoti is one model.pt2 compiled for this machine (torch only);
            parts are four torch.export programs (encoder, step, refiner, decoder) and the tables of the scales.
        batch: Photos at once.
        fidelity: For models with a detail path or a gate: 0 (method only) to 1 (the default; keeps most of the input).
        precision: Of the large products and convolutions; onnx takes float32 only.
        size: Side of the photos in pixels; the model's own if not given.
        overwrite: Replace the package that the output folder holds.
    """
    if batch < 1:
        raise UserError(f"batch is {batch}; expected a positive number")
    if format == "onnx" and precision != "float32":
        raise UserError("onnx packages are float32; expected --precision float32, or --format aoti or parts")
    if (output / RECORD).exists() and not overwrite:
        raise UserError(f"{output} holds a package already; give another --output, or --overwrite to replace it")
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; expected a folder for the package, there already or not")
    import torch

    from restorevar.models import RestoreVAR, pretrained

    network = RestoreVAR.from_pretrained(model)
    if network.transformer is None:
        raise UserError(f"{model} holds a tokenizer only; expected a model that went through stage 2 as well")
    if size is not None:
        _resize(network, size)
    network.set_precision(getattr(torch, precision)).requires_grad_(False)
    weight = network.resolve_fidelity(fidelity)
    photo = torch.rand(batch, 3, *network.image_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write: Callable[[RestoreVAR, float, torch.Tensor, Path], torch.Tensor]
    write = {"onnx": _write_onnx, "aoti": _write_aoti, "parts": _write_parts}[format]
    log.info("tracing and writing (minutes for large models)")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as name:
        folder = Path(name)
        with torch.no_grad():
            found = write(network, weight, photo, folder)
            expected = network.generate(photo, fidelity=weight).image
        error = ((found - expected).norm() / expected.norm()).item()
        if not error < TOLERANCE[precision]:
            raise UserError(
                f"the package's photo differs from the model's by {error:.1e} (relative norm); expected less than "
                f"{TOLERANCE[precision]:.0e}; nothing was written"
            )
        terms = pretrained.license_file(model)
        if terms is not None:
            shutil.copyfile(terms, folder / terms.name)
        height, width = network.image_size
        record = {
            "format": format,
            "model": Path(model).name,
            "license": network.config.license,
            "batch": batch,
            "height": height,
            "width": width,
            "scales": network.scales.to_list(),
            "fidelity": weight,
            "precision": precision,
            "torch": torch.__version__,
            "relative_error": error,
        }
        _publish(folder, output, record, overwrite)
    log.info("%s: the same photo as the model's to %.1e (relative norm)", output, error)


def _publish(folder: Path, output: Path, record: dict[str, Any], overwrite: bool) -> None:
    """Puts the files of a checked package in the place of the one before, the record last.

    Raises:
        UserError: A file that belongs to no package is in the way, and may not be replaced.
    """
    output.mkdir(exist_ok=True)
    try:
        before = json.loads((output / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        before = []
    files = sorted(path.name for path in folder.iterdir())
    others = [name for name in files if name not in before and (output / name).exists()]
    if others and not overwrite:
        raise UserError(f"{output / others[0]} is there already; give another --output, or --overwrite to replace it")
    for name in files:
        give_usual_mode(folder / name)
    (output / RECORD).unlink(missing_ok=True)
    for name in before:
        if Path(name).name == name:
            (output / name).unlink(missing_ok=True)
    for name in files:
        (folder / name).replace(output / name)
    with atomic_write(output / RECORD) as temporary:
        temporary.write_text(json.dumps(record | {"files": files}, indent=2) + "\n", encoding="utf-8")


def _resize(network: "RestoreVAR", size: int) -> None:
    """Moves the model to square photos of another side, its token maps in proportion."""
    rows, columns = network.image_size
    step = network.config.tokenizer.downsampling
    if rows != columns or size % step or size < 4 * step:
        raise UserError(
            f"size is {size}; expected a multiple of {step} from {4 * step} on, for a model with square photos"
            f" ({rows} x {columns})"
        )
    network.set_scales(network.scales.scaled((size // step, size // step)).to_list())


def _write_onnx(network: "RestoreVAR", fidelity: float, photo: "torch.Tensor", folder: Path) -> "torch.Tensor":
    import torch

    from restorevar.models.export import Whole

    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'ONNX packages need the extra bench ({error}); in the repository: python -m pip install ".[bench]"'
        ) from error
    path = folder / "model.onnx"
    program = torch.onnx.export(
        Whole(network, fidelity).eval(),
        (photo,),
        input_names=["degraded"],
        output_names=["restored"],
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise UserError("torch.onnx gave no program; try another version of torch")
    program.save(path, external_data=sum(p.numel() for p in network.parameters()) > 2**28)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"degraded": photo.numpy()})[0])


def _write_aoti(network: "RestoreVAR", fidelity: float, photo: "torch.Tensor", folder: Path) -> "torch.Tensor":
    import torch

    from restorevar.models.export import Whole

    program = torch.export.export(Whole(network, fidelity).eval(), (photo,))
    path = str(folder / "model.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    return torch._inductor.aoti_load_package(path)(photo)


def _write_parts(network: "RestoreVAR", fidelity: float, photo: "torch.Tensor", folder: Path) -> "torch.Tensor":
    import torch
    from safetensors.torch import save_file

    from restorevar.models.export import build_parts, scale_tables

    parts, tables = build_parts(network, fidelity), scale_tables(network)
    save_file(tables, folder / "tables.safetensors")
    features, start, cross, local = parts.encoder(photo)
    depth, _, batch, heads, count, width = cross.shape
    scales = network.scales
    running = torch.zeros(batch, network.config.tokenizer.latent_channels, count)
    cache = cross.new_zeros(depth, 2, batch, heads, scales.tokens, width)
    last = len(scales) - 1
    step = (running, cache, start, cross, local, *_scale_inputs(tables, last))
    tokens = torch.export.Dim("tokens", min=1, max=scales.tokens)
    moving = {"places": {0: tokens}, "down": {0: tokens}, "up": {1: tokens}}
    names = ["running", "cache", "start", "cross", "local", "places", "scale", "phi", "down", "up"]
    hidden = start.new_zeros(batch, scales.tokens, start.shape[1])
    latent = running.unflatten(2, scales.finest)
    inputs: dict[str, tuple[Any, dict[str, Any] | None]] = {
        "encoder": ((photo,), None),
        "step": (step, {name: moving.get(name) for name in names}),
        "refiner": ((running, hidden, features), None),
        "decoder": ((latent, photo), None),
    }
    for name, (arguments, shapes) in inputs.items():
        program = torch.export.export(getattr(parts, name).eval(), arguments, dynamic_shapes=shapes)
        _drop_unused(program)
        program.example_inputs = None  # larger than the weights
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No complete tensor found")  # of tensors that share memory; all are saved
            torch.export.save(program, folder / f"{name}.pt2")
    return _run_parts(folder, photo, cache, len(scales))


def _drop_unused(program: "torch.export.ExportedProgram") -> None:
    """Puts a single zero, seen from all places, where a program keeps weights of the model that it never reads."""
    import torch

    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    for entry in program.graph_signature.input_specs:
        weight = program.state_dict.get(entry.target or "")
        if entry.target is None or weight is None or entry.arg.name in read:
            continue
        zero = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
        is_parameter = isinstance(weight, torch.nn.Parameter)
        program.state_dict[entry.target] = torch.nn.Parameter(zero, requires_grad=False) if is_parameter else zero


def _scale_inputs(tables: "dict[str, torch.Tensor]", scale: int) -> "tuple[torch.Tensor, ...]":
    import torch

    names = ("places", "phi", "down", "up")
    places, phi, down, up = (tables[f"{name}_{scale}"] for name in names)
    return places, torch.tensor(scale), phi, down, up


def _run_parts(folder: Path, photo: "torch.Tensor", cache: "torch.Tensor", count: int) -> "torch.Tensor":
    """Restores with what lies in the folder only, as the example in docs/export.md does."""
    import torch
    from safetensors.torch import load_file

    encode, step, refine, decode = (
        torch.export.load(folder / f"{name}.pt2").module() for name in ("encoder", "step", "refiner", "decoder")
    )
    tables = load_file(folder / "tables.safetensors")
    features, start, cross, local = encode(photo)
    running = torch.zeros(len(photo), local.shape[1], local.shape[2])
    hidden = []
    for scale in range(count):
        _, new, running, cache = step(running, cache, start, cross, local, *_scale_inputs(tables, scale))
        hidden.append(new)
    return decode(refine(running, torch.cat(hidden, 1), features), photo)
