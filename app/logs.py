"""Logs: one line an event, on standard error; JSON where nobody watches."""

import logging
import re
import sys
from typing import Any

import structlog

_SECRETS = (
    # Our keys, OpenAI's, tokens of the model hub, signing secrets of webhooks.
    (re.compile(r"\b(sk-(?:unf-)?|hf_|whsec_)[A-Za-z0-9_+/=-]{8,}"), r"\1..."),
    (re.compile(r"(?i)\b(bearer|basic) +[^\s\"',]+"), r"\1 ..."),
    # The password in a URL.
    (re.compile(r"(://[^/\s:@\"']*:)[^/\s@]+@"), r"\1...@"),
)


def without_secrets(line: str) -> str:
    """The line without what looks like a key or a password.

    Nothing is logged that is known to hold one. This is for what is not known: an error's text, a path that somebody
    has pasted a key into.
    """
    for pattern, replacement in _SECRETS:
        line = pattern.sub(replacement, line)
    return line


def configure_logs(level: str) -> None:
    """Sets structlog up for this process; the level is one of DEBUG, INFO, WARNING, ERROR."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _Redacted(renderer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


class _Redacted:
    """A renderer whose lines hold nothing that looks like a secret."""

    def __init__(self, renderer: structlog.typing.Processor) -> None:
        self._render = renderer

    def __call__(self, logger: Any, name: str, event: structlog.typing.EventDict) -> str:
        return without_secrets(str(self._render(logger, name, event)))
