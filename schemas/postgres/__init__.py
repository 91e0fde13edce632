"""Migrations: plain SQL, run in order."""
