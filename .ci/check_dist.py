"""Build the wheel and the source distribution and check what is in them.

Neither may carry tests or data, the wheel must install and import away from the source tree, and building the wheel
from the source distribution must give the same files.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
ALLOWED_IN_SDIST = {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", "MANIFEST.in", "PKG-INFO"}


def faults(names: list[str], *, sdist: bool) -> list[str]:
    """Names that do not belong into a wheel, or into a source distribution."""
    wrong = []
    for name in names:
        path = PurePosixPath(name)
        parts = path.parts[1:] if sdist else path.parts
        if not parts or parts[0].endswith((".dist-info", ".egg-info")):
            continue
        code = parts[0] == "sklearn_capacity" and (path.suffix == ".py" or path.name == "py.typed")
        if not (code or (sdist and len(parts) == 1 and parts[0] in ALLOWED_IN_SDIST)) or "tests" in parts:
            wrong.append(name)
    return wrong


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Run a command and return its output; its error text is shown if it fails."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def wheel_of(source: Path | str, folder: Path) -> Path:
    """Build a wheel of `source` in `folder`."""
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), str(source), cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def sdist_of(folder: Path) -> Path:
    """Build the source distribution from the files that git knows, as a release would."""
    tracked = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    copy = folder / "source"
    for name in filter(None, tracked):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))"
    run(sys.executable, "-c", build, cwd=copy)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        archive = sdist_of(folder)
        with tarfile.open(archive) as tar:
            in_sdist = [member.name for member in tar.getmembers() if member.isfile()]
        (folder / "wheel").mkdir()
        wheel = wheel_of(archive, folder / "wheel")
        with zipfile.ZipFile(wheel) as opened:
            in_wheel = opened.namelist()
        wrong = faults(in_sdist, sdist=True) + faults(in_wheel, sdist=False)
        if wrong:
            raise SystemExit("These files do not belong into a distribution:\n" + "\n".join(wrong))
        source = {str(p.relative_to(ROOT)) for p in (ROOT / "sklearn_capacity").rglob("*.py")}
        missing = source - set(in_wheel) | {"sklearn_capacity/py.typed"} - set(in_wheel)
        if missing:
            raise SystemExit("The wheel lacks:\n" + "\n".join(sorted(missing)))
        site = folder / "site"
        install = ("install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
        run(sys.executable, "-m", "pip", *install, cwd=folder)
        where = "import sklearn_capacity; print(sklearn_capacity.__file__)"
        imported = run(sys.executable, "-c", where, cwd=folder, PYTHONPATH=str(site)).strip()
        if not Path(imported).is_relative_to(site):
            raise SystemExit(f"The installed wheel was not imported, but {imported}.")
        print(f"{wheel.name} and {archive.name}: {len(in_wheel)} files, no tests, no data; installs and imports")


if __name__ == "__main__":
    main()
