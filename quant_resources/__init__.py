"""The world outside: settings, calendar, Iceberg, DuckDB, vendors, registry, alerts.

Belongs here: whatever talks to a file, a process, a network or a clock. Does not belong here: anything that
knows what a feature, a label or a strategy is; that lives in `quant_assets`.
"""
