"""Ctrl-C while modules are loaded: the command just ends, and shows nobody where it was. Imported before all others."""

import signal

_is_heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler


def answer_interrupts() -> None:
    """Let Ctrl-C be a KeyboardInterrupt from now on, unless whoever started us lets us ignore it."""
    if _is_heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_heard:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
