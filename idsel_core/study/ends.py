"""Names, beside those of methods, of the ends of the scale: all visual tokens, no image, the image of another scene."""

FULL, BLIND, OTHER = "full", "no-image", "other-image"
