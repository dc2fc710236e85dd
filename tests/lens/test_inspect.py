"""The document of an inspection says what the model computed."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

import vitral
from vitral.cli.inspect_screen import show
from vitral.engine.interventions import Intervention
from vitral.errors import RequestError
from vitral.lens.inspect import inspect
from vitral.lens.maps import strongest
from vitral.lens.page import page
from vitral.lens.record import record


def test_numbers_are_those_of_the_model(stories: Any) -> None:
    ids = stories.tokenizer.encode("Once upon a time there was")
    document = json.loads(json.dumps(inspect(stories, ids, window=4, top=3)))
    logits = stories.logits(ids)
    run, start = document["run"], document["window"]["start"]
    assert start == len(ids) - 4
    for t, prediction in enumerate(run["predictions"]):
        assert prediction["top"]["ids"][0] == int(logits[t].argmax())
    chosen = np.array(run["attribution"]["targets"])
    assert np.allclose(run["attribution"]["logits"], logits[np.arange(start, len(ids)), chosen], atol=1e-5)
    parts = run["attribution"]
    sums = np.array(parts["components"]).sum(0) + parts["rounding"] + parts["rest"]
    assert np.allclose(sums, parts["logits"], atol=1e-4)
    assert run["lens"]["ids"][-1][-1] == run["predictions"][-1]["top"]["ids"]


def test_parts_of_a_quantised_model_add_up_with_rounding_as_one_of_them(smollm2: Any) -> None:
    with vitral.load(smollm2, threads=1, context_length=64) as model:
        parts = inspect(model, model.tokenizer.encode("The capital of France is"))["run"]["attribution"]
    components, heads = np.array(parts["components"]), np.array(parts["heads"])
    assert np.abs(parts["rounding"]).max() > 0.005
    assert np.abs(parts["rest"]).max() < 1e-3
    assert np.allclose(components.sum(0) + parts["rounding"], parts["logits"], atol=1e-3)
    assert np.allclose(heads.sum(1), components[1::2], atol=1e-3)  # heads to what attention adds, layer by layer


def test_attention_maps_are_the_patterns_in_bytes(stories: Any) -> None:
    ids = stories.tokenizer.encode("Once upon a time")
    maps = inspect(stories, ids)["run"]["attention"]
    pattern = record(stories, ids, ["blocks.1.attn.hook_pattern"])["pattern", 1, "attn"]
    packed = np.frombuffer(base64.b64decode(maps["heads"][1][2]), np.uint8)
    assert np.abs(packed / 255 - pattern[2][np.tril_indices(len(ids))]).max() <= 0.5 / 255 + 1e-6


def test_the_strongest_weights_of_a_row_are_kept() -> None:
    rows = np.zeros((1, 20), np.float32)
    rows[0, 17] = 1
    columns, weights = strongest(rows, 19)
    at = np.frombuffer(columns, "<u2").tolist().index(17)
    assert weights[at] == 255 and sum(weights) == 255


def test_an_intervention_shows_before_and_after(stories: Any) -> None:
    ids = stories.tokenizer.encode("Once upon a time")
    document = inspect(stories, ids, interventions=[Intervention("zero", tap="blocks.0.hook_mlp_out")])
    assert document["before"] == inspect(stories, ids)["run"]
    assert document["run"]["predictions"] != document["before"]["predictions"]
    assert document["run"]["attribution"]["targets"] == document["before"]["attribution"]["targets"]
    for t, change in enumerate(document["changes"]):
        for which, run in (("before", document["before"]), ("after", document["run"])):
            shown = dict(zip(change["ids"], change[which], strict=True))
            top = run["predictions"][t]["top"]
            assert [shown[id] for id in top["ids"]] == top["probs"]
    assert max(change["kl"] for change in document["changes"]) > 0.1


def test_interventions_that_change_nothing_move_no_bits(stories: Any) -> None:
    ids = stories.tokenizer.encode("Once upon a time")
    document = inspect(stories, ids, interventions=[Intervention("zero", tap="hook_embed", positions=(99,))])
    assert [change["kl"] for change in document["changes"]] == [0.0] * len(ids)
    assert all(change["before"] == change["after"] for change in document["changes"])


def test_an_empty_text_is_refused(stories: Any) -> None:
    with pytest.raises(RequestError, match="no tokens"):
        inspect(stories, [])


def test_no_token_ends_the_element_that_holds_the_document() -> None:
    hostile = {"text": "</script><img src=x onerror=alert(1)>&\u2028"}
    text = page(hostile)
    assert "<img" not in text
    inside = text.split('id="document">')[1].split("</script>")[0]
    assert json.loads(inside) == hostile


def test_the_terminal_names_the_rounding_of_activations(
    stories: Any, smollm2: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(model: Any, text: str) -> str:
        document = inspect(model, model.tokenizer.encode(text))
        show(document)
        line = next(x for x in capsys.readouterr().out.splitlines() if "rounding of activations" in x)
        assert f"{document['run']['attribution']['rounding'][-1]:+.3f}" in line
        return line

    assert "the weights are floats" in shown(stories, "Once upon a time")
    with vitral.load(smollm2, threads=1, context_length=64) as model:
        assert "the weights are floats" not in shown(model, "The capital of France is")
