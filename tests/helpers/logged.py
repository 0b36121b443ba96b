"""What the package logs, for tests and for the processes they start."""

import contextlib
import logging


@contextlib.contextmanager
def logged():
    """The sentences that the package logs in the block, as a list that grows."""
    said, logger, handler = [], logging.getLogger("atlas_jax"), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
