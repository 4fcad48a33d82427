"""The command line: parse, call, print. What a command does lives in `local`, `service` and `agent`."""
