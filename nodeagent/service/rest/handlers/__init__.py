"""One module per Batch entity; each handler only translates between the wire and the store."""
