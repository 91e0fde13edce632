"""Whether a service lives and is ready, by the progress it makes."""

import time

STALLED_AFTER_SECONDS = 60.0
"""A service whose main loop has not come round for so long is not healthy."""


class Health:
    """What the probes answer. The service calls `progress` each time its main loop comes round."""

    def __init__(self) -> None:
        self._last_progress = time.monotonic()
        self._waiting_for = {"start": None}

    def progress(self) -> None:
        """Note that the main loop came round: the process lives."""
        self._last_progress = time.monotonic()

    def waits_for(self, what: str) -> None:
        """Note what does not answer, in a word or two."""
        self._waiting_for[what] = None

    def answered(self, what: str) -> None:
        """Note that it answers (again)."""
        self._waiting_for.pop(what, None)

    def started(self) -> None:
        """Note that the service does its work, as far as everything that it needs answers."""
        self.answered("start")

    @property
    def seconds_since_progress(self) -> float:
        """How long ago the main loop came round."""
        return time.monotonic() - self._last_progress

    @property
    def is_alive(self) -> bool:
        """Whether the main loop came round lately."""
        return self.seconds_since_progress < STALLED_AFTER_SECONDS

    @property
    def waiting_for(self) -> str | None:
        """What the service waits for; None when it is ready."""
        return ", ".join(self._waiting_for) or None
