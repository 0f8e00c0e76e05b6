"""What scripts/blind_test.py keeps of a round, and the kinds it takes."""

import json
from pathlib import Path

from PIL import Image

from tests.conftest import load_module

SCRIPT = Path(__file__).parents[3] / "scripts" / "blind_test.py"


def test_a_round_of_mixed_photos_says_how_it_was_made(photos, tmp_path, capsys):
    blind_test = load_module(SCRIPT)
    real, clean, output = tmp_path / "real", tmp_path / "clean", tmp_path / "out"
    for folder in (real / "mixed", clean):
        folder.mkdir(parents=True)
        Image.fromarray(photos[0]).resize((400, 330)).save(folder / "a.png")
    blind_test.make(real, clean, output, count=4, seed=9)
    run = json.loads((output / "run.json").read_text())
    assert (run["seed"], run["crops"], run["real"], run["clean"]) == (9, 4, str(real), str(clean))
    assert list(json.loads((output / "key.json").read_text())) == ["mixed"]
    (tmp_path / "answers.json").write_text(json.dumps({"mixed": {}}))
    blind_test.score(output, tmp_path / "answers.json")
    told = capsys.readouterr().out
    assert "| mixed | 4 | 50 % | 2 | 0 |" in told
    assert '"seed": 9' in told
