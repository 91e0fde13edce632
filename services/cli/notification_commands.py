"""`meterpost notifications`: whom to tell when a job fails, stops or recovers."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from services.api.notification_store import (
    NotificationSettings,
    list_notifications,
    notification_settings,
    set_notifications,
)
from services.cli.secret_options import given_secrets
from services.cli.session import Session, command
from services.cli.show import Column
from services.core.transport_secrets import SIGNING_SECRET
from services.platform.errors import UserError
from services.platform.postgres import transaction
from services.platform.secrets import Vault

app = typer.Typer(no_args_is_help=True, help="Whom to tell when a job fails, stops or recovers.")

_DATABASE = ("organization", "database", "as_json")
_COLUMNS = (
    Column("Notice", number=True),
    Column("Job", number=True),
    Column("Event", whole=True),
    Column("To"),
    Column("Created", whole=True),
    Column("Sent", whole=True),
    Column("Tries", number=True),
    Column("Problem"),
)


@command(app, "set", *_DATABASE)
async def set_(
    session: Session,
    *,
    email: Annotated[
        list[str] | None, typer.Option("--email", metavar="ADDRESS", help="Told by e-mail; again for more.")
    ] = None,
    no_email: Annotated[bool, typer.Option("--no-email", help="Nobody is told by e-mail any more.")] = False,
    webhook: Annotated[str | None, typer.Option("--webhook", metavar="URL", help="Told by a POST.")] = None,
    no_webhook: Annotated[bool, typer.Option("--no-webhook", help="No POST any more.")] = False,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", metavar="FILE", help="Certificates (PEM) that the webhook is trusted by."),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            "--secret", metavar="signing_secret=SOURCE", help="Signs the POST: file:PATH, env:VARIABLE or generate."
        ),
    ] = None,
    drop_secret: Annotated[
        list[str] | None, typer.Option("--drop-secret", metavar="NAME", help="Forget a signing secret.")
    ] = None,
) -> None:
    """Say whom to tell; what is not named stays as it is."""
    given = given_secrets(secret)
    if set(given.changes) - {SIGNING_SECRET}:
        raise UserError(f"the only secret of a webhook is its {SIGNING_SECRET}")
    new_secret = given.changes.get(SIGNING_SECRET)
    vault = session.places.vault() if new_secret is not None else Vault({})
    async with session.pool() as pool:
        async with transaction(pool) as connection:
            organization = await session.organization(connection)
            before = await notification_settings(connection, organization.organization_id)
        after = before
        if email or no_email:
            after = replace(after, emails=tuple(email or ()))
        if no_webhook:
            after = replace(after, webhook_url=None, ca_pem=None, signing_secrets=())
        elif webhook is not None:
            after = replace(after, webhook_url=webhook)
        if ca_file is not None:
            after = replace(after, ca_pem=_pem(ca_file))
        if unknown := set(drop_secret or ()) - set(before.signing_secrets):
            raise UserError(f"there is no secret {min(unknown)}")
        kept = tuple(name for name in after.signing_secrets if name not in (drop_secret or ()))
        after = await set_notifications(
            pool, organization.organization_id, replace(after, signing_secrets=kept), vault, new_secret
        )
    _show(session, organization.name, after, given.generated)


@command(app, "show", *_DATABASE)
async def show(session: Session) -> None:
    """Show whom is told."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        settings = await notification_settings(connection, organization.organization_id)
    _show(session, organization.name, settings, None)


@command(app, "list", *_DATABASE)
async def list_(session: Session, *, limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20) -> None:
    """List the newest notices, and whether they were sent."""
    async with session.pool() as pool, transaction(pool) as connection:
        organization = await session.organization(connection)
        found = await list_notifications(connection, organization.organization_id, limit)
    if session.answer.as_json:
        listed = [one._asdict() for one in found]
        session.answer.json({"organization": organization.name, "notifications": listed})
    elif not found:
        session.answer.say("Nobody was told anything yet.")
    else:
        rows = [
            (
                one.notification_id,
                str(one.job_id),
                one.event,
                one.address,
                one.created_at,
                one.sent_at or ("given up" if one.next_attempt_at is None else None),
                one.attempt_count,
                one.problem,
            )
            for one in found
        ]
        session.answer.table(_COLUMNS, rows, title=f"Notices of {organization.name}")


def _show(session: Session, organization: str, settings: NotificationSettings, generated: str | None) -> None:
    if session.answer.as_json:
        shown = {
            "organization": organization,
            "emails": settings.emails,
            "webhook_url": settings.webhook_url,
            "own_ca": settings.ca_pem is not None,
            "secrets": dict.fromkeys(settings.signing_secrets, "set"),
        }
        session.answer.json(shown | ({} if generated is None else {"generated_signing_secret": generated}))
        return
    session.answer.facts(
        [
            ("Organization", organization),
            ("By e-mail", ", ".join(settings.emails) or "nobody"),
            ("By webhook", settings.webhook_url or "nobody"),
            ("Signed with", ", ".join(settings.signing_secrets) or "nothing"),
        ]
    )
    if generated is not None:
        session.answer.say(f"The signing secret, shown this once: {generated}")


def _pem(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        raise UserError(f"the CA file {file} cannot be read as PEM text") from None
