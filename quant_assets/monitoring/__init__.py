"""Layer `monitoring`: whether what the served models see, say and achieve is still what they were trained on."""
