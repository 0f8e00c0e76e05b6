"""How the public sets lie on disk: a table, one entry a set, and the one function that reads it."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from restorevar.errors import UserError
from restorevar.restoration.photo import SUFFIXES

__all__ = ["LAYOUTS", "Layout", "Match", "find_layout", "is_held_out", "match_both_ways", "match_files", "own_layout"]

Split = Literal["train", "val", "test"]
WORD = re.compile(r"\{(\w*)\}")  # of a pattern
CDD_KINDS = {"haze": "haze", "rain": "rain", "snow": "snow", "low": "low_light"}


@dataclass(frozen=True)
class Layout:
    """One set (or one part of it).

    Patterns are the last parts of a path, without the file's ending: `{name}`, `{scene}` and `{degradation}` stand for
    a whole folder or file name, any other `{word}` for a piece of one without an underscore. A clean image is looked
    up by its pattern, filled in with what the degraded one's stood for, beside the degraded image's own folders.
    Capital and small letters are the same. Of several sets of the table whose patterns a degraded image fits, it is
    that of the most exact one: `train/input/{name}` does not take `GoPro/train/input/1.png`.

    Attributes:
        dataset: Name of the set in manifests.
        kind: Kind of degradation; of a whole set, or of what is not in `kinds`.
        split: What the set's authors meant it for.
        degraded: Patterns of the degraded images; several where several copies of the set are in use.
        clean: Patterns of the clean images; none for a set without ground truth.
        count: How many degraded images the set has; None if its releases differ.
        clean_count: How many clean images they share, where fewer.
        kinds: Kind by what `{degradation}` stands for.
        leave_out: What `{degradation}` must not stand for.
        center_crop: The clean images have a border that the degraded ones lack.
        note: What a user should know.
    """

    dataset: str
    kind: str
    split: Split
    degraded: tuple[str, ...]
    clean: tuple[str, ...] = ()
    count: int | None = None
    clean_count: int | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    leave_out: tuple[str, ...] = ()
    center_crop: bool = False
    note: str = ""


def _same_names(
    dataset: str, kind: str, split: Split, count: int, folders: Sequence[str], degraded: str, clean: str
) -> Layout:
    """Two folders with files of the same names, under any of `folders`."""
    return Layout(
        dataset,
        kind,
        split,
        tuple(f"{folder}/{degraded}/{{name}}" for folder in folders),
        tuple(f"{folder}/{clean}/{{name}}" for folder in folders),
        count=count,
    )


def _rain100(dataset: str, original: str) -> Layout:
    """Rain100H and Rain100L: the folder of the release, and what copies made of it."""
    rainy = [f"{original}/rain-{{id}}", *(f"{dataset}/{folder}rain-{{id}}" for folder in ("", "rain/", "rainy/"))]
    clean = [f"{original}/norain-{{id}}", *(f"{dataset}/{folder}norain-{{id}}" for folder in ("", "norain/", "gt/"))]
    return Layout(
        dataset,
        "rain",
        "test",
        (f"{dataset}/input/{{name}}", *rainy),
        (f"{dataset}/target/{{name}}", *clean),
        count=100,
        note="Not the later release with 200 test photos, which others call Rain200H and Rain200L.",
    )


PANEL_SPLITS: tuple[tuple[Split, int], ...] = (("train", 240), ("val", 30), ("test", 30))
REVIDE_SPLITS: tuple[tuple[Split, int], ...] = (("train", 1698), ("test", 284))
LOL_BLUR_SPLITS: tuple[tuple[Split, int], ...] = (("train", 10200), ("test", 1800))
CDD_SPLITS: tuple[tuple[Split, int], ...] = (("train", 1183), ("test", 200))

LAYOUTS: dict[str, Layout] = {
    "reside_its": Layout(
        "RESIDE-ITS",
        "haze",
        "train",
        ("hazy/{id}_{level}_{beta}",),
        ("clear/{id}", "gt/{id}"),
        count=13990,
        clean_count=1399,
        center_crop=True,
    ),
    "reside_ots": Layout(
        "RESIDE-OTS",
        "haze",
        "train",
        (
            "hazy/{part}/{id}_{airlight}_{beta}",
            "haze/{part}/{id}_{airlight}_{beta}",
            "synthetic/{part}/{id}_{airlight}_{beta}",
            *(f"{folder}/hazy/{{id}}_{{airlight}}_{{beta}}" for folder in ("OTS", "OTS/train")),  # as ITS's but for OTS
        ),
        (
            *("clear/{id}", "clear/clear_images/{id}", "clear/clear/{id}", "gt/{id}", "original/{id}"),
            *(f"{folder}/{clean}/{{id}}" for folder in ("OTS", "OTS/train") for clean in ("clear", "gt")),
        ),
        count=72135,
        clean_count=2061,
        note="The set without the photos that SOTS holds too; the whole release has 313,950 from 8,970.",
    ),
    "sots_indoor": Layout(
        "SOTS-indoor",
        "haze",
        "test",
        ("indoor/hazy/{id}_{level}", "nyuhaze500/hazy/{id}_{level}"),
        ("indoor/gt/{id}", "indoor/clear/{id}", "nyuhaze500/gt/{id}"),
        count=500,
        clean_count=50,
        center_crop=True,
        note="Clean images are 640 x 480 in the release, hazy ones 620 x 460: 10 pixels less on each side.",
    ),
    "sots_outdoor": Layout(
        "SOTS-outdoor",
        "haze",
        "test",
        ("outdoor/hazy/{id}_{airlight}_{beta}", "OTS/test/hazy/{id}_{airlight}_{beta}"),
        ("outdoor/gt/{id}", "outdoor/clear/{id}", "OTS/test/clear/{id}"),
        count=500,
        clean_count=492,
    ),
    "snow100k_train": _same_names(
        "Snow100K", "snow", "train", 50000, ["all", "train", "Snow100K-training"], "synthetic", "gt"
    ),
    "snow100k_s": _same_names("Snow100K-S", "snow", "test", 16611, ["Snow100K-S"], "synthetic", "gt"),
    "snow100k_m": _same_names("Snow100K-M", "snow", "test", 16588, ["Snow100K-M"], "synthetic", "gt"),
    "snow100k_l": _same_names("Snow100K-L", "snow", "test", 16801, ["Snow100K-L"], "synthetic", "gt"),
    "snow100k_real": Layout(
        "Snow100K-real", "snow", "test", ("realistic/{name}",), count=1329, note="No ground truth."
    ),
    "rain13k": _same_names("Rain13K", "rain", "train", 13712, ["Rain13K", "train"], "input", "target"),
    "rain100h": _rain100("Rain100H", "rain_heavy_test"),
    "rain100l": _rain100("Rain100L", "rain_light_test"),
    "test100": _same_names("Test100", "rain", "test", 100, ["Test100"], "input", "target"),
    "test1200": _same_names("Test1200", "rain", "test", 1200, ["Test1200"], "input", "target"),
    "test2800": _same_names("Test2800", "rain", "test", 2800, ["Test2800"], "input", "target"),
    "lol_v1_train": _same_names("LOLv1", "low_light", "train", 485, ["our485"], "low", "high"),
    "lol_v1_test": _same_names("LOLv1", "low_light", "test", 15, ["eval15"], "low", "high"),
    "gopro_train": Layout(
        "GoPro",
        "motion_blur",
        "train",
        ("train/{scene}/blur/{name}", "GoPro/train/input/{name}"),
        ("train/{scene}/sharp/{name}", "GoPro/train/target/{name}"),
        count=2103,
        note="`blur`, not `blur_gamma`.",
    ),
    "gopro_test": Layout(
        "GoPro",
        "motion_blur",
        "test",
        ("test/{scene}/blur/{name}", "GoPro/test/input/{name}", "test/GoPro/input/{name}"),
        ("test/{scene}/sharp/{name}", "GoPro/test/target/{name}", "test/GoPro/target/{name}"),
        count=1111,
        note="`blur`, not `blur_gamma`.",
    ),
    "lhp_rain": Layout(
        "LHP",
        "rain",
        "test",
        ("test/input/{name}", "test/input/{scene}/{name}"),
        ("test/gt/{name}", "test/target/{name}", "test/gt/{scene}/{name}", "test/target/{scene}/{name}"),
        note="The full release has a million pairs, the simple one a tenth of them.",
    ),
    **{
        f"revide_{split}": Layout(
            "REVIDE",
            "haze",
            split,
            (f"{split}/hazy/{{scene}}/{{name}}",),
            (f"{split}/gt/{{scene}}/{{name}}", f"{split}/clear/{{scene}}/{{name}}"),
            count=count,
        )
        for split, count in REVIDE_SPLITS
    },
    "sice": Layout(
        "SICE",
        "low_light",
        "test",
        ("Dataset_Part1/{scene}/1", "Dataset_Part2/{scene}/1"),
        ("Dataset_Part1/label/{scene}", "Dataset_Part2/label/{scene}"),
        count=589,
        note="The darkest exposure of each of the 360 + 229 sequences.",
    ),
    **{
        f"{panel}_{split}": Layout(
            panel.upper(),
            "other",
            split,
            (f"{split}/{panel}/LQ/{{name}}", f"{panel}/{split}/LQ/{{name}}", f"{panel}_{split}/LQ/{{name}}"),
            (f"{split}/{panel}/HQ/{{name}}", f"{panel}/{split}/HQ/{{name}}", f"{panel}_{split}/HQ/{{name}}"),
            count=count,
            note="" if split == "train" else "The release has MATLAB arrays instead: see below.",
        )
        for panel in ("toled", "poled")
        for split, count in PANEL_SPLITS
    },
    **{
        f"lol_blur_{split}": Layout(
            "LOLBlur",
            "mixed",
            split,
            (f"{split}/low_blur/{{scene}}/{{name}}",),
            (f"{split}/high_sharp_scaled/{{scene}}/{{name}}", f"{split}/high_sharp_original/{{scene}}/{{name}}"),
            count=count,
            note="`low_blur`, not `low_blur_noise`; `high_sharp_scaled`, which its authors train and score against.",
        )
        for split, count in LOL_BLUR_SPLITS
    },
    **{
        f"cdd_{split}": Layout(
            "CDD",
            "mixed",
            split,
            (f"CDD-11_{split}/{{degradation}}/{{name}}", f"CDD-11/{split}/{{degradation}}/{{name}}"),
            (f"CDD-11_{split}/clear/{{name}}", f"CDD-11/{split}/clear/{{name}}"),
            count=11 * photos,
            clean_count=photos,
            kinds=CDD_KINDS,
            leave_out=("clear",),
            note="11 kinds: four single ones, and combinations as `mixed`.",
        )
        for split, photos in CDD_SPLITS
    },
}
"""The sets that are known. Counts are those of the releases; sets used for testing only have `split` "test"."""


class Match(NamedTuple):
    """A degraded image and its clean one.

    Attributes:
        degraded: The file.
        clean: The file; None if the set has none, or it is missing or not clear.
        kind: Kind of degradation.
        fault: Why there is no clean image although the set has some; empty if all is well.
    """

    degraded: Path
    clean: Path | None
    kind: str
    fault: str = ""


def is_held_out(dataset: str) -> bool:
    """Whether a set of this name is there to test with, and for nothing else."""
    splits = {layout.split for layout in LAYOUTS.values() if layout.dataset == dataset}
    return splits == {"test"}


def find_layout(name: str) -> Layout:
    """The layout of that name.

    Raises:
        UserError: There is none; the message names the nearest.
    """
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(LAYOUTS)}"
        raise UserError(f"layout: found '{name}'; {hint} (`restorevar manifest layouts` lists them)")
    return LAYOUTS[name]


def own_layout(dataset: str, kind: str, degraded: str, clean: str) -> Layout:
    """A layout of two patterns, as a user writes them.

    Args:
        dataset: Name of the set.
        kind: Kind of degradation.
        degraded: Pattern of the degraded images.
        clean: Pattern of the clean images.

    Returns:
        The layout.

    Raises:
        UserError: A pattern makes no sense; the message says why.
    """
    words = []
    for pattern in (degraded, clean):
        found = WORD.findall(pattern.lower())
        faulty = any(not word.isidentifier() for word in found)
        if not pattern.strip("/") or faulty or len(set(found)) < len(found) or set("{}") & set(WORD.sub("", pattern)):
            raise UserError(
                f"found the pattern '{pattern}'; expected folders and a name such as \"input/{{name}}\", with different"
                " words in braces"
            )
        if (ending := Path(pattern).suffix).lower() in SUFFIXES:
            raise UserError(f"found the pattern '{pattern}'; leave out the ending {ending}, it is found whatever it is")
        words.append(set(found))
    if words[1] - words[0]:
        unknown = ", ".join(f"{{{word}}}" for word in sorted(words[1] - words[0]))
        raise UserError(f"found {unknown} in '{clean}' only; expected words that '{degraded}' has too")
    return Layout(dataset, kind, "train", (degraded.strip("/"),), (clean.strip("/"),))


def match_files(layout: Layout, files: Iterable[Path]) -> list[Match]:
    """Finds a set's degraded images among files, and the clean image of each.

    Endings do not matter, unless several images have the same name: then a clean image has its degraded one's ending.

    Args:
        layout: How the set lies on disk.
        files: Absolute paths of photos.

    Returns:
        Matches in the order of the files; none if no file fits.
    """
    return match_both_ways(layout, files)[0]


def match_both_ways(layout: Layout, files: Iterable[Path]) -> tuple[list[Match], list[Path]]:
    """As `match_files`, and the clean images that no degraded one has.

    Args:
        layout: How the set lies on disk.
        files: Absolute paths of photos.

    Returns:
        Matches, and files that fit the pattern of a clean image beside the folders of a match but are in none.
    """
    degraded = [_compiled(pattern, layout.leave_out) for pattern in layout.degraded]
    cleans = [_compiled(pattern) for pattern in layout.clean]
    rivals = [
        _compiled(pattern, other.leave_out)
        for other in LAYOUTS.values()
        if other != layout and layout in LAYOUTS.values()  # a user's own patterns mean what they say
        for pattern in other.degraded
    ]
    rivals = [rival for rival in rivals if rival.exactness > min(own.exactness for own in degraded)]
    named: dict[str, list[Path]] = {}
    for path in files:
        named.setdefault(_plain(path), []).append(path)
    matches: list[Match] = []
    starts: set[str] = set()
    used: set[Path] = set()
    for plain, group in named.items():
        own, found = next(_found(degraded, plain), (None, None))
        if own is None or found is None or any(rival.exactness > own.exactness for rival, _ in _found(rivals, plain)):
            continue
        words, start = found.groupdict(), _start(found)
        kind = layout.kinds.get(words.get("degradation", ""), layout.kind)
        templates = [start + template.format(**words) for template in _usable(layout.clean, words)]
        # copies of a set can hold several versions of its clean images: the first is taken, the others are no mistake
        candidates, *others = [named[name] for name in templates if name in named] or [[]]
        starts.add(start)
        used.update(group, *others)
        for path in group:
            clean = _partner(path, group, candidates)
            used.update(candidates if clean is None else [clean])
            fault = ""
            if clean is None and candidates:
                others_named = ", ".join(str(image) for image in sorted({*group, *candidates} - {path}))
                fault = f"its clean image is not clear, there are {others_named}; give the two of a pair one ending"
            elif clean is None and layout.clean:
                fault = f"no clean image; expected {' or '.join(layout.clean)}"
            matches.append(Match(path, clean, kind, fault))
    alone = [
        path
        for plain, group in named.items()
        for path in group
        if path not in used and any(_start(found) in starts for _, found in _found(cleans, plain))
    ]
    return matches, alone


def _plain(path: Path) -> str:
    return path.with_suffix("").as_posix().lower()


class Pattern(NamedTuple):
    """A compiled pattern.

    Attributes:
        regex: Fits the last parts of a path.
        depth: How many parts.
        exactness: How many folders and pieces of names it asks for by their letters.
        leave_out: What `{degradation}` must not stand for.
    """

    regex: re.Pattern[str]
    depth: int
    exactness: int
    leave_out: tuple[str, ...]


def _compiled(pattern: str, leave_out: tuple[str, ...] = ()) -> Pattern:
    def group(match: re.Match[str]) -> str:
        word = match[1]
        return f"(?P<{word}>[^/]+)" if word in ("name", "scene", "degradation") else f"(?P<{word}>[^/_]+)"

    escaped = re.sub(r"\\\{(\w+)\\\}", group, re.escape(pattern.lower()))
    exactness = len(re.findall(r"[^/{}]+", WORD.sub("{}", pattern)))
    return Pattern(re.compile(escaped), pattern.count("/") + 1, exactness, leave_out)


def _found(patterns: Iterable[Pattern], plain: str) -> Iterator[tuple[Pattern, re.Match[str]]]:
    """Those that fit the end of a path, in their order."""
    starts = [0, *(slash.end() for slash in re.finditer("/", plain))]  # of its parts
    for pattern in patterns:
        found = pattern.regex.fullmatch(plain, starts[-pattern.depth]) if pattern.depth <= len(starts) else None
        if found is not None and found.groupdict().get("degradation") not in pattern.leave_out:
            yield pattern, found


def _start(found: re.Match[str]) -> str:
    """The folders above those of a pattern, with a slash at the end."""
    return found.string[: found.start()]


def _usable(templates: Sequence[str], words: Mapping[str, str]) -> list[str]:
    lowered = [template.lower() for template in templates]
    return [template for template in lowered if set(WORD.findall(template)) <= set(words)]


def _partner(path: Path, group: Sequence[Path], candidates: Sequence[Path]) -> Path | None:
    """The only candidate with the ending of `path`, or the only one at all; None if others of its name could claim it.

    Args:
        path: A degraded image.
        group: All degraded images of its name, itself among them.
        candidates: Clean images of one name.
    """

    def alike(files: Sequence[Path]) -> list[Path]:
        return [file for file in files if file.suffix.lower() == path.suffix.lower()]

    if len(alike(group)) == len(alike(candidates)) == 1:
        return alike(candidates)[0]
    return candidates[0] if len(group) == len(candidates) == 1 else None
