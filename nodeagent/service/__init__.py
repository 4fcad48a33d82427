"""The durable Batch service: REST for clients, the node protocol for agents, a scheduler and a store between them."""
