"""Local mode: service and agents composed on one machine over real HTTP on loopback (design.md §2)."""
