"""Say one sentence with espeak-ng and write its samples, 16 bits each, to standard output.

    python data/speech/speak.py FOLDER VOICE SPEED < sentence

FOLDER is the unpacked package espeakng_loader; the sample rate goes to standard error. Each sentence is said by a
process of its own, because the synthesis of espeak-ng depends on what it said before.
"""

import ctypes
import sys
from pathlib import Path

SYNCHRONOUS, RATE, CHARACTERS, UTF8 = 2, 1, 1, 1
"""AUDIO_OUTPUT_SYNCHRONOUS, espeakRATE, POS_CHARACTER and espeakCHARS_UTF8 of speak_lib.h."""


def main() -> int:
    folder, voice, speed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
    rate = library.espeak_Initialize(SYNCHRONOUS, 0, str(folder / "espeak-ng-data").encode(), 0)
    if rate <= 0 or library.espeak_SetVoiceByName(voice.encode()):
        print(f"espeak-ng has no voice {voice!r} in {folder}", file=sys.stderr)
        return 1
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # the breath of a voice is noise
    samples = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    def take(wave: int | None, count: int, events: int) -> int:
        samples.extend(ctypes.string_at(wave, 2 * count) if wave else b"")
        return 0

    library.espeak_SetSynthCallback(take)
    library.espeak_SetParameter(RATE, speed, 0)
    text = sys.stdin.buffer.read() + b"\0"
    library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, CHARACTERS, 0, UTF8, None, None)
    library.espeak_Synchronize()
    sys.stdout.buffer.write(samples)
    print(rate, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
