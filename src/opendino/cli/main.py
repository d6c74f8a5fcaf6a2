# SPDX-License-Identifier: Apache-2.0
"""Entry of the command: picks the verb, and turns errors into one sentence and an exit code.

0 done; 2 the user can mend it; 128 + n stopped by signal n (130 by Ctrl-C, 143 by SIGTERM); anything else is a fault
of ours and shows its traceback.
"""

import contextlib
import difflib
import errno
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from opendino import __version__
from opendino.cli import VERBS
from opendino.errors import Elsewhere, OpendinoError, advice

TRAINING = ("pretrain", "adapt", "distill")
"""Verbs whose work the processes of torchrun or SLURM share."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def entry() -> None:
    """Console script."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line without the program's name; returns the exit code."""
    debug, argv = "--debug" in argv, [word for word in argv if word != "--debug"]
    try:
        return _dispatch(argv)
    except Elsewhere:
        return 2
    except OpendinoError as error:
        if debug:
            raise
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`opendino config ls | head`): nobody is left to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Without a file's name only a full disk is known to be none of our faults.
        if debug or not (error.filename or error.errno in _NO_SPACE):
            raise
        place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else "a file of the run"
        print(f"error: {place}: {_failed(error)} ({error.strerror}); {advice(error)}", file=sys.stderr)
        return 2


def _failed(error: OSError) -> str:
    return "could not be written" if error.errno in (*_NO_SPACE, errno.EROFS) else "could not be opened or written"


def _dispatch(argv: list[str]) -> int:
    verb, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(help_page())
        return 0
    if verb in ("-V", "--version"):
        print(f"opendino {__version__}")
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, (*VERBS, "--help", "--version"), n=1)
        hint = f"did you mean {close[0]}?" if close else f"the verbs are {', '.join(VERBS)}"
        print(f"error: opendino {verb}: no such verb; {hint}", file=sys.stderr)
        return 2
    module = import_module(VERBS[verb])
    if any(word in ("-h", "--help") for word in rest):
        print(f"{module.SUMMARY}\n\n{module.USAGE.strip()}")
        return 0
    if verb in TRAINING:
        return _train(verb, module.main, rest)
    return _as_one(module.main, rest) if verb == "eval" else module.main(rest)


def _train(verb: str, run: Callable[[list[str]], int], rest: list[str]) -> int:
    """Run a verb of training, or hand it to a cluster."""
    if any(word.startswith("launch=") for word in rest):
        from opendino.cli import _launch

        launch, rest = _launch.taken_off(rest)
        if launch is not None:
            return _launch.run(launch, [verb, *rest])
    return _as_one(run, rest)


def _as_one(run: Callable[[list[str]], int], words: list[str]) -> int:
    """Run a verb that all processes of a launcher share in; only the first of them talks."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return run(words)
    from opendino.distributed import is_main, joined

    with joined(), contextlib.ExitStack() as silence:
        if not is_main():
            nowhere = silence.enter_context(Path(os.devnull).open("w"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        return run(words)


def help_page() -> str:
    """What `opendino --help` prints."""
    width = max(map(len, VERBS))
    verbs = [f"  {verb.ljust(width)}  {import_module(module).SUMMARY}" for verb, module in VERBS.items()]
    return "\n".join(
        [
            "usage: opendino VERB [recipe.yaml] [key=value ...]",
            "",
            "From a folder of images to a measured backbone, DINOv2 in the open.",
            "",
            *verbs,
            "",
            "opendino VERB --help   what a verb takes",
            "opendino --version     the version",
            "--debug                show the traceback of an error",
        ]
    )
