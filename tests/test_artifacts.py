"""A run is complete under its final name, or not there."""

import errno
import os

import pytest

from atlas_jax.errors import AtlasError
from atlas_jax.files import RUN, directory_hash, new_directory, partial_directory, read_json, write_json


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
    (partial / "new").mkdir(parents=True)
    (partial / "new" / "half.json").write_text("{")
    (partial / "checkpoints" / "fit").mkdir(parents=True)
    (partial / "checkpoints" / "fit" / "manifest.json").write_text("{}")
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


def _make(path, content, **options):
    with new_directory(path, **options) as directory:
        write_json(directory / RUN, content)


def test_a_finished_run_is_replaced_only_if_that_is_meant(tmp_path):
    _make(tmp_path / "run", 1)
    with pytest.raises(AtlasError, match="run' holds a run already; .*--overwrite"):
        _make(tmp_path / "run", 2)
    assert read_json(tmp_path / "run" / RUN) == 1
    _make(tmp_path / "run", 3, overwrite=True)
    assert read_json(tmp_path / "run" / RUN) == 3
    with pytest.raises(AtlasError, match="run' holds a run, not a corpus"):
        _make(tmp_path / "run", 4, kind="a corpus", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_files_of_others_stay_and_those_of_the_old_run_do_not(tmp_path):
    run = tmp_path / "run"
    _make(run, 1)
    ours = ["rate.npy", "top/z.0.safetensors", "translations/z.0/ridge/translation.json", "tables/quality.json"]
    theirs = ["notes.txt", "top/plot.png", "tables/paper.tex", "figures/a/b.svg", ".hidden"]
    for name in ours + theirs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    _make(run, 2, overwrite=True)
    left = sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file())
    assert left == sorted([RUN, *theirs])
    assert all((run / name).read_text() == name for name in theirs)


def test_stopped_between_the_renames_the_old_run_comes_back(tmp_path):
    """The one moment at which nothing is at the final place."""
    _make(tmp_path / "run", 1)
    partial = partial_directory(tmp_path / "run")
    (partial / "new").mkdir(parents=True)
    os.replace(tmp_path / "run", partial / "old")
    with pytest.raises(RuntimeError):
        _fail(tmp_path / "run")
    assert read_json(tmp_path / "run" / RUN) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_link_leads_to_where_a_run_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "latest").symlink_to("disk/run")
    _make(tmp_path / "latest", 1)
    _make(tmp_path / "latest", 2, overwrite=True)
    assert (tmp_path / "latest").is_symlink()
    assert read_json(tmp_path / "disk" / "run" / RUN) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (OSError("30000 requested and 512 written"), "No space left on device"),
        (RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'), "No space left on device"),
        (OSError(errno.EROFS, "x", "{}/run.partial/new/rate.npy"), "Read-only file system"),
        (OSError(errno.ENOSPC, "x", "/elsewhere/model", None, "{}/run.partial/new/model"), "No space left on device"),
        (PermissionError(errno.EACCES, "x", "/elsewhere/model.safetensors"), None),
        (FileNotFoundError(errno.ENOENT, "x", "/elsewhere/text.txt"), None),
        (FileNotFoundError(errno.ENOENT, "x", "{}/model/config.json"), None),
        (RuntimeError("of another kind"), None),
    ],
)
def test_only_what_concerns_the_place_is_said_of_it(tmp_path, fault, reason):
    for name in ("filename", "filename2"):
        if getattr(fault, name, None):
            setattr(fault, name, getattr(fault, name).format(tmp_path))
    expected = type(fault) if reason is None else AtlasError
    with pytest.raises(expected, match=reason), new_directory(tmp_path / "run"):
        raise fault
    assert list(tmp_path.iterdir()) == []


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
