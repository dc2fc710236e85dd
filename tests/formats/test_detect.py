"""A path is judged by what it contains, and what is no model is told what it is and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.formats import tiny
from vitral.errors import FormatError, ModelNotFound, SpecError, TruncatedFile, UnsupportedArchitecture, VitralError
from vitral.formats.checkpoint import open_checkpoint
from vitral.formats.detect import detect, find
from vitral.formats.sniff import kind_of

pytest.importorskip("torch")

SAMPLES = [(layout, i, sample) for layout, make in tiny.LAYOUTS.items() for i, sample in enumerate(make())]


@pytest.mark.parametrize(("layout", "sample"), [(a, c) for a, _, c in SAMPLES], ids=[f"{a}-{b}" for a, b, _ in SAMPLES])
def test_every_layout_is_found_and_opened(tmp_path: Path, layout: str, sample: tiny.Sample) -> None:
    path = sample.write(tmp_path)
    assert detect(path) == layout
    assert open_checkpoint(path).layout == layout
    assert detect(tmp_path) == layout  # the folder alone is enough, too


@pytest.mark.parametrize("name", ["model.txt", "model", "consolidated.00.pth", "config.json"])
def test_the_name_of_a_file_does_not_count(tmp_path: Path, name: str) -> None:
    for layout in ("gguf", "llama2c"):
        [data] = tiny.LAYOUTS[layout]()[0].files.values()
        (tmp_path / name).write_bytes(data)
        assert detect(tmp_path / name) == layout


def test_one_file_of_a_checkpoint_stands_for_all(tmp_path: Path) -> None:
    sample = tiny.LAYOUTS["safetensors"]()[1]
    sample.write(tmp_path)
    for name in sample.files:
        assert find(tmp_path / name) == find(tmp_path)


def test_two_layouts_side_by_side_are_told_apart(tmp_path: Path) -> None:
    """Mistral publishes its own layout and Hugging Face's in one folder."""
    tiny.LAYOUTS["safetensors"]()[0].write(tmp_path)
    tiny.LAYOUTS["mistral"]()[0].write(tmp_path)
    assert detect(tmp_path) == "safetensors"
    assert find(tmp_path).files == (tmp_path / "model.safetensors",)
    assert detect(tmp_path / "consolidated.safetensors") == "mistral"
    assert detect(tmp_path / "params.json") == "mistral"
    assert detect(tmp_path / "config.json") == "safetensors"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; download it again"),
        (b"just some words\n", "is a text file, not a model"),
        ("ação\n".encode() * 200, "is a text file, not a model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer.*git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"\x80\x02}q\x00.", "pickle of an old version of torch"),
        (bytes(range(256)) * 4, "is no model file that Vitral knows"),
        (b'{"a": 1}', "JSON file that describes no model"),
    ],
)
def test_a_file_that_is_no_model_is_told_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("model.gguf", "model.safetensors", "x.bin"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match=said):
            open_checkpoint(tmp_path / name)


def test_a_path_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist; give a model file or folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="has no files"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FormatError, match="has 1 files, none of which is a model"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_bytes(tiny.LAYOUTS["safetensors"]()[0].files["config.json"])
    with pytest.raises(FormatError, match="a configuration but no file of tensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(FormatError, match="git-lfs pointer"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(tiny.LAYOUTS["safetensors"]()[0].files["model.safetensors"])
    assert detect(tmp_path) == "safetensors"
    (tmp_path / "config.json").unlink()
    with pytest.raises(FormatError, match="but no configuration beside it"):
        open_checkpoint(tmp_path)


def test_an_adapter_alone_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    with pytest.raises(FormatError, match="an adapter, not a model"):
        open_checkpoint(tmp_path)


def test_several_models_in_a_folder_must_be_named(tmp_path: Path) -> None:
    [data] = tiny.LAYOUTS["gguf"]()[0].files.values()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(data)
    with pytest.raises(FormatError, match=r"holds 2 models \(a\.gguf, b\.gguf\); give the path of one"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("layout", "sample"), [(a, c) for a, b, c in SAMPLES if b == 0], ids=list(tiny.LAYOUTS))
def test_a_truncated_file_is_a_typed_error(tmp_path: Path, layout: str, sample: tiny.Sample) -> None:
    path = sample.write(tmp_path)
    largest = max((tmp_path / name for name in sample.files), key=lambda file: file.stat().st_size)
    data = largest.read_bytes()
    for part in (0.99, 0.7, 0.3, 0.02):
        largest.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(FormatError) as caught:
            open_checkpoint(path)
        assert layout == "llama2c" or isinstance(caught.value, TruncatedFile | FormatError)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("Qwen2ForCausalLM", "qwen2"), ("Gemma2ForCausalLM", "gemma2"), ("Phi3ForCausalLM", "phi3"),
     ("GPT2LMHeadModel", "gpt2"), ("DeepseekV3ForCausalLM", "deepseek_v3"), ("LlamaForSequenceClassification", "llama")],
)  # fmt: skip
def test_another_architecture_is_refused_with_the_families_we_run(tmp_path: Path, architecture: str, kind: str) -> None:
    tiny.LAYOUTS["safetensors"]()[0].write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": [architecture], "model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitecture, match=f"{architecture}.*Llama 1/2/3.x, Mistral, Mixtral"):
        open_checkpoint(tmp_path)


def test_a_broken_configuration_says_where(tmp_path: Path) -> None:
    tiny.LAYOUTS["safetensors"]()[0].write(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 8,}')
    with pytest.raises(FormatError, match=r"config\.json is not valid JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "architectures": ["LlamaForCausalLM"], "hiden_dim": 3}')
    with pytest.raises(SpecError):
        open_checkpoint(tmp_path)


def test_a_folder_or_pipe_is_not_a_file(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a regular file"):
        kind_of(tmp_path / "pipe")
    with pytest.raises(VitralError):
        open_checkpoint(tmp_path / "pipe")
