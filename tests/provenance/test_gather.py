"""Evidence is read from where it stands, and each way of saying it badly is handled."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.provenance.cases import QUIET
from tests.provenance.models import folder_model
from vitral.errors import FormatError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.convert import convert
from vitral.formats.gguf_write import TensorToWrite, write_gguf
from vitral.formats.quants import TYPES
from vitral.formats.safetensors import write_safetensors
from vitral.provenance.component import Component, Dossier
from vitral.provenance.datasets import data_set
from vitral.provenance.facts import gather as gather_facts
from vitral.provenance.gather import gather
from vitral.provenance.judge import judge
from vitral.provenance.judgement import Outcome
from vitral.provenance.lineage import lineage_metadata
from vitral.provenance.terms import catalogue
from vitral.provenance.use import MadeFrom

SHARED = replace(QUIET, share_weights=True, modify=True, name="Llama-X")


def card(folder: Path, front: str, body: str = "# A model\n") -> Path:
    (folder / "README.md").write_text(f"---\n{front}\n---\n{body}", "utf-8")
    return folder


def own(dossier: Dossier) -> Component:
    return dossier.components[0]


def parts(dossier: Dossier) -> dict[str, str]:
    return {part.name: part.role for part in dossier.components[1:]}


def gguf(path: Path, **metadata: Any) -> Path:
    tensor = TensorToWrite("x", (1, 32), TYPES["F32"], lambda: np.zeros(128, np.uint8))
    write_gguf(path, {"general.architecture": "llama", **metadata}, [tensor])
    return path


@pytest.mark.parametrize(
    ("front", "licences"),
    [
        ("license: apache-2.0", ("apache-2.0",)),
        ("license: [apache-2.0, mit]", ("apache-2.0", "mit")),
        ("license: MIT OR Apache-2.0", ("apache-2.0", "mit")),
        ("license: other\nlicense_name: mrl", ("mrl",)),
        ("license: llama3.1", ("llama3.1",)),
        ("license: other\nlicense_name: nvidia-open-model-license", ("nvidia-oml",)),
    ],
)
def test_a_label_is_read_as_it_stands(tmp_path: Path, front: str, licences: tuple[str, ...]) -> None:
    assert own(gather(card(tmp_path, front), "a-model")).licences == licences


def test_a_choice_takes_the_milder_and_a_comma_takes_both(tmp_path: Path) -> None:
    choice = judge(gather(card(tmp_path, "license: MIT OR cc-by-nc-4.0"), "a-model"), QUIET)
    assert choice.outcome is Outcome.ALLOWED
    both = judge(gather(card(tmp_path, "license: [mit, cc-by-nc-4.0]"), "a-model"), QUIET)
    assert both.outcome is Outcome.DENIED
    joined = judge(gather(gguf(tmp_path / "m.gguf", **{"general.license": "apache-2.0,mit"}), "a-model"), QUIET)
    assert joined.dossier.components[0].claims[0] == ("apache-2.0",)


@pytest.mark.parametrize(
    "front",
    ["license: other", "license: cc", "license: openrail", "license: modified-mit", "license: my-own", "tags: [x]"],
)
def test_a_label_that_names_no_licence_needs_a_person(tmp_path: Path, front: str) -> None:
    judgement = judge(gather(card(tmp_path, front), "a-model"), QUIET)
    assert judgement.outcome is Outcome.PERSON
    assert judgement.of("question")[0].clause == "evidence"


def test_modified_mit_is_told_apart_by_the_model_it_stands_on(tmp_path: Path) -> None:
    card(tmp_path, "license: other\nlicense_name: modified-mit")
    assert own(gather(tmp_path, "moonshotai/Kimi-K2-Instruct")).licences == ("kimi-mmit",)
    assert own(gather(tmp_path, "mistralai/Devstral-2-123B-Instruct-2512")).licences == ("mistral-mmit",)


def test_a_card_that_contradicts_its_licence_file_is_shown_and_the_stricter_counts(
    tmp_path: Path, data_dir: Path
) -> None:
    text = (data_dir / "tokenizer-llama-cpp" / "LLAMA2-LICENSE.txt").read_text("utf-8")
    (tmp_path / "LICENSE").write_text(text, "utf-8")
    judgement = judge(gather(card(tmp_path, "license: mit"), "a-model"), replace(QUIET, train_on_outputs=True))
    assert judgement.dossier.components[0].disagrees
    assert judgement.outcome is Outcome.DENIED
    mild = judge(judgement.dossier, QUIET)
    assert mild.outcome is Outcome.PERSON
    [doubt] = [question.text for question in mild.of("question") if "disagrees" in question.text]
    assert "README.md, license says mit" in doubt and "LICENSE says llama2" in doubt


def test_lineage_is_read_from_the_card_adapter_merge_and_gguf(tmp_path: Path) -> None:
    front = "license: mit\nbase_model: [meta-llama/Llama-3.1-8B, google/gemma-2-9b]\ndatasets: [acme/answers]"
    assert parts(gather(card(tmp_path, front), "m")) == {
        "acme/answers": "dataset",
        "google/gemma-2-9b": "merged",
        "meta-llama/Llama-3.1-8B": "merged",
    }
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Meta-Llama-3-8B"})
    )
    found = gather(card(adapter, "license: apache-2.0"), "acme/lora")
    assert own(found).role == "adapter" and parts(found) == {"meta-llama/Meta-Llama-3-8B": "base"}
    assert [duty.prefix for duty in judge(found, SHARED).unmet] == ["Llama 3"], "C2: the base's terms reach the adapter"
    merge = tmp_path / "merge"
    merge.mkdir()
    (merge / "mergekit_config.yml").write_text(
        "slices:\n- sources:\n  - model: mistralai/Mistral-7B-v0.1\n    parameters: {weight: 0.01}\nbase_model: acme/other\n"
    )
    assert parts(gather(merge, "m")) == {"mistralai/Mistral-7B-v0.1": "merged", "acme/other": "merged"}
    keys = {
        "general.base_model.count": 1,
        "general.base_model.0.repo_url": "https://huggingface.co/meta-llama/Llama-3.2-1B",
    }
    keys |= {"general.dataset.count": 1, "general.dataset.0.name": "answers", "general.dataset.0.organization": "acme"}
    (tmp_path / "file").mkdir()
    file = gguf(tmp_path / "file" / "x.gguf", **keys)
    assert parts(gather(file, "m")) == {"meta-llama/Llama-3.2-1B": "base", "acme/answers": "dataset"}


def safetensors(path: Path, notes: dict[str, str]) -> Path:
    path.mkdir()
    write_safetensors(path, [("x", "F32", (1, 4), lambda: np.zeros(16, np.uint8))], 1 << 30, notes)
    return path


@pytest.mark.parametrize(
    ("notes", "licences"),
    [
        ({"general.license": "mit AND llama3.1"}, ("llama3.1", "mit")),
        ({"modelspec.license": "Apache-2.0"}, ("apache-2.0",)),
        ({"modelspec.license": "https://www.apache.org/licenses/LICENSE-2.0"}, ("apache-2.0",)),
        ({"license": "other", "license_name": "mrl"}, ("mrl",)),
        ({"license_link": "https://mistral.ai/licences/MNPL-0.1.md"}, ("mnpl",)),
    ],
)
def test_a_safetensors_header_says_its_licence(
    tmp_path: Path, notes: dict[str, str], licences: tuple[str, ...]
) -> None:
    found = gather(safetensors(tmp_path / "m", notes), "a-model")
    assert own(found).licences == licences
    assert all("__metadata__" in item.where for item in own(found).evidence)


def test_a_whole_licence_in_a_safetensors_header_is_recognised(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")
    [item] = own(gather(safetensors(tmp_path / "a", {"modelspec.license": text}), "m")).evidence
    assert (item.kind, item.licences, item.doubtful) == ("detected", ("apache-2.0",), False)
    [link] = own(gather(safetensors(tmp_path / "b", {"license": "https://example.org/terms"}), "m")).evidence
    assert link.licences == () and link.doubtful


def test_a_safetensors_header_that_contradicts_the_card_is_seen(tmp_path: Path) -> None:
    folder = card(safetensors(tmp_path / "m", {"license": "cc-by-nc-4.0"}), "license: mit")
    judgement = judge(gather(folder, "a-model"), replace(QUIET, commercial=False))
    assert judgement.outcome is Outcome.PERSON
    assert any("disagrees" in question.text for question in judgement.of("question"))


def test_what_a_safetensors_header_says_it_was_made_from_counts(tmp_path: Path) -> None:
    notes = {"modelspec.merged_from": "meta-llama/Llama-3.1-8B, google/gemma-2-9b", "datasets": "[acme/answers]"}
    assert parts(gather(safetensors(tmp_path / "m", notes), "m")) == {
        "acme/answers": "dataset",
        "google/gemma-2-9b": "merged",
        "meta-llama/Llama-3.1-8B": "merged",
    }


def test_the_data_of_a_tuned_model_of_ours_counts(tmp_path: Path) -> None:
    """Its base stands under Apache, its data under Llama 3.1: the name must begin with Llama."""
    base = folder_model(tmp_path / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (base / "LICENSE").unlink()
    data = [{"name": "answers.jsonl", "sha256": "0" * 64, "licence": "llama3.1"}]
    notes = lineage_metadata(open_checkpoint(base), "tune", {"loss": "sft"}, data=data)
    for layout, out in (("gguf", tmp_path / "m.gguf"), ("safetensors", tmp_path / "m")):
        convert(base, out, layout, notes=notes)  # type: ignore[arg-type]
        judgement = judge(gather(out, "acme/Mixtral-Clinic"), replace(SHARED, name="Mixtral-Clinic"))
        assert parts(judgement.dossier) == {"base": "base", "answers.jsonl": "dataset"}
        assert [(duty.licence, duty.prefix) for duty in judgement.unmet] == [("llama3.1", "Llama")]
        found = gather_facts(out)
        assert [(one.name, one.licence) for one in found.related if one.kind == "dataset"] == [
            ("answers.jsonl", "llama3.1")
        ]
        assert found.licences == ("apache-2.0",)


def test_the_chain_of_bases_is_followed_as_far_as_their_files_are_here(tmp_path: Path) -> None:
    """m is tuned from b, whose own card says Apache and that it comes from c, whose card says MRL and data by NC."""
    for name, front in (
        ("m", "license: mit\nbase_model: acme/b"),
        ("b", "license: apache-2.0\nbase_model: acme/c"),
        ("c", "license: other\nlicense_name: mrl\nbase_model: acme/b\ndatasets: acme/d"),
    ):
        (tmp_path / name).mkdir()
        card(tmp_path / name, front)
    use = replace(QUIET, made_from=(MadeFrom("dataset", "acme/d", "cc-by-nc-4.0"),))

    def find(name: str) -> Path | None:
        at = tmp_path / name.removeprefix("acme/")
        return at if at.is_dir() else None

    judgement = judge(gather(tmp_path / "m", "acme/m", use, find=find), use)
    assert {part.name: part.licences for part in judgement.dossier.components} == {
        "acme/m": ("mit",),
        "acme/b": ("apache-2.0",),
        "acme/c": ("mrl",),
        "acme/d": ("cc-by-nc-4.0",),
    }
    assert judgement.outcome is Outcome.DENIED
    assert {each.part for each in judgement.of("denied")} == {"acme/c"}
    assert any("acme/c: README.md" in item.where for item in judgement.dossier.components[2].evidence)
    alone = judge(gather(tmp_path / "m", "acme/m", use), use)
    assert alone.outcome is Outcome.PERSON, "without b's files nothing says what b is"


def test_one_base_by_two_spellings_is_one_part(tmp_path: Path) -> None:
    keys = {"general.base_model.count": 1, "general.base_model.0.name": "Acme Base 7B"}
    step = {"operation": "convert", "tool": "t", "parameters": {}}
    lineage = json.dumps([step | {"base": [{"name": "Acme-Base-7B", "licence": "mit"}]}])
    dossier = gather(gguf(tmp_path / "m.gguf", **keys, **{"vitral.lineage": lineage}), "m")
    [base] = dossier.components[1:]
    assert base.licences == ("mit",)


def test_the_record_beside_an_adapter_of_ours_counts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/models/mistral-7b"})
    )
    record = {"base": "/models/mistral-7b", "base_licence": "apache-2.0", "data_licence": "cc-by-nc-4.0"}
    record |= {"data": [{"path": "/data/chats.jsonl", "sha256": "0" * 64}]}
    (tmp_path / "vitral.json").write_text(json.dumps(record))
    found = gather(tmp_path, "acme/lora")
    assert own(found).role == "adapter"
    assert {part.name: part.licences for part in found.components[1:]} == {
        "mistral-7b": ("apache-2.0",),
        "chats.jsonl": ("cc-by-nc-4.0",),
    }
    assert "commercial-data" in {each.clause for each in judge(found, SHARED).of("question")}


@pytest.mark.parametrize(
    ("data", "outcome", "clauses"),
    [
        ("databricks/databricks-dolly-15k", Outcome.PERSON, {"share-alike-of-model"}),
        ("Anthropic/hh-rlhf", Outcome.DUTIES, set()),
        ("tatsu-lab/alpaca", Outcome.PERSON, {"commercial-data", "third-party"}),
        ("HuggingFaceH4/ultrachat_200k", Outcome.PERSON, {"third-party"}),
        ("teknium/OpenHermes-2.5", Outcome.PERSON, {"third-party", "evidence"}),
        ("allenai/tulu-3-sft-mixture", Outcome.PERSON, {"evidence"}),
        ("someone/hh-rlhf", Outcome.PERSON, {"evidence"}),
        ("acme/nobody-knows", Outcome.PERSON, {"evidence"}),
    ],
)
def test_the_data_sets_that_a_card_names_are_in_the_verdict(
    tmp_path: Path, data: str, outcome: Outcome, clauses: set[str]
) -> None:
    judgement = judge(gather(card(tmp_path, f"license: mit\ndatasets: [{data}]"), "acme/m"), SHARED)
    assert judgement.outcome is outcome
    assert {question.clause for question in judgement.of("question")} == clauses


def test_who_asked_the_model_that_wrote_the_data_decides(tmp_path: Path) -> None:
    use = replace(SHARED, competes=True, made_from=(MadeFrom("dataset", "tatsu-lab/alpaca", generated_by="you"),))
    judgement = judge(gather(card(tmp_path, "license: mit\ndatasets: tatsu-lab/alpaca"), "acme/m", use), use)
    assert judgement.outcome is Outcome.DENIED
    assert {each.licence for each in judgement.of("denied")} == {"openai-tou"}


def test_every_known_data_set_stands_under_licences_of_the_catalogue() -> None:
    raw = tomllib.loads(resources.files("vitral.provenance").joinpath("datasets.toml").read_text("utf-8"))
    for entry in raw["dataset"]:
        known = data_set(entry["name"])
        assert known is not None and {*known.licences, *filter(None, [known.written_by])} <= set(catalogue())
        assert known.sure in ("primary", "quoted") and known.source
        assert known.licences or known.writer, "an entry that says nothing"


def test_a_model_without_a_label_inherits_its_bases_terms_without_a_doubt(tmp_path: Path) -> None:
    judgement = judge(gather(card(tmp_path, "base_model: meta-llama/Llama-3.1-8B"), "acme/Llama-Clinic"), SHARED)
    assert judgement.outcome is Outcome.DUTIES and not judgement.of("question")


def test_a_name_alone_is_weak_unless_it_is_the_makers_own() -> None:
    assert judge(gather(None, "mistralai/Mixtral-8x7B-v0.1"), QUIET).outcome is Outcome.ALLOWED
    weak = judge(gather(None, "someone/Mixtral-8x7B-v0.1"), QUIET)
    assert weak.outcome is Outcome.PERSON and "weakest" in weak.of("question")[0].text
    assert judge(gather(None, "someone/a-model-of-llama-architecture"), QUIET).outcome is Outcome.PERSON


@pytest.mark.parametrize(
    ("name", "licences"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", ("llama3.1", "mit")),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", ("llama3.3", "mit")),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", ("apache-2.0",)),
        ("huggyllama/llama-7b", ("llama1",)),
        ("meta-llama/Meta-Llama-3-8B", ("llama3",)),
        ("nvidia/Llama-3_1-Nemotron-51B-Instruct", ("llama3.1", "nvidia-oml")),
        ("mistralai/Ministral-3-8B-Instruct-2512", ("apache-2.0",)),
        ("mistralai/Pixtral-Large-Instruct-2411", ("mrl",)),
        ("mistralai/Mamba-Codestral-7B-v0.1", ("apache-2.0",)),
        ("Qwen/Qwen2.5-Coder-3B", ("qwen-research",)),
        ("google/medgemma-4b-it", ("hai-def",)),
    ],
)
def test_checkpoints_that_look_alike_are_told_apart(name: str, licences: tuple[str, ...]) -> None:
    assert own(gather(None, name)).licences == licences


def test_images_make_the_european_bar_bite(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama", "vision_config": {}}))
    use = replace(QUIET, domicile="FR")
    assert judge(gather(card(tmp_path, "license: llama3.2"), "acme/eyes"), use).outcome is Outcome.DENIED
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert judge(gather(tmp_path, "acme/eyes"), use).outcome is Outcome.DUTIES


def test_the_users_word_on_a_part_joins_what_the_card_says_of_it(tmp_path: Path) -> None:
    use = replace(SHARED, name="Mixtral-Clinic", made_from=(MadeFrom("dataset", "acme/answers", "llama3.1", "you"),))
    folder = card(tmp_path, "license: apache-2.0\nbase_model: mistralai/Mixtral-8x7B-v0.1\ndatasets: [acme/answers]")
    judgement = judge(gather(folder, "acme/Mixtral-Clinic", use), use)
    assert parts(judgement.dossier) == {"mistralai/Mixtral-8x7B-v0.1": "base", "acme/answers": "dataset"}
    assert judgement.outcome is Outcome.DUTIES
    assert [(duty.licence, duty.prefix) for duty in judgement.unmet] == [("llama3.1", "Llama")]


def test_an_abliterated_name_says_that_safety_was_taken_out() -> None:
    judgement = judge(
        gather(None, "someone/Llama-3.3-70B-abliterated"), replace(QUIET, modify=False, remove_safety=None)
    )
    assert "safeguards" in {each.clause for each in judgement.of("denied")}


@pytest.mark.parametrize(
    "front", ["license: &a [x]\nmore: *a", "license: !!python/object:os.system x", "- a list", "a: [b", "a: b: c"]
)
def test_a_hostile_card_is_an_error_in_one_line(tmp_path: Path, front: str) -> None:
    with pytest.raises(FormatError) as error:
        gather(card(tmp_path, front), "m")
    assert "\n" not in str(error.value)


def test_the_embedded_model_stands_under_apache(smollm2: Path) -> None:
    dossier = gather(smollm2, "smollm2:135m")
    assert own(dossier).licences == ("apache-2.0",)
    assert judge(dossier, QUIET).outcome is Outcome.ALLOWED
