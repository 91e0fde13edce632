"""`meterpost`, also as `python -m services.cli`: every outcome becomes a sentence and an exit code."""

import contextlib
import errno
import gc
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from services.cli.early_interrupt import answer_interrupts

# isort: split
import services.platform.lean_imports  # noqa: F401 - before all others that take long

# isort: split
import structlog
import typer

from services.cli.app import app
from services.cli.show import ReaderGoneError, drop_output
from services.platform.errors import MeterpostError, UserError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
DEBUG_VARIABLE = "METERPOST_DEBUG"
_TOO_LARGE = re.compile(r"invalid input for query argument \$\d+: (-?\d+) \(value out of int\d\d range\)")
"""What the driver of PostgreSQL says of an id or a number of lines that no table could hold."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never lets an exception out. The process ends with it."""
    answer_interrupts()
    try:
        return _run(arguments)
    finally:
        # Nobody waits for the interpreter to search all that was imported for cycles before it ends.
        gc.freeze()


def _run(arguments: Sequence[str] | None) -> int:
    _silence_libraries()
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - to the end of the process
    try:
        outcome = app(args=arguments, prog_name="meterpost", standalone_mode=False)
    except ReaderGoneError:
        drop_output()
        return 0
    except SystemExit as left:
        # The help's own console ends the process where nobody reads it.
        if isinstance(left.__context__, BrokenPipeError):
            return 0
        raise
    except (Exception, KeyboardInterrupt) as error:
        # The last place that can turn a fault into a sentence; who wants to see where it is from, says so.
        if os.environ.get(DEBUG_VARIABLE):
            raise
        sentence, code = _verdict(error)
        with contextlib.suppress(OSError):  # where nobody reads what we say, the exit code says it
            sys.stderr.write(f"meterpost: {sentence}\n" if sentence else "")
        return code
    return outcome if isinstance(outcome, int) else 0


def _verdict(error: BaseException) -> tuple[str, int]:
    """Return what to tell the user, and the exit code."""
    if isinstance(error, typer.TyperException):
        # Without a message the help was shown, because nothing was asked for.
        message = error.format_message()
        return f"{message.rstrip('.')} (--help shows what there is)" if message else "", EXIT_BAD_INPUT
    if isinstance(error, UserError):
        return str(error), EXIT_BAD_INPUT
    if isinstance(error, MeterpostError):
        return str(error), EXIT_FAILED
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", EXIT_INTERRUPTED
    return _fault(error)


def _fault(error: BaseException) -> tuple[str, int]:
    """Return what to tell of an exception that is none of ours."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the answer cannot be written: no space is left", EXIT_FAILED
    if too_large := _TOO_LARGE.match(str(error)):
        return f"{too_large[1]} is beyond every id and number there can be", EXIT_BAD_INPUT
    name = type(error).__name__
    return f"this should not happen ({name}: {error}); {DEBUG_VARIABLE}=1 shows where it does", EXIT_FAILED


def _silence_libraries() -> None:
    """Leave standard output to the result, and say what a library logs only once, as our own error."""
    logging.basicConfig(level=logging.CRITICAL, stream=sys.stderr)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
