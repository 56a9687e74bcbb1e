# What `make sweep GRID=...` runs: encode the images once a backbone, then one job = one run of notebooks/07_sweep.ipynb
# = one parquet file. A job runs again when the notebook, the code or the data it reads have changed.
import json
import sys
from glob import glob

import yaml
from snakemake.exceptions import WorkflowError

from idsel_core.study.run.notebook_runner import check_parameters
from idsel_core.study.run.sweeps import NOTEBOOK, encodings, read_sweep

WORKFLOW = yaml.safe_load(open("config/workflow.yaml"))
CORE = sorted(
    path
    for path in glob("idsel_core/**/*.py", recursive=True)
    if not path.startswith(tuple(WORKFLOW["after"]))
)
RUN = f"OMP_NUM_THREADS=1 {sys.executable} -m"

# Wrong parameters stop the run here, before Snakemake removes what a job wrote last time.
try:
    SWEEP = read_sweep(config["grid"])
    for parameters in SWEEP.jobs.values():
        check_parameters(NOTEBOOK, parameters)
except (OSError, ValueError) as error:
    raise WorkflowError(str(error)) from error

GPUS = int(SWEEP.device.startswith("cuda"))
LEASED = f"{sys.executable} -m idsel_core.study.run.gpu_lease env " if GPUS else ""
ENCODINGS = {
    f"{encodings(job['backbone'], job['data'])}/{job['split']}.safetensors": job for job in SWEEP.jobs.values()
}


def weights(backbone):
    return sorted(glob(f"{backbone}/*.safetensors")) or [f"{backbone}/model.safetensors"]


wildcard_constraints:
    job="|".join(SWEEP.jobs),
    encoding="|".join(ENCODINGS),


rule sweep:
    input:
        expand(f"results/{SWEEP.name}/{{job}}.parquet", job=SWEEP.jobs),
    message:
        f"all rows are in results/{SWEEP.name}"


rule encode:
    input:
        images=lambda wildcards: "{data}/{split}-images.parquet".format(**ENCODINGS[wildcards.encoding]),
        model=lambda wildcards: weights(ENCODINGS[wildcards.encoding]["backbone"]),
        code=WORKFLOW["encoder"],
    output:
        "{encoding}",
    params:
        arguments=lambda wildcards: [
            f"--{option}={ENCODINGS[wildcards.encoding][name]}"
            for option, name in (("split", "split"), ("model", "backbone"), ("data", "data"), ("device", "device"))
        ],
    threads: 1
    resources:
        gpu=GPUS,
    message:
        "encode images: {wildcards.encoding}"
    shell:
        LEASED + RUN + " idsel_core.study.cli encode {params.arguments:q} --out {output}"


rule job:
    input:
        notebook=str(NOTEBOOK),
        code=CORE,
        encoding=lambda wildcards: "{}/{split}.safetensors".format(
            encodings(SWEEP.jobs[wildcards.job]["backbone"], SWEEP.jobs[wildcards.job]["data"]),
            **SWEEP.jobs[wildcards.job],
        ),
        data=lambda wildcards: "{data}/{split}-questions.parquet".format(**SWEEP.jobs[wildcards.job]),
        model=lambda wildcards: weights(SWEEP.jobs[wildcards.job]["backbone"]),
    output:
        f"results/{SWEEP.name}/{{job}}.parquet",
        f"results/{SWEEP.name}/{{job}}.json",
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
        LEASED + RUN + " idsel_core.study.run.notebook_runner {input.notebook} {log} {params.parameters:q}"
