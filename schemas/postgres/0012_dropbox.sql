-- The hosted SFTP folder: who may log in, and what became of the files.

-- An account of one organization's folder. Written by the API and the `meterpost` command, by services/api; the service
-- itself notes logins only. Names are unique over all organizations: a name is all that SSH tells of an account.
CREATE TABLE dropbox_account (
    user_name           text PRIMARY KEY CHECK (user_name ~ '^[a-z][a-z0-9._-]{1,63}$' AND user_name !~ '^meterpost'),
    organization_id     integer NOT NULL REFERENCES organization,
    -- Argon2id in its text form; NULL: keys only.
    password_hash       text CHECK (password_hash LIKE '$argon2id$%'),
    -- Raised by whatever takes a right away: sessions that began under an earlier version are ended.
    credentials_version integer NOT NULL DEFAULT 1,
    disabled_at         timestamptz,
    created_at          timestamptz NOT NULL DEFAULT now(),
    last_login_at       timestamptz,
    last_login_from     text
);
CREATE INDEX dropbox_account_by_organization ON dropbox_account (organization_id);

CREATE TABLE dropbox_key (
    user_name   text NOT NULL REFERENCES dropbox_account,
    -- SHA256:…, as `ssh-keygen -l` shows it.
    fingerprint text NOT NULL,
    -- ssh-ed25519 AAAA…, without a comment.
    public_key  text NOT NULL,
    comment     text NOT NULL DEFAULT '',
    added_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_name, fingerprint)
);

-- The record of each file: the folder on disk is the truth about what is there, this about what happened to it. Owned by
-- services/dropbox.
CREATE TABLE dropbox_file (
    organization_id  integer NOT NULL REFERENCES organization,
    file_name        text NOT NULL,
    deposited_at     timestamptz NOT NULL,
    size_bytes       bigint NOT NULL CHECK (size_bytes >= 0),
    -- Times that a customer's account read the file to its end.
    fetch_count      integer NOT NULL DEFAULT 0,
    first_fetched_at timestamptz,
    last_fetched_at  timestamptz,
    last_fetched_by  text,
    removed_at       timestamptz,
    -- The customer's account, or 'retention', or 'unknown': it was gone without our doing.
    removed_by       text,
    PRIMARY KEY (organization_id, file_name, deposited_at),
    CHECK ((removed_at IS NULL) = (removed_by IS NULL))
);
CREATE UNIQUE INDEX dropbox_file_present ON dropbox_file (organization_id, file_name) WHERE removed_at IS NULL;
CREATE INDEX dropbox_file_removed ON dropbox_file (removed_at) WHERE removed_at IS NOT NULL;
