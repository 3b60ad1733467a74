"""From a photo to a name: detection, alignment, galleries of known people."""
