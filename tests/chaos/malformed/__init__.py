"""Malformed inputs of every kind, given to the real commands in processes of their own."""
