"""Many files: which are read, what each becomes, and what is refused before anything is done."""

import os
from pathlib import Path

import pytest

from dfstream.errors import UsageError
from dfstream.planning import is_folder_like, is_pattern, plan_files

as_root = hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Make empty files below a folder that is the working one."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


def planned(*inputs, folder="out", **options):
    plan = plan_files(inputs, Path(folder), **options)
    return {job.source.as_posix(): job.target.as_posix() for job in plan.jobs}, plan.ignored


def test_a_folder_gives_its_audio(make):
    make("in/b.wav", "in/a.FLAC", "in/notes.txt", "in/.hidden.wav", "in/deep/c.ogg")
    assert planned("in") == ({"in/a.FLAC": "out/a.FLAC", "in/b.wav": "out/b.wav"}, 2)


def test_recursive_keeps_the_structure(make):
    make("in/a.wav", "in/x/a.wav", "in/x/y/b.opus", "in/x/readme.md")
    assert planned("in", recursive=True) == (
        {"in/a.wav": "out/a.wav", "in/x/a.wav": "out/x/a.wav", "in/x/y/b.opus": "out/x/y/b.opus"},
        1,
    )


def test_files_patterns_and_folders_together(make):
    make("a/1.wav", "a/2.wav", "b.flac", "c/d/3.ogg")
    assert planned("a/*.wav", "b.flac", "c", recursive=True)[0] == {
        "a/1.wav": "out/1.wav",
        "a/2.wav": "out/2.wav",
        "b.flac": "out/b.flac",
        "c/d/3.ogg": "out/d/3.ogg",
    }


def test_two_stars_stand_for_any_depth(make):
    make("a/1.wav", "a/b/c/2.wav")
    assert set(planned("a/**/*.wav")[0]) == {"a/1.wav", "a/b/c/2.wav"}


def test_named_files_need_no_suffix_of_audio(make):
    make("a.dat")
    assert planned("a.dat", "missing.wav")[0] == {"a.dat": "out/a.dat", "missing.wav": "out/missing.wav"}


def test_another_format(make):
    make("in/a.b.wav", "in/c.flac")
    assert planned("in", suffix=".ogg")[0] == {"in/a.b.wav": "out/a.b.ogg", "in/c.flac": "out/c.ogg"}


def test_a_file_named_twice_is_read_once(make):
    make("a/1.wav")
    assert planned("a/1.wav", "a", "a/*.wav", "./a/../a/1.wav")[0] == {"a/1.wav": "out/1.wav"}


@pytest.mark.parametrize(
    "name", ["with space.wav", "ünï→code 日本.wav", "-dash.wav", "[1].wav", "a\nb.wav", "*.wav"]
)
def test_hostile_names(make, name):
    make(f"in/{name}")
    assert planned("in")[0] == {f"in/{name}": f"out/{name}"}
    assert planned(f"in/{name}")[0] == {f"in/{name}": f"out/{name}"}


def test_a_file_called_dash_is_not_standard_input(make):
    make("-")
    (source,) = planned("[-]")[0]
    assert source != "-"
    with pytest.raises(UsageError, match="standard input"):
        planned("-", "a.wav")


@pytest.mark.parametrize("name", ["in/out", "in/x/out"])
def test_results_inside_the_input_are_not_read_again(make, name):
    make("in/a.wav", "in/x/b.wav", f"{name}/a.wav", f"{name}/x/b.wav")
    assert planned("in", folder=name, recursive=True)[0] == {
        "in/a.wav": f"{name}/a.wav",
        "in/x/b.wav": f"{name}/x/b.wav",
    }


def test_links_to_folders_are_not_followed(make, tmp_path):
    make("in/x/a.wav")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in", target_is_directory=True)
    assert planned("in", recursive=True)[0] == {"in/x/a.wav": "out/x/a.wav"}


@pytest.mark.skipif(as_root, reason="root may read everywhere")
def test_unreadable_folders_are_told(make, tmp_path):
    make("in/a.wav", "in/x/b.wav")
    (tmp_path / "in" / "x").chmod(0)
    try:
        plan = plan_files(["in"], Path("out"), recursive=True)
    finally:
        (tmp_path / "in" / "x").chmod(0o700)
    assert [job.source for job in plan.jobs] == [Path("in/a.wav")]
    assert plan.unreadable == {Path("in/x"): "cannot be read (Permission denied)"}


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (["a/1.wav", "b/1.wav"], {}, "a/1.wav and b/1.wav would both become out/1.wav"),
        (["a"], {"suffix": ".ogg"}, "a/1.flac and a/1.wav would both become out/1.ogg"),
        (["nothing/*.wav"], {}, "'nothing/*.wav' matches no file"),
        (["a"], {"folder": "a"}, "a is both input and output"),
        (["a"], {"folder": "b/../a"}, "a is both input and output"),
        (["a/1.wav"], {"folder": "a"}, "a/1.wav would take the place of an input"),
        (["b/2.wav", "a/2.ogg"], {"folder": "a", "suffix": ".ogg"}, "would both become a/2.ogg"),
        (["a"], {"folder": "file"}, "file is a file"),
    ],
)
def test_refusals(make, inputs, options, says):
    make("a/1.wav", "a/1.flac", "a/2.ogg", "b/1.wav", "b/2.wav", "file")
    with pytest.raises(UsageError, match=says.replace("*", r"\*")):
        planned(*inputs, **options)


def test_what_is_a_folder_and_what_a_pattern(make):
    make("in/[1].wav")
    assert is_folder_like("in")
    assert is_folder_like("new/")
    assert not is_folder_like("new")
    assert not is_folder_like("in/[1].wav")
    assert is_pattern("in/*.wav")
    assert is_pattern("in/[2].wav")
    assert not is_pattern("in/[1].wav")
    assert not is_pattern("in/a.wav")
