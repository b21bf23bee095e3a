"""Who writes replies."""
