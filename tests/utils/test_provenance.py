"""Which commit a result says it comes from."""

import os
import shutil
import subprocess

import pytest

from emmental.utils import provenance


@pytest.mark.skipif(not shutil.which("git"), reason="no git")
def test_a_commit_of_changed_files_has_a_plus(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # of a hook, say: another repository's
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "file").write_text("a")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    clean = provenance.commit()
    (tmp_path / "other").touch()  # results, say
    assert len(clean) == 40 and provenance.commit() == clean
    (tmp_path / "file").write_text("b")
    assert provenance.commit() == clean + "+"
