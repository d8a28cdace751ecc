"""Networks of images: to classes, or to one class a pixel."""
