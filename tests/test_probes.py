"""Probe files follow from their report, and only scenarios that ask for them have any."""

from __future__ import annotations

import pytest
from report_factory import make_rejected, make_report

from invarlock.contracts import validate
from invarlock.reporting.probes import CONTRACTS, FILES, probe_of, wanted

RMT_NAME, VE_NAME = FILES

RMT, VE = {"kind": "rmt_probe"}, {"kind": "ve_probe"}


@pytest.mark.parametrize("name", [RMT_NAME, VE_NAME])
def test_a_probe_keeps_its_contract_and_its_report(name: str) -> None:
    """It is bound to the bytes of its report: another report has another probe."""
    report = make_report()
    probe = probe_of(name, report)
    validate(probe, CONTRACTS[name], name)
    other = make_report(ratio=1.01)
    assert probe["binding"]["report_sha256"] != probe_of(name, other)["binding"]["report_sha256"]


def test_only_what_is_asked_for_and_measured() -> None:
    """Detectors in either list ask; a rejected subject has no probe to give."""
    report = make_report()
    assert wanted({"detectors_any_of": [RMT], "detectors_all_of": [VE]}, report) == [
        RMT_NAME,
        VE_NAME,
    ]
    assert wanted({"detectors_any_of": [{"kind": "primary_metric"}]}, report) == []
    assert wanted({"detectors_any_of": [RMT, VE]}, make_rejected()) == []
