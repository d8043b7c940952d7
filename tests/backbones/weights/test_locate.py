from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gate_lightning.backbones.weights.locate import (
    check_weight_file,
    file_digest,
    find_weights,
    folder_digest,
    weight_files,
)
from gate_lightning.errors import WeightsError


def saved(path: Path, value: float = 1.0, count: int = 1000) -> Path:
    save_file({"a": torch.full((count,), value)}, path)
    return path


def test_the_header_of_a_whole_file_is_read(tmp_path: Path) -> None:
    assert check_weight_file(saved(tmp_path / "a.safetensors")) == {}
    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors", {"made by": "us"})
    assert check_weight_file(tmp_path / "b.safetensors") == {"made by": "us"}


@pytest.mark.parametrize("kept", [0, 5, 40, 2000])
def test_a_truncated_file_is_recognised(tmp_path: Path, kept: int) -> None:
    path = saved(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"a\.safetensors .*(incomplete|cut off)"):
        check_weight_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\n<html>404</html>", "web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n",
            "git-LFS pointer.*git lfs pull",
        ),
        (b"PK\x03\x04" + bytes(100), "pickled PyTorch"),
        ((9).to_bytes(8, "little") + b"not json!" + bytes(50), "no safetensors file"),
    ],
)
def test_other_files_under_that_name_are_recognised(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        check_weight_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.safetensors does not exist"):
        check_weight_file(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "one", "a/b/c", "loras/x.safetensors"])
def test_a_source_that_is_nowhere_is_named_with_advice(source: str) -> None:
    with pytest.raises(WeightsError, match=rf"{source} does not exist; expected a folder.*Set some\.key"):
        find_weights(source, advice="Set some.key=<folder>")


def test_a_hub_id_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"nobody/nothing is no local folder.*hf download.*or give a folder\. Do it"):
        find_weights("nobody/nothing", offline=True, advice="Do it")


def test_a_hub_id_may_name_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    for source in ("owner/name@v2", "owner/name"):
        assert find_weights(source, "v1", ["*.json"], offline=True) == tmp_path
    assert [(args, own["revision"]) for args, own in asked] == [(("owner/name",), "v2"), (("owner/name",), "v1")]
    assert asked[0][1]["allow_patterns"] == ["*.json"]
    assert asked[0][1]["local_files_only"] is True


def test_the_variant_that_was_asked_for_is_chosen(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.fp16.safetensors", "model-00001-of-00002.safetensors"):
        saved(tmp_path / name)
    assert [path.name for path in weight_files(tmp_path, "fp16")] == ["model.fp16.safetensors"]
    assert "model.fp16.safetensors" not in [path.name for path in weight_files(tmp_path)]
    with pytest.raises(WeightsError, match=r"holds no .*model\.bf16\.safetensors \(found: .*model"):
        weight_files(tmp_path, "bf16")


def test_the_digest_knows_content_not_place(tmp_path: Path) -> None:
    one, same = saved(tmp_path / "one.safetensors"), saved(tmp_path / "same.safetensors")
    other = saved(tmp_path / "other.safetensors", value=2.0)
    assert file_digest(one) == file_digest(same) != file_digest(other)


def test_every_byte_of_a_large_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)  # of zeros
    before = file_digest(path)
    with path.open("r+b") as file:
        file.seek(50_000_001)
        file.write(b"\1")
    assert file_digest(path) != before


def test_a_folders_digest_depends_on_names_and_content(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    one, same = saved(tmp_path / "x" / "m.safetensors"), saved(tmp_path / "y" / "m.safetensors")
    moved = saved(tmp_path / "y" / "n.safetensors")
    assert folder_digest([one], tmp_path / "x") == folder_digest([same], tmp_path / "y")
    assert folder_digest([one], tmp_path / "x") != folder_digest([moved], tmp_path / "y")
