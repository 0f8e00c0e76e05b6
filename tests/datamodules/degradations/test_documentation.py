"""The worked example of docs/degradations.md, as it stands there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from restorevar.datamodules.degradations import degrade
from restorevar.datamodules.sources import CleanPhotos

PAGE = Path(__file__).parents[3] / "docs" / "degradations.md"


def block(title: str) -> str:
    return re.search(rf'```\w+ title="{re.escape(title)}"\n(.*?)```', PAGE.read_text(), re.DOTALL)[1]


@pytest.fixture
def project(tmp_path, monkeypatch, photos):
    """A folder with the example's package and one photo."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "dust.py").write_text(block("my_package/dust.py"))
    (tmp_path / "photos").mkdir()
    Image.fromarray(photos[0]).save(tmp_path / "photos" / "a.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_one_function_is_a_degradation(project, photos):
    photo = photos[0]
    whole, parameters = degrade(photo, "my_package.dust.dust", 0.8, 3)
    crop, _ = degrade(photo, "my_package.dust.dust", 0.8, 3, crop=(20, 30, 50, 60))
    assert (whole[20:70, 30:90] == crop).all()
    assert parameters["beta"] > 0
    assert whole[..., 0].mean() > whole[..., 2].mean()
    assert np.abs(degrade(photo, "my_package.dust.dust", 0.0, 3)[0].astype(int) - photo).max() <= 1


def test_one_line_of_yaml_trains_on_it(project):
    source = yaml.safe_load(block("config.yaml"))["data"]["train"][0]
    assert source["class_path"] == "CleanPhotos"
    collection = CleanPhotos(**source["init_args"]).collect(project)
    assert collection.kinds["my_package.dust.dust"] == 0.5


def test_one_line_of_albumentations_applies_it(project, photos):
    names = {}
    exec(block("pipeline.py"), names)
    assert (names["transform"](image=photos[0])["image"] != photos[0]).any()


@pytest.mark.skipif(os.name == "nt", reason="a line for a POSIX shell")
def test_the_command_line_takes_it(project):
    line = re.search(r"^PYTHONPATH=.*my_package.*$", PAGE.read_text(), re.MULTILINE)[0]
    scripts = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ["PATH"]}
    subprocess.run(["sh", "-c", line], check=True, cwd=project, env=environment)
    assert (project / "dusty" / "a.png.json").is_file()


def test_all_kinds_are_described():
    from restorevar.datamodules.degradations import KINDS

    page = PAGE.read_text()
    assert all(f"| `{kind}` |" in page for kind in KINDS)
    for sheet in ("degradations.jpg", "degradations-skimage.jpg"):
        assert f"(images/{sheet})" in page
        assert (PAGE.parent / "images" / sheet).stat().st_size < 300_000
