from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from gate_lightning.errors import ResumeError, WeightsError
from gate_lightning.utils.archives import check_archive


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {"a": torch.arange(4000.0)}, "step": 3}, path)
    return path


def test_a_whole_archive_passes(archive: Path) -> None:
    check_archive(archive, WeightsError)


def test_a_flipped_bit_that_torch_does_not_see_is_found(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    place = content.index(torch.arange(2000.0, 2001.0).numpy().tobytes())
    content[place + 1] ^= 1
    archive.write_bytes(content)
    assert not torch.equal(torch.load(archive, weights_only=True)["state_dict"]["a"], torch.arange(4000.0))
    with pytest.raises(ResumeError, match=r"last\.ckpt is damaged.*data/0.*take a copy that is whole"):
        check_archive(archive, ResumeError)


@pytest.mark.parametrize("kept", [0, 4, 3000, -100, -1])
def test_a_truncated_archive_is_damaged(archive: Path, kept: int) -> None:
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"last\.ckpt is damaged or incomplete"):
        check_archive(archive, WeightsError)


def test_an_archive_without_checksums_is_accepted(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    check_archive(tmp_path / "plain.pt", WeightsError)


def test_a_compressed_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as there, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in there.infolist():
            packed.writestr(entry.filename, there.read(entry))
    with pytest.raises(WeightsError, match=r"z\.pt: its entry last/data\.pkl is compressed"):
        check_archive(tmp_path / "z.pt", WeightsError)
