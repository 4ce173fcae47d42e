"""imagewarden: self-hosted image moderation."""

__version__ = "0.1.0"
