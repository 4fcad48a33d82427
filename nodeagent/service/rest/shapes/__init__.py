"""Rows of the store as the wire shows them (spec/rest.md §3)."""
