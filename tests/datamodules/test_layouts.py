import re
from pathlib import Path

import pytest
import yaml

from restorevar.datamodules.layouts import LAYOUTS, find_layout, match_both_ways, match_files, own_layout
from restorevar.datamodules.sources import PublicSet, check_kind
from restorevar.errors import UserError

from .conftest import write_photos

DATASETS = Path(__file__).parents[2] / "docs" / "datasets.md"
WORDS = {
    "name": "a_1",
    "scene": "GOPR0372_07_00",
    "id": "12",
    "level": "3",
    "beta": "0.9",
    "airlight": "0.8",
    "part": "part1",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_pattern_finds_its_partner_wherever_the_set_lies(name):
    layout = LAYOUTS[name]
    check_kind(layout.kind)
    for pattern in layout.degraded:
        for degradation in ("low", "haze_rain"):
            words = {**WORDS, "degradation": degradation}
            degraded = Path("/any/where", pattern.format(**words)).with_suffix(".PNG")
            # the fill-in must not depend on words that the degraded pattern does not give
            cleans = []
            for template in layout.clean:
                if all(f"{{{word}}}" in pattern for word in words if f"{{{word}}}" in template):
                    cleans.append(Path("/any/where", template.format(**words)).with_suffix(".jpg"))
            assert bool(cleans) == bool(layout.clean), f"no clean pattern fits {pattern}"
            (match,) = match_files(layout, [degraded])
            assert (match.degraded, match.clean) == (degraded, None)
            assert match.fault.startswith("no clean image; expected") == bool(layout.clean)
            for clean in cleans:
                unrelated = Path("/any/where/else.png")
                (match,), alone = match_both_ways(layout, [degraded, clean, unrelated])
                assert (match.degraded, match.clean, match.fault, alone) == (degraded, clean, "", [])
                expected = layout.kinds.get(degradation, layout.kind) if "{degradation}" in pattern else layout.kind
                assert match.kind == expected


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_other_set_takes_an_example(name):
    for pattern in LAYOUTS[name].degraded:
        degraded = Path("/any/where", pattern.format(**WORDS, degradation="haze_rain")).with_suffix(".png")
        assert [other for other, layout in LAYOUTS.items() if match_files(layout, [degraded])] == [name]


def test_sets_under_one_folder_keep_apart(tmp_path):
    """Sets as they are unpacked: from the folder above them all, and from those that the documentation gives."""
    places = {
        "reside_its": ("RESIDE/ITS/hazy/1_1_0.90179.png", "RESIDE/ITS/clear/1.png"),
        "reside_ots": ("RESIDE/OTS/hazy/0005_0.8_0.04.jpg", "RESIDE/OTS/clear/0005.jpg"),
        "sots_indoor": ("RESIDE/SOTS/indoor/hazy/1400_1.png", "RESIDE/SOTS/indoor/gt/1400.png"),
        "sots_outdoor": ("RESIDE/SOTS/outdoor/hazy/0001_0.8_0.2.jpg", "RESIDE/SOTS/outdoor/gt/0001.png"),
        "snow100k_train": ("Snow100K/all/synthetic/a_b_1.jpg", "Snow100K/all/gt/a_b_1.jpg"),
        "snow100k_s": ("Snow100K/Snow100K-S/synthetic/a_b_1.jpg", "Snow100K/Snow100K-S/gt/a_b_1.jpg"),
        "rain13k": ("Rain13K/train/input/1.jpg", "Rain13K/train/target/1.jpg"),
        "rain100h": ("Rain13K/test/Rain100H/input/1.png", "Rain13K/test/Rain100H/target/1.png"),
        "lol_v1_train": ("LOLv1/our485/low/2.png", "LOLv1/our485/high/2.png"),
        "lol_v1_test": ("LOLv1/eval15/low/1.png", "LOLv1/eval15/high/1.png"),
        "gopro_train": ("GoPro/train/input/a-1.png", "GoPro/train/target/a-1.png"),
        "gopro_test": ("GoPro/test/input/b-1.png", "GoPro/test/target/b-1.png"),
        "lhp_rain": ("LHP-Rain/test/input/3.png", "LHP-Rain/test/gt/3.png"),
        "revide_train": ("REVIDE/train/hazy/C001/00000.JPG", "REVIDE/train/gt/C001/00000.JPG"),
    }
    for name in (name for pair in places.values() for name in pair):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (example,) = re.findall(r"```yaml\n(# paper_data.*?)```", DATASETS.read_text(), re.DOTALL)
    data = yaml.safe_load(example)["data"]
    shown = [PublicSet(**source["init_args"]) for source in data["train"] + data["val"]]
    assert {source.layout for source in shown} <= set(places)
    for source in shown + [PublicSet(name, ".") for name in places]:
        pairs = [(record.path, record.clean) for record in source.collect(tmp_path).records]
        assert pairs == [tuple(str(tmp_path / name) for name in places[source.layout])], source


@pytest.mark.parametrize(
    ("folder", "owner"),
    [("OTS/train/hazy", "reside_ots"), ("OTS/train/hazy/part1", "reside_ots"), ("OTS/test/hazy", "sots_outdoor")],
)
def test_copies_with_train_and_test_below_ots(folder, owner):
    degraded = Path("/d", folder, "0005_0.8_0.04.jpg")
    clean = Path("/d", folder.partition("/hazy")[0], "clear/0005.jpg")
    found = {name: match_files(layout, [degraded, clean]) for name, layout in LAYOUTS.items()}
    assert {name: matches for name, matches in found.items() if matches} == {owner: [(degraded, clean, "haze", "")]}


def test_a_users_own_patterns_mean_what_they_say():
    files = [Path("/d/GoPro/train/input/1.png"), Path("/d/GoPro/train/target/1.png")]
    assert match_files(LAYOUTS["rain13k"], files) == []
    own = own_layout("S", "rain", "train/input/{name}", "train/target/{name}")
    assert match_files(own, files) == [(*files, "rain", "")]


def test_what_a_set_holds_besides_is_not_taken():
    gopro = [Path(f"/d/GoPro/train/S/{folder}/1.png") for folder in ("blur", "blur_gamma", "sharp")]
    assert [match.degraded for match in match_files(LAYOUTS["gopro_train"], gopro)] == gopro[:1]
    assert match_files(LAYOUTS["gopro_test"], gopro) == []
    snow = [Path(f"/d/all/{folder}/1.jpg") for folder in ("synthetic", "gt", "mask")]
    assert match_files(LAYOUTS["snow100k_train"], snow) == [(snow[0], snow[1], "snow", "")]
    videos = [Path(f"/d/train/{folder}/0000/1.png") for folder in ("low_blur", "low_blur_noise", "low_sharp")]
    assert [match.degraded for match in match_files(LAYOUTS["lol_blur_train"], videos)] == videos[:1]
    cdd = [Path(f"/d/CDD-11_test/{folder}/1.png") for folder in ("clear", "low", "low_haze_rain")]
    kinds = [match.kind for match in match_files(LAYOUTS["cdd_test"], cdd)]
    assert kinds == ["low_light", "mixed"]


@pytest.mark.parametrize(
    ("name", "degraded", "clean"),
    [
        ("reside_its", "ITS/train/hazy/1_10_0.98796.png", "ITS/train/clear/1.png"),
        ("reside_ots", "OTS_ALPHA/haze/OTS/0005_0.8_0.04.jpg", "OTS_ALPHA/clear/clear_images/0005.jpg"),
        ("reside_ots", "Train/Dehaze/synthetic/part4/7926_1_0.2.jpg", "Train/Dehaze/original/7926.jpg"),
        ("sots_outdoor", "SOTS/outdoor/hazy/0001_0.8_0.2.jpg", "SOTS/outdoor/gt/0001.png"),
        ("snow100k_train", "all/synthetic/sidewalk winter -grayscale -gray_07095.jpg", None),
        ("rain100l", "Rain100L/rainy/rain-001.png", "Rain100L/norain-001.png"),
        ("rain100l", "Rain100L/rainy/rain-001.png", "Rain100L/gt/norain-001.png"),
        ("rain100h", "Rain100H/rain/rain-001.png", "Rain100H/norain/norain-001.png"),
        ("gopro_test", "GOPRO_Large/test/GOPR0384_11_00/blur/000001.png", None),
        ("gopro_train", "datasets/GoPro/train/input/a-1.png", "datasets/GoPro/train/target/a-1.png"),
        ("lhp_rain", "LHP-Rain/test/input/2701.png", "LHP-Rain/test/gt/2701.png"),
        ("revide_test", "REVIDE_indoor/Test/hazy/W002/00000.JPG", "REVIDE_indoor/Test/gt/W002/00000.JPG"),
        ("sice", "SICE/Dataset_Part1/12/1.JPG", "SICE/Dataset_Part1/Label/12.JPG"),
        ("toled_train", "UDC_train/Train/Toled/LQ/101.png", "UDC_train/Train/Toled/HQ/101.png"),
        ("poled_val", "data/Poled_val/LQ/9.png", "data/Poled_val/HQ/9.png"),
        ("lol_blur_test", "LOLBlur/test/low_blur/0012/0003.png", "LOLBlur/test/high_sharp_scaled/0012/0003.png"),
        ("lol_blur_train", "train/low_blur/0000/0003.png", "train/high_sharp_original/0000/0003.png"),
        ("cdd_train", "data/CDD-11_train/low_haze_rain/000001.png", "data/CDD-11_train/clear/000001.png"),
    ],
)
def test_names_as_public_repositories_show_them(name, degraded, clean):
    clean = clean or degraded.replace("synthetic", "gt").replace("blur/", "sharp/")
    files = [Path("/d", degraded), Path("/d", clean)]
    assert [match[:2] for match in match_files(LAYOUTS[name], files)] == [tuple(files)]


@pytest.mark.parametrize(
    ("name", "degraded", "clean", "alone"),
    [
        # one clean image for several degraded ones; SOTS beside it is another set
        (
            "reside_its",
            ["ITS/hazy/1_1_0.9.png", "ITS/hazy/1_2_0.8.png", "SOTS/indoor/hazy/5_1.png"],
            ["ITS/clear/1.png", "ITS/clear/2.png", "SOTS/indoor/gt/5.png"],
            ["ITS/clear/2.png"],
        ),
        # a release with two versions of the clean images
        (
            "lol_blur_test",
            ["test/low_blur/7/1.png", "test/low_blur_noise/7/1.png"],
            [f"test/high_sharp_{version}/7/{n}.png" for version in ("scaled", "original") for n in (1, 2)],
            ["test/high_sharp_scaled/7/2.png", "test/high_sharp_original/7/2.png"],
        ),
        ("gopro_test", ["test/A/blur/1.png"], ["test/A/sharp/1.png", "test/B/sharp/1.png"], ["test/B/sharp/1.png"]),
        ("cdd_test", ["CDD-11_test/low/1.png"], ["CDD-11_test/clear/1.png"], []),
        ("snow100k_real", ["realistic/1.jpg"], ["gt/1.jpg"], []),
    ],
)
def test_clean_images_alone_are_those_of_the_same_set(name, degraded, clean, alone):
    found = match_both_ways(LAYOUTS[name], [Path("/d", file) for file in degraded + clean])[1]
    assert found == [Path("/d", file) for file in alone]


@pytest.mark.parametrize(
    ("degraded", "clean", "pairs", "alone"),
    [
        ("png jpg", "png jpg", {"png": "png", "jpg": "jpg"}, ""),
        ("jpg png", "png JPG", {"png": "png", "jpg": "JPG"}, ""),
        ("jpg", "bmp", {"jpg": "bmp"}, ""),
        ("png", "png jpg", {"png": "png"}, "jpg"),
        ("png jpg", "png", {"png": "png", "jpg": None}, ""),
        ("png", "bmp jpg", {"png": None}, ""),
        ("png jpg", "bmp", {"png": None, "jpg": None}, ""),
        ("png PNG", "png", {"png": None, "PNG": None}, ""),
    ],
)
def test_files_of_one_name_are_told_apart_by_their_endings_or_reported(degraded, clean, pairs, alone):
    layout = own_layout("S", "rain", "in/{name}", "gt/{name}")
    files = [Path(f"/d/in/a.{ending}") for ending in degraded.split()]
    files += [Path(f"/d/gt/a.{ending}") for ending in clean.split()]
    matches, left = match_both_ways(layout, files)
    assert {match.degraded.suffix[1:]: match.clean and match.clean.suffix[1:] for match in matches} == pairs
    assert left == [Path(f"/d/gt/a.{ending}") for ending in alone.split()]
    for match in matches:
        assert bool(match.fault) == (match.clean is None)
        assert match.clean or "/d/gt/a." in match.fault


@pytest.mark.parametrize(
    "pattern", ["in/{name", "in/name}", "in/{}", "in/{1}", "{name}/{name}", "{a b}", "{a!r}", "/", ""]
)
def test_patterns_that_make_no_sense_are_named(pattern):
    for pair in ((pattern, "gt/{name}"), ("in/{name}", pattern)):
        with pytest.raises(UserError, match=r"found the pattern '.*'; expected folders and a name such as"):
            own_layout("S", "rain", *pair)


def test_patterns_have_no_ending_and_the_same_words():
    with pytest.raises(UserError, match=r"'in/\{name\}\.PNG'; leave out the ending \.PNG"):
        own_layout("S", "rain", "in/{name}.PNG", "gt/{name}")
    with pytest.raises(UserError, match=r"found \{id\} in 'gt/\{id\}' only"):
        own_layout("S", "rain", "in/{name}", "gt/{id}")
    files = [Path("/d/in/1_a.png"), Path("/d/gt/1.png")]
    assert match_files(own_layout("S", "rain", "in/{Id}_{x}", "GT/{ID}"), files)[0].clean == files[1]


def test_an_unknown_layout_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean 'gopro_train'"):
        find_layout("gopro_trian")


def test_public_set_is_a_source(tmp_path):
    write_photos(tmp_path / "LOL" / "our485" / "low", 3)
    write_photos(tmp_path / "LOL" / "our485" / "high", 3, seed=1)
    records = PublicSet("lol_v1_train", "LOL").collect(tmp_path).records
    assert [(Path(r.path).parent.name, Path(r.clean).parent.name, r.dataset) for r in records] == [
        ("low", "high", "LOLv1")
    ] * 3
    with pytest.raises(UserError, match=r"no file as in gopro_train; expected \.\.\./train/\{scene\}/blur"):
        PublicSet("gopro_train", "LOL").collect(tmp_path)
    (tmp_path / "LOL" / "our485" / "high" / "001.png").unlink()
    with pytest.raises(UserError, match=r"low/001\.png: no clean image; expected .* \(1 such\)"):
        PublicSet("lol_v1_train", "LOL").collect(tmp_path)
