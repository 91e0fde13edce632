"""`python -m tests.support.parquet_memory CHUNKS`: make Parquet, and print what memory it took beyond the idle process.

As in the worker, chunks are converted by several threads, and a file is put together by one more. The answer is JSON in
MB: `peak`, and `held` once all is over.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from services.exports.parquet import join_parquet, to_parquet

ROWS = 100_000
_STATUS = Path("/proc/self/status")


class _Nowhere:
    def write(self, data: bytes) -> object:
        """Take the next bytes."""
        return len(data)


def megabytes(name: str) -> float:
    """Return one of the process's figures; `VmHWM` is the most it ever had."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def lines_of_a_chunk(number: int) -> bytes:
    """Return the rows of a chunk, as the database writes them; no amount is twice in it."""
    stamp = f"2026-11-20T{number // 60 % 24:02d}:{number % 60:02d}:00Z"
    rows = (
        f"{meter},Electricity,Meter {meter},kWh,{stamp},5,{meter % 250},Site {meter % 250},"
        f"{(number + 7) * meter * 12}.00,{(number + 7) * meter}.25,N/A,N/A\n"
        for meter in range(ROWS)
    )
    return "".join(rows).encode()


def main() -> None:
    """Measure."""
    count = int(sys.argv[1])
    idle, file = megabytes("VmRSS"), _Nowhere()
    with ExitStack() as threads:
        for number in range(count):
            # Those before it stay, as the threads of the worker's loop do; the one of a file ends with it.
            converting = threads.enter_context(ThreadPoolExecutor(1))
            chunk = converting.submit(to_parquet, lines_of_a_chunk(number)).result()
            with ThreadPoolExecutor(1) as joining:
                joining.submit(join_parquet, [chunk] * 3, file).result()
        found = {"peak": megabytes("VmHWM") - idle, "held": megabytes("VmRSS") - idle}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
