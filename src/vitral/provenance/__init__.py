"""Where a model comes from, and what may be done with it."""
