import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from restorevar import RestoreVAR
from restorevar.errors import UserError
from restorevar.models import (
    PAPER_SCALES_512,
    RefinerConfig,
    RestoreVARConfig,
    TokenizerConfig,
    TransformerConfig,
)
from restorevar.models.published import (
    _infer_refiner,
    _infer_scales,
    _infer_tokenizer,
    _infer_transformer,
    initialize_from_var,
    published_names,
    read_weights,
    to_published,
)
from tests.golden.seeded import TABLES, golden, seeded_weights, shapes, tiny_tokenizer, tiny_transformer
from tests.models.small import CONVOLUTION_REFINER, DETAIL, small_config, small_model

TINY_SCALES = (1, 2, 3, 4, 6, 8)
TINY = RestoreVARConfig(
    scales=TINY_SCALES,
    tokenizer=TokenizerConfig(
        base_channels=32, channel_multipliers=(1, 1, 1, 2), encoder_blocks=1, decoder_blocks=2, vocabulary_size=96
    ),
    transformer=TransformerConfig(depth=2, width=128, heads=2, mlp_ratio=4.0, class_count=1001),
    refiner=RefinerConfig(width=48, heads=3, mlp_width=96, depth=2),
)
State = dict[str, Tensor]


def load_tiny(tokenizer: object, transformer: object = None, **options: object) -> RestoreVAR:
    values = {"refiner_heads": 3, "scales": TINY_SCALES} | options
    return RestoreVAR.from_published(tokenizer, transformer, **values)  # type: ignore[arg-type]


class TestReading:
    """The same weights from every kind of file."""

    @pytest.fixture(params=["pth", "ckpt", "safetensors", "nested", "state_dict"])
    def files(self, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
        tokenizer, transformer = tiny_tokenizer(), tiny_transformer()
        if request.param == "safetensors":
            save_file(tokenizer, tmp_path / "vae.safetensors")
            save_file(transformer, tmp_path / "var.safetensors")
            return tmp_path / "vae.safetensors", tmp_path / "var.safetensors"
        suffix = "ckpt" if request.param == "ckpt" else "pth"
        content: object = transformer
        if request.param == "nested":  # a training checkpoint of the published code
            content = {"epoch": 3, "iter": 5, "trainer": {"var_wo_ddp": transformer, "config": {"depth": 2}}}
        if request.param == "state_dict":
            content = {"state_dict": transformer}
        torch.save(tokenizer, tmp_path / f"vae.{suffix}")
        torch.save(content, tmp_path / f"var.{suffix}")
        return tmp_path / f"vae.{suffix}", tmp_path / f"var.{suffix}"

    def test_file(self, files: tuple[Path, Path]) -> None:
        model = load_tiny(*files)
        assert model.config == TINY
        assert not model.training
        expected = load_tiny(tiny_tokenizer(), tiny_transformer())
        for (name, found), right in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
            assert torch.equal(found, right), name

    def test_tokenizer_alone(self) -> None:
        model = load_tiny(tiny_tokenizer())
        assert model.transformer is None
        with torch.no_grad():
            latent = model.tokenizer.encode(golden()["clean"])
        assert torch.allclose(latent, golden()["clean_latent"], atol=1e-4)

    def test_transformer_without_refiner(self) -> None:
        weights = {name: value for name, value in tiny_transformer().items() if not name.startswith("vae_refiner.")}
        model = load_tiny(tiny_tokenizer(), weights)
        assert model.refiner is None
        assert torch.equal(model.generate(golden()["degraded"]).tokens, golden()["tokens"])

    def test_weights_of_lower_precision(self) -> None:
        tokenizer = {name: value.bfloat16() for name, value in tiny_tokenizer().items()}
        model = load_tiny(tokenizer)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_tables_are_ignored_whether_right_or_wrong(self) -> None:
        extra = {name: torch.zeros(3) for name in TABLES if name != "lvl_1L"} | {
            "blocks.1.attn.zero_k_bias": torch.ones(2)
        }
        model = load_tiny(tiny_tokenizer() | {"quantize.ema_vocab_hit_SV": torch.ones(1)}, tiny_transformer() | extra)
        assert torch.equal(model.generate(golden()["degraded"]).tokens, golden()["tokens"])

    def test_what_was_given_is_not_changed(self) -> None:
        tokenizer = tiny_tokenizer()
        model = load_tiny(tokenizer)
        with torch.no_grad():
            model.tokenizer.quant_conv.weight.zero_()
        assert tokenizer["quant_conv.weight"].any()


class TestSizes:
    def test_scales_from_the_table(self) -> None:
        level = torch.cat([torch.full((side * side,), scale) for scale, side in enumerate(TINY_SCALES)])[None]
        model = load_tiny(tiny_tokenizer(), tiny_transformer() | {"lvl_1L": level}, scales=None)
        assert model.config == TINY

    def test_scales_that_are_not_square(self) -> None:
        level = torch.cat([torch.zeros(1), torch.ones(6)])[None].long()
        with pytest.raises(UserError, match=r"not square \(\[1, 6\] tokens\); give scales as height and width"):
            load_tiny(tiny_tokenizer(), tiny_transformer() | {"lvl_1L": level}, scales=None)

    def test_scales_missing(self) -> None:
        with pytest.raises(UserError, match=r"a tokenizer file alone does not tell its scales; give scales"):
            load_tiny(tiny_tokenizer(), scales=None)
        with pytest.raises(UserError, match=r"no table 'lvl_1L' to read the scales from; give scales"):
            load_tiny(tiny_tokenizer(), tiny_transformer(), scales=None)

    def test_wrong_number_of_scales(self) -> None:
        with pytest.raises(UserError, match=r"'lvl_embed\.weight' has shape \(6, 128\); expected \(3, 128\)"):
            load_tiny(tiny_tokenizer(), tiny_transformer(), scales=(1, 2, 8))

    def test_refiner_heads_are_64_channels_or_asked_for(self) -> None:
        with pytest.raises(UserError, match=r"width 48 does not tell its heads .*; give refiner_heads"):
            load_tiny(tiny_tokenizer(), tiny_transformer(), refiner_heads=None)
        with torch.device("meta"):
            model = RestoreVAR(RestoreVARConfig(transformer=TransformerConfig(), refiner=RefinerConfig()))
        published = to_published(model)
        # shapes are all that is read; the paper's sizes come back
        assert _infer_tokenizer(published[0]) == TokenizerConfig()
        assert _infer_transformer(published[1]) == TransformerConfig()
        assert _infer_refiner(published[1], None) == RefinerConfig()
        assert _infer_scales(published[1]) == PAPER_SCALES_512


class TestStrictness:
    @pytest.mark.parametrize("name", ["encoder.mid.block_1.conv1.weight", "quantize.quant_resi.qresi_ls.2.bias"])
    def test_missing_in_tokenizer(self, name: str) -> None:
        weights = tiny_tokenizer()
        del weights[name]
        with pytest.raises(UserError, match=rf"1 missing: {name}\."):
            load_tiny(weights)

    @pytest.mark.parametrize("name", ["blocks.0.cross_attn.gain", "vae_refiner.transformer.layers.1.2.to_q.weight"])
    def test_missing_in_transformer(self, name: str) -> None:
        weights = tiny_transformer()
        del weights[name]
        with pytest.raises(UserError, match=rf"1 missing: {name}\."):
            load_tiny(tiny_tokenizer(), weights)

    @pytest.mark.parametrize("name", ["quantize.embedding.weight", "encoder.conv_in.weight"])
    def test_missing_where_sizes_are_read(self, name: str) -> None:
        weights = tiny_tokenizer()
        del weights[name]
        with pytest.raises(UserError, match=f"tokenizer weights lack '{name}'"):
            load_tiny(weights)

    def test_wrong_shape(self) -> None:
        weights = tiny_tokenizer() | {"post_quant_conv.bias": torch.zeros(31)}
        with pytest.raises(
            UserError, match=r"dict: .*'post_quant_conv\.bias' has shape \(31,\); expected \(32,\).*fetch"
        ):
            load_tiny(weights)
        transformer = tiny_transformer() | {"vae_refiner.pos_embedding": torch.zeros(1, 65, 48)}
        with pytest.raises(UserError, match=r"has shape \(1, 65, 48\); expected \(1, 64, 48\)"):
            load_tiny(tiny_tokenizer(), transformer)

    def test_transposed_weight(self) -> None:
        weights = tiny_transformer()
        weights["blocks.0.ffn.fc2.weight"] = weights["blocks.0.ffn.fc2.weight"].T.contiguous()
        with pytest.raises(UserError, match=r"fc2\.weight' has shape \(512, 128\); expected \(128, 512\)"):
            load_tiny(tiny_tokenizer(), weights)

    def test_left_over(self) -> None:
        with pytest.raises(UserError, match=r"1 left over: decoder\.extra\.weight"):
            load_tiny(tiny_tokenizer() | {"decoder.extra.weight": torch.zeros(1)})

    def test_many_of_both(self) -> None:
        weights = {name.replace("norm1", "normalize1"): value for name, value in tiny_tokenizer().items()}
        with pytest.raises(UserError, match=r"\d\d missing: .* \.\.\.; \d\d left over: .* \.\.\.\. Expected"):
            load_tiny(weights)

    def test_var_instead_of_restorevar(self) -> None:
        weights = seeded_weights(var_shapes(), "var")
        with pytest.raises(UserError, match=r"weights of VAR, not of RestoreVAR.*initial_weights"):
            load_tiny(tiny_tokenizer(), weights)

    def test_files_mixed_up(self) -> None:
        with pytest.raises(UserError, match=r"tokenizer weights lack 'encoder\.conv_in\.weight'"):
            load_tiny(tiny_transformer(), tiny_tokenizer())


class RunsCode:
    """Unpickling it would run a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


class TestUnsafeAndBrokenFiles:
    @pytest.mark.parametrize("form", ["torch", "pickle", "nested"])
    def test_malicious_pickle_is_refused(self, tmp_path: Path, form: str) -> None:
        path, victim = tmp_path / "vae.pth", tmp_path / "victim"
        evil = RunsCode(f"touch {victim}")
        if form == "pickle":
            path.write_bytes(pickle.dumps({"weights": evil}))
        else:
            content: dict = {**tiny_tokenizer(), "extra": evil}
            torch.save({"trainer": {"var_wo_ddp": content}} if form == "nested" else content, path)
        reason = (
            "cannot be read" if form == "pickle" else r"holds more than tensors \('posix\.system'\).*could run code"
        )
        with pytest.raises(UserError, match=reason):
            load_tiny(path)
        assert not victim.exists()

    def test_harmless_objects_are_refused_too(self, tmp_path: Path) -> None:
        torch.save(
            {"trainer": {"var_wo_ddp": tiny_tokenizer()}, "args": argparse.Namespace(depth=2)}, tmp_path / "a.pth"
        )
        with pytest.raises(UserError, match=r"argparse\.Namespace.*ask for a safetensors file"):
            load_tiny(tmp_path / "a.pth")

    @pytest.mark.parametrize("suffix", ["pth", "safetensors"])
    @pytest.mark.parametrize("kept", [0.5, 0.999])
    def test_truncated(self, tmp_path: Path, suffix: str, kept: float) -> None:
        path = tmp_path / f"vae.{suffix}"
        if suffix == "pth":
            torch.save(tiny_tokenizer(), path)
        else:
            save_file(tiny_tokenizer(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(UserError, match=r"cannot be read as tokenizer.*complete"):
            load_tiny(path)

    @pytest.mark.parametrize("content", [b"", b"404: not found", bytes(range(256)) * 9])
    def test_not_weights_at_all(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "vae.pth").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as tokenizer"):
            load_tiny(tmp_path / "vae.pth")

    @pytest.mark.parametrize("content", [{}, [1], {"epoch": 3}, torch.ones(2)])
    def test_not_a_state_dict(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "vae.pth")
        with pytest.raises(UserError, match="is not a state dict of tokenizer"):
            load_tiny(tmp_path / "vae.pth")

    def test_no_such_file_lists_what_there_is(self, tmp_path: Path) -> None:
        torch.save(tiny_tokenizer(), tmp_path / "vae_here.pth")
        with pytest.raises(UserError, match=r"no tokenizer file at .*gone\.pth; .*: vae_here\.pth"):
            load_tiny(tmp_path / "gone.pth")


class TestWriting:
    def test_there_and_back(self) -> None:
        tokenizer, transformer = to_published(load_tiny(tiny_tokenizer(), tiny_transformer()), tables=False)
        zero_bias = {name for name in tiny_transformer() if name.endswith("zero_k_bias")}
        for found, expected in ((tokenizer, tiny_tokenizer()), (transformer, tiny_transformer())):
            assert set(found) == set(expected) - zero_bias
            for name, tensor in found.items():
                assert torch.equal(tensor, expected[name]), name
                assert tensor.shape == expected[name].shape, name

    def test_tables_as_published(self) -> None:
        model = load_tiny(tiny_tokenizer(), tiny_transformer())
        tokenizer, transformer = to_published(model)
        assert {name: list(value.shape) for name, value in tokenizer.items()} == shapes("tiny_tokenizer")
        assert {name: list(value.shape) for name, value in transformer.items()} == shapes("tiny_transformer")
        again = load_tiny(tokenizer, transformer, scales=None)
        assert again.config == TINY
        mask, level = transformer["attn_bias_for_masking"][0, 0], transformer["lvl_1L"][0]
        assert torch.equal(mask == 0, level[:, None] >= level)
        assert mask.max() == 0
        assert transformer["freqs_cis"].is_complex()
        assert torch.equal(transformer["freqs_cis_cross"], transformer["freqs_cis"][-64:])

    def test_paper_size_has_exactly_the_published_names_and_shapes(self) -> None:
        with torch.device("meta"):
            model = RestoreVAR(RestoreVARConfig(transformer=TransformerConfig(), refiner=RefinerConfig()))
        tokenizer, transformer = to_published(model)
        assert {name: list(value.shape) for name, value in tokenizer.items()} == shapes("paper_tokenizer")
        assert {name: list(value.shape) for name, value in transformer.items()} == shapes("paper_transformer")

    def test_float32_whatever_the_precision(self) -> None:
        model = load_tiny(tiny_tokenizer()).set_precision(torch.bfloat16)
        tokenizer, transformer = to_published(model)
        assert {value.dtype for value in tokenizer.values()} == {torch.float32}
        assert transformer == {}

    def test_every_weight_has_a_name_of_its_own(self) -> None:
        names = published_names(TINY)
        assert set(names) == set(RestoreVAR(TINY).state_dict())
        assert len(set(names.values())) == len(names)

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"detail": DETAIL}, "detail"),
            ({"refiner": CONVOLUTION_REFINER}, "refiner.kind"),
            ({"tokenizer": TokenizerConfig(base_channels=32, stem_patch=2)}, "tokenizer.stem_patch"),
            ({"tokenizer": TokenizerConfig(base_channels=32, linear_path=True)}, "tokenizer.linear_path"),
            ({"tokenizer": TokenizerConfig(base_channels=32, norm_groups=16)}, "tokenizer.norm_groups"),
            ({"tokenizer": TokenizerConfig(base_channels=32, phi_identity=1.0)}, "tokenizer.phi_identity"),
            (
                {"transformer": TransformerConfig(width=32, heads=2, local_condition=True)},
                "transformer.local_condition",
            ),
            ({"transformer": TransformerConfig(width=32, heads=2, mean_scales=2)}, "transformer.mean_scales"),
            ({"transformer": TransformerConfig(width=32, heads=2, rotary_base=100.0)}, "transformer.rotary_base"),
        ],
    )
    def test_our_own_parts_have_no_published_form(self, changes: dict, what: str) -> None:
        with torch.device("meta"):
            model = RestoreVAR(small_config(**changes))
        with pytest.raises(UserError, match=rf"{what}.* no published form"):
            to_published(model)


def var_shapes() -> dict[str, list[int]]:
    """VAR's weights at the tiny transformer's sizes: names as published, 2 blocks, width 128, 6 scales, 96 codes."""
    small = {1024: 128, 3072: 384, 4096: 512, 6144: 768, 2048: 256, 16: 2, 10: 6, 680: 130}
    found = {}
    for name, shape in shapes("var_d16").items():
        if name.startswith("blocks.") and int(name.split(".")[1]) > 1:
            continue
        found[name] = [small.get(size, size) for size in shape]
        if name.startswith("head."):
            found[name][0] = 96
    return found


class TestInitializeFromVar:
    def model(self, **changes: object) -> RestoreVAR:
        transformer = TransformerConfig(depth=2, width=128, heads=2, **changes)  # type: ignore[arg-type]
        return RestoreVAR(RestoreVARConfig(TINY_SCALES, tokenizer=TINY.tokenizer, transformer=transformer))

    @pytest.mark.parametrize("local", [False, True])
    def test_shared_weights_are_loaded_and_the_rest_is_new(self, tmp_path: Path, local: bool) -> None:
        model, weights = self.model(local_condition=local), seeded_weights(var_shapes(), "var")
        torch.save(weights, tmp_path / "var_d16.pth")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        lacking = initialize_from_var(model, tmp_path / "var_d16.pth")
        assert model.transformer is not None
        block = model.transformer.block_sequence[1]
        assert torch.equal(block.attention.qkv.weight, weights["blocks.1.attn.mat_qkv.weight"])
        assert torch.equal(block.attention.scale.log_scale[:, 0, 0], weights["blocks.1.attn.scale_mul_1H11"].flatten())
        assert torch.equal(model.transformer.class_embed.weight, weights["class_emb.weight"])
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {name for name in before if name.startswith("transformer.")} - set(lacking)
        assert {"transformer.global_gain", "transformer.blocks.0.cross.out.bias"} < set(lacking)
        assert ("transformer.local_embed.weight" in lacking) == local
        condition = golden()["cond_latent"]
        same = torch.equal(model.roll_out(condition).tokens, model.roll_out(-condition).tokens)
        assert same != local  # gains start at 0: at first the model is VAR, whatever the condition

    def test_missing_and_left_over(self) -> None:
        weights = seeded_weights(var_shapes(), "var")
        weights["blocks.0.attn.q_biases"] = weights.pop("blocks.0.attn.q_bias")
        with pytest.raises(UserError, match=r"1 missing: blocks.0.attn.q_bias; 1 left over: blocks.0.attn.q_biases\."):
            initialize_from_var(self.model(), weights)

    def test_another_size(self) -> None:
        weights = seeded_weights(var_shapes(), "var")
        weights["lvl_embed.weight"] = torch.zeros(10, 128)
        with pytest.raises(UserError, match=r"'lvl_embed\.weight' has shape \(10, 128\).*change depth, width"):
            initialize_from_var(self.model(), weights)

    def test_transposed_weight_changes_nothing(self) -> None:
        model, weights = self.model(), seeded_weights(var_shapes(), "var")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        weights["blocks.1.ffn.fc2.weight"] = weights["blocks.1.ffn.fc2.weight"].T.contiguous()
        with pytest.raises(UserError, match=r"fc2\.weight' has shape \(512, 128\); expected \(128, 512\)"):
            initialize_from_var(model, weights)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_model_without_transformer(self) -> None:
        with pytest.raises(UserError, match="no transformer to initialise"):
            initialize_from_var(small_model(transformer=None, refiner=None), {})


def test_read_weights_of_a_mapping() -> None:
    nested = {"trainer": {"var_wo_ddp": {"a": torch.ones(1)}}}
    assert list(read_weights(nested)) == ["a"]  # type: ignore[arg-type]
