# Reads: state/model_revisions.json
# Writes: <model>/models/baseline/, <model>/baseline.json, <model>/windows.json, <model>/runs/baseline/
# The checkpoint everything is compared with, the windows, and one run of it.


rule baseline:
    """Place the pinned checkpoint, checked; here, if it needs the network that nodes lack."""
    input:
        revisions=pins,
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
        disk_mb=placing_mb,
        net=C["net"],  # no parameters: they do not change the result
        min_free_gb=str(S.min_free_disk_gb),
        runtime=lambda wc, attempt: int(30 + weights_mb(wc) / 500) * attempt,
    params:
        model=lambda wc: f"{S.model(wc.model).model_id}={S.model(wc.model).source}",
        options=L.options(BaselineOptions),
        code=code("baseline"),
    shell:
        "python -m invarlock baseline --model {params.model:q} --revisions {input.revisions:q}"
        " --min-free-gb {resources.min_free_gb} {params.options}"
        " $([ {resources.net} -eq 0 ] || echo --net) --out {output.folder:q} --record {output.record:q} > {log:q} 2>&1"


rule windows:
    """Cut the windows that baseline and subjects are measured on."""
    input:
        revisions=OUT / "state/model_revisions.json",
        tokenizer=OUT / "{model}/models/baseline",
        others=[],
    output:
        windows=OUT / "{model}/windows.json",
        pictures=[
            directory(folder)
            for folder in L.with_pictures(OUT / "{model}/windows.json")
        ],
    log:
        LOGS / "{model}/windows.log",
    priority: 60  # everything waits for it
    group:
        batch("windows")
    container:
        FETCHING_IMAGE
    resources:
        turn=1,
        net=C["net"],
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=lambda wc, attempt: 30 * attempt,
    params:
        cut=L.judged_cut,
        apart="",  # of rules that inherit from this one: what their input "others" is for
        code=code("windows"),
    shell:
        "python -m invarlock windows --tokenizer {input.tokenizer:q} --revisions {input.revisions:q}"
        " {params.cut}"
        " {params.apart} {input.others:q}"
        " $([ {resources.net} -eq 0 ] || echo --net) --out {output.windows:q} > {log:q} 2>&1"


rule baseline_report:
    """Run the baseline once; every evaluation of the model uses this run."""
    input:
        image=IMAGE_RECORD,
        opened=opened_subjects,
        model=OUT / "{model}/models/baseline",
        windows=OUT / "{model}/windows.json",
        pictures=L.with_pictures(OUT / "{model}/windows.json"),
    output:
        OUT / "{model}/runs/baseline/report.json",
        OUT / "{model}/runs/baseline/events.jsonl",
        OUT / "{model}/runs/baseline/guards.safetensors",
        directory(OUT / "{model}/runs/baseline/hidden_states"),
    log:
        LOGS / "{model}/baseline_report.log",
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
        options=lambda wc: L.measuring(RunOptions, wc),
        code=code("run"),
    shell:
        USAGE
        + PROGRESS
        + "python -m invarlock run --model {input.model:q} --windows {input.windows:q} {params.options}"
        " --gpus {resources.gpu} --out {params.folder:q} > {log[0]:q} 2>&1"
