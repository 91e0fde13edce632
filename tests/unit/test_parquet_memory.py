"""What memory Parquet takes: it must not grow with the chunks, nor with the threads that made them."""

import json
import subprocess
import sys


def test_what_a_thread_needed_for_a_chunk_it_does_not_keep() -> None:
    """Kept, it is 40 MB for each of the eight threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.parquet_memory", "8"], capture_output=True, check=True, timeout=60
    )
    megabytes = json.loads(done.stdout)
    assert megabytes["peak"] < 200, megabytes
    assert megabytes["held"] < 120, megabytes
