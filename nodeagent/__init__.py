"""nodeagent: an Azure Batch compute-node agent that anyone can run, and the small Batch service it needs."""

__version__ = "0.1.0"
