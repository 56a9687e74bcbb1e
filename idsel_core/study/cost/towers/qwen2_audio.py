"""Qwen2-Audio: two convolutions over a spectrum, a tower on its frames, and projected means of two frames."""

from __future__ import annotations

from typing import Any

from idsel_core.study.cost.shapes import Tower

KERNEL = 3
SHORTEST = 3
"""Mel frames of the shortest clip that gives a token."""


def qwen2_audio(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower for a clip of `size` mel frames, by default the longest; raises ValueError for a wrong size.

    Clips are padded, so the tower's cost is always that of the longest; the number of visual tokens differs.
    """
    audio = config.audio_config
    frames, longest = audio.max_source_positions, 2 * audio.max_source_positions
    steps = longest if size is None else size[0]
    if size is not None and size[0] != size[1]:
        raise ValueError(f"the size of an audio clip is one number, its mel frames, not {size[0]} x {size[1]}")
    if not SHORTEST <= steps <= longest:
        raise ValueError(f"an audio clip must have {SHORTEST} to {longest} mel frames, not {steps}")
    hidden, heard = audio.d_model, (steps + 1) // 2
    return Tower(
        pixels=(1, audio.num_mel_bins, longest),
        embedding=2 * KERNEL * hidden * (longest * audio.num_mel_bins + frames * hidden),
        tokens=frames,
        visual=heard // 2,
        features=hidden,
        hidden=hidden,
        query=hidden,
        intermediate=audio.encoder_ffn_dim,
        matrices=2,
        pairs=(frames**2,) * audio.encoder_layers,
        rows=heard**2,
        pooling=0,
        # Padding is projected, too.
        projections=((frames // 2, hidden, width),),
        beside={"feature_attention_mask": [[1] * steps + [0] * (longest - steps)]},
        name="input_features",
    )
