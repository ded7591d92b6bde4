"""What a page advises: every finding has a next step, and names its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import report_factory as factory

from invarlock.guards import BY_NAME, GUARDS
from invarlock.pages.reading import NOT_RUN, REJECTED
from invarlock.reporting import signals
from invarlock.reporting.advice import ADVICE, LONGEST, NAMED, NOTED, next_steps
from invarlock.reporting.dashboard import explain
from invarlock.reporting.judged import judged, judged_line
from invarlock.reporting.render import render_report_html, render_report_markdown

DOWN = factory.DOWN
REFERENCED = Path(__file__).resolve().parent.parent / "config" / "config.yaml"


def rows(report: factory.Document) -> dict[str, tuple[str, str]]:
    """Place and step by finding."""
    return {row[0]: (row[1], row[2]) for s in next_steps(report) for row in s.tables[0].rows}


def test_every_reason_and_every_guard_that_finds_something_has_advice() -> None:
    """A reason without a row would leave its reader alone."""
    of_guards = {guard.fails_as for guard in GUARDS} - {""}
    reasons = {*signals.REASONS.values(), *signals.LACKING, *NOT_RUN, signals.SHIFT}
    reasons |= {signals.DEGRADED, "not_evaluated", "gate_missing"}
    assert reasons - of_guards - {REJECTED} == set(ADVICE)
    assert [g.name for g in GUARDS if g.advice is None] == ["guard_overhead"]


def test_settings_that_advice_names_exist() -> None:
    """A reader looks for them in the configuration."""
    config = REFERENCED.read_text()
    words = " ".join(advice.step for advice in ADVICE.values())
    named = set(re.findall(r"\b(?:windows|bootstrap)\.(\w+)|\b(\w+_\w+)\b", words))
    for one in {a or b for a, b in named}:
        assert re.search(rf"^ *{one}:", config, re.M), one


def test_places_are_those_that_guards_name() -> None:
    """The matrix, the module and the block, and no more of them than a row can hold."""
    found = rows(factory.make_report("rank1_projection", 1.09, scale={DOWN + ".weight": 0.6},
                                     edge={DOWN: 1.5}, moved={DOWN: 0.9}))  # fmt: skip
    assert found[BY_NAME["spectral"].advice.finding][0] == DOWN + ".weight"
    assert found[BY_NAME["rmt"].advice.finding][0] == DOWN
    assert found[BY_NAME["representation"].advice.finding][0] == DOWN
    everywhere = {f"model.layers.{i}.mlp.down_proj.weight": 3.0 for i in range(4)}
    found = rows(factory.make_report("loud", 1.0, scale=everywhere))
    assert found[BY_NAME["spectral"].advice.finding][0].count(";") == NAMED


def test_a_report_in_which_nothing_was_found_has_no_advice() -> None:
    """Nor one whose only finding the user accepted by name."""
    assert next_steps(factory.make_report("noop_clean")) == ()
    accepting = factory.make_accepting(("chat_template",))
    assert not any("chat template" in place for place, _ in rows(accepting).values())


def test_a_report_that_passes_asks_for_nothing() -> None:
    """What guards found is told as noticed, and a block beyond the limit of another kind as one
    that has none; where something refuses the subject, what decides comes first."""
    report = factory.make_report("moved", 1.0, moved={DOWN: 0.9})
    (section,) = next_steps(report)
    told = (section.title, section.tables[0].caption, *section.tables[0].header)
    assert signals.pass_reasons(report) == []
    assert not re.search(r"\bdo\b|decide", " ".join(told)), told
    check = BY_NAME["representation"].check(report)
    assert re.search(r"attention 0\.0000, ffn 0\.\d+$", check.measured), check
    assert check.threshold == "excess at most attention 0.4000; ffn has no limit"

    (section,) = next_steps(factory.make_report("worse", 1.6, moved={DOWN: 0.9}))
    assert (section.title, section.tables[0].header[2]) == ("What to do next", "What to do")


def test_what_refuses_nothing_asks_for_no_other_subject() -> None:
    """A note is told after what decides, whole or visibly cut, and not as something to mend."""
    notes = [{"type": "config_changed", "severity": "warning", "message": text}
             for text in ("dtype was bfloat16", "x" * (LONGEST + 1))]  # fmt: skip
    found = rows(factory.make_report("resaved", failures=notes))
    place, step = found.pop(NOTED.finding)
    assert not found
    assert place.split("; ")[0] == "dtype was bfloat16"
    assert place.endswith("x...")
    assert step == NOTED.step
    lost = {"type": "tensor_missing", "severity": "fatal", "message": "a tensor is missing"}
    both = rows(factory.make_rejected("broken", [notes[0], lost]))
    assert list(both) == [BY_NAME["invariants"].advice.finding, NOTED.finding]
    assert both[NOTED.finding][0] == "dtype was bfloat16"
    assert "dtype" not in both[BY_NAME["invariants"].advice.finding][0]


def test_what_is_lacking_is_named_in_numbers() -> None:
    """How many windows would decide, and the slice that lost most."""
    open_ = rows(factory.make_report("custom", 1.1005))
    assert open_["Too little evidence to decide"][0] == "180 of about 368 final windows to decide"
    sliced = rows(factory.make_sliced({"prose": 0.98, "code": 1.14}))
    assert sliced[ADVICE["primary_metric_fail"].finding][0] == "most in slice code (ratio 1.1400)"


def test_a_subject_that_was_not_run_is_told_once() -> None:
    """What was not measured follows from that and has no row."""
    assert list(rows(factory.make_rejected())) == [BY_NAME["invariants"].advice.finding]
    assert list(rows(factory.make_crashed())) == [ADVICE["crashed"].finding]


# --- what was judged ------------------------------------------------------------------------------


def test_weights_and_execution_are_told_apart() -> None:
    """In the head of both pages and in the text; which check looks at which of the two."""
    report = factory.make_packed()
    line = judged_line(report)
    assert line == (
        "Judged: GPTQ weights of 4 to 8 bits (int4, groups of 128; int8, a scale per row), 110.4 MB"
        " packed, 269.0 MB as 16-bit numbers; executed by transformers (gptqmodel 7.1.0,"
        " transformers 5.23.0)."
    )
    (section,) = judged(report)
    facts = dict(section.facts)
    weights, execution = (
        facts[name].replace(" and ", ", ").split(", ")
        for name in ("Judged by these weights, unpacked", "Judged by this execution")
    )
    assert not {*weights} & {*execution}
    assert facts["Multiplied by"].startswith("gptqmodel.TorchLinear x 28")
    assert "GPTQ" not in facts["Execution"]
    assert "transformers" not in facts["Weights"]
    head = render_report_html(report).partition("</header>")[0]
    assert line in head
    assert line in explain(report)
    assert "Judged: GPTQ weights" in render_report_markdown(report).partition("## ")[0]


@pytest.mark.parametrize("report", [factory.make_report("noop_clean"), factory.make_rejected()])
def test_dense_weights_are_not_mentioned(report: factory.Document) -> None:
    """A page of a dense subject is as it was."""
    assert judged(report) == ()
    assert judged_line(report) == ""
    assert "Judged:" not in render_report_html(report)


def test_packed_weights_that_were_not_run() -> None:
    """The weights are told, and that nothing executed them."""
    assert judged_line(factory.make_packed({})).endswith("; not executed.")
