"""The whole service on one machine, with everything it needs started beside it."""
