"""Makes a process start with a fifth less work; imported by each `__main__`, and by nothing else, before all others.

Nobody searches for cycles while modules are made: they all stay. Once they are there, `gc.freeze` and `gc.enable`
follow. And structlog comes without rich, of which it would only take the look of stack traces that we never ask it for.
"""

import gc
import sys
from types import ModuleType
from typing import cast


def _import_structlog_without_rich() -> None:
    there = sys.modules.get("rich")
    sys.modules["rich"] = cast("ModuleType", None)  # an import of it fails
    try:
        import structlog  # noqa: F401, PLC0415 - all of it happens here
    finally:
        del sys.modules["rich"]
        if there is not None:
            sys.modules["rich"] = there


gc.disable()
_import_structlog_without_rich()
