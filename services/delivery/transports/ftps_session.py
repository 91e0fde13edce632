"""One FTPS session, blocking: it belongs to a thread, and `cut` ends it from any other."""

import ftplib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from services.core.file_transfer import FtpsServer
from services.delivery.transports.ftps_limits import read_list, read_reply

BLOCK_BYTES = 256 * 1024
UNKNOWN_SIZE = -1
_LAST_PORT = 65_535
# Each waits until the connection takes more.
_MAX_TRIES = 1_000

ResultT = TypeVar("ResultT")


class _FtpTls(ftplib.FTP_TLS):
    """ftplib over a socket that is connected already, with data connections that resume the session of this one."""

    def __init__(
        self,
        connected: socket.socket,
        server: FtpsServer,
        context: ssl.SSLContext,
        on_data: Callable[[socket.socket | None], None],
    ) -> None:
        super().__init__(context=context, encoding="utf-8")
        self.host = server.host
        self.af = connected.family
        self._address = str(connected.getpeername()[0])
        self._timeout_s = connected.gettimeout()
        self._on_data = on_data
        self._is_implicit = server.tls == "implicit"
        self.sock = self._connected = connected

    def begin(self) -> str:
        """Bring TLS about on the control connection; return the protocol's version."""
        if self._is_implicit:
            self.sock = self.context.wrap_socket(self._connected, server_hostname=self.host)
        self.file = (self.sock or self._connected).makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        if not self._is_implicit:
            plain = self.file
            self.auth()
            plain.close()
        return str(self.sock.version()) if isinstance(self.sock, ssl.SSLSocket) else ""

    def getmultiline(self) -> str:
        """Read a reply; ftplib's own would read one without an end until the memory is full."""
        return read_reply(self.getline)

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Open a data connection inside TLS.

        It leads to the address of the control connection, which was judged, whatever address the server names; and it
        resumes the control connection's TLS session, which servers insist on.
        """
        if rest is not None:
            raise ValueError("files are never continued")
        _named, port = self.makepasv()
        if not 0 < port <= _LAST_PORT:
            raise ftplib.error_proto(f"227 port {port} for data")  # noqa: S321 - inside TLS
        connection = socket.socket(self.af, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._timeout_s)
            self._on_data(connection)
            connection.connect((self._address, port))
            self._start(cmd)
            control = self.sock
            session = control.session if isinstance(control, ssl.SSLSocket) else None
            return self.context.wrap_socket(connection, server_hostname=self.host, session=session), None
        except BaseException:
            connection.close()
            raise

    def voidresp(self) -> str:
        """Wait for the server's word that a transfer is complete. Our side of it is closed by now."""
        self._on_data(None)
        return super().voidresp()

    def _start(self, command: str) -> None:
        answer = self.sendcmd(command)
        if not answer.startswith("1"):
            raise ftplib.error_reply(answer)  # noqa: S321 - inside TLS


class FtpsSession:
    """A session that is logged in after `trust` and `log_in`. Raises ftplib's errors, EOFError, OSError, ssl's."""

    def __init__(self, server: FtpsServer, context: ssl.SSLContext, connected: socket.socket) -> None:
        self._server = server
        self._context = context
        self._socket = connected
        self._ftp: _FtpTls | None = None
        self._lock = threading.Lock()
        self._working = threading.Lock()
        self._is_cut = False
        # Handles of our own on the same connections: TLS takes the sockets themselves over, in the middle of a step.
        self._control = connected.dup()
        self._data: socket.socket | None = None
        self.was_used = False
        """Whether it was kept after an earlier part."""
        self._is_worn = False

    @property
    def is_open(self) -> bool:
        """Whether it may be used for another part: nothing was cut or broken off, and the server has said nothing."""
        if self._is_cut or self._is_worn:
            return False
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        return not poll.poll(0)

    def trust(self) -> str:
        """Bring TLS about, which verifies the certificate; return the protocol's version."""
        self._ftp = _FtpTls(self._socket, self._server, self._context, self._remember_data)
        return self._ftp.begin()

    def log_in(self) -> None:
        """Log in, and have file contents protected as well."""
        self.ftp.login(self._server.user, self._server.password, secure=False)
        self.ftp.prot_p()
        self.ftp.voidcmd("TYPE I")

    def begin(self) -> None:
        """Do both."""
        self.trust()
        self.log_in()

    def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Return what `work` returns; until it ends, the session is not closed."""
        with self._working:
            return work()

    @property
    def ftp(self) -> _FtpTls:
        """The protocol, once `trust` has returned."""
        if self._ftp is None:
            raise RuntimeError("trust comes first")
        return self._ftp

    def size(self, path: str) -> int | None:
        """Return a file's size; None where there is no such file, -1 where the server does not tell sizes."""
        try:
            size = self.ftp.size(path)
        except ftplib.error_perm as error:
            if str(error).startswith("550"):
                return None
            if str(error).startswith("50"):
                return UNKNOWN_SIZE
            raise
        return UNKNOWN_SIZE if size is None else size

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file's content, of a longer file a little more than `limit` bytes; None: there is no such file."""
        try:
            connection, _size = self.ftp.ntransfercmd(f"RETR {path}")
        except ftplib.error_perm as error:
            if str(error).startswith("550"):
                return None
            raise
        content = bytearray()
        with connection:
            while len(content) <= limit and (block := connection.recv(BLOCK_BYTES)):
                content += block
        self._end_of_reading(complete=len(content) <= limit)
        return bytes(content)

    def _end_of_reading(self, *, complete: bool) -> None:
        if complete:
            self.ftp.voidresp()
            return
        # The server complains about the transfer that we broke off, or has just finished it; or says both.
        self._is_worn = True
        with suppress(ftplib.Error):
            self.ftp.voidresp()

    def write(self, path: str, body: bytes) -> None:
        """Write a file. Returns when the server has said that it is complete."""
        connection, _size = self.ftp.ntransfercmd(f"STOR {path}")
        with connection:
            connection.sendall(body)
            _finish(connection, connection.gettimeout())
        self.ftp.voidresp()

    def rename(self, path: str, to: str) -> None:
        """Rename a file; most servers replace what is there."""
        self.ftp.rename(path, to)

    def remove(self, path: str) -> None:
        """Remove a file."""
        self.ftp.delete(path)

    def names(self, directory: str, wanted: Callable[[str], bool]) -> list[str]:
        """Return what of a folder is wanted, hidden files too where the server shows them.

        Of a folder that holds more than any should, what is among the first.
        """
        found: list[str] = []

        def take(name: str) -> None:
            if wanted(name):
                found.append(name)

        try:
            self._list(f"MLSD {directory}".rstrip(), lambda line: take(line.partition(" ")[2]))
        except ftplib.error_perm:
            self._list(f"NLST -a {directory}".rstrip(), lambda line: take(line.rpartition("/")[2]))
        finally:
            # Listings are text; in that mode servers tell no sizes, and say 550 as if there were no file.
            self.ftp.voidcmd("TYPE I")
        return found

    def _list(self, command: str, take: Callable[[str], None]) -> None:
        self.ftp.voidcmd("TYPE A")
        connection, _size = self.ftp.ntransfercmd(command)
        with connection:
            with connection.makefile("r", encoding=self.ftp.encoding) as stream:
                is_all = read_list(stream, take)
            if is_all:
                _finish(connection, connection.gettimeout())
        self._end_of_reading(complete=is_all)

    def cut(self) -> None:
        """End both connections at once, so that whatever the thread waits for ends too. Any thread may call it."""
        with self._lock:
            self._is_cut = True
            for connection in (self._control, self._data):
                _shut_down(connection)

    def close(self) -> None:
        """Close both connections without a word; a thread that is still at work with them has them cut."""
        self.cut()
        if not self._working.acquire(blocking=False):
            return
        if self._ftp is not None:
            self._ftp.close()
        for connection in (self._control, self._data, self._socket):
            if connection is not None:
                connection.close()
        self._working.release()

    def _remember_data(self, connection: socket.socket | None) -> None:
        """Keep a handle on a new data connection; None: the last one is over, and the handle must not hold it open."""
        with self._lock:
            if self._data is not None:
                self._data.close()
            self._data = None if connection is None else connection.dup()
            if self._is_cut:
                raise ConnectionAbortedError("the attempt was ended")


def _shut_down(connection: socket.socket | None) -> None:
    if connection is not None:
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _finish(connection: socket.socket, within_s: float | None) -> None:
    """Say that the content ends here, and wait until the server has closed its side.

    Not by `unwrap` alone, whose answer some servers send only when the connection is closed. Nor by closing at once:
    what the server has sent and nobody has read (TLS tickets) would turn that into a reset, which may cost the end of
    the content.
    """
    if isinstance(connection, ssl.SSLSocket):
        connection.setblocking(False)
        for _ in range(_MAX_TRIES):
            try:
                connection.unwrap()
            except ssl.SSLWantWriteError:
                select.select((), (connection,), (), within_s)
            except OSError:
                break  # said; its answer is not waited for
            else:
                break
        connection.settimeout(within_s)
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_WR)
        while socket.socket.recv(connection, BLOCK_BYTES):
            pass
