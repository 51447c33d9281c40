"""What a result says of the code and the packages it came from."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "transformers", "numpy", "scikit-learn")


def commit() -> str:
    """The commit of this code, with a + where files differ from it; "" outside a repository."""
    if not (ROOT / ".git").exists():
        return ""

    def git(*words: str) -> str:
        try:
            return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()
        except OSError:  # no git here
            return ""

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def command(argv: list[str]) -> list[str]:
    """The command that started this process, by torchrun if that did."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return ["python", *argv]
    local, everywhere = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    nodes = ["--nnodes", str(everywhere // local)] if everywhere > local else []
    return ["torchrun", *nodes, "--nproc_per_node", str(local), *argv]


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on; "" for one that is not there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found
