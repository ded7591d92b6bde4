# Reads: <model>/models/baseline/
# Writes: <model>/models/<scenario>/ (removed after its evaluations unless keep_subjects),
#         <model>/edits/<scenario>/{edit,error}_metadata.json (kept), <model>/training_windows.json


rule edit:
    """Make an edited checkpoint, tensor by tensor."""
    input:
        stopping(L.edited_baseline),
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/edit.log",
    wildcard_constraints:
        scenario=any_of([s for s in L.edits if s not in L.training]),
    group:
        batch("edits")
    container:
        IMAGE
    resources:
        mem_mb=edit_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        turn=1,
        subject_writers=1,
        room_minutes=ROOM_MINUTES,
        runtime=edit_minutes,
    params:
        spec=stopping(L.edit_spec),
        options=L.options(EditOptions, "seed"),
        code=code("edit"),
    shell:
        ROOM
        + USAGE
        + "python -m invarlock edit --baseline {input:q} --spec {params.spec:q} {params.options}"
        " --out {output.folder:q} --metadata {output.metadata:q} > {log[0]:q} 2>&1"


# None that is judged or calibrated on.
use rule windows as training_windows with:
    input:
        revisions=OUT / "state/model_revisions.json",
        tokenizer=OUT / "{model}/models/baseline",
        others=expand(
            OUT / "{model}" / "{file}",
            file=["windows.json", *L.calibration_windows()],
            allow_missing=True,
        ),
    output:
        windows=OUT / "{model}/training_windows.json",
    log:
        LOGS / "{model}/training_windows.log",
    params:
        cut=lambda wc: L.cut(
            wc, C["training"]["windows"], seed=S.calibration_seeds().stop
        ),
        apart="--exclude",


rule train:
    """Make an edited checkpoint by training: the same command, with a text and a model."""
    input:
        baseline=stopping(L.edited_baseline),
        windows=OUT / "{model}/training_windows.json",
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/edit.log",
    wildcard_constraints:
        scenario=any_of(L.training),
    group:
        batch("training")
    container:
        IMAGE
    threads: C["threads"]
    resources:
        mem_mb=train_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        turn=1,
        subject_writers=1,
        room_minutes=ROOM_MINUTES,
        gpu=gpus,
        runtime=lambda wc, attempt: train_minutes(wc, attempt) + ROOM_MINUTES,
    params:
        spec=stopping(L.edit_spec),
        options=L.options(EditOptions, artifact_class=""),
        code=code("edit"),
    shell:
        ROOM
        + USAGE
        + "python -m invarlock edit --baseline {input.baseline:q} --spec {params.spec:q}"
        " --windows {input.windows:q} {params.options} --gpus {resources.gpu}"
        " --out {output.folder:q} --metadata {output.metadata:q} > {log[0]:q} 2>&1"


rule inject:
    """Make a deliberately damaged checkpoint; one that is not damaged fails the rule."""
    input:
        OUT / "{model}/models/baseline",
    output:
        folder=passing(OUT / "{model}/models/{scenario}"),
        metadata=OUT / "{model}/edits/{scenario}/error_metadata.json",
    log:
        LOGS / "{model}/{scenario}/inject.log",
    wildcard_constraints:
        scenario=any_of(L.damage),
    group:
        batch("edits")
    container:
        IMAGE
    resources:
        mem_mb=edit_mb,
        disk_mb=lambda wc: int(weights_mb(wc)),
        turn=1,
        subject_writers=1,
        room_minutes=ROOM_MINUTES,
        runtime=edit_minutes,
    params:
        options=L.injection,
        code=code("inject"),
    shell:
        ROOM
        + USAGE
        + "python -m invarlock inject --baseline {input:q} {params.options} --out {output.folder:q}"
        " --metadata {output.metadata:q} > {log[0]:q} 2>&1"


rule describe_subject:
    """What differs between the user's two folders."""
    input:
        baseline=OUT / "{model}/models/baseline",
        subject=C["subject"] or [],
    output:
        OUT / "{model}/edits/{scenario}/edit_metadata.json",
    log:
        LOGS / "{model}/{scenario}/describe.log",
    wildcard_constraints:
        scenario=any_of(L.described),
    container:
        IMAGE
    resources:
        mem_mb=lambda wc, attempt: 1000 * attempt + edit_mb(wc, attempt),
        runtime=lambda wc, attempt: int(10 + weights_mb(wc) / 500) * attempt,
    params:
        options=L.options(
            EditOptions,
            "allow_remote_code",
            "allow_pickle",
            "artifact_class",
            label=C["edit_label"],
        ),
        state=state_of(C["subject"]),
        code=code("edit"),
    shell:
        "python -m invarlock edit --baseline {input.baseline:q} --spec custom {params.options}"
        " --subject {input.subject:q} --metadata {output:q} > {log:q} 2>&1"
