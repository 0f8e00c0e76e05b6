import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from restorevar.errors import UserError
from restorevar.restoration.folder import RECORD, Record, plan_jobs, run_jobs
from restorevar.restoration.restorer import Restorer
from tests.restoration.stubs import StubModel


class Silence:
    def __init__(self):
        self.lines, self.pixels = [], 0.0

    def begin(self, job, number): ...

    def end(self, job, number): ...

    def advance(self, pixels):
        self.pixels += pixels

    def message(self, line):
        self.lines.append(line)


def save(path, size=(20, 10), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(paths, output, model=None, made_by=None, overwrite=False):
    progress = Silence()
    record = Record(output, made_by or {"model": "a"})
    outcome = run_jobs(plan_jobs(paths, output), Restorer(model or StubModel()), record, progress, overwrite)
    return outcome, progress


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_sub_folders_are_mirrored_and_other_files_left_out(tmp_path):
    photos = tmp_path / "photos"
    for name in ("a.jpg", "a.png", "sub/b.PNG", "sub/deep/c.tif", ".hidden.png", ".git/d.png"):
        save(photos / name)
    (photos / "notes.txt").write_text("x")
    outcome, progress = run([photos], tmp_path / "out")
    assert names(tmp_path / "out") == [RECORD, "a.jpg", "a.png", "sub/b.PNG", "sub/deep/c.tif"]
    assert outcome.restored == 4
    assert progress.pixels == pytest.approx(4 * 200)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    save(tmp_path / "photos" / "a.png")
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    run([tmp_path / "photos"], tmp_path / "out")
    assert names(tmp_path / "out") == [RECORD, "a.png"]
    with pytest.raises(UserError, match=r"pipe\.png is neither a file nor a folder"):
        plan_jobs([tmp_path / "photos" / "pipe.png"], tmp_path / "out")


def test_an_output_folder_inside_the_input_is_skipped(tmp_path):
    save(tmp_path / "a.png")
    for _ in range(2):
        run([tmp_path], tmp_path / "restored")
    assert names(tmp_path / "restored") == [RECORD, "a.png"]


def test_two_photos_for_one_result_are_refused_before_anything_is_done(tmp_path):
    save(tmp_path / "one/a.png")
    save(tmp_path / "two/a.png")
    with pytest.raises(UserError, match="would both become"):
        plan_jobs([tmp_path / "one", tmp_path / "two"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_photo_named_twice_is_restored_once(tmp_path):
    photo = save(tmp_path / "photos/a.png")
    assert len(plan_jobs([photo, tmp_path / "photos", photo], tmp_path / "out")) == 1


@pytest.mark.parametrize("way", ["same folder", "link"])
def test_an_input_is_never_replaced(tmp_path, way):
    photo = save(tmp_path / "photos/a.png")
    output = photo.parent
    if way == "link":
        output = tmp_path / "link"
        output.symlink_to(photo.parent)
    with pytest.raises(UserError, match="would replace the photo"):
        plan_jobs([photo], output)


def test_missing_paths_empty_folders_and_files_as_output_are_short_errors(tmp_path):
    photo = save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    for paths, output, words in (
        ([photo, tmp_path / "gone.png"], tmp_path / "out", "gone.png: no such file"),
        ([tmp_path / "empty"], tmp_path / "out", "no photos in"),
        ([photo], photo, "is a file's name"),
        ([photo], tmp_path / "restored.png", "expected a folder"),
    ):
        with pytest.raises(UserError, match=words):
            plan_jobs(paths, output)


def test_done_files_are_skipped_until_photo_model_settings_or_result_change(tmp_path):
    photo = save(tmp_path / "photos/a.png")
    output = tmp_path / "out"

    def restored(made_by=None, overwrite=False):
        outcome, _ = run([photo.parent], output, made_by=made_by, overwrite=overwrite)
        assert outcome.restored + outcome.skipped == 1
        return outcome.restored == 1

    assert restored()
    assert not restored()
    assert restored(overwrite=True)
    assert restored({"model": "b"})
    assert not restored({"model": "b"})
    save(photo, seed=5)
    assert restored({"model": "b"})
    (output / "a.png").unlink()
    assert restored({"model": "b"})
    assert not restored({"model": "b"})


def test_a_crash_while_writing_is_mended_by_the_next_run(tmp_path):
    photo = save(tmp_path / "photos/a.png")
    output = tmp_path / "out"
    run([photo], output)
    (line,) = (output / RECORD).read_text().splitlines()
    (output / RECORD).write_text(line + "\n" + line[:20])  # cut short while it was made again
    other = save(tmp_path / "photos/b.png")
    outcome, _ = run([photo, other], output)
    assert (outcome.restored, outcome.skipped, outcome.errors) == (1, 1, ())
    assert run([photo, other], output)[0].skipped == 2  # the new line did not join the broken one
    assert run([photo], output, made_by={"model": "b"})[0].restored == 1


@pytest.mark.parametrize("remade", [False, True])
def test_a_file_put_where_a_write_failed_is_kept(tmp_path, monkeypatch, remade):
    photo, result = save(tmp_path / "photos/a.png"), tmp_path / "out/a.png"

    def full(*_):
        raise OSError(28, "No space left on device")

    if remade:
        run([photo], tmp_path / "out")
    with monkeypatch.context() as broken:
        broken.setattr("restorevar.restoration.photo._write_8", full)
        assert run([photo], tmp_path / "out", made_by={"model": "b"})[0].errors
    save(result, seed=9)  # the user's own
    content = result.read_bytes()
    outcome, _ = run([photo], tmp_path / "out", made_by={"model": "b"})
    assert "is not (or no longer) a result of ours" in outcome.errors[0]
    assert result.read_bytes() == content


def test_linked_folders_are_searched_once(tmp_path):
    save(tmp_path / "disk/a.png")
    save(tmp_path / "photos/b.png")
    (tmp_path / "photos/2024").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk/back").symlink_to(tmp_path / "photos", target_is_directory=True)
    jobs = plan_jobs([tmp_path / "photos"], tmp_path / "out")
    assert sorted(job.result.relative_to(tmp_path / "out").as_posix() for job in jobs) == ["2024/a.png", "b.png"]


def test_a_file_that_is_not_ours_is_kept(tmp_path):
    photo, other = save(tmp_path / "photos/a.png"), save(tmp_path / "out/a.png", seed=9)
    content = other.read_bytes()
    outcome, _ = run([photo], tmp_path / "out")
    assert "not (or no longer) a result of ours" in outcome.errors[0]
    assert other.read_bytes() == content
    assert run([photo], tmp_path / "out", overwrite=True)[0].restored == 1
    assert other.read_bytes() != content
    other.write_bytes(content + b"edited")
    assert run([photo], tmp_path / "out", made_by={"model": "b"})[0].errors


def test_an_edited_result_of_the_same_size_is_kept(tmp_path):
    photo = save(tmp_path / "photos/a.png")
    result = tmp_path / "out/a.png"
    run([photo], tmp_path / "out")
    content = result.read_bytes()
    os.utime(result, ns=(1, 1))  # as a copied folder has it
    assert run([photo], tmp_path / "out")[0].skipped == 1
    edited = content[:-1] + bytes([content[-1] ^ 1])
    result.write_bytes(edited)
    for made_by in ({"model": "a"}, {"model": "b"}):
        assert "no longer" in run([photo], tmp_path / "out", made_by=made_by)[0].errors[0]
    assert result.read_bytes() == edited
    assert run([photo], tmp_path / "out", overwrite=True)[0].restored == 1


def test_deleting_the_record_loses_nothing(tmp_path):
    photo = save(tmp_path / "photos/a.png")
    run([photo], tmp_path / "out")
    (tmp_path / "out" / RECORD).unlink()
    outcome, _ = run([photo], tmp_path / "out")
    assert outcome.errors
    assert names(tmp_path / "out") == ["a.png"]


def test_one_bad_photo_does_not_stop_the_rest(tmp_path):
    for name in ("a.png", "c.png"):
        save(tmp_path / "photos" / name)
    (tmp_path / "photos/b.png").write_bytes((tmp_path / "photos/a.png").read_bytes()[:-100])
    outcome, progress = run([tmp_path / "photos"], tmp_path / "out")
    assert outcome.restored == 2
    assert len(outcome.errors) == 1
    assert "b.png: damaged or truncated" in outcome.errors[0]
    assert outcome.errors[0] in progress.lines[0]
    assert names(tmp_path / "out") == [RECORD, "a.png", "c.png"]


@pytest.mark.parametrize("when", ["restoring", "writing"])
def test_an_interruption_leaves_nothing_partial(tmp_path, monkeypatch, when):
    save(tmp_path / "photos/a.png")

    def interrupt(*_):
        raise KeyboardInterrupt

    model = StubModel(interrupt) if when == "restoring" else StubModel()
    if when == "writing":
        monkeypatch.setattr("restorevar.restoration.photo._write_8", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run([tmp_path / "photos"], tmp_path / "out", model)
    assert names(tmp_path) == ["photos/a.png"]
    monkeypatch.undo()
    assert run([tmp_path / "photos"], tmp_path / "out")[0].restored == 1


def test_a_full_disk_is_an_error_of_that_file(tmp_path, monkeypatch):
    save(tmp_path / "photos/a.png")

    def unfit(*_):
        raise ValueError("too large")

    monkeypatch.setattr("restorevar.restoration.photo._write_8", unfit)
    outcome, _ = run([tmp_path / "photos"], tmp_path / "out")
    assert f"{tmp_path / 'out/a.png'}: cannot be written as PNG (too large)" in outcome.errors[0]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("restorevar.restoration.photo._write_8", full)
    outcome, _ = run([tmp_path / "photos"], tmp_path / "out")
    assert "No space left" in outcome.errors[0]
    assert names(tmp_path / "out") == []


def test_notes_are_passed_on(tmp_path):
    Image.new("CMYK", (8, 6)).save(tmp_path / "a.jpg")
    _, progress = run([tmp_path / "a.jpg"], tmp_path / "out")
    assert any("CMYK" in line for line in progress.lines)


def test_the_record_is_one_object_a_line(tmp_path):
    save(tmp_path / "photos/a.png")
    run([tmp_path / "photos"], tmp_path / "out")
    entries = [json.loads(line) for line in (tmp_path / "out" / RECORD).read_text().splitlines()]
    assert entries[-1]["made_by"] == {"model": "a"}


CHILD = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
from restorevar.restoration.folder import Job, Record, run_jobs
from restorevar.restoration.restorer import Restorer

class Model:
    image_size = (256, 256)
    def generate(self, degraded, fidelity=None):
        return SimpleNamespace(image=(degraded * 0.8 + 1) / 2)

class Silence:
    def begin(self, *_): ...
    end = advance = begin
    def message(self, line): print(line, file=sys.stderr)

source = Path(sys.argv[1])
job = Job(source, source.parent / "out" / source.name)
restorer = Restorer(Model(), global_correction="on", color_fix="wavelet")
restorer._is_measured, restorer._tile_memory = True, 1 << 20  # measuring a tile would forget the peak so far
assert run_jobs([job], restorer, Record(source.parent / "out", {}), Silence(), True).restored == 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "photos" / name / "photo.png")
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"photos.b: the folder cannot be read \(Permission denied\)"):
        plan_jobs([tmp_path / "photos"], tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_memory_is_at_most_32_bytes_a_pixel(tmp_path, suffix):
    peaks = {}
    for size in ((1024, 1024), (4000, 3000)):
        path = tmp_path / f"{size[0]}.{suffix}"
        Image.fromarray(np.zeros((size[1] // 16, size[0] // 16, 3), np.uint8)).resize(size).save(path)
        done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
        peaks[size[0] * size[1]] = int(done.stdout)
    (small, low), (large, high) = sorted(peaks.items())
    assert (high - low) / (large - small) <= 32


def test_a_photo_of_the_same_name_is_another_photo(tmp_path):
    """Cameras count from 1 again; size in bytes and time may be the same too."""
    one, two = save(tmp_path / "one" / "1.bmp"), save(tmp_path / "two" / "1.bmp", seed=1)
    os.utime(two, ns=(one.stat().st_mtime_ns,) * 2)
    run([tmp_path / "one"], tmp_path / "out")
    before = (tmp_path / "out" / "1.bmp").read_bytes()
    outcome, _ = run([tmp_path / "two"], tmp_path / "out")
    assert "is the result of" in outcome.errors[0]
    assert (tmp_path / "out" / "1.bmp").read_bytes() == before
    assert run([tmp_path / "two"], tmp_path / "out", overwrite=True)[0].restored == 1

    # a photo that was moved is the same; where it is gone, another one may take its place
    (tmp_path / "two").rename(tmp_path / "three")
    assert run([tmp_path / "three"], tmp_path / "out")[0].skipped == 1
    (tmp_path / "three" / "1.bmp").unlink()
    assert run([tmp_path / "one"], tmp_path / "out")[0].restored == 1


def test_an_output_that_cannot_be_is_told_before_anything_is_done(tmp_path):
    photo = save(tmp_path / "a.png")
    with pytest.raises(UserError, match="which is a file"):
        plan_jobs([photo], photo / "out")
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    with pytest.raises(UserError, match="is a folder"):
        plan_jobs([photo], tmp_path / "out")
