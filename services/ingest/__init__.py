"""Readings from Kafka into PostgreSQL, exactly once."""
