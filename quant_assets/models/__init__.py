"""Layer 3. Trained models, measured out of sample, in the registry."""
