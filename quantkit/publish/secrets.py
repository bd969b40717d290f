"""No token, and no signed address, in a message or a log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

# whatever stands behind the question mark of an address may be a signature that lets anybody upload
_QUERY = re.compile(r"(https?://[^\s'\"<>?]+)\?[^\s'\"<>]*")
# tokens as the hub makes them, also another one than ours
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{16,}\b")


def redacted(text: str, *secrets: str) -> str:
    """The text without secrets, tokens and signatures."""
    for secret in secrets:
        for form in (secret, repr(secret)[1:-1], quote(secret, safe="")):
            if form.strip():
                text = text.replace(form, "***")
    return _TOKEN.sub("***", _QUERY.sub(r"\1?***", text))


@contextmanager
def redacted_logs(*secrets: str) -> Iterator[None]:
    """Every log record that is made meanwhile, of whatever library and level, comes without them."""
    make = logging.getLogRecordFactory()

    def record(*arguments: Any, **more: Any) -> logging.LogRecord:
        made = make(*arguments, **more)
        made.msg, made.args = redacted(made.getMessage(), *secrets), ()
        if made.exc_info and made.exc_info[1] is not None:
            # a handler would print the traceback's last line, which is the exception's own text
            made.msg += f" ({type(made.exc_info[1]).__name__})"
            made.exc_info = None
        return made

    logging.setLogRecordFactory(record)
    try:
        yield
    finally:
        logging.setLogRecordFactory(make)
