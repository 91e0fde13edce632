"""What we agree to in SSH, as a client of customers' servers and as the server of the hosted folder.

Current algorithms only, none of which rests on SHA-1: a peer that offers none of them is too old to be trusted with a
password or a file. The first that both sides know is used.
"""

from asyncssh.kex import get_kex_algs

# Those that Python's libraries here can do: the first one, safe against quantum computers, not with every OpenSSL.
KEY_EXCHANGES = tuple(
    name
    for name in (
        "mlkem768x25519-sha256",
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
        "ecdh-sha2-nistp384",
        "ecdh-sha2-nistp521",
        "diffie-hellman-group16-sha512",
        "diffie-hellman-group18-sha512",
        "diffie-hellman-group14-sha256",
    )
    if name.encode() in get_kex_algs()
)
# The fast ones first, where the processor has AES in hardware.
CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")
SIGNATURES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
"""Of keys, hosts' and users': an RSA key is fine, a signature by it over SHA-1 (`ssh-rsa`) is not."""
