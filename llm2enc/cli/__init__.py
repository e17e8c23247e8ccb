"""The command line: one command, one file. `main` is the entry point."""

from llm2enc.cli.app import app, main

__all__ = ["app", "main"]
