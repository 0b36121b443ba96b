"""A run is complete under its final name, or not there."""

import errno
import os

import pytest

from atlas_jax.artifacts import RUN, directory_hash, new_directory, partial_directory, read_json, write_json
from atlas_jax.errors import AtlasError


def _fail(path):
    with new_directory(path, overwrite=True) as directory:
        write_json(directory / RUN, {"seed": 0})
        raise RuntimeError


def test_a_failing_run_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError):
        _fail(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_run_keeps_the_one_before(tmp_path):
    for seed in (1, 2):
        with new_directory(tmp_path / "run", overwrite=True) as directory:
            write_json(directory / RUN, {"seed": seed})
        with pytest.raises(RuntimeError):
            _fail(tmp_path / "run")
        assert read_json(tmp_path / "run" / RUN) == {"seed": seed}
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_only_one_process_at_a_time_makes_a_run(tmp_path):
    with new_directory(tmp_path / "run") as directory:
        with pytest.raises(AtlasError, match="another process is writing to"), new_directory(tmp_path / "run"):
            pass
        write_json(directory / RUN, {"seed": 0})
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_what_a_killed_process_left_is_cleared_and_checkpoints_are_kept(tmp_path):
    partial = partial_directory(tmp_path / "run")
    (partial / "run").mkdir(parents=True)
    (partial / "run" / "half.json").write_text("{")
    (partial / "checkpoints").mkdir()
    with pytest.raises(RuntimeError):
        _fail(tmp_path / "run")
    assert sorted(p.name for p in partial.iterdir()) == ["checkpoints", "lock"]
    with new_directory(tmp_path / "run") as directory:
        assert list(directory.iterdir()) == []
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_one_sentence(tmp_path):
    sentence = f"run' cannot be written \\({os.strerror(errno.ENOSPC)}\\)"
    with pytest.raises(AtlasError, match=sentence), new_directory(tmp_path / "run"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("x")
    with pytest.raises(AtlasError, match="exists and is not a run"), new_directory(tmp_path / "thesis"):
        pass
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_the_hash_sees_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    first = directory_hash(tmp_path)
    (tmp_path / "a").write_text("2")
    second = directory_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, directory_hash(tmp_path)}) == 3


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(AtlasError, match="x.json. is damaged"):
        read_json(tmp_path / "x.json")
