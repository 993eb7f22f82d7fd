"""The asset graph: one folder per layer, in the order in which data flow (market, features, models, serving)."""
