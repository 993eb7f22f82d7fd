"""Layer 1. Raw bars, news, quotes and the security master, judged before they are stored."""
