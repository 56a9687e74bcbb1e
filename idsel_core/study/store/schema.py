"""The columns of rows and of times: their names, types and meanings, and the check that a table has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pandas as pd
import pyarrow as pa

# A type that ends in "?" allows null.
_COLUMNS: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "rows": {
        "run_id": ("string", "the run: the job's name, a hyphen and a hash of the settings in the columns below"),
        "backbone": ("string", "the model that answered: `embedded`, a hub id, or the name of a folder"),
        "revision": ("string?", "commit of a hub checkpoint; null for a folder"),
        "dtype": ("string?", "type of the weights, and the quantisation and attention implementation asked for"),
        "template": (
            "string?",
            "hash of the chat template and of the settings by which images, or clips, are prepared",
        ),
        "dataset": ("string", "the data set"),
        "split": ("string", "its split, such as `validation` or `test`"),
        "question_id": ("string", "the question, unique within a run"),
        "image_id": ("string", "the image, or audio clip, that it is about; of several a JSON list"),
        "question_type": ("string", "the kind of question, such as `count`"),
        "method": (
            "string",
            "name of the method; `full` keeps all visual tokens, `no-image` shows none, `other-image` keeps all of the "
            "image of another question",
        ),
        "importance": ("string?", "the score by which the method ranks tokens; null if it has no such knob"),
        "normalise": ("string?", "how that score is brought to a range; null if the method has no such knob"),
        "features": ("string?", "which features are compared, `projector` or `encoder`; null if there is no such knob"),
        "update": (
            "string?",
            "how a pick suppresses others, `subtract` or `multiply`, with `, continue` if no sweep follows; or null",
        ),
        "instruction": ("string?", "the query tokens and the layer of instruction attention, as `tokens@layer`"),
        "gamma": (
            "double?",
            "how fast suppression falls with distance; -1 if each image sets its own; null if there is no such knob",
        ),
        "positions": ("string", "position ids of kept tokens: `compact` counts anew, `keep` leaves the full prompt's"),
        "budget": (
            "double",
            "what the method was asked for: visual tokens, or below 1 a share of them; of `full` 1 where images differ",
        ),
        "convention": (
            "string?",
            "what a budget means for a method that drops tokens inside the language model: their `average` over "
            "layers, or the `final` number; null for all others",
        ),
        "knobs": ("string?", "other knobs of the method that are not as by default, as `name=value`; null if none is"),
        "tokens_before": ("int32", "visual tokens of the image"),
        "tokens_kept": ("int32", "visual tokens after the last layer of the language model"),
        "tokens_average": ("double", "visual tokens that a layer of the language model reads, mean over layers"),
        "prefill_gflops": ("double?", "analytic GFLOPs of the language model's prefill; null if they are not known"),
        "scoring_gflops": (
            "double?",
            "analytic GFLOPs of the language model's layers that the score reads before the prefill; null if not known",
        ),
        "on_objects": ("double?", "share of the kept tokens that lie on an object; null without an image"),
        "conversation": (
            "string?",
            "what answers a second question: tokens that were picked for the question before it, `kept`, or for "
            "itself, `anew`, with ` alone` where the prompt leaves out the earlier turn; null for a single question",
        ),
        "seed": ("int64", "seed of the method"),
        "prompt": ("string?", "hash of the text that the model was asked"),
        "metric": ("string?", "by which the answer was scored"),
        "prediction": ("string", "what the model answered"),
        "answer": ("string", "the right answer"),
        "correct": ("double", "1 if the prediction is right, else 0; a metric between them is allowed"),
        "chance": ("double", "how often a guess is right"),
    },
    "times": {
        "backbone": ("string", "the model"),
        "method": ("string", "name of the method; `full` drops nothing, `ideal` is a prompt that was cut by hand"),
        "budget": ("double?", "visual tokens that the method was asked for; null if nothing was asked"),
        "convention": ("string?", "as of rows"),
        "phase": (
            "string",
            "`encode`: pixels to projector output; `select`: scores, selection and the cut of the prompts, with all "
            "drops inside the language model; `prefill`: shortened prompts to first token; `decode`: one further "
            "token, mean over those of a run; `end to end`: all of `generate`; `select alone`: a selection on random "
            "tokens",
        ),
        "median_ms": ("double", "median over runs, milliseconds for the whole batch"),
        "low_ms": ("double", "lower quartile over runs, milliseconds"),
        "high_ms": ("double", "upper quartile over runs, milliseconds"),
        "runs": ("int64", "runs that were measured"),
        "warmup": ("int64", "runs before them that were not"),
        "batch": ("int64", "prompts"),
        "images": ("int64", "images in all prompts"),
        "tokens_before": ("int64", "visual tokens of an image, the most in the batch"),
        "kept_tokens": ("int64", "visual tokens of an image after the last layer, the most in the batch"),
        "prompt_tokens": ("int64", "columns of the shortened prompts"),
        "average_tokens": ("double", "visual tokens of an image that a layer reads, mean over layers"),
        "new_tokens": ("int64", "tokens decoded in a run after the first one"),
        "flops": ("double?", "analytic FLOPs of the phase; null if they are not known"),
        "cache_bytes": ("int64?", "keys and values after the prefill"),
        "peak_bytes": ("int64?", "most memory of tensors during the phase, the model's included; null on a CPU"),
        "over_ideal": ("double?", "time as a multiple of the ideal's in the same turn, median; of `end to end` alone"),
        "over_ideal_low": ("double?", "lower end of the 95 % interval of `over_ideal`; null for fewer than 6 turns"),
        "over_ideal_high": ("double?", "its upper end"),
        "over_full": ("double?", "time as a multiple of the full prompt's in the same turn, likewise"),
        "attention": ("string", "attention implementation: of the vision tower for `encode`, else the language model"),
        "device": ("string", "what the model ran on"),
        "dtype": ("string", "the type of its weights"),
        "threads": ("int64", "CPU threads of torch"),
        "torch": ("string", "version of torch"),
        "transformers": ("string", "version of transformers"),
    },
}

MEANING: Final = {kind: {name: text for name, (_, text) in columns.items()} for kind, columns in _COLUMNS.items()}
"""What each column of "rows" and of "times" means."""

SCHEMAS: Final = {
    kind: pa.schema(
        [pa.field(name, pa.type_for_alias(type_.rstrip("?")), "?" in type_) for name, (type_, _) in columns.items()]
    )
    for kind, columns in _COLUMNS.items()
}
"""The Arrow schemas of "rows" and of "times"."""


def columns_markdown() -> str:
    """Return tables of all columns as Markdown, for the page on the store."""
    lines = []
    for kind, schema in SCHEMAS.items():
        lines += [f"Columns of {kind}:", "", "| column | type | null | meaning |", "|---|---|---|---|"]
        for field in schema:
            null = "yes" if field.nullable else ""
            lines.append(f"| `{field.name}` | {field.type} | {null} | {MEANING[kind][field.name]} |")
        lines.append("")
    return "\n".join(lines).strip()


def differences(found: pa.Schema, kind: str) -> str:
    """Say in which columns a schema differs from the store's, whatever their order; "" if in none."""
    have, wanted = ({field.name: str(field.type) for field in schema} for schema in (found, SCHEMAS[kind]))
    said = {
        "missing columns": [name for name in wanted if name not in have],
        "unknown columns": [name for name in have if name not in wanted],
        "columns of another type": [
            f"{name} ({have[name]}, not {type_})" for name, type_ in wanted.items() if have.get(name, type_) != type_
        ],
    }
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in said.items() if names)


def conform(job: str, rows: pd.DataFrame, kind: str) -> pa.Table:
    """Convert rows to a table with the columns, order and types of the store.

    Parameters
    ----------
    job : str
        Name of the job, for messages.
    rows : DataFrame
        Rows with the columns in any order; one that allows null may be missing.
    kind : {"rows", "times"}
        Which columns.

    Raises
    ------
    ValueError
        If there are no rows, columns are missing or unknown, or a value has another type or is null.
    """
    schema = SCHEMAS[kind]
    if rows.empty:
        raise ValueError(f"job {job!r} has no {kind}")
    missing = [field.name for field in schema if field.name not in rows and not field.nullable]
    unknown = [str(name) for name in rows if name not in schema.names]
    if missing or unknown:
        raise ValueError(
            f"{kind} of job {job!r} do not fit the store: missing columns {missing}, unknown columns {unknown}; "
            f"allowed are {schema.names}"
        )
    arrays = []
    for field in schema:
        column = rows[field.name] if field.name in rows else pd.Series([None] * len(rows), dtype=object)
        try:
            array = pa.array(column, type=field.type, from_pandas=True)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(
                f"column {field.name!r} of job {job!r} holds {column.dtype}, which is not {field.type}: {error}"
            ) from error
        if array.null_count and not field.nullable:
            raise ValueError(f"column {field.name!r} of job {job!r} lacks a value in {array.null_count} rows")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema)
