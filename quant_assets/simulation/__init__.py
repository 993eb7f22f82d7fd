"""Paths and transition buffers simulated from the posterior."""
