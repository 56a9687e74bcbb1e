"""Time the selection of every method on the same random tokens: python benchmarks/peers.py.

All methods take turns. The median is printed in milliseconds and as a multiple of top-K by [CLS] attention
(fastervlm). The attention, features and similarities that a method reads are at hand, so the time is that of choosing
and merging alone. A method that only drops inside the language model is timed in one drop from N to K, with its
attention rows. --results keeps the times in a store of times, --out in a file with the methods that were left out.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import transformers
from torch import Tensor

from idsel_core.methods import InLLM, Method, get_method, list_methods
from idsel_core.methods._shared.in_llm import LayerTokens
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.times import Times, selection_rows
from idsel_core.study.timing.interleaved import in_turns
from idsel_core.visual_tokens import VisualTokens

BASE = "fastervlm"
SQUARES = {"vispruner": 2, "divprune": 2, "cdpruner": 4, "scope": 4, "mmtok": 6, "tome": 0.5}
SQUARES |= {"holov": 3, "prunesid": 8, "adaptive": 4}
"""Tables of N x N float32 that methods hold at once, about, as measured."""
VIDEO = ("evs", "vidcom2", "dycoke", "fastvid", "holitom")
"""Methods that select tokens of videos."""
TOWER, HEADS, WORDS, DECODER_LAYERS = 1024, 16, 12, 32
HEAD = 128


def make_tokens(n: int, width: int, device: str) -> VisualTokens:
    """Return one image of n tokens in 40 clusters, with every view."""
    cluster = torch.randint(40, (n,))

    def clustered(*shape: int) -> Tensor:
        return (torch.randn(40, *shape)[cluster] + 0.5 * torch.randn(n, *shape))[None].to(device)

    def shares() -> Tensor:
        return torch.randn(1, n).mul(2).softmax(1).to(device)

    views = {
        "encoder_features": clustered(TOWER),
        "keys": clustered(HEADS, TOWER // HEADS),
        "keys@1": clustered(HEADS, TOWER // HEADS),
        "cls_features": torch.randn(1, TOWER, device=device),
        "relevance": 0.2 * clustered(1)[..., 0].tanh(),
        "word_similarity": 0.2 * clustered(WORDS).tanh(),
        "image_key": torch.ones(1, dtype=torch.long, device=device),
    }
    tower_depths = {depth for name in list_methods() for depth in get_method(name, budget=1).tower_depths}
    for place in ("", *(f"@{depth:g}" for depth in tower_depths)):
        views |= {f"{name}{place}": shares() for name in ("cls_attention", "received_attention", "wide_cls_attention")}
    views["instruction_attention"] = shares()
    sources = {name: lambda *_, view=view: view for name, view in views.items()}
    sources["projector"] = lambda x: torch.nn.functional.pad(x, (0, width - TOWER))
    mask = torch.ones(1, n, dtype=torch.bool, device=device)
    return VisualTokens(clustered(width), mask, cells(n).to(device), sources, decoder_layers=DECODER_LAYERS)


def cells(n: int) -> Tensor:
    """Return the places (1, n, 2) of a grid that is as square as it can be."""
    columns = next(i for i in range(math.isqrt(n), n + 1) if n % i == 0)
    place = torch.arange(n)
    return torch.stack([place // columns, place % columns], 1)[None]


def as_video(tokens: VisualTokens) -> VisualTokens:
    """Return the same tokens as up to 5 frames of a video."""
    n = tokens.mask.shape[1]
    frames = next(i for i in (5, 4, 3, 2, 1) if n % i == 0)
    device = tokens.mask.device
    number = torch.arange(frames, device=device).repeat_interleave(n // frames)[None]
    grid = cells(n // frames).to(device).repeat(1, frames, 1)
    return replace(tokens, grid=grid, sources={**tokens.sources, "frames": lambda: number}, _cache={})


def in_prompt(tokens: VisualTokens) -> LayerTokens:
    """Return the tokens within a prompt, WORDS words behind them, as a layer of the language model has them."""
    n, width = tokens.features.shape[1:]
    device, length = tokens.features.device, n + WORDS
    place = torch.arange(length, device=device)[None]
    states = torch.cat([tokens.features, torch.randn(1, WORDS, width, device=device)], 1)
    query, key = (states.view(1, length, -1, HEAD).transpose(1, 2).contiguous() for _ in range(2))
    return LayerTokens(
        states=states,
        columns=place[:, :n],
        real=place >= 0,
        text=place >= n,
        query_tokens=place == length - 1,
        read=lambda: (query, key, HEAD**-0.5),
    )


def inside_alone(method: Method) -> bool:
    """Tell whether a method chooses nothing before the language model."""
    return isinstance(method, InLLM) and type(method).select is InLLM.select


def calls(methods: dict[str, Method], tokens: VisualTokens) -> dict[str, Callable[[], object]]:
    """Return what is timed of each method."""
    video, layer = as_video(tokens), in_prompt(tokens)
    found: dict[str, Callable[[], object]] = {}
    for name, method in methods.items():
        if isinstance(method, InLLM) and inside_alone(method):
            counts = torch.tensor([method.budget], device=layer.columns.device)
            # A copy, because attention is computed once and kept.
            found[name] = lambda method=method, counts=counts: method.choose(replace(layer), counts)
        else:
            found[name] = partial(method.select, video if name in VIDEO else tokens)
    return found


def case(text: str) -> tuple[int, int]:
    """Read "N:K"."""
    n, k = map(int, text.split(":"))
    if not 1 <= k <= n:
        raise argparse.ArgumentTypeError(f"a case is tokens:kept, not {text!r}")
    return n, k


def main() -> None:
    """Print one table a case and, if asked, write a row for each method and case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ["144:16", "288:32", "576:16", "576:64", "576:192", "1152:128", "2880:320", "12000:1024"]
    parser.add_argument(
        "--cases",
        type=case,
        nargs="+",
        default=[*map(case, every)],
        metavar="N:K",
        help=f"tokens and budget (default: {' '.join(every)})",
    )
    parser.add_argument("--methods", nargs="+", default=list(list_methods()), metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="turns that are measured (default: %(default)s)")
    parser.add_argument("--width", type=int, default=4096, help="width of a token's features (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument(
        "--memory", type=float, default=1.0, help="GiB that N x N tables of a method may take (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the times as .csv or .parquet")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="store of times to write to (default: none)")
    parser.add_argument("--job", help="name in that store (default: peers and the device)")
    given = parser.parse_args()
    if given.out and given.out.suffix not in (".csv", ".parquet"):
        parser.error(f"--out must end in .csv or .parquet, not {given.out.name!r}")
    if given.width < TOWER:
        parser.error(f"--width must be {TOWER} or more, not {given.width}")
    started, names = time.perf_counter(), list(dict.fromkeys([BASE, *given.methods]))
    cuda = torch.device(given.device).type == "cuda"
    machine = torch.cuda.get_device_name(given.device) if cuda else f"CPU {platform.machine()}"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, D = {given.width}")
    print(f"one image, median of {given.rounds} runs, and multiples of {BASE}'s")
    rows = []
    for n, k in given.cases:
        torch.manual_seed(0)
        tokens = make_tokens(n, given.width, given.device)
        methods, left_out = {}, {}
        for name in names:
            needed = SQUARES.get(name, 0) * 4 * n * n / 2**30
            if needed > given.memory:
                left_out[name] = f"its N x N tables take about {needed:.1f} GiB, more than --memory {given.memory:g}"
                continue
            method = get_method(name, budget=k)
            if inside_alone(method) and method.least(n) > k:
                left_out[name] = f"one drop of {n} tokens leaves {method.least(n)} or more"
                continue
            try:
                method.select(as_video(tokens) if name in VIDEO else tokens)
                methods[name] = method
            except ValueError as error:
                left_out[name] = str(error)
        print(f"\nN = {n}, K = {k}")
        spread = in_turns(calls(methods, tokens), given.rounds).set_index("contestant")
        times = spread["median_ms"].to_dict()
        for name in sorted(times, key=times.__getitem__):
            print(f"{name:>14} {times[name]:10.2f} ms {times[name] / times[BASE]:9.1f}x")
        for name, why in left_out.items():
            print(f"{name:>14}  left out: {why}")
        for name in names:
            milliseconds = times.get(name, math.nan)
            row = {"tokens": n, "budget": k, "method": name, "ms": milliseconds, "ratio": milliseconds / times[BASE]}
            low, high = (spread[column].get(name, math.nan) for column in ("low_ms", "high_ms"))
            row |= {"low": low, "high": high, "threads": torch.get_num_threads()}
            row |= {"torch": torch.__version__, "transformers": transformers.__version__}
            rows.append({**row, "left_out": left_out.get(name, ""), "rounds": given.rounds, "device": machine})
    frame = pd.DataFrame(rows)
    if given.out:
        frame.to_csv(given.out, index=False) if given.out.suffix == ".csv" else frame.to_parquet(given.out, index=False)
    if given.results:
        asked = {name: str(value) for name, value in vars(given).items()}
        left_out = frame[frame["left_out"] != ""]
        missing = {f"{row.method} at {row.budget} of {row.tokens}": row.left_out for row in left_out.itertuples()}
        note = provenance({**asked, "missing": missing}, device=machine, started=started)
        job = given.job or f"peers-{torch.device(given.device).type}"
        print(f"\nwritten to {Times(given.results).write(job, selection_rows(frame), note)}")


if __name__ == "__main__":
    main()
