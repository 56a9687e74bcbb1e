"""Time what an importance score adds to the vision tower: python benchmarks/importance.py.

Two passes take turns: the tower with its projector, and the same with a hook on one layer, whose queries and keys give
a view: the attention of [CLS], that and the keys, or the attention that each token receives. The overhead compares the
fastest passes. It includes what the backbone does around the tower, and is lost in the noise of a busy machine where
the tower is large, so the view is also timed alone.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel

from idsel_core.backbones import Backbone, adapter_for
from idsel_core.backbones._shared.qk_capture import attention_modules, capture_qk
from idsel_core.backbones._shared.tower_views import attention_views
from idsel_core.study.cost import read_config
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import MODEL
from idsel_core.study.store.files import write_table
from idsel_core.study.store.provenance import provenance
from idsel_core.study.timing.interleaved import in_turns

VIEWS = {
    "saliency": ("cls_attention",),
    "saliency and keys": ("cls_attention", "keys"),
    "received": ("received_attention",),
}


def full_size(config: Path) -> Backbone:
    """Return a model with the whole tower and projector of a configuration, and next to no language model."""
    whole, _ = read_config(config)
    text = {"num_hidden_layers": 1, "vocab_size": whole.image_token_id + 1, "intermediate_size": 8, "pad_token_id": 0}
    whole.text_config.update(text)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(whole, dtype=torch.float32)
    return adapter_for(model.eval())


def compare(backbone: Backbone, pixels: Tensor, given: argparse.Namespace) -> pd.DataFrame:
    """Time plain passes, passes with views, and the views alone."""
    plain = functools.partial(backbone.core.get_image_features, pixels, return_dict=True)
    with capture_qk(attention_modules(backbone.core.vision_tower)[-1]) as seen:
        plain()
    alone = attention_views(seen, 1, has_cls="cls_attention" in backbone.encode(pixels).views)

    def read(views: Mapping[str, Callable[[], Tensor]], *names: str) -> None:
        for name in names:
            views[name]()

    views = {name: reads for name, reads in VIEWS.items() if set(reads) <= set(alone)}
    calls: dict[str, Callable[[], object]] = {"tower": plain}
    calls |= {name: lambda reads=reads: read(backbone.encode(pixels).views, *reads) for name, reads in views.items()}
    times = in_turns(calls, given.rounds, given.seconds, given.clock).set_index("contestant")
    by_view = {name: functools.partial(read, alone, *reads) for name, reads in views.items()}
    times["view_ms"] = in_turns(by_view, 20, 20, given.clock).set_index("contestant")["fastest_ms"]
    times["view_share"] = times["view_ms"] / times.at["tower", "fastest_ms"]
    times["overhead"] = times["fastest_ratio"] - 1
    return times.reset_index()


def main() -> int:
    """Print the times and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="turns that are measured (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=60, help="about the most seconds for one case (default: %(default)s)"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="images at once (default: 1 4)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--clock",
        choices=("wall", "thread"),
        default="wall",
        help="thread: CPU time, less disturbed by other processes",
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("llava-1.5-7b"),
        help="published model, by name or configuration file, whose tower is timed at full size (default: %(default)s)",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results/benchmarks"), help="folder of the times (default: %(default)s)"
    )
    parser.add_argument("--job", default="importance-cpu", help="name of the file in it (default: %(default)s)")
    given = parser.parse_args()
    if given.clock == "thread" and given.threads != 1:
        parser.error("--clock thread is for --threads 1")
    started = time.perf_counter()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    print(f"CPU {platform.machine()}, {given.threads} threads, torch {torch.__version__}, {given.clock} time")
    towers = {
        "embedded": (open_backbone(MODEL)[0], MODEL),
        given.config.name.removesuffix(".json"): (full_size(given.config), given.config),
    }
    tables = []
    for (name, (backbone, path)), batch in itertools.product(towers.items(), given.batches):
        pixels = torch.randn(batch, 3, *read_config(path)[1])
        with torch.no_grad():
            times = compare(backbone, pixels, given)
        tables.append(times.assign(tower=name, batch=batch))
        print(f"\n{name}, {batch} images of {tuple(pixels.shape[2:])}: {times.at[0, 'median_ms']:.1f} ms", flush=True)
        for row in times.iloc[1:].itertuples():
            print(
                f"{row.contestant:>18}: {100 * row.overhead:+6.2f} % of the pass; "
                f"the view alone {row.view_ms:.2f} ms, {100 * row.view_share:.2f} %",
                flush=True,
            )
    rows = pd.concat(tables).assign(device=f"CPU {platform.machine()}", threads=given.threads)
    parameters = {name: str(value) for name, value in vars(given).items()}
    path = given.results / f"{given.job}.parquet"
    write_table(path, rows, provenance(parameters, started=started))
    print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
