"""Wall times of encoding, selection, prefill and decoding."""
