"""Whether a Kafka broker is in service, asked in Kafka's own protocol.

A connection alone says too little: the broker accepts them before it takes part in its cluster, and on a taken
port another program would. One Metadata request answers for both, in fewer lines than a client library needs to
be set up, and without one.
"""

from __future__ import annotations

import socket
import struct
from io import BytesIO

_METADATA_KEY = 3
_METADATA_VERSION = 2  # the first whose answer holds the cluster's id
_TIMEOUT_S = 2.0
_LONGEST_ANSWER_BYTES = 100_000


def serving_cluster(host: str, port: int) -> str | None:
    """Return the id of the cluster whose broker serves on this address; None if none does (yet).

    A broker that does not count itself as alive in its cluster does not serve. Blocks for two seconds at most
    per read.
    """
    request = struct.pack(">hhihi", _METADATA_KEY, _METADATA_VERSION, 0, -1, 0)  # no client id, no topics
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as stream:
                (size,) = struct.unpack(">i", stream.read(4))
                if not 0 < size <= _LONGEST_ANSWER_BYTES:
                    return None
                return _cluster_in(BytesIO(stream.read(size)))
    except (OSError, struct.error, UnicodeDecodeError):
        return None  # nobody there, or somebody who does not speak Kafka


def _cluster_in(answer: BytesIO) -> str | None:
    _correlation, brokers = struct.unpack(">ii", answer.read(8))
    for _ in range(brokers):
        answer.read(4)  # node id
        _text(answer)  # host
        answer.read(4)  # port
        _text(answer)  # rack
    cluster = _text(answer)
    return cluster if brokers > 0 else None


def _text(answer: BytesIO) -> str | None:
    (length,) = struct.unpack(">h", answer.read(2))
    return None if length < 0 else answer.read(length).decode("utf-8")
