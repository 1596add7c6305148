"""The program around the commands: help, versions, errors, exit codes."""

from __future__ import annotations

import logging

import pytest
from invoke_cli import invoke

import robench
from robench.cli import main as cli_main
from robench.errors import StoreError, UsageError

COMMANDS = ("run", "leaderboard", "compare", "check", "train", "attacks", "results", "zoo")


@pytest.fixture
def failing_load(monkeypatch):
    """`robench attacks X` then ends with the given exception."""

    def plant(error: BaseException) -> None:
        def fail(name, **options):
            raise error

        monkeypatch.setattr("robench.attacks.suites.load_suite", fail)

    return plant


def test_version():
    done = invoke("--version")
    assert (done.code, done.out) == (0, f"robench {robench.__version__}\n")


def test_help_names_every_command():
    done = invoke("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = invoke(command, "-h")
    assert done.code == 0
    assert done.out.startswith(f"Usage: robench {command}")
    assert done.err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nosuch"], ["nosuch", "robench --help"]),
        (["run", "--nosuch"], ["--nosuch", "robench run --help"]),
        (["run", "--n", "many"], ["--n", "integer", "robench run --help"]),
        (["run", "--precision", "fp8"], ["fp8", "fp16"]),
        (["results", "nosuch"], ["nosuch", "robench results --help"]),
        (["check", "a"], ["--against"]),
        (["zoo", "show"], ["MODEL"]),
        (["train", "standard", "--epochs", "0"], ["--epochs", "robench train --help"]),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments, words):
    done = invoke(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("robench: error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


def test_an_intended_error_is_one_line_with_its_own_exit_code(failing_load):
    failing_load(StoreError("cannot be read", where="here", hint="Do that\nor this"))
    done = invoke("attacks", "quick")
    assert done.code == StoreError.exit_code == 2
    assert done.err == "robench: error: here: cannot be read. Do that or this\n"


def test_an_unexpected_error_is_one_line_that_names_debug(failing_load):
    failing_load(ZeroDivisionError("division\nby zero"))
    done = invoke("attacks", "quick")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in done.err
    assert "--debug" in done.err


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("error", [UsageError("wrong"), ZeroDivisionError("wrong")])
def test_debug_shows_the_traceback_wherever_it_stands(failing_load, place, error):
    failing_load(error)
    words = ["attacks", "quick"]
    words.insert(place, "--debug")
    done = invoke(*words)
    assert done.code == 2
    assert "Traceback" in done.err
    assert "in fail" in done.err
    assert done.err.rstrip().splitlines()[-1].startswith("robench: error: ")


def test_debug_after_the_end_of_options_is_an_argument():
    assert cli_main._general_first(["a", "--debug"]) == ["--debug", "a"]
    assert cli_main._general_first(["a", "--", "--debug"]) == ["a", "--", "--debug"]
    done = invoke("attacks", "--", "--debug")
    assert done.code == 2
    assert "unknown suite '--debug'" in done.err


def test_ctrl_c_says_what_is_kept(failing_load):
    failing_load(KeyboardInterrupt())
    done = invoke("attacks", "quick")
    assert done.code == 130
    assert done.err == "robench: interrupted; finished results are kept\n"


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), SystemExit(0)])
def test_no_command_ends_with_an_exit_code_of_others(failing_load, error):
    failing_load(error)
    done = invoke("attacks", "quick")
    assert done.code == 2
    assert done.err.startswith("robench: error: ")


def test_warnings_of_the_package_reach_stderr(monkeypatch, capsys):
    invoke("attacks", "quick")
    logging.getLogger("robench.results").warning("left out: %s", "x")
    assert capsys.readouterr().err == "robench: warning: left out: x\n"
