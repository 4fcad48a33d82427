"""The Batch REST API: handlers that authenticate, validate, call the store and shape the answer (spec/rest.md)."""
