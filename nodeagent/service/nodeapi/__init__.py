"""The service's side of the node protocol (model/protocol.py)."""
