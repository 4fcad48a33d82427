"""The agent daemon: what one compute node does with the attempts that the service gives it (design.md §4 to §6)."""
