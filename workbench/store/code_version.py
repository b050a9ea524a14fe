"""Which code wrote a run: package version, and the git commit where the package runs from a checkout."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def code_version() -> str:
    """Such as `0.1.0+9e04dce1f2ab`; the commit is read from `.git`, so no process is started. Uncommitted changes do not show."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        package = version("recsys-workbench")
    except PackageNotFoundError:
        package = "0"
    commit = git_commit(Path(__file__).resolve().parents[2])
    return f"{package}+{commit[:12]}" if commit else package


def git_commit(root: Path) -> str:
    """The commit checked out at `root`, or an empty string where there is none. Knows linked worktrees and packed references."""
    try:
        folder = root / ".git"
        if folder.is_file():
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = head.removeprefix("ref: ")
        common = folder / (folder / "commondir").read_text().strip() if (folder / "commondir").is_file() else folder
        if (common / reference).is_file():
            return (common / reference).read_text().strip()
        packed = (common / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), "")
    except OSError:
        return ""
