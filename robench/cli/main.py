"""The ``robench`` command: its subcommands, and what becomes of their errors."""

import logging
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import robench
from robench.cli.attacks import attacks
from robench.cli.attention import attention
from robench.cli.check import check
from robench.cli.compare import compare
from robench.cli.config import config
from robench.cli.curve import curve
from robench.cli.defaults import FILE_NAME, for_command, options_of, read_defaults
from robench.cli.demo import demo
from robench.cli.doctor import doctor
from robench.cli.export import export
from robench.cli.judge import judge
from robench.cli.leaderboard import leaderboard
from robench.cli.options import flag, is_quiet
from robench.cli.plot import plot
from robench.cli.reproduce import reproduce
from robench.cli.results import results_app
from robench.cli.run import run
from robench.cli.streams import lost_output, make_tolerant
from robench.cli.supervise import supervise, tell
from robench.cli.train import train
from robench.cli.transfer import transfer
from robench.cli.trust import trust
from robench.cli.validate import validate
from robench.cli.verify_bounds import verify_bounds
from robench.cli.zoo import zoo_app
from robench.errors import RobenchError, UsageError, ended_process
from robench.text import visible

_INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

_RUNS_NOTHING = ("attacks", "config", "leaderboard", "plot", "trust")
"""Commands that run no model; all others are supervised."""

_ANSWERS = ("check", "reproduce")
"""Commands whose exit code is an answer, to be believed on every system"""

_PRINTING = ("attacks", "config", "export", "results", "trust", "zoo")
"""Commands that are in vain when their output is lost; the others have left their files."""

_GENERAL = ("--debug", "--verbose", "-v", "--quiet", "-q")

_UNEXPECTED = 2
"""Not 1: ``check``, ``doctor``, ``reproduce`` and ``validate`` say something else with it."""


class _ReportingGroup(TyperGroup):
    """Runs a subcommand; whatever goes wrong in it ends as one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except (KeyboardInterrupt, SystemExit, Exception) as error:
            message, code = _report(error)
            if ctx.params.get("debug"):
                traceback.print_exc()
            print("robench:", message, file=sys.stderr)
            raise typer.Exit(code) from error


class _StderrHandler(logging.Handler):
    """Shows warnings in the form of errors, on whatever stderr is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        text = visible(" ".join(record.getMessage().split()))
        print(f"robench: {record.levelname.lower()}: {text}", file=sys.stderr)


def _report(error: BaseException) -> tuple[str, int]:
    """The line to print and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; finished results are kept", _INTERRUPTED
    if isinstance(error, SystemExit):
        # No command of ours ends so.
        error = ended_process(error.code)
    if isinstance(error, RobenchError):
        text, code = str(error), error.exit_code
    elif callable(message := getattr(error, "format_message", None)):
        # Wrong usage. Newer versions of Typer carry their own copy of Click, so the classes
        # differ; this method is what all have.
        context = getattr(error, "ctx", None)
        command = "robench" if context is None else context.command_path
        text, code = f"{str(message()).rstrip('.')}. See {command} --help", 2
    else:
        text = f"unexpected {type(error).__name__}: {error}. Run it with --debug for the traceback"
        code = _UNEXPECTED
    # One line, whatever a library put into its message.
    return f"error: {visible(' '.join(text.split()))}", code


app = typer.Typer(
    name="robench",
    cls=_ReportingGroup,
    help="How robust is this image classifier, and can that number be trusted?",
    no_args_is_help=True,
    # Plain help and errors: they are read in logs and pipes too, and Rich takes time to load.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"robench {robench.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[bool, flag("Show the traceback of an error.", "--debug")] = False,
    verbose: Annotated[bool, flag("Say more of what is done.", "--verbose", "-v")] = False,
    quiet: Annotated[
        bool, flag("No progress, no notes and no warnings; errors stay.", "--quiet", "-q")
    ] = False,
) -> None:
    if quiet and (verbose or debug):
        raise UsageError("--quiet excludes --verbose and --debug", hint="Leave one of them out")
    logger = logging.getLogger("robench")
    logger.handlers = [_StderrHandler()]
    level = logging.DEBUG if debug or verbose else logging.ERROR if quiet else logging.WARNING
    logger.setLevel(level)
    _take_defaults(context)


def _take_defaults(context: Any) -> None:
    """The command's defaults are those of robench.toml in the working folder, if it sets any."""
    name = context.invoked_subcommand
    if name == "config" or name not in context.command.commands:
        return
    content, options = read_defaults(Path()), options_of(context.command)
    found = {
        command: for_command(content, command, options)
        for command in options
        if command.partition(" ")[0] == name
    }
    given = {
        command: {key: [value] if options[command][key] else value for key, value in table.items()}
        for command, table in found.items()
    }
    if name in given:
        context.default_map = {name: given[name]}
    else:  # a command with commands of its own
        context.default_map = {name: {k.partition(" ")[2]: v for k, v in given.items()}}
    said = {key: value for table in found.values() for key, value in table.items()}
    if said and not is_quiet():
        text = ", ".join(f"{key} = {value}" for key, value in said.items())
        print(visible(f"robench: note: {FILE_NAME} sets {text}"), file=sys.stderr)


app.command(short_help="See what robench does, in half a minute.")(demo)
app.command(short_help="Attack models and keep the results.")(run)
app.command(short_help="Rebuild the leaderboard from the results.")(leaderboard)
app.command(short_help="Hold models side by side.")(compare)
app.command(short_help="Write results for papers, hubs and CI.")(export)
app.command(short_help="Draw one figure, at a paper's size.")(plot)
app.command(short_help="Draw robust accuracy against eps from one run.")(curve)
app.command(short_help="Judge adversarial inputs from elsewhere.")(judge)
app.command(short_help="Judge each model's adversarial inputs on every other.")(transfer)
app.command(short_help="Look closer at attention under attack.")(attention)
app.command(short_help="Gate a checkpoint: is it worse than a baseline?")(check)
app.command(short_help="Run again what is claimed, and say what agrees.")(reproduce)
app.command(short_help="Find what is wrong with a model, or the installation.")(doctor)
app.command(short_help="Say what a robustness number is worth.")(validate)
app.command(short_help="Bound robust accuracy from below.")(verify_bounds)
app.command(short_help="Make a checkpoint with a recipe.")(train)
app.command(short_help="List attacks, adapters and suites.")(attacks)
app.command(short_help="Let a folder's cards and suites name code.")(trust)
app.command(short_help="Show what robench.toml sets, and where things are.")(config)
app.add_typer(results_app, name="results")
app.add_typer(zoo_app, name="zoo")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: without the program's name; None: those of the process.

    Raises:
        SystemExit: always. 0: done; 1: ``check`` found the candidate worse, ``doctor`` something to
            mend, or ``validate`` a number that does not stand; 2: an error, or ``check`` could not
            tell; 130: interrupted.
    """
    make_tolerant()
    given = _general_first(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if not word.startswith("-")]
    if arguments is None and words[:1] and words[0] not in _RUNS_NOTHING:
        supervise(answers=words[0] in _ANSWERS)
    try:
        _command()(args=given, prog_name="robench")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if (lost := lost_output()) is None:
            raise SystemExit(tell(code)) from None
        print(f"robench: warning: the output could not be written: {lost}", file=sys.stderr)
        in_vain = words[:1] and words[0] in _PRINTING and words[1:2] != ["add"]
        code = code or (_UNEXPECTED if in_vain else 0)
        raise SystemExit(tell(code)) from None


@cache
def _command() -> Any:
    """The tree of commands, which takes a tenth of a second to build."""
    return typer.main.get_command(app)


def _general_first(arguments: Sequence[str]) -> list[str]:
    """The program's own options may stand anywhere, although they are not the command's."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    options = given[:end]
    return sorted(options, key=lambda word: word not in _GENERAL) + given[end:]
