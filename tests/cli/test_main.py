import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from restorevar import __version__
from restorevar.cli import main
from restorevar.cli.main import COMMANDS, LIGHTNING_VERBS, Command, resolve
from restorevar.errors import UserError


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in [*LIGHTNING_VERBS, *COMMANDS]:
        assert f"  {name} " in text


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from restorevar.cli import main; assert main(['--help']) == 0 == main(['--version']);"
        "heavy = {'torch', 'lightning', 'timm', 'cv2', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_being_terminated_cleans_up_as_ctrl_c_does(monkeypatch, capsys):
    cleaned = []

    def stopped() -> None:
        """Long work."""
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # schedulers may send it twice
            cleaned.append(True)

    monkeypatch.setitem(COMMANDS, "restore", Command("restorevar.cli.main:stopped", ""))
    monkeypatch.setattr(sys.modules["restorevar.cli.main"], "stopped", stopped, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["restore"]) == 130
    assert cleaned == [True]
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before
    with ThreadPoolExecutor(1) as pool:  # where Python allows no handlers, commands run all the same
        assert pool.submit(main, ["restore", "--help"]).result() == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"restorevar {__version__}\n"


@pytest.mark.parametrize(("typed", "near"), [("restor", "restore"), ("piplines", "pipeline"), ("fitt", "fit")])
def test_an_unknown_command_names_the_nearest(typed, near, capsys):
    assert main([typed]) == 2
    assert capsys.readouterr().err == f"error: unknown command '{typed}' - did you mean '{near}'?\n"


def test_a_hopeless_command_lists_all(capsys):
    assert main(["xyzzy"]) == 2
    assert "there are: fit, validate" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_listed_command_can_be_explained(name, capsys):
    target = resolve(COMMANDS[name].target)
    assert main([name, "--help"]) == 0
    assert "usage: restorevar " + name in capsys.readouterr().out
    for function in target.values() if isinstance(target, dict) else [target]:
        assert function.__doc__


def test_errors_for_users_are_one_line_and_exit_code_2(monkeypatch, capsys):
    def refuse(_args):
        raise UserError("found a; expected b")

    monkeypatch.setattr(sys.modules["restorevar.cli.main"], "dispatch", refuse)
    assert main(["restore"]) == 2
    assert capsys.readouterr().err == "error: found a; expected b\n"


def test_an_interruption_is_exit_code_130(monkeypatch):
    def interrupt(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["restorevar.cli.main"], "dispatch", interrupt)
    assert main(["restore"]) == 130
