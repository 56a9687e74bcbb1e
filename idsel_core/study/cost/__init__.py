"""What a model costs with fewer visual tokens: FLOPs by three definitions, and the memory of weights and KV cache.

flops_paper     the literature's formula: multiply-adds (not FLOPs) of visual tokens in the language model alone
flops_analytic  by the configuration: tower, projector, selection, text tokens, grouped keys, SwiGLU, LM head
flops_counted   what torch's counter sees when the model runs

One prompt with one image, one video of Qwen-VL or one clip of Qwen2-Audio is counted. In sliding windows, all
query-key pairs of a prefill count, as eager and masked attention multiply them, and what the cache holds in a step.

Print a table from the command line, for a published model by name, a model folder or a configuration file:

    idsel cost --model llava-1.5-7b --budgets 576 64 16 576x2,64x30
    idsel cost --model smolvlm2-2.2b --image-size 1152 1536
    idsel cost --model qwen2-audio-7b --image-size 1000
    idsel cost --model qwen2.5-vl-7b --image-size 448 448 --frames 64 --budgets 1024
"""

from idsel_core.study.cost.analytic import (
    Attention,
    equal_flops_budget,
    flops_analytic,
    flops_analytic_step,
    flops_paper,
    flops_prefill,
    flops_scoring,
    full_budget,
    kv_cache_bytes,
)
from idsel_core.study.cost.counted import flops_counted, flops_counted_step
from idsel_core.study.cost.models import LANGUAGE_MODELS, MODELS
from idsel_core.study.cost.selecting import COUNTED_METHODS, profile_by
from idsel_core.study.cost.shapes import Flops
from idsel_core.study.cost.table import cost_table, read_config
from idsel_core.study.cost.towers import TOWERS
from idsel_core.study.cost.weights import weight_bytes

__all__ = [
    "COUNTED_METHODS",
    "LANGUAGE_MODELS",
    "MODELS",
    "TOWERS",
    "Attention",
    "Flops",
    "cost_table",
    "equal_flops_budget",
    "flops_analytic",
    "flops_analytic_step",
    "flops_counted",
    "flops_counted_step",
    "flops_paper",
    "flops_prefill",
    "flops_scoring",
    "full_budget",
    "kv_cache_bytes",
    "profile_by",
    "read_config",
    "weight_bytes",
]
