"""From a manifest to a cache directory, on a machine without a GPU."""
