"""A mail server inside the test: EHLO, STARTTLS, AUTH PLAIN and LOGIN, MAIL, RCPT, DATA; it keeps what it was given."""

import asyncio
import base64
import email
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message

from services.local.certificates import CertificateFiles


class SmtpServer:
    """What came in, mail by mail."""

    def __init__(self, tls: ssl.SSLContext, refused: str | None) -> None:
        self.messages: list[Message] = []
        self.logins: list[tuple[str, str]] = []
        self.was_encrypted: list[bool] = []
        self.port = 0
        self.says_goodbye = asyncio.Event()
        """Clear it, and QUIT is not answered until it is set."""
        self.says_goodbye.set()
        self._tls = tls
        self._refused = refused

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one conversation."""
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 test\r\n")
        while line := (await reader.readline()).decode().strip():
            verb, _blank, rest = line.partition(" ")
            match verb.upper():
                case "EHLO":
                    writer.write(b"250-test\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
                case "STARTTLS":
                    writer.write(b"220 go on\r\n")
                    await writer.drain()
                    await writer.start_tls(self._tls)
                case "AUTH":
                    _nothing, user, password = base64.b64decode(rest.split(" ")[1]).decode().split("\0")
                    self.logins.append((user, password))
                    writer.write(b"235 welcome\r\n")
                case "RCPT" if self._refused is not None and self._refused in rest:
                    writer.write(b"550 no such user\r\n")
                case "DATA":
                    writer.write(b"354 go on\r\n")
                    content = await reader.readuntil(b"\r\n.\r\n")
                    self.messages.append(email.message_from_bytes(content[:-5]))
                    self.was_encrypted.append(writer.get_extra_info("ssl_object") is not None)
                    writer.write(b"250 taken\r\n")
                case "QUIT":
                    await self.says_goodbye.wait()
                    writer.write(b"221 bye\r\n")
                    await writer.drain()
                    return
                case _:
                    writer.write(b"250 ok\r\n")


@asynccontextmanager
async def running_smtp(
    certificates: CertificateFiles, *, implicit_tls: bool = False, refused: str | None = None
) -> AsyncIterator[SmtpServer]:
    """Run a mail server on loopback."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    server = SmtpServer(tls, refused)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls if implicit_tls else None)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
