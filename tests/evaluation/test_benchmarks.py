"""The shipped benchmark configurations: data sets, protocols and published columns fit together."""

from pathlib import Path

import pytest
import yaml

from restorevar.datamodules.layouts import LAYOUTS
from restorevar.evaluation.metrics import METRICS
from restorevar.evaluation.protocol import PROTOCOLS
from restorevar.evaluation.published import PUBLISHED_DATASETS, PUBLISHED_MEMBERS

FOLDER = Path(__file__).parents[2] / "configs" / "benchmarks"
FILES = sorted(FOLDER.glob("*.yaml"))


def layouts(path: Path) -> list[str]:
    sources = yaml.safe_load(path.read_text())["data"]["test"]
    return [Path(s["init_args"]["path"]).stem for s in sources if s["class_path"].endswith("Manifest")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_names_known_sets_protocols_and_metrics(path):
    text = path.read_text()
    options = yaml.safe_load(text).get("model", {}).get("init_args", {})
    assert options.get("protocol", "native") in PROTOCOLS
    assert set(options.get("dataset_protocols", {}).values()) <= set(PROTOCOLS)
    assert set(options.get("metrics", [])) <= set(METRICS)
    for layout in layouts(path):
        assert LAYOUTS[layout].split == "test"
        assert f"--layout {layout} --output {layout}.json" in text


def test_every_published_column_has_a_configuration_under_the_paper_protocol():
    filled = set()
    for path in FILES:
        options = yaml.safe_load(path.read_text()).get("model", {}).get("init_args", {})
        if options.get("protocol") == "paper":
            datasets = {LAYOUTS[layout].dataset for layout in layouts(path)}
            filled |= {column for column, members in PUBLISHED_MEMBERS.items() if datasets & set(members)}
            assert any(datasets <= set(members) for members in PUBLISHED_MEMBERS.values())
    assert filled == set(PUBLISHED_DATASETS)
    for column, kind in PUBLISHED_DATASETS.items():
        assert {layout.kind for layout in LAYOUTS.values() if layout.dataset in PUBLISHED_MEMBERS[column]} == {kind}


def test_an_overlay_keeps_what_it_does_not_name():
    from restorevar.cli.lightning import read_config

    base = str(FOLDER.parent / "test.yaml")
    plain = read_config(["test", "--config", base])["model"]["init_args"]
    merged = read_config(["test", "--config", base, "--config", str(FOLDER / "reside.yaml"), "--model.model", "mine"])
    assert merged["model"]["init_args"] == plain | {"protocol": "paper", "model": "mine"}
    assert [source["init_args"]["path"] for source in merged["data"]["test"]] == [
        "sots_indoor.json",
        "sots_outdoor.json",
    ]


def test_a_set_of_the_same_class_does_not_inherit_the_files_of_the_first():
    """Merged item by item, lists of equal length would give the second what it does not name of the first."""
    from restorevar.cli.lightning import read_config

    base = str(FOLDER.parent / "test.yaml")
    assert "include" not in (FOLDER / "kodak24.yaml").read_text()
    merged = read_config(["test", "--config", base, "--config", str(FOLDER / "kodak24.yaml")])
    assert merged["data"]["test"][0]["init_args"]["include"] == ["*"]
