"""Meterpost: posts the closed intervals of pulse meters to the customers' own servers."""
