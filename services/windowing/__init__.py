"""Closes windows when everything that belongs to them has been stored."""
