"""Runtimes: what really runs an attempt. `process` through shims, `zero` nothing at all, `fake` by a test's script."""
