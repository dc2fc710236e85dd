"""The glass box: what a model computes, seen and changed by name."""
