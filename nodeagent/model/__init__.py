"""The Batch vocabulary as frozen pydantic models and enums: one definition for the wire, the store and the agent.

No I/O happens here. Property names are those of the Batch REST API (camelCase aliases); values keep the spelling
of api-version 2025-06-01 and are accepted in any case (spec/rest.md §1.3).
"""
