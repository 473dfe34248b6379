"""From a cache directory to a layer, an image, a registry, and an installed directory."""
