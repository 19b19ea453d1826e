"""Stands in for the Python module of 3FS; see fs3.client.adapters.hf3fs."""
