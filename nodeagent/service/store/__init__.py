"""The store: SQL in one place per entity, as plain functions of a `Transaction` (design.md §7)."""
