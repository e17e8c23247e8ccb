"""What the commands say to people, on stderr."""

import logging
import sys


def say(text: str) -> None:
    """Print to the people's channel; a secret that a library put into its message is not passed on."""
    from llm2enc.storage import redacted

    print(redacted(text), file=sys.stderr)


def quiet() -> None:
    """Libraries' progress bars and notices make way for our own."""
    from llm2enc.model import quiet

    quiet()


def narrate() -> None:
    """Let the main process say what the library logs: which rows are read, how, and what is wrong with them."""
    from llm2enc import distributed

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if distributed.is_main():
                say(f"{'warning: ' * (record.levelno >= logging.WARNING)}{record.getMessage()}")

    logger = logging.getLogger("llm2enc")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
