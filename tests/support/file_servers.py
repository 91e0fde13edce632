"""Servers that take files, to send to in tests: ours in process, and the real ones that Debian packages.

Each is given as a `FileServer`: what a job says of it, and the folder in which its files lie on this machine.
"""

import os
import pwd
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from aiohttp import web
from pyftpdlib.filesystems import AbstractedFS

from services.local.certificates import CertificateFiles
from services.local.ftps_receiver import FtpsReceiver, Tls, serving_ftps
from services.local.https_receiver import Receiver
from services.local.ports import LOOPBACK, free_port
from services.local.sftp_receiver import Account, ensure_key, serving_sftp
from services.platform.clock import SystemClock
from tests.support.planted import plant, planted
from tests.support.polling import eventually

USER = "meterpost"
PASSWORD = planted("correct horse; battery=staple")
REAL_SERVERS_VARIABLE = "METERPOST_REAL_SERVERS"
"""`required`: a server that is not installed fails the tests instead of skipping them, as in CI."""


@dataclass(frozen=True)
class FileServer:
    """A server that runs, and how a job is told of it."""

    transport: str
    settings: Mapping[str, Any]
    folder: Path

    @property
    def port(self) -> int:
        return int(self.settings["port"])

    def files(self) -> dict[str, bytes]:
        """Return what lies in the folder, hidden files too."""
        return {file.name: file.read_bytes() for file in self.folder.iterdir() if file.is_file()}


Server = Callable[[Path, CertificateFiles], AbstractAsyncContextManager[FileServer]]


def installed(program: str) -> str:
    """Return where a program is; the test is skipped, or fails in CI, where it is not installed."""
    for folder in (None, "/usr/sbin:/usr/local/sbin"):
        found = shutil.which(program, path=folder)
        if found:
            return found
    why = f"{program} is not installed (.ci/run tells how)"
    if os.environ.get(REAL_SERVERS_VARIABLE) == "required":
        pytest.fail(why)
    pytest.skip(why)


def sftp_settings(port: int, host_key: str, **more: Any) -> dict[str, Any]:
    """Return what a job says of an SFTP server on loopback."""
    return {
        "host": "localhost",
        "port": port,
        "user": USER,
        "host_keys": [host_key],
        "password": PASSWORD,
        **more,
    }


def ftps_settings(port: int, certificates: CertificateFiles, **more: Any) -> dict[str, Any]:
    """Return what a job says of an FTPS server on loopback."""
    ca_pem = certificates.authority.read_text(encoding="ascii")
    return {
        "host": "localhost",
        "port": port,
        "user": USER,
        "ca_pem": ca_pem,
        "password": PASSWORD,
        **more,
    }


def in_process_sftp(*, by_key: bool = False, files: type[asyncssh.SFTPServer] = asyncssh.SFTPServer) -> Server:
    """Return our asyncssh receiver; `files` may refuse things."""

    @asynccontextmanager
    async def serve(folder: Path, _certificates: CertificateFiles) -> AsyncIterator[FileServer]:
        host_key = ensure_key(folder / "host-key")
        user_key = asyncssh.generate_private_key("ssh-ed25519")
        public = user_key.export_public_key().decode() if by_key else ""
        account = Account(USER, public, None if by_key else PASSWORD)
        async with serving_sftp(folder / "files", account, [folder / "host-key"], files=files) as port:
            settings = sftp_settings(port, host_key)
            if by_key:
                settings["private_key"] = plant(user_key.export_private_key().decode())
            yield FileServer("sftp", settings, folder / "files")

    return serve


def in_process_ftps(*, implicit: bool = False, rights: str = "", files: type[AbstractedFS] = AbstractedFS) -> Server:
    """Return our pyftpdlib receiver; `files` may be slow."""

    @asynccontextmanager
    async def serve(folder: Path, certificates: CertificateFiles) -> AsyncIterator[FileServer]:
        tls = Tls(certificates.server, certificates.server_key, implicit)
        receiver = FtpsReceiver(folder / "files", USER, PASSWORD, tls, rights=rights, files=files)
        with serving_ftps(receiver) as port:
            mode = "implicit" if implicit else "explicit"
            yield FileServer("ftps", ftps_settings(port, certificates, tls=mode), folder / "files")

    return serve


@asynccontextmanager
async def in_process_https(folder: Path, certificates: CertificateFiles) -> AsyncIterator[FileServer]:
    """Our aiohttp receiver."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.server, certificates.server_key)
    runner = web.AppRunner(Receiver(folder / "files", SystemClock()).application(), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, 0, ssl_context=tls).start()
        port = runner.addresses[0][1]
        ca_pem = certificates.authority.read_text(encoding="ascii")
        settings = {"url": f"https://localhost:{port}/in", "ca_pem": ca_pem, "port": port}
        # It keeps files by job, and a list of the requests beside them.
        (folder / "files" / "7").mkdir()
        yield FileServer("https", settings, folder / "files" / "7")
    finally:
        await runner.cleanup()


def started(
    start: Callable[[Path, CertificateFiles], AbstractContextManager[FileServer]],
) -> Server:
    """Make an async context manager of one that starts a process; for the moment of the start the loop stands still."""

    @asynccontextmanager
    async def serve(folder: Path, certificates: CertificateFiles) -> AsyncIterator[FileServer]:
        with start(folder, certificates) as running_server:
            yield running_server

    return serve


@started
@contextmanager
def openssh(folder: Path, _certificates: CertificateFiles) -> Iterator[FileServer]:
    """OpenSSH's sshd, for the account that runs the tests, by key."""
    program = installed("sshd")
    host_key = ensure_key(folder / "host-key")
    user_key = asyncssh.generate_private_key("ssh-ed25519")
    (folder / "authorized").write_bytes(user_key.export_public_key())
    (folder / "files").mkdir()
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {LOOPBACK}\nHostKey {folder}/host-key\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n"
        "Subsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    settings = sftp_settings(port, host_key, user=pwd.getpwuid(os.geteuid()).pw_name, directory=str(folder / "files"))
    settings["private_key"] = plant(user_key.export_private_key().decode())
    with running([program, "-D", "-e", "-f", str(folder / "sshd_config")], folder / "sshd.log", port):
        yield FileServer("sftp", settings, folder / "files")


@started
@contextmanager
def proftpd(folder: Path, certificates: CertificateFiles) -> Iterator[FileServer]:
    """ProFTPD with mod_tls, which refuses data connections that do not resume the control connection's session."""
    program = installed("proftpd")
    modules = Path(program).resolve().parents[1] / "lib" / "proftpd"
    files, port = folder / "files", free_port()
    files.mkdir()
    user_id, group_id = os.geteuid(), os.getegid()
    users = folder / "users"
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
    ).stdout.strip()
    users.write_text(f"{USER}:{hashed}:{user_id}:{group_id}::{files}:/bin/false\n")
    users.chmod(0o600)
    names = f"User {pwd.getpwuid(user_id).pw_name}\nGroup #{group_id}\n".replace("#0", "root")
    (folder / "proftpd.conf").write_text(
        f"ModulePath {modules}\nLoadModule mod_tls.c\nLoadModule mod_tls_shmcache.c\n"
        f"ServerType standalone\nServerName test\nDefaultAddress {LOOPBACK}\nPort {port}\n{names}"
        f"RootLogin on\nUseReverseDNS off\nUseIPv6 off\nWtmpLog off\nTransferLog none\nSystemLog {folder}/system.log\n"
        f"PidFile {folder}/pid\nScoreboardFile {folder}/scoreboard\nDelayEngine off\n"
        f"AuthOrder mod_auth_file.c\nAuthUserFile {users}\nRequireValidShell off\nDefaultRoot ~\nAllowOverwrite on\n"
        f"TLSEngine on\nTLSRequired on\nTLSProtocol TLSv1.2 TLSv1.3\nTLSLog {folder}/tls.log\n"
        f"TLSRSACertificateFile {certificates.server}\nTLSRSACertificateKeyFile {certificates.server_key}\n".replace(
            "TLSRSA", "TLSEC"
        )
        + f"TLSSessionCache shm:/file={folder}/sessions\nTLSVerifyClient off\n"
    )
    command = [program, "--nodaemon", "--quiet", "--config", str(folder / "proftpd.conf")]
    with running(command, folder / "proftpd.log", port):
        yield FileServer("ftps", ftps_settings(port, certificates), files)


@started
@contextmanager
def vsftpd(_folder: Path, certificates: CertificateFiles) -> Iterator[FileServer]:
    """vsftpd, which refuses data connections that do not resume the session; needs root for its way of logging in."""
    program = installed("vsftpd")
    if os.geteuid() != 0:
        pytest.skip("vsftpd asks PAM for passwords, which only root can set up")
    # Its account is another one, which must be able to reach the folder.
    folder = Path(tempfile.mkdtemp(prefix="meterpost-vsftpd-"))
    try:
        folder.chmod(0o755)
        with pam_service(folder) as service:
            files, port = folder / "files", free_port()
            files.mkdir()
            guest = pwd.getpwnam("ftp")
            os.chown(files, guest.pw_uid, guest.pw_gid)
            (folder / "empty").mkdir()
            (folder / "vsftpd.conf").write_text(
                f"listen=YES\nlisten_address={LOOPBACK}\nlisten_port={port}\nbackground=NO\nanonymous_enable=NO\n"
                f"local_enable=YES\nwrite_enable=YES\nguest_enable=YES\nguest_username=ftp\nvirtual_use_local_privs=YES\n"
                f"local_root={files}\nchroot_local_user=YES\nallow_writeable_chroot=YES\nlocal_umask=022\n"
                f"pam_service_name={service}\nsecure_chroot_dir={folder}/empty\nxferlog_enable=NO\nseccomp_sandbox=NO\n"
                f"ssl_enable=YES\nforce_local_logins_ssl=YES\nforce_local_data_ssl=YES\nrequire_ssl_reuse=YES\n"
                f"ssl_tlsv1=YES\nssl_ciphers=HIGH\nrsa_cert_file={certificates.server}\n"
                f"rsa_private_key_file={certificates.server_key}\npasv_enable=YES\npasv_address=192.0.2.1\n"
                f"force_dot_files=YES\n"
            )
            with running([program, str(folder / "vsftpd.conf")], folder / "vsftpd.log", port):
                yield FileServer("ftps", ftps_settings(port, certificates), files)
    finally:
        shutil.rmtree(folder)


@contextmanager
def pam_service(folder: Path) -> Iterator[str]:
    """Give the name of a PAM service that knows our user and password alone; it is removed again."""
    name = f"meterpost-test-{os.getpid()}"
    # Only Perl, which every Debian has, writes the kind of database that PAM reads.
    script = "use DB_File; tie %h, 'DB_File', $ARGV[0], O_RDWR|O_CREAT, 0600, $DB_HASH or die; $h{$ARGV[1]} = $ARGV[2]"
    subprocess.run(["perl", "-MFcntl", "-e", script, str(folder / "users.db"), USER, PASSWORD], check=True)
    file = Path("/etc/pam.d") / name
    rule = f"required pam_userdb.so db={folder}/users crypt=none"
    file.write_text(f"auth {rule}\naccount {rule}\n")
    try:
        yield name
    finally:
        file.unlink()


@contextmanager
def running(command: list[str], log_file: Path, port: int) -> Iterator[None]:
    """Run a server as a child of the test until the end of the block."""
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:

        def answers() -> bool:
            if process.poll() is not None:
                pytest.fail(f"{command[0]} ended: {log_file.read_text(errors='replace')}")
            return _is_open(port)

        eventually(answers, 10, because=f"{command[0]} listens")
        yield
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        sys.stdout.write(log_file.read_text(errors="replace")[-2_000:])


def _is_open(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True
