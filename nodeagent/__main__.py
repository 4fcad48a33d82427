"""`python -m nodeagent`: the command line."""

from nodeagent.cli.main import main

main()
