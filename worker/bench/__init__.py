"""What the service does on this machine, measured: ``imagewarden bench`` and ``make bench``."""
