"""One module for each SQL file, as Alembic wants it."""
