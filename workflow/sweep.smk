# What `make sweep GRID=...` runs: encode the images once a backbone, then one job = one run of notebooks/07_sweep.ipynb
# = one parquet file. A job runs again when the notebook, the code, the model, or the data it reads have changed.
import json
import re
import shlex
import sys
from glob import escape, glob
from pathlib import Path
from urllib.parse import unquote

from snakemake.exceptions import WorkflowError

from idsel_core.study.backbone_folders import is_hub_id
from idsel_core.study.run.sweeps import NOTEBOOK, are_stored, asked_hash, encodings, read_sweep, settings_hash
from idsel_core.study.run.workflow import code_files, read_workflow
from idsel_core.study.sources.scenes import has_scenes

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
STORED = {pair: are_stored(*pair) for pair in {(job["backbone"], job["data"]) for job in SWEEP.jobs.values()}}


def encoding_of(job):
    return f"{encodings(job['backbone'], job['data'])}/{job['split']}.safetensors"


# Only these are made before the jobs; all other images are encoded by the jobs that ask about them.
ENCODINGS = {
    encoding_of(job): job
    for job in SWEEP.jobs.values()
    if STORED[job["backbone"], job["data"]]
    and job["dtype"] == "auto"
    and not (job.get("quantisation") or job.get("device_map"))
}


def weights(backbone):
    if is_hub_id(backbone):
        return []
    return sorted(glob(f"{escape(backbone)}/*.safetensors")) or [f"{backbone}/model.safetensors"]


def questions(job):
    """Files of the data set, if it is one of files."""
    if has_scenes(Path(job["data"])):
        return [f"{job['data']}/{job['split']}-questions.parquet"]
    return [job["data"]] if Path(job["data"]).exists() else []


def any_of(names):
    return "|".join(map(re.escape, names))


wildcard_constraints:
    job=any_of(SWEEP.jobs),
    encoding=any_of(ENCODINGS) or "(?!)",


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
        encoding=lambda wildcards: [
            name for name in [encoding_of(SWEEP.jobs[wildcards.job])] if name in ENCODINGS
        ],
        data=lambda wildcards: questions(SWEEP.jobs[wildcards.job]),
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
        # Not for the command: a job runs again when one of these has changed, whatever the times of the files.
        asked=lambda wildcards: asked_hash(*(SWEEP.jobs[wildcards.job][key] for key in ("data", "split", "questions"))),
        settings=lambda wildcards: settings_hash(SWEEP.jobs[wildcards.job]["backbone"]),
    threads: 1
    resources:
        gpu=GPUS,
    message:
        "run {wildcards.job}"
    shell:
        JOB + " run {input.notebook:q} {log:q} {params.parameters:q}"
