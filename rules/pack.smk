# Reads: the verdict and everything it rests on; a received pack
# Writes: evidence_pack/ (staged beside it, renamed when whole), verify_pack.json


rule build_pack:
    """Build the pack, on the machine that has the key: an allow-list of files, then signed."""
    input:
        verdict=OUT / "reports/final_verdict.json",
        rendered=L.rendered(),
        config=OUT / "state/config.json",
        source=OUT / "state/source_repo.json",
        environment=OUT / "state/environment.json",
        revisions=OUT / "state/model_revisions.json",
        baselines=[OUT / m.slug / "baseline.json" for m in S.models],
        presets=[
            OUT / m.slug / f"presets/calibrated_preset_{m.slug}.json" for m in S.models
        ],
        analyses=analyses,
        tuned=[OUT / "state/tuned_edit_params.json"] if S.tuned_types() else [],
    output:
        OUT / "evidence_pack/manifest.json",
    log:
        LOGS / "build_pack.log",
    localrule: True
    container:
        on_host
    params:
        pack=OUT / "evidence_pack",
        run=OUT,
        profile=C["profile"],
        # the key itself never reaches a parameter that is recorded, only which key it is
        signer=fingerprint_of(C["signing_key"]),
        require="--require-signature" if C["require_signature"] else "",
        code=code("evidence_pack"),
    shell:
        # a pack of an older run is replaced as a whole; the new one appears by one rename
        "rm -rf {params.pack:q} &&"
        " python -m invarlock advanced evidence-pack build {params.pack:q} --run-dir {params.run:q}"
        " --analysis {input.analyses:q} --profile {params.profile} {params.require}"
        ' ${{INVARLOCK_SIGNING_KEY:+--signing-key "$INVARLOCK_SIGNING_KEY"}}'
        " > {log:q} 2>&1"


if C["pack"]:

    rule verify_pack:
        """Verify a received pack, every time it is asked for."""
        input:
            Path(C["pack"]) / "manifest.json",
        log:
            LOGS / "verify_pack.received.log",
        localrule: True
        container:
            on_host
        params:
            pack=C["pack"],
            report=str(Path(C["pack"]).resolve().with_name("verify_pack.json")),
            signer=L.expected_signer(),
        shell:
            "python -m invarlock advanced evidence-pack verify {params.pack:q} --strict --replay"
            " {params.signer} --json-out {params.report:q} 2>&1 | tee {log:q}"

else:

    rule verify_pack:
        """Verify the pack of this run as a stranger would."""
        input:
            OUT / "evidence_pack/manifest.json",
        output:
            OUT / "verify_pack.json",
        log:
            LOGS / "verify_pack.log",
        localrule: True
        container:
            on_host
        params:
            pack=OUT / "evidence_pack",
            # without a key the pack is unsigned, which strict verification refuses
            strict="--strict" if C["signing_key"] else "",
            unsigned="0" if C["signing_key"] else "1",
            signer=L.expected_signer(),
            code=code("evidence_pack"),
        shell:
            "INVARLOCK_ALLOW_UNVERIFIED_PROVENANCE={params.unsigned}"
            " python -m invarlock advanced evidence-pack verify {params.pack:q} {params.strict} --replay"
            " {params.signer} --json-out {output:q} > {log:q} 2>&1"
