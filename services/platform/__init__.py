"""IO plumbing that every service needs; no business rules."""
