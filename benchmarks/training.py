"""Training speed of each stage beside a plain reading of the published step.

    python benchmarks/training.py                        # small sizes on the CPU
    python benchmarks/training.py --device cuda --sizes paper --precision bfloat16 --batch 6

The plain step has the same weights, precision, batch and optimizer: separate encoder passes, dense attention in float32
with a float mask over all tokens, rotary embedding by complex numbers, keys and values of the condition projected again
at every scale of a roll-out. Their losses are compared first. Steps take turns, so that whatever else the machine does
hits all; on CPUs the processor time of this process is counted, not the clock on the wall. No data loading. The frozen
encoder is in float32 and nothing is cached; bfloat16 convolutions in it, and clean latents from the disk, are rows of
their own. Utilisation is the useful products and sums (masked-out ones left out) over what one large matrix product of
the same precision reaches on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plain import Plain, cross_attention, heads_of, plain_linear, rotate
from torch import Tensor

from restorevar.benchmarking.cost import counting
from restorevar.models import RefinerConfig, RestoreVAR, RestoreVARConfig, TokenizerConfig, TransformerConfig
from restorevar.models.scales import PAPER_SCALES_512
from restorevar.models.transformer import Block
from restorevar.modules import TransformerModule

Step = Callable[[], Tensor]
OURS, HALF, CACHED, PLAIN = "ours", "ours, bfloat16 encoder", "ours, clean latents from disk", "plain"

SMALL_TOKENIZER = TokenizerConfig(
    base_channels=48, channel_multipliers=(1, 2), encoder_blocks=1, decoder_blocks=2, latent_channels=16,
    vocabulary_size=1024, stem_patch=4, attention=False, norm_groups=16,
)  # fmt: skip
SIZES = {
    # the scales of the shipped model while it trains, 144 px
    "nano": RestoreVARConfig(
        scales=(1, 1, 2, 5, 9, 18),
        tokenizer=SMALL_TOKENIZER,
        transformer=TransformerConfig(depth=6, width=256, heads=4, drop_path=0.0, gain_init=1.0),
        refiner=RefinerConfig(width=128, heads=4, mlp_width=256, depth=4),
    ),
    # the paper's scales and tokens, 256 px, narrow
    "small": RestoreVARConfig(
        scales=PAPER_SCALES_512,
        tokenizer=SMALL_TOKENIZER,
        transformer=TransformerConfig(depth=4, width=256, heads=4, drop_path=0.0, gain_init=1.0),
        refiner=RefinerConfig(width=128, heads=4, mlp_width=256, depth=4),
    ),
    "paper": RestoreVARConfig(transformer=TransformerConfig(drop_path=0.0, gain_init=1.0), refiner=RefinerConfig()),
}


def plain_block(block: Block, x: Tensor, table: Tensor, finest: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
    """One block over all scales with a dense float mask."""
    attention = block.attention
    bias = torch.cat([attention.query_bias, torch.zeros_like(attention.query_bias), attention.value_bias])
    qkv = F.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6), attention.qkv.weight, bias)
    query, key, value = (heads_of(part, attention.heads) for part in qkv.chunk(3, dim=-1))
    scale = attention.scale.log_scale.clamp(max=4.605170185988092).exp()
    query = rotate(F.normalize(query, dim=-1) * scale, table)
    key = rotate(F.normalize(key, dim=-1), table)
    weights = torch.softmax(query.float() @ key.float().transpose(-1, -2) + mask, dim=-1)
    x = x + plain_linear(attention.out, (weights @ value.float()).transpose(1, 2).flatten(2))
    hidden = F.gelu(plain_linear(block.mlp.fc1, F.layer_norm(x, x.shape[-1:], eps=1e-6)), approximate="tanh")
    x = x + plain_linear(block.mlp.fc2, hidden)
    return x + cross_attention(block.cross, x, table, finest, condition)


def plain_logits(plain: Plain, teacher_input: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    """Teacher-forced logits (B, T, V)."""
    transformer, scales = plain.model.transformer, plain.model.scales
    condition = transformer.condition_project(features.flatten(2).transpose(1, 2))
    start = transformer.class_embed.weight[-1] + transformer.global_gain * transformer.global_embed(condition.mean(1))
    condition = transformer.condition_embed(condition) + transformer.condition_level_embed
    first = start[:, None].expand(-1, scales.lengths[0], -1)
    x = torch.cat([first, transformer.word_embed(teacher_input)], 1)
    levels = torch.from_numpy(scales.scale_of_token).to(x.device)
    x = x + transformer.level_embed(levels)
    finest = plain.rotary[scales.span(len(scales) - 1)]
    for block in transformer.blocks:
        x = plain_block(block, x, plain.rotary, finest, condition, mask)
    hidden = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
    return F.linear(hidden, transformer.head.weight, transformer.head.bias)


def scale_mask(model: RestoreVAR, device: torch.device) -> Tensor:
    """(1, 1, T, T) float32: 0 where a token may look, minus infinity elsewhere."""
    levels = torch.from_numpy(model.scales.scale_of_token).to(device)
    seen = levels[:, None] >= levels[None, :]
    return torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf)[None, None]


def encode_plain(plain: Plain, degraded: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """Degraded features and clean latent, one pass each, in float32."""
    with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
        features = plain.encode(degraded.contiguous())
        return features, plain.model.tokenizer.to_latent(plain.encode(clean.contiguous()))


def make_module(model: RestoreVAR, way: str, cache: str) -> TransformerModule:
    """The module whose way to encode a pair is measured.

    Args:
        model: Weights.
        way: See :func:`losses`.
        cache: Folder for latents.
    """
    module = TransformerModule(encoder_bfloat16=way == HALF, latent_cache=cache if way == CACHED else None)
    module.model = model
    return module


def make_batch(degraded: Tensor, clean: Tensor) -> Any:
    """Photos as a training batch with fixed crops."""
    return {"degraded": degraded, "clean": clean, "clean_key": [f"{index:064x}" for index in range(len(clean))]}


def losses(
    model: RestoreVAR, stage: int, degraded: Tensor, clean: Tensor, way: str, cache: str
) -> tuple[RestoreVAR, Step]:
    """The network whose parameters are trained, and the loss of a step.

    Args:
        model: Weights.
        stage: 1, 2 or 3.
        degraded: (B, 3, H, W).
        clean: (B, 3, H, W).
        way: ``OURS``, ``HALF``, ``CACHED`` or ``PLAIN``.
        cache: Folder for latents.
    """
    plain = Plain(model) if way == PLAIN else None
    module, batch = make_module(model, way, cache), make_batch(degraded, clean)
    network = model if plain is None else plain.model
    quantizer, scales = network.tokenizer.quantizer, network.scales
    if plain is not None:
        plain.rotary = plain.rotary.to(clean.device)
    mask = scale_mask(model, clean.device) if plain is not None and stage == 2 else None

    def decoder() -> Tensor:
        with torch.no_grad():
            latent = network.tokenizer.encode(clean.contiguous(memory_format=torch.channels_last))
        return F.l1_loss(network.tokenizer.decode(latent, clamp=False).float(), clean)

    def transformer() -> Tensor:
        features, latent = module.encode_pair(batch) if plain is None else encode_plain(plain, degraded, clean)
        with torch.no_grad():
            tokens = quantizer.quantize(latent, scales).tokens
            teacher_input = quantizer.teacher_input(tokens, scales)
        if plain is None:
            logits = network.transformer(teacher_input, features)[0]
        else:
            logits = plain_logits(plain, teacher_input, features, mask)
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())

    def refiner() -> Tensor:
        features, latent = module.encode_pair(batch) if plain is None else encode_plain(plain, degraded, clean)
        with torch.no_grad():
            roll_out = model.roll_out(features) if plain is None else plain.roll_out(features)
        if plain is None:
            refined = model.refine(roll_out, features)
        else:
            refined = plain.refine(network.refiner, roll_out[2], roll_out[1])
        return F.l1_loss(refined.float(), latent)

    parts = {1: network.tokenizer.decoder, 2: network.transformer, 3: network.refiner}
    network.requires_grad_(False)
    parts[stage].requires_grad_(True)
    return network, {1: decoder, 2: transformer, 3: refiner}[stage]


def in_precision(loss: Step, device: str, precision: torch.dtype) -> Step:
    """The loss under autocast; as it is for float32."""

    def cast() -> Tensor:
        with torch.autocast(device, precision, enabled=precision != torch.float32):
            return loss()

    return cast


def make_step(network: RestoreVAR, loss: Step) -> Step:
    """Forward, backward, clip and AdamW."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, betas=(0.9, 0.95))

    def step() -> Tensor:
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 2.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def seconds(step: Step, device: str) -> float:
    """Time of one step: processor time on CPUs, time until the GPU is done on GPUs."""
    if device == "cuda":
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        return time.perf_counter() - began
    began = time.process_time()
    step()
    return time.process_time() - began


def kept_bytes(loss: Step, network: RestoreVAR) -> int:
    """What autograd keeps for the backward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss()
    del value
    return sum(kept.values())


def matrix_rate(device: str, precision: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if device == "cuda" else 1536
    a = torch.randn(side, side, device=device, dtype=precision)
    best = min(seconds(lambda: a @ a, device) for _ in range(5))
    return 2 * side**3 / best


def measure(size: str, stage: int, options: argparse.Namespace, cache: str) -> dict[str, dict[str, float]]:
    """Rows of one stage at one size.

    Args:
        size: One of ``SIZES``.
        stage: 1, 2 or 3.
        options: Of the command line.
        cache: Folder for latents.
    """
    device, precision = options.device, getattr(torch, options.precision)
    torch.manual_seed(0)
    model = RestoreVAR(SIZES[size]).to(device)
    torch.nn.init.normal_(model.tokenizer.quantizer.codebook.weight)
    model.eval()
    degraded, clean = torch.rand(2, options.batch, 3, *model.image_size, device=device) * 2 - 1
    ways = (OURS,) if stage == 1 else (OURS, HALF, CACHED, PLAIN)
    pairs = {}
    for way in ways:
        network, loss = losses(model, stage, degraded, clean, way, cache)
        pairs[way] = network, in_precision(loss, device, precision)
    if stage > 1 and precision == torch.float32:
        values = {way: float(loss().detach()) for way, (_, loss) in pairs.items() if way != HALF}
        if max(abs(value - values[PLAIN]) for value in values.values()) > 1e-3 * abs(values[PLAIN]):
            raise SystemExit(f"the steps do not compute the same: {values}")
    steps = {way: make_step(network, loss) for way, (network, loss) in pairs.items()}
    operations = {}
    for way, step in steps.items():
        step()  # fills the cache
        with counting() as counter:
            step()
        operations[way] = counter.get_total_flops() if way != PLAIN else operations[OURS]
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.steps):
        for way in ways:  # in turns
            times[way].append(seconds(steps[way], device))
    rate = matrix_rate(device, precision)
    rows = {}
    for way in ways:
        median = statistics.median(times[way])
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()  # the weights and training states of all rows
            steps[way]()
            memory = torch.cuda.max_memory_allocated() - before
        else:
            memory = kept_bytes(pairs[way][1], pairs[way][0])
        rows[way] = {
            "images_per_second": options.batch / median,
            "memory_gib": memory / 2**30,
            "utilisation": operations[way] / median / rate,
        }
        if PLAIN in times and way != PLAIN:
            ratios = [plain / own for own, plain in zip(times[way], times[PLAIN], strict=True)]
            rows[way]["times_plain"] = statistics.median(ratios)
    return rows


def changed_tokens(size: str, options: argparse.Namespace) -> float:
    """Share of clean tokens that bfloat16 convolutions in the encoder change; float32 from `quant_conv` on."""
    torch.manual_seed(0)
    model = RestoreVAR(SIZES[size]).to(options.device).eval()
    torch.nn.init.normal_(model.tokenizer.quantizer.codebook.weight)
    clean = torch.rand(options.batch, 3, *model.image_size, device=options.device) * 2 - 1
    return float(make_module(model, HALF, "").changed_tokens(make_batch(clean, clean)))


def main() -> None:
    """Prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sizes", nargs="+", default=["nano", "small"], choices=tuple(SIZES))
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3], choices=(1, 2, 3))
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory = "GiB added" if options.device == "cuda" else "GiB kept"
    title = f"{options.device}, {options.precision}, batch {options.batch}"
    print(f"| {title} | images/s | {memory} | utilisation | x plain |")
    print("|---|---|---|---|---|")
    results: dict[str, object] = {"options": {key: str(value) for key, value in vars(options).items()}}
    for size in options.sizes:
        for stage in options.stages:
            with tempfile.TemporaryDirectory() as cache:
                rows = measure(size, stage, options, cache)
            results[f"{size} {stage}"] = rows
            for way, row in rows.items():
                ratio = f"{row['times_plain']:.2f}" if "times_plain" in row else ""
                print(
                    f"| {size}, stage {stage}, {way} | {row['images_per_second']:.2f} | {row['memory_gib']:.2f} |"
                    f" {row['utilisation']:.0%} | {ratio} |",
                    flush=True,
                )
        results[f"{size} changed tokens"] = changed = changed_tokens(size, options)
        print(f"{size}: bfloat16 convolutions in the encoder change {changed:.2%} of the clean tokens (random weights)")
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
