"""From arguments to an exit code: one command is loaded, what it answers goes to standard output, all else to standard error.

The list of commands and the version need nothing that is not in Python; tyro reads the options of one command out of its
signature and docstring, and completes them in bash, zsh and fish.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from inspect import Parameter, cleandoc, signature
from typing import Any

import dtme
from dtme.cli.answer import Answer, UsageError, plain
from dtme.cli.faults import Fault, find_fault, is_refusal
from dtme.cli.ranks import rank

YES, NO, USAGE, YOURS, OURS, INTERRUPTED = 0, 1, 2, 3, 70, 130
COMMANDS = {
    "init": "write a file for your own model, which runs as it is",
    "doctor": "which inserts work in which blocks of a model, by trying them",
    "analyze": "measure where its tasks conflict",
    "plan": "decide what to insert where, within a budget",
    "cost": "what a plan costs on the model, without training",
    "report": "the report as one page, from files alone",
    "compare": "what a plan resolved: a report before and one after",
    "env": "versions and devices, for reports of faults",
}
COMPLETION = "--tyro-print-completion"
HELP = f"""usage: dtme COMMAND ...

Find where the tasks of your transformer conflict, and resolve it there.

{chr(10).join(f"  {name:<8}  {caption}" for name, caption in COMMANDS.items())}

  dtme COMMAND --help               its options
  dtme --version
  dtme {COMPLETION} {{bash,zsh,fish}}

Exit codes: {YES} fine, {NO} the answer is no, {USAGE} wrong usage, {YOURS} your own code raised, {OURS} a fault of dtme,
{INTERRUPTED} interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `dtme` was asked to.

    Args:
        argv: The arguments behind the name; those of the process by default.

    Returns:
        The exit code.

    Example:
        >>> main(["--version"])
        dtme 0.1.0
        0
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(HELP, end="")
        return YES if given else USAGE
    if given[0] == "--version":
        print(f"dtme {dtme.__version__}")
        return YES
    try:
        work = _read(given)
        if work is None or (rank() and given[0] != "analyze"):
            return YES
        with redirect_stdout(sys.stderr):  # what the user's code prints is no answer
            answer = work()
    except BaseException as error:
        return _refuse(error, as_json="--json" in given)
    if not rank():
        print(json.dumps(plain(answer.data), ensure_ascii=False) if "--json" in given else answer.text)
    return YES if answer.yes else NO


def _read(given: Sequence[str]) -> Callable[[], Answer] | None:
    """What the arguments ask for; `None` where reading them was all, as for `--help`."""
    name = given[0]
    if name not in COMMANDS and name != COMPLETION:
        near = get_close_matches(name, COMMANDS, 1)
        raise UsageError(
            f"there is no command {name!r}. {f'Is {near[0]!r} meant?' if near else 'dtme --help lists them.'}"
        )
    try:
        import rich  # noqa: F401
        import tyro
    except ImportError as missing:
        raise UsageError(
            f'{missing.name} is not installed, which the command line needs: pip install "dtme[cli]"'
        ) from None
    single = (tyro.conf.FlagCreatePairsOff,)
    try:
        if name == COMPLETION:
            commands = {command: _later(command) for command in COMMANDS}
            tyro.extras.subcommand_cli_from_dict(commands, prog="dtme", args=given, config=single)
            return None
        return tyro.cli(_later(name), prog=f"dtme {name}", args=given[1:], config=single)
    except SystemExit as end:
        if end.code:
            raise
        return None


def _later(name: str) -> Callable[..., Any]:
    """A command that only remembers its options, and has one more of them, `--json`."""
    command = getattr(import_module(f"dtme.cli.commands.{name}"), name)

    def remember(*, json: bool = False, **options: Any) -> Callable[[], Answer]:
        return partial(command, **options)

    own = signature(command, eval_str=True)
    as_json = Parameter("json", Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    remember.__name__ = command.__name__
    vars(remember)["__signature__"] = own.replace(parameters=[*own.parameters.values(), as_json])
    remember.__annotations__ = {option.name: option.annotation for option in (*own.parameters.values(), as_json)}
    told = cleandoc(command.__doc__ or "")
    head = "" if "\nArgs:\n" in told else "\n\nArgs:"
    remember.__doc__ = (
        f"{told}{head}\n    json: Print one object of JSON on standard output, and all else on standard error.\n"
    )
    return remember


def _refuse(error: BaseException, *, as_json: bool) -> int:
    """Say what went wrong, in a sentence where it is foreseen, and give the code for it."""
    told: dict[str, Any] = {}
    code, shown = NO, ""
    fault = find_fault(error)
    if isinstance(error, BrokenPipeError):  # who reads has heard enough
        sys.stdout = None
        return code
    if isinstance(error, KeyboardInterrupt):
        code, shown = INTERRUPTED, "dtme: interrupted. Files are whole or as they were."
    elif isinstance(error, UsageError):
        code, shown = USAGE, f"dtme: {error}"
    elif fault is not None:
        code, shown, told = YOURS, str(fault), fault.to_dict()
    elif isinstance(error, SystemExit):  # of tyro, which has said why
        code = USAGE
    elif is_refusal(error):
        shown = f"dtme: {error}"
    else:
        code = OURS
        lines = "".join(traceback.format_exception(error))
        shown = f"{lines}dtme: this is a fault of dtme. Please report it with what `dtme env` prints."
    if shown and (not rank() or isinstance(fault, Fault)):
        print(shown, file=sys.stderr)
    if as_json and not rank():
        print(json.dumps({"error": _words(error), "exit_code": code, **told}, ensure_ascii=False))
    return code


def _words(error: BaseException) -> str:
    """What an error says, in one string."""
    return "wrong usage" if isinstance(error, SystemExit) else str(error) or type(error).__name__
