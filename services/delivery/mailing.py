"""Notices by e-mail, through the SMTP server of the settings: smtplib in threads, cut off at a deadline."""

import asyncio
import smtplib
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.core.retry import Answer, Verdict
from services.delivery.notices import Notice, plain_text, subject
from services.delivery.smtp_replies import BoundedSmtp
from services.delivery.transports.http_answers import printable
from services.platform.secrets import without_secrets
from services.platform.settings import ENVIRONMENT_PREFIX

# Some more than are sent at once: one that was cut off while it looked for the host ends later.
MAX_THREADS = 32
TOO_SLOW = "the mail server did not take the mail in time"


class SmtpSettings(BaseSettings):
    """The server that takes our mail. Without a host every mail fails, and is given up as others are."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    smtp_host: str = Field("", description="The mail server that takes notices; empty: none can be sent by mail.")
    smtp_port: int = Field(587, ge=1, le=65_535, description="Its port.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="starttls, tls (from the first byte, port 465), or none on a trusted network."
    )
    smtp_username: str = Field("", description="Who logs in there; empty: nobody does.")
    smtp_password: SecretStr = Field(SecretStr(""), description="The password.")
    smtp_ca_file: Path | None = Field(None, description="Certificates (PEM) to trust instead of the system's.")
    smtp_from: str = Field("Meterpost <meterpost@localhost>", description="The sender of notices.")
    smtp_timeout_seconds: float = Field(20.0, gt=0, le=30, description="A mail is cut off after this, in total.")

    @field_validator("smtp_from")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        if "@" not in parseaddr(text)[1] or not text.isprintable():
            raise ValueError("must be an address, such as Meterpost <meterpost@example.org>")
        return text


class Mailer:
    """Sends mails, each over a connection of its own."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings
        # Of its own, so that a mail server that hangs takes no thread from others. Who sends limits how many there are.
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="smtp")

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, address: str, name: str, told: Notice) -> Answer:
        """Make one attempt; `name` stays the same on each. Raises nothing."""
        settings = self._settings
        if not settings.smtp_host:
            return Answer(Verdict.RETRY, "no_smtp_host", "METERPOST_SMTP_HOST is not set")
        message = EmailMessage()
        message["Subject"] = subject(told)
        message["From"] = settings.smtp_from
        message["To"] = address
        message["Message-ID"] = f"<{name}@{parseaddr(settings.smtp_from)[1].rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(plain_text(told))
        try:
            await self._until_deadline(message)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            return self._answer(error)
        return Answer(Verdict.DELIVERED, "smtp_250", "")

    async def _until_deadline(self, message: EmailMessage) -> None:
        """Hand a message over, or cut the connection: a timeout of sockets alone ends no server that dribbles."""
        line = _Line()
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._hand_over, message, line)
        # Of a thread that is left behind nobody wants to hear.
        running.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait({running}, timeout=self._settings.smtp_timeout_seconds)
            if line.is_accepted:
                # What the server does afterwards changes nothing: the mail is its own now.
                return
            if not running.done():
                raise TimeoutError(TOO_SLOW)
            running.result()
        finally:
            if not running.done():
                line.cut()

    def _hand_over(self, message: EmailMessage, line: "_Line") -> None:
        settings = self._settings
        timeout = settings.smtp_timeout_seconds
        place = (settings.smtp_host, settings.smtp_port)
        try:
            with _Smtp(line, *place, timeout, self._tls() if settings.smtp_security == "tls" else None) as server:
                if settings.smtp_security == "starttls":
                    server.starttls(context=self._tls())
                if settings.smtp_username:
                    server.login(settings.smtp_username, settings.smtp_password.get_secret_value())
                server.send_message(message)
                line.is_accepted = True
        finally:
            line.close()

    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self._settings.smtp_ca_file)

    def _answer(self, error: Exception) -> Answer:
        """Return what a failure means. Only an address that does not exist is a reason to give up."""
        detail = without_secrets(printable(str(error).encode()), [self._settings.smtp_password.get_secret_value()])
        if isinstance(error, smtplib.SMTPRecipientsRefused):
            codes = [code for code, _text in error.recipients.values()]
            verdict = Verdict.STOP if codes and min(codes) >= 500 else Verdict.RETRY
            return Answer(verdict, "smtp_recipient_refused", detail)
        if isinstance(error, smtplib.SMTPAuthenticationError):
            # What the server says may repeat what we sent.
            return Answer(Verdict.RETRY, "smtp_login_refused", "correct METERPOST_SMTP_USERNAME and _PASSWORD")
        if isinstance(error, ssl.SSLCertVerificationError):
            return Answer(Verdict.RETRY, "smtp_certificate_refused", detail)
        if isinstance(error, smtplib.SMTPResponseException):
            return Answer(Verdict.RETRY, f"smtp_{error.smtp_code}", detail)
        if isinstance(error, TimeoutError):
            return Answer(Verdict.RETRY, "smtp_timeout", detail)
        return Answer(Verdict.RETRY, "smtp_failed", detail)


class _Line:
    """The connection of one mail, which another thread may cut."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cut = False
        self.is_accepted = False
        """Whether the server has taken the mail."""

    def opened(self, made: socket.socket) -> None:
        """Remember the connection. Raises TimeoutError where it came too late."""
        with self._lock:
            if self._is_cut:
                made.close()
                raise TimeoutError(TOO_SLOW)
            # A second name for the same connection, which stays when TLS takes the first one over.
            self._socket = made.dup()

    def cut(self) -> None:
        """End the connection, now or as soon as it is made: whoever waits for it meets its end."""
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Forget the connection."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


class _Smtp(BoundedSmtp):
    """smtplib's client over a connection that can be cut; with a context, TLS from the first byte."""

    def __init__(self, line: _Line, host: str, port: int, timeout: float, tls: ssl.SSLContext | None) -> None:
        self._line = line
        self._first_tls = tls
        super().__init__(host, port, timeout=timeout)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        made = socket.create_connection((host, port), timeout)
        self._line.opened(made)
        return made if self._first_tls is None else self._first_tls.wrap_socket(made, server_hostname=host)
