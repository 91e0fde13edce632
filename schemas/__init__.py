"""Every contract of the platform."""
