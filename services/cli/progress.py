"""How far publishing has come: a bar on a terminal, a line now and then elsewhere, nothing beside JSON."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from services.cli.publishing import Upload
from services.cli.show import Answer, utc

if TYPE_CHECKING:
    import rich.progress

_LINE_EVERY_SECONDS = 5.0


class Progress:
    """Shown on standard error from entering to leaving."""

    def __init__(self, answer: Answer, total_readings: int) -> None:
        self._answer = answer
        self._total = total_readings
        self._done = 0
        self._last_line = time.monotonic()
        self._bar: rich.progress.Progress | None = None
        self._task: rich.progress.TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._answer.as_json:
            import rich.progress  # noqa: PLC0415 - for people who watch

            from services.cli.terminal import console  # noqa: PLC0415 - as above

            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("readings, arrival {task.description}"),
                console=console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("-", total=self._total)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if error is not None and self._done:
            self._answer.note(f"broken off after {self._done:,} of {self._total:,} readings")

    def published(self, upload: Upload) -> None:
        """Take note of an upload that was handed over."""
        self._done += len(upload.readings)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, description=utc(upload.arrives_at))
        elif not self._answer.as_json and time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            self._answer.note(f"{self._done:,} of {self._total:,} readings, arrival {utc(upload.arrives_at)}")
