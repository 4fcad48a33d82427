"""Pure decisions over the model: no I/O, no clock, no asyncio. Whoever calls brings the facts and the time."""
