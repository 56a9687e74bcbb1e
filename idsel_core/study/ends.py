"""Names, beside those of methods, of the two ends of the scale: all visual tokens, and no image at all."""

FULL, BLIND = "full", "no-image"
