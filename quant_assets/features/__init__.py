"""Layer 2. What a model sees of a session (indicators, sentiment) and what it learns from (labels)."""
