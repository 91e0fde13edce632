"""The server's own keys: made at the first start, several during a rotation.

They lie in a folder, each in a file of its own, in OpenSSH's form. Of each type the first by file name is used; the
others are announced, with proof, to clients that ask for it, so that they know them before they come into use.
"""

from pathlib import Path

import asyncssh

from services.core.file_transfer import HOST_KEY_TYPES, fingerprint
from services.platform.errors import UserError

FIRST_KEY = "host-key-1"
PUBLIC_FILE = "host-keys.pub"


def load_host_keys(folder: Path) -> list[asyncssh.SSHKey]:
    """Return the keys in `folder/host-keys`, made where there is none, and write their public halves beside it.

    Raises UserError that names the file that cannot be used, OSError. Blocks.
    """
    keys_folder = folder / "host-keys"
    keys_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = sorted(file for file in keys_folder.iterdir() if file.suffix != ".pub" and not file.name.startswith("."))
    if not files:
        files = [_made(keys_folder / FIRST_KEY, "meterpost dropbox")]
    keys = [_read(file) for file in files]
    public = folder / PUBLIC_FILE
    partial = public.with_suffix(".partial")
    partial.write_text("".join(f"{public_line(key)}\n" for key in keys), encoding="ascii")
    partial.replace(public)
    return keys


def ensure_delivery_key(file: Path) -> str:
    """Return the public half of delivery's key in `file`, both made where there is none, and write it to FILE.pub.

    Raises UserError where it cannot be used, OSError. Blocks.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        _made(file, "meterpost delivery")
    line = f"{public_line(_read(file))} delivery"
    file.with_name(f"{file.name}.pub").write_text(f"{line}\n", encoding="ascii")
    return line


def public_line(key: asyncssh.SSHKey) -> str:
    """Return the public half as `ssh-ed25519 AAAA…`."""
    return " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])


def shown(key: asyncssh.SSHKey) -> str:
    """Return type and fingerprint, as customers compare them."""
    line = public_line(key)
    return f"{line.split()[0]} {fingerprint(line)}"


def _made(file: Path, comment: str) -> Path:
    key = asyncssh.generate_private_key("ssh-ed25519", comment=comment)
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    partial.write_bytes(key.export_private_key())
    partial.replace(file)
    return file


def _read(file: Path) -> asyncssh.SSHKey:
    if file.stat().st_mode & 0o077:
        raise UserError(f"others than its owner may read the key {file}: run chmod 600 on it")
    try:
        key = asyncssh.read_private_key(file)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError):
        raise UserError(
            f"{file} holds no private key that can be used: it must be one without a passphrase, in a file of its own"
        ) from None
    if public_line(key).split()[0] not in HOST_KEY_TYPES:
        raise UserError(f"the key {file} is of a type that is not supported; types: {', '.join(HOST_KEY_TYPES)}")
    return key
