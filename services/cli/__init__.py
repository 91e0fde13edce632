"""The `meterpost` command."""
