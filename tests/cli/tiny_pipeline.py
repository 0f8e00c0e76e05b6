"""A pipeline of three tiny stages, as files."""

from pathlib import Path

import yaml

COMMON = {
    "seed_everything": 0,
    "data": {
        "train": [
            {
                "class_path": "restorevar.datamodules.CleanPhotos",
                "init_args": {"folders": ["PHOTOS"], "degradations": {"haze": 1, "low_light": 1}, "repeat": 20},
            }
        ],
        "val": [
            {
                "class_path": "restorevar.datamodules.FixedDegradations",
                "init_args": {"folders": ["PHOTOS"], "kinds": ["haze"], "limit": 1},
            }
        ],
        "image_size": 32,
        "batch_size": 2,
        "resize_short_side": [1.0, 1.5],
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 4,
        "max_epochs": -1,
        "check_val_every_n_epoch": None,
        "val_check_interval": 4,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 2,
        "callbacks": [{"class_path": "restorevar.callbacks.NewestCheckpoint", "init_args": {"every_n_steps": 1}}],
    },
}
TOKENIZER = {
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "encoder_blocks": 1,
    "decoder_blocks": 1,
    "latent_channels": 4,
    "vocabulary_size": 16,
    "stem_patch": 4,
    "attention": False,
    "norm_groups": 4,
}
STAGES = {
    "tokenizer": {
        "class_path": "restorevar.modules.TokenizerModule",
        "init_args": {"scales": [1, 2, 4], "tokenizer": TOKENIZER, "codebook": {"continuous_share": 0.5}},
    },
    "transformer": {
        "class_path": "restorevar.modules.TransformerModule",
        "init_args": {"transformer": {"depth": 2, "width": 16, "heads": 2, "gain_init": 1.0, "class_count": 1}},
    },
    "refiner": {
        "class_path": "restorevar.modules.RefinerModule",
        "init_args": {"refiner": {"kind": "convolution", "width": 16, "depth": 1}},
    },
}


def write_pipeline(folder: Path, photos: Path) -> Path:
    """Writes the files and returns the pipeline's."""
    folder.mkdir(parents=True, exist_ok=True)
    common = yaml.safe_dump(COMMON).replace("PHOTOS", str(photos))
    (folder / "common.yaml").write_text(common)
    for name, model in STAGES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": model}))
    stages = [{"name": name, "config": ["common.yaml", f"{name}.yaml"]} for name in STAGES]
    (folder / "pipeline.yaml").write_text(yaml.safe_dump({"stages": stages}))
    return folder / "pipeline.yaml"
