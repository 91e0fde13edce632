"""Manual exports: any range, computed from the readings in chunks, into one file in the object store."""
