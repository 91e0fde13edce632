"""`meterpost --url … jobs`: what the same commands do over the HTTP API, with the same tables and JSON."""

from datetime import datetime
from typing import Any

from services.api.catalog_queries import Site
from services.api.job_queries import FAILED_RUNS, Job
from services.api.job_settings import JobSettings
from services.cli.api_session import Api
from services.cli.https_options import Access, new_https
from services.cli.job_destinations import (
    FileOptions,
    Server,
    changed_destination,
    destination_facts,
    tell_next_steps,
)
from services.cli.job_options import check_needed, frequency_minutes
from services.cli.job_texts import COLUMNS, job_json, job_row, rhythm_text, sites_text, state_text
from services.cli.secret_options import given_secrets
from services.cli.session import Session
from services.cli.show import utc
from services.core.file_transfer import HOSTED
from services.core.schedule import FREQUENCY_NAMES, NO_RESOLUTION, frequency_name
from services.core.times import parse_instant
from services.core.transport_secrets import SEALED
from services.platform.errors import UserError

_FILE_OPTIONS = ("sftp", "ftps", "directory", "host_key", "implicit", "line_end", "keep_formulas", "hosted", "ca_file")
_NOT_SENT = {SEALED, "public_key"}


async def create(session: Session, api: Api, **given: Any) -> None:
    """Create a job."""
    has_sites = given["all_sites"] or bool(given["site"])
    frequency = check_needed(
        *(given["name"], given["data"], given["frequency"], given["resolution"]), has_sites=has_sites
    )
    secrets = given_secrets(given["secret"])
    files, access = _options(given)
    if files.transport is None:
        files.refuse("an HTTPS receiver")
        if given["url"] is None:
            raise UserError("say where to send to by --url https://…, --sftp or --ftps behind `jobs create`")
        server = Server("https", new_https(given["url"], given["ca_file"], access), secrets.changes)
    else:
        access.refuse(f"an {files.transport.upper()} server")
        server = files.server({}, files.transport, secrets.changes)
    known = await _sites(api)
    body = {
        "name": given["name"],
        "data": given["data"],
        "frequency": _frequency(frequency),
        "resolution_minutes": given["resolution"],
        "site_ids": _site_ids(known, given["all_sites"], given["site"]),
        "destination": _destination(server),
        "secrets": server.secrets,
        "manifest": given["manifest"] or False,
        "starts_at": None if given["start"] is None else given["start"],
    }
    job = _job(await api.send("POST", "/v1/jobs", body))
    slots = (await api.get(f"/v1/jobs/{job.job_id}/next-slots"))["slots"]
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"first_slot_start": slots[0]["start"]} | secrets.shown_once())
        return
    session.answer.say(
        f"Created job {job.job_id} {job.settings.name!r}: {rhythm_text(job.settings)}, {sites_text(job, known)}. "
        f"Its first slot is {slots[0]['start']} to {slots[0]['end']}."
    )
    secrets.say_once(session.answer)
    tell_next_steps(session, job)


async def list_(session: Session, api: Api) -> None:
    """List the jobs."""
    jobs = [_job(one) for one in await api.pages("/v1/jobs", "jobs")]
    name = await _organization(api)
    if session.answer.as_json:
        session.answer.json({"organization": name, "jobs": [job_json(job) for job in jobs]})
    elif not jobs:
        session.answer.say(f"{name} has no export jobs yet: `meterpost jobs create --help`")
    else:
        known = await _sites(api)
        session.answer.table(COLUMNS, [job_row(job, known) for job in jobs], title=f"Jobs of {name}")


async def show(session: Session, api: Api, job_id: int) -> None:
    """Show a job."""
    job = _job(await api.get(f"/v1/jobs/{job_id}"))
    if session.answer.as_json:
        session.answer.json(job_json(job))
        return
    facts: list[tuple[str, object]] = [
        ("Job", f"{job.job_id} {job.settings.name}"),
        ("State", state_text(job)),
        ("What", rhythm_text(job.settings)),
        ("Sites", sites_text(job, await _sites(api))),
        *destination_facts(job.settings),
        ("Manifest", "after each run" if job.settings.manifest else "none"),
        ("Starts at", job.starts_at),
        ("Version", f"{job.version}, for slots from {utc(job.effective_from)}"),
        ("Next slot", job.next_slot_start or "not planned yet"),
    ]
    session.answer.facts(facts)


async def edit(session: Session, api: Api, job_id: int, **given: Any) -> None:
    """Change a job from its next slot on."""
    shown, etag = await api.get_tagged(f"/v1/jobs/{job_id}")
    before = _job(shown)
    files, access = _options(given)
    secrets = given_secrets(given["secret"], given["drop_secret"])
    server = changed_destination(before.settings, files, given["url"], access, secrets.changes)
    body: dict[str, Any] = {"secrets": server.secrets}
    if (server.transport, server.settings) != (before.settings.transport, before.settings.transport_settings):
        body["destination"] = _destination(server)
    if given["all_sites"] or given["site"]:
        body["site_ids"] = _site_ids(await _sites(api), given["all_sites"], given["site"])
    if given["frequency"] is not None:
        body["frequency"] = _frequency(given["frequency"])
    for option, field in (("name", "name"), ("resolution", "resolution_minutes"), ("manifest", "manifest")):
        if given[option] is not None:
            body[field] = given[option]
    job = _job(await api.send("PATCH", f"/v1/jobs/{job_id}", body, etag=etag))
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"changed": job.version != before.version} | secrets.shown_once())
    elif job.version == before.version:
        session.answer.say(f"Nothing changed: job {job_id} is like that already.")
    else:
        session.answer.say(f"Changed job {job_id} for the slots from {utc(job.effective_from)} on.")
        secrets.say_once(session.answer)


async def pause(session: Session, api: Api, job_id: int) -> None:
    """Pause a job."""
    changed, job = await _moved(api, job_id, "pause")
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"changed": changed})
    else:
        done = f"Paused job {job_id}" if changed else f"Nothing changed: job {job_id} is paused already"
        session.answer.say(f"{done}; slots from {utc(job.paused_from)} on are skipped.")


async def resume(session: Session, api: Api, job_id: int) -> None:
    """Resume a job."""
    changed, job = await _moved(api, job_id, "resume")
    if session.answer.as_json:
        session.answer.json(job_json(job) | {"changed": changed})
    else:
        session.answer.say(f"Resumed job {job_id}." if changed else f"Nothing changed: job {job_id} is active already.")


async def delete(session: Session, api: Api, job_id: int) -> None:
    """Delete a job."""
    shown, etag = await api.get_tagged(f"/v1/jobs/{job_id}")
    await api.send("DELETE", f"/v1/jobs/{job_id}", etag=etag)
    if session.answer.as_json:
        session.answer.json({"job_id": job_id, "deleted": True})
    else:
        session.answer.say(f"Deleted job {job_id} {shown['name']!r}.")


async def _moved(api: Api, job_id: int, what: str) -> tuple[bool, Job]:
    before = await api.get(f"/v1/jobs/{job_id}")
    after = await api.send("POST", f"/v1/jobs/{job_id}/{what}")
    return before["state"] != after["state"], _job(after)


async def _organization(api: Api) -> str:
    return str((await api.get("/v1/me"))["organization_name"])


async def _sites(api: Api) -> list[Site]:
    found = await api.pages("/v1/sites", "sites")
    return [Site(one["site_id"], one["name"], one["time_zone"]) for one in found]


def _options(given: dict[str, Any]) -> tuple[FileOptions, Access]:
    files = FileOptions(*(given[name] for name in _FILE_OPTIONS))
    return files, Access(given["auth"], given["username"], given["client_certificate"])


def _destination(server: Server) -> dict[str, Any]:
    kept = {name: value for name, value in server.settings.items() if name not in _NOT_SENT}
    is_hosted = kept.pop(HOSTED, False)
    return {"transport": "hosted" if is_hosted else server.transport, **kept}


async def site_ids(api: Api, named: list[str]) -> list[int]:
    """Return the ids of sites that are named by id or by name. Raises UserError."""
    return _site_ids(await _sites(api), False, named) or []


def _site_ids(known: list[Site], all_sites: bool, named: list[str] | None) -> list[int] | None:
    if all_sites and named:
        raise UserError("give either --all-sites or --site, not both")
    if all_sites or not named:
        return None
    found = set()
    for text in named:
        matching = [one.site_id for one in known if text in {one.name, str(one.site_id)}]
        if len(matching) != 1:
            some = ", ".join(f"{one.site_id} {one.name!r}" for one in known[:8])
            many = "several sites are" if matching else "there is no site"
            raise UserError(f"{many} {text!r}; give an id of: {some}")
        found |= set(matching)
    return sorted(found)


def _frequency(name: str) -> str:
    return frequency_name(frequency_minutes(name))


def _job(shown: dict[str, Any]) -> Job:
    """Return a job as the API shows it as the value that the tables are made of; secrets are only known to be set."""
    settings = {name: value for name, value in shown["destination"].items() if name != "transport"}
    transport = shown["destination"]["transport"]
    if transport == "hosted":
        transport, settings = "sftp", {**settings, HOSTED: True}
    if shown["public_key"] is not None:
        settings["public_key"] = shown["public_key"]
    if shown["secrets"]:
        settings[SEALED] = dict.fromkeys(shown["secrets"], "")
    site_ids = shown["site_ids"]
    return Job(
        0,
        shown["job_id"],
        _time(shown["starts_at"]),
        _time(shown["created_at"]),
        shown["version"],
        _time(shown["effective_from"]),
        JobSettings(
            shown["name"],
            FREQUENCY_NAMES[shown["frequency"]],
            shown["resolution_minutes"] or NO_RESOLUTION,
            None if site_ids is None else tuple(site_ids),
            transport,
            settings,
            shown["data"],
            shown["manifest"],
        ),
        _maybe(shown["paused_from"]),
        _maybe(shown["next_slot_start"]),
        _maybe(shown["stopped_at"]),
        shown["stopped_reason"] or (FAILED_RUNS if shown["state"] == "paused by failures" else None),
        shown["stopped_detail"],
        _maybe(shown["failing_since"]),
    )


def _time(text: str) -> datetime:
    return parse_instant(text)


def _maybe(text: str | None) -> datetime | None:
    return None if text is None else parse_instant(text)
