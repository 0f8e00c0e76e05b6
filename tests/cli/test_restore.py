import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from restorevar.cli import main
from restorevar.cli.restore import DEFAULT_MODEL
from restorevar.models import pretrained
from tests.restoration.stubs import tiny_model

ASTRONAUT = Path(skimage.__file__).parent / "data" / "astronaut.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.open(ASTRONAUT).resize((100, 70))
    image.save(folder / "a.jpg")
    image.convert("L").save(folder / "b.png")
    return folder


def test_photos_are_restored_and_skipped_the_second_time(model, photos, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["restore", str(photos), "--output", str(output), "--model", str(model), "--tile", "auto"]
    assert main(words) == 0
    assert Image.open(output / "a.jpg").size == (100, 70)
    assert Image.open(output / "b.png").mode == "L"
    assert "2 restored" in capsys.readouterr().err
    assert main(words) == 0
    assert "2 done already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert "2 restored" in capsys.readouterr().err


def test_every_option_is_understood_and_another_setting_restores_again(model, photos, tmp_path, capsys):
    words = ["restore", str(photos / "a.jpg"), "--output", str(tmp_path / "out"), "--model", str(model)]
    main(words)
    before = np.asarray(Image.open(tmp_path / "out/a.jpg"))
    capsys.readouterr()
    options = ["--tile", "48", "--overlap", "8", "--fidelity", "0", "--color-fix", "mean"]
    options += ["--global-correction", "on", "--precision", "float32", "--device", "cpu"]
    assert main([*words, *options]) == 0
    assert "1 restored" in capsys.readouterr().err
    assert (np.asarray(Image.open(tmp_path / "out/a.jpg")) != before).any()


def test_one_bad_file_gives_exit_code_1(model, photos, tmp_path, capsys):
    (photos / "bad:smile:.png").write_bytes((photos / "b.png").read_bytes()[:200])
    assert main(["restore", str(photos), "--output", str(tmp_path / "out"), "--model", str(model)]) == 1
    err = capsys.readouterr().err
    assert "bad:smile:.png: damaged or truncated" in err  # and no emoji
    assert "2 restored, 1 failed" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tile", "0"], "tile is 0; expected auto or a multiple of 4"),
        (["--tile", "big"], "tile"),
        (["--overlap", "40"], "overlap is 40"),
        (["--fidelity", "2"], "fidelity is 2"),
        (["--fidelity", "0.5"], "no detail path"),
        (["--color-fix", "waves"], "wavelet"),
        (["--model", "no-such-model"], "no model 'no-such-model'"),
        (["--overwite"], "did you mean '--overwrite'"),
    ],
)
def test_mistakes_are_short_errors_that_leave_nothing(model, photos, tmp_path, capsys, options, words):
    output = tmp_path / "out"
    args = ["restore", str(photos), "--output", str(output), *([] if "--model" in options else ["--model", str(model)])]
    assert main([*args, *options]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) <= 2
    assert not output.exists()


def test_a_default_model_that_is_not_shipped_says_what_to_do(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "shipped_models", dict)
    assert main(["restore", str(photos), "--output", str(tmp_path / "out")]) == 2
    assert "--model" in capsys.readouterr().err


def test_a_folder_with_a_tokenizer_only_is_refused(photos, tmp_path, capsys):
    tokenizer = tiny_model()
    tokenizer.transformer = tokenizer.refiner = None
    from dataclasses import replace

    tokenizer.config = replace(tokenizer.config, transformer=None, refiner=None)
    tokenizer.save_pretrained(tmp_path / "model")
    args = ["restore", str(photos), "--output", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    assert main(args) == 2
    assert "tokenizer only" in capsys.readouterr().err


def training_packages_after(words):
    """Training packages that a process of its own has imported when it is done."""
    program = (
        "import sys; from restorevar.cli import main; code = main(sys.argv[1:]); "
        "heavy = {'lightning', 'timm', 'torchmetrics', 'albumentations', 'pyiqa', 'matplotlib', 'torchvision', "
        "'torch._dynamo', 'sympy'}; "
        "print(sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_way_of_a_photo_imports_no_training_code(model, photos, tmp_path):
    words = ["restore", str(photos / "a.jpg"), "--output", str(tmp_path / "out"), "--model", str(model)]
    assert training_packages_after(words) == "[]"


def test_the_shipped_model_is_the_default(tmp_path):
    if DEFAULT_MODEL not in pretrained.shipped_models():
        pytest.skip(f"{DEFAULT_MODEL} is not part of this checkout")
    assert training_packages_after(["restore", str(ASTRONAUT), "--output", str(tmp_path / "out")]) == "[]"
    assert Image.open(tmp_path / "out/astronaut.png").size == (512, 512)
