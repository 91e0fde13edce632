"""The pure domain: no IO, no clock, nothing of ours imported."""
