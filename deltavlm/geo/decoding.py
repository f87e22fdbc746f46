"""What a decoder complains of without failing: a flipped bit in a JPEG is wrong pixels, and no error."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["complaints_told"]

logger = logging.getLogger(__name__)

GDALS_LOG = logging.getLogger("rasterio._err")
COMPLAINT = re.compile(r"JPEGLib|libjpeg|libpng|opj_|LZW|corrupt.* data", re.IGNORECASE)


class _Listener(logging.Filter):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name_told, self.told = name, set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        words = record.getMessage().removeprefix("CPLE_AppDefined:").partition(" (this warning")[0]
        kind = re.sub(r"\d+", "", words)
        if COMPLAINT.search(words) and kind not in self.told:
            self.told.add(kind)
            logger.warning(
                "%s: a decoder complains (%s), so some pixels may be wrong although they can be read; "
                "compare the file with its source, or copy it again",
                self.name_told,
                words,
            )
        return logging.getLogger().isEnabledFor(record.levelno)


@contextmanager
def complaints_told(name: str) -> Iterator[None]:
    """While open, what GDAL's decoders complain of is logged as a warning, each kind once."""
    listener, level = _Listener(name), GDALS_LOG.level
    GDALS_LOG.addFilter(listener)
    GDALS_LOG.setLevel(logging.WARNING)
    try:
        yield
    finally:
        GDALS_LOG.setLevel(level)
        GDALS_LOG.removeFilter(listener)
