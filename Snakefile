# What `make figures` runs: encode the images once, then one job = one notebook = one parquet file, then the figures.
# A job runs again when its notebook, its parameters, the code or the data it reads have changed.
import sys
from glob import glob

from snakemake.exceptions import WorkflowError

from idsel_core.notebooks import check_parameters, load_parameters

configfile: "config/workflow.yaml"

JOBS = config["jobs"]
TIMED = config.get("timed", {})
DRAWING = config["drawing"]
PARTS = config["parts"]

# Rows do not depend on how they are drawn or compared.
CORE = sorted(set(glob("idsel_core/**/*.py", recursive=True)) - {f"idsel_core/{name}.py" for name in config["after"]})
RUN = f"OMP_NUM_THREADS=1 {sys.executable} -m"

# Wrong parameters stop the run here, before Snakemake removes what a job wrote last time.
for name in [*JOBS, *TIMED, DRAWING["notebook"]]:
    try:
        check_parameters(f"notebooks/{name}.ipynb", load_parameters(f"config/{name}.yaml"))
    except (OSError, ValueError) as error:
        raise WorkflowError(str(error)) from error


wildcard_constraints:
    job="|".join(JOBS) or "none",
    timed="|".join(TIMED) or "none",
    part="|".join(PARTS) or "none",


rule all:
    input:
        DRAWING["outputs"],
        # Rows that were deleted are made again also where the figures are up to date.
        expand("results/{job}.parquet", job=JOBS),
    message:
        "all figures and tables are there"


rule encode:
    input:
        images="data/scenes/{part}-images.parquet",
        model=config["model"],
        code=config["encoder"],
    output:
        ".cache/encodings/{part}.safetensors",
    threads: 1
    priority: 1
    message:
        "encode the images of part {wildcards.part}"
    shell:
        RUN + " idsel_core.evaluation encode --part {wildcards.part} --out {output}"


rule notebook:
    input:
        notebook="notebooks/{job}.ipynb",
        parameters="config/{job}.yaml",
        code=CORE,
        data=lambda wildcards: [
            path
            for part in JOBS[wildcards.job]
            for path in (
                f".cache/encodings/{part}.safetensors",
                f"data/scenes/{part}-images.parquet",
                f"data/scenes/{part}-questions.parquet",
            )
        ],
        model=config["model"],
    output:
        "results/{job}.parquet",
        "results/{job}.json",
    # The executed notebook is a log: Snakemake deletes the outputs of a job that fails, but not its logs.
    log:
        "logs/{job}.ipynb",
    # One thread a job: two jobs of two threads each on two cores take ten times as long.
    threads: 1
    message:
        "run {input.notebook}"
    shell:
        RUN + " idsel_core.notebooks {input.notebook} {log} -f {input.parameters}"


rule times:
    input:
        notebook="notebooks/{timed}.ipynb",
        parameters="config/{timed}.yaml",
        code=[*CORE, *config.get("timing", [])],
        rows=lambda wildcards: expand("results/{job}.parquet", job=TIMED[wildcards.timed]),
        model=config["model"],
    output:
        "results/times/{timed}.parquet",
        "results/times/{timed}.json",
    log:
        "logs/{timed}.ipynb",
    # All of them, so that nothing runs beside what is timed.
    threads: workflow.cores
    message:
        "measure times with {input.notebook}"
    shell:
        RUN + " idsel_core.notebooks {input.notebook} {log} -f {input.parameters}"


rule figures:
    input:
        notebook=f"notebooks/{DRAWING['notebook']}.ipynb",
        parameters=f"config/{DRAWING['notebook']}.yaml",
        code=[f"idsel_core/{name}.py" for name in config["after"]],
        rows=expand("results/{job}.parquet", job=JOBS),
        times=expand("results/times/{timed}.parquet", timed=TIMED),
    output:
        DRAWING["outputs"],
    log:
        f"logs/{DRAWING['notebook']}.ipynb",
    threads: 1
    message:
        "draw figures and tables with {input.notebook}"
    shell:
        RUN + " idsel_core.notebooks {input.notebook} {log} -f {input.parameters}"
