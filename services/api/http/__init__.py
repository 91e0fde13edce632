"""The HTTP API: what is common to all routes; the routes themselves are in `routes`."""
