import os
from pathlib import Path

import pytest
import torch

from restorevar import files
from restorevar.callbacks.checkpoint import AtomicCheckpointIO
from restorevar.files import previous_of, publish


class Killed(BaseException):
    pass


def folder_of(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "a").write_text(text)
    (path / "b").write_text(text)
    return path


def content(path: Path) -> set[str]:
    return {file.read_text() for file in path.iterdir()} if path.is_dir() and len(list(path.iterdir())) == 2 else set()


@pytest.mark.parametrize("operations", range(12))
def test_a_folder_is_there_and_whole_whenever_the_process_dies(tmp_path, monkeypatch, operations):
    """Dies after so many operations on the disk; then `last.ckpt`, or failing that the one before, can be read."""
    path = tmp_path / "last.ckpt"
    left = [operations]

    def dying(function):
        def wrapper(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*arguments, **options)

        return wrapper

    folder_of(path, "old")
    new = folder_of(tmp_path / ".last.ckpt.part", "new")
    with monkeypatch.context() as patched:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patched.setattr(Path, name, dying(getattr(Path, name)))
        for name in ("unlink", "rmdir", "fsync"):
            patched.setattr(os, name, dying(getattr(os, name)))
        try:
            publish(new, path)
        except Killed:
            finished = False
        else:
            finished = True
    newest = path if path.exists() else previous_of(path)
    assert content(newest) in ({"old"}, {"new"})
    if finished:
        assert content(path) == {"new"}
        assert not previous_of(path).exists()
    # and the next save goes through
    publish(folder_of(tmp_path / ".second", "newer"), path)
    assert content(path) == {"newer"}
    assert not previous_of(path).exists()


def test_a_file_takes_the_place_of_a_folder(tmp_path):
    """A run that was split goes on whole."""
    path = tmp_path / "last.ckpt"
    folder_of(path, "shards")
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_failed_save_keeps_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint({"step": 1}, path)

    def full(content, file):
        Path(file).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space"):
        plugin.save_checkpoint({"step": 2}, path)
    assert plugin.load_checkpoint(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoints_run_no_code(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"callback": files.sync}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only|Unsupported"):
        AtomicCheckpointIO().load_checkpoint(path)
