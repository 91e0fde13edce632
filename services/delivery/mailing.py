"""Notices by e-mail, through the SMTP server of the settings: smtplib in a thread."""

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.core.retry import Answer, Verdict
from services.delivery.notices import Notice, plain_text, subject
from services.delivery.smtp_replies import BoundedSmtp, BoundedSmtpTls
from services.delivery.transports.http_answers import printable
from services.platform.secrets import without_secrets
from services.platform.settings import ENVIRONMENT_PREFIX


class SmtpSettings(BaseSettings):
    """The server that takes our mail. Without a host, mail waits."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="ignore", frozen=True)

    smtp_host: str = Field("", description="The mail server that takes notices; empty: none is sent by mail.")
    smtp_port: int = Field(587, ge=1, le=65_535)
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="starttls, tls (from the first byte, port 465), or none on a trusted network."
    )
    smtp_username: str = ""
    smtp_password: SecretStr = SecretStr("")
    smtp_ca_file: Path | None = Field(None, description="Certificates (PEM) to trust instead of the system's.")
    smtp_from: str = Field("Meterpost <meterpost@localhost>", description="The sender of notices.")
    smtp_timeout_seconds: float = Field(20.0, gt=0, le=30)

    @field_validator("smtp_from")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        if "@" not in parseaddr(text)[1] or not text.isprintable():
            raise ValueError("must be an address, such as Meterpost <meterpost@example.org>")
        return text


class Mailer:
    """Sends one mail at a time."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

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
            await asyncio.to_thread(self._hand_over, message)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            return self._answer(error)
        return Answer(Verdict.DELIVERED, "smtp_250", "")

    def _hand_over(self, message: EmailMessage) -> None:
        settings = self._settings
        timeout = settings.smtp_timeout_seconds
        place = (settings.smtp_host, settings.smtp_port)
        if settings.smtp_security == "tls":
            server: smtplib.SMTP = BoundedSmtpTls(*place, timeout=timeout, context=self._tls())
        else:
            server = BoundedSmtp(*place, timeout=timeout)
        with server:
            if settings.smtp_security == "starttls":
                server.starttls(context=self._tls())
            if settings.smtp_username:
                server.login(settings.smtp_username, settings.smtp_password.get_secret_value())
            server.send_message(message)

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
        return Answer(Verdict.RETRY, "smtp_failed", detail)
