# Reads: state/model_revisions.json
# Writes: <model>/models/baseline/, <model>/baseline.json, <model>/windows.json, <model>/runs/baseline/
# The checkpoint everything is compared with, the windows, and one run of it.


rule baseline:
    """Place the pinned checkpoint, checked; here, if it needs the network that nodes lack."""
    input:
        revisions=OUT / "state/model_revisions.json",
    output:
        folder=directory(OUT / "{model}/models/baseline"),
        record=OUT / "{model}/baseline.json",
    log:
        LOGS / "{model}/baseline.log",
    localrule: bool(C["net"])
    container:
        FETCHING_IMAGE
    resources:
        mem_mb=lambda wc, attempt: 2500 * attempt,
        disk_mb=lambda wc: int(2 * weights_mb(wc)),
        runtime=lambda wc: int(30 + weights_mb(wc) / 500),
    params:
        model=lambda wc: f"{S.model(wc.model).model_id}={S.model(wc.model).source}",
        storage=C["baseline_storage"],
        free_gb=S.min_free_disk_gb,
        net=on("net", "--net"),
        pickle=on("allow_pickle_checkpoints", "--allow-pickle"),
        code=code("baseline"),
    shell:
        "python -m invarlock baseline --model {params.model:q} --revisions {input.revisions:q}"
        " --storage {params.storage} --min-free-gb {params.free_gb} {params.net} {params.pickle}"
        " --out {output.folder:q} --record {output.record:q} > {log:q} 2>&1"


rule windows:
    """Cut the windows that baseline and subjects are measured on."""
    input:
        revisions=OUT / "state/model_revisions.json",
        tokenizer=OUT / "{model}/models/baseline",
    output:
        OUT / "{model}/windows.json",
    log:
        LOGS / "{model}/windows.log",
    container:
        FETCHING_IMAGE
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=30,
    params:
        text=S.text,
        geometry=lambda wc: "--seq-len {0.seq_len} --preview {0.preview} --final {0.final}".format(
            S.model(wc.model)
        ),
        seed=C["windows"]["seed"],
        net=on("net", "--net"),
        code=code("windows"),
    shell:
        "python -m invarlock windows --tokenizer {input.tokenizer:q} --text {params.text:q}"
        " --revisions {input.revisions:q} {params.geometry} --seed {params.seed} {params.net}"
        " --out {output:q} > {log:q} 2>&1"


rule baseline_report:
    """Run the baseline once; every evaluation of the model uses this run."""
    input:
        image=IMAGE_RECORD,
        model=OUT / "{model}/models/baseline",
        windows=OUT / "{model}/windows.json",
    output:
        OUT / "{model}/runs/baseline/report.json",
        OUT / "{model}/runs/baseline/events.jsonl",
        OUT / "{model}/runs/baseline/guards.safetensors",
    log:
        LOGS / "{model}/baseline_report.log",
    benchmark:
        LOGS / "{model}/baseline_report.benchmark.tsv"
    priority: 50  # everything else waits for it
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=run_mb,
        gpu=gpus,
        runtime=run_minutes,
    params:
        folder=lambda wc: OUT / wc.model / "runs/baseline",
        measuring=measuring,
        code=code("run"),
    shell:
        "python -m invarlock run --model {input.model:q} --windows {input.windows:q} {params.measuring}"
        " --out {params.folder:q} > {log:q} 2>&1"
