"""The log of aiohttp's servers, without what callers do wrong: whoever sends no HTTP gets a 400, and no
traceback fills the log. For the gateway and the monitor.
"""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError


def server_log() -> logging.Logger:
    """What remains are our own failures; they go to standard error."""
    log = logging.Logger("http", logging.ERROR)
    log.addFilter(_is_ours)
    return log


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | ConnectionError)
