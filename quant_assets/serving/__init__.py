"""Layer 4. Live signals from the champions."""
