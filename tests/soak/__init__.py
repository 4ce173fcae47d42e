"""The service under hours of steady load, good and bad images mixed."""
