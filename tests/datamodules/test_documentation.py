"""What docs/data.md and docs/datasets.md say is so."""

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from restorevar.datamodules import RestorationDataModule, Source, sources
from restorevar.datamodules.layouts import LAYOUTS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_configuration_shown_can_be_read():
    text = (DOCS / "data.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RestorationDataModule, "data")
    data = parser.instantiate_classes(parser.parse_object(yaml.safe_load(example))).data
    assert [type(source).__name__ for source in data.sources["train"]] == [
        "CleanPhotos",
        "PairedFolders",
        "PublicSet",
        "Manifest",
    ]
    assert data.image_size == (256, 256)


def test_every_source_is_explained():
    text = (DOCS / "data.md").read_text()
    for name in sources.__all__:
        thing = getattr(sources, name)
        if isinstance(thing, type) and issubclass(thing, Source) and thing is not Source:
            assert f"| `{name}` |" in text


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_listed_as_it_is(name):
    (line,) = re.findall(rf"^\| `{name}` \|.*$", (DOCS / "datasets.md").read_text(), re.MULTILINE)
    layout = LAYOUTS[name]
    for pattern in (*layout.degraded, *layout.clean):
        assert f"`.../{pattern}`" in line
    assert f"| {layout.split} | {layout.kind} |" in line
    assert layout.count is None or f"{layout.count:,}" in line
