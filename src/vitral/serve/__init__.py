"""HTTP over the engine: existing clients work by changing a URL, and no answer depends on who else asks."""
