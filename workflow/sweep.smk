# What `make sweep GRID=...` runs: encode the images once a backbone, then one job = one run of notebooks/07_sweep.ipynb
# = one parquet file. A job runs again when the notebook, the code or the data it reads have changed.
import json
import re
import shlex
import sys
from glob import escape, glob
from urllib.parse import unquote

from snakemake.exceptions import WorkflowError

from idsel_core.study.run.sweeps import NOTEBOOK, encodings, read_sweep
from idsel_core.study.run.workflow import code_files, read_workflow

# The command has read and checked all this already; here it is read again, by each process of a cluster, too.
try:
    SWEEP = read_sweep(unquote(config["grid"]))
    CODE = {kind: code_files(kind, read_workflow()) for kind in ("encodings", "rows")}
except (OSError, ValueError) as error:
    raise WorkflowError(str(error)) from error

# Snakemake reads braces in a shell command as names.
PYTHON = shlex.quote(sys.executable).replace("{", "{{").replace("}", "}}")
IDSEL = f"{PYTHON} -m idsel_core.study.cli"
GPUS = int(SWEEP.device.startswith("cuda"))
JOB = (f"{IDSEL} lease " if GPUS else "") + f"env OMP_NUM_THREADS=1 {IDSEL}"
ENCODINGS = {
    f"{encodings(job['backbone'], job['data'])}/{job['split']}.safetensors": job for job in SWEEP.jobs.values()
}


def weights(backbone):
    return sorted(glob(f"{escape(backbone)}/*.safetensors")) or [f"{backbone}/model.safetensors"]


def any_of(names):
    return "|".join(map(re.escape, names))


wildcard_constraints:
    job=any_of(SWEEP.jobs),
    encoding=any_of(ENCODINGS),


rule sweep:
    input:
        [f"{SWEEP.store.root}/{job}.parquet" for job in SWEEP.jobs],
    message:
        f"all rows are in {SWEEP.store.root}"


rule encode:
    input:
        images=lambda wildcards: "{data}/{split}-images.parquet".format(**ENCODINGS[wildcards.encoding]),
        model=lambda wildcards: weights(ENCODINGS[wildcards.encoding]["backbone"]),
        code=CODE["encodings"],
    output:
        "{encoding}",
    params:
        arguments=lambda wildcards: [
            f"--{option}={ENCODINGS[wildcards.encoding][option]}" for option in ("split", "backbone", "data", "device")
        ],
    threads: 1
    resources:
        gpu=GPUS,
    message:
        "encode images: {wildcards.encoding}"
    shell:
        JOB + " encode {params.arguments:q} --out {output:q}"


rule job:
    input:
        notebook=str(NOTEBOOK),
        code=CODE["rows"],
        encoding=lambda wildcards: "{}/{split}.safetensors".format(
            encodings(SWEEP.jobs[wildcards.job]["backbone"], SWEEP.jobs[wildcards.job]["data"]),
            **SWEEP.jobs[wildcards.job],
        ),
        data=lambda wildcards: "{data}/{split}-questions.parquet".format(**SWEEP.jobs[wildcards.job]),
        model=lambda wildcards: weights(SWEEP.jobs[wildcards.job]["backbone"]),
    output:
        f"{SWEEP.store.root}/{{job}}.parquet",
        f"{SWEEP.store.root}/_provenance/{{job}}.json",
    # The executed notebook is a log: Snakemake deletes the outputs of a job that fails, but not its logs.
    log:
        f"logs/{SWEEP.name}/{{job}}.ipynb",
    params:
        parameters=lambda wildcards: [
            word for name, value in SWEEP.jobs[wildcards.job].items() for word in ("-p", name, json.dumps(value))
        ],
    threads: 1
    resources:
        gpu=GPUS,
    message:
        "run {wildcards.job}"
    shell:
        JOB + " run {input.notebook:q} {log:q} {params.parameters:q}"
