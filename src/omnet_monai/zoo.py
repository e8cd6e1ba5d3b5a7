"""A dry run of what the model zoo's CI does with a bundle, in the environment of a Python of one's choice."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omnet_monai.packaging import BUNDLE_NAME, LARGE_FILE, WEIGHTS, check_weights

__all__ = ["check"]

# The first two are required by the zoo, the others expected.
FILES = (
    "configs/metadata.json",
    "LICENSE",
    WEIGHTS,
    "configs/inference.json",
    "docs/README.md",
    "docs/data_license.txt",
)
# The formatters rewrite, as the zoo's "runtests.sh --autofix" does; flake8 must then find nothing.
STYLE = {
    "black": ["--quiet", "--line-length", "120", "--skip-magic-trailing-comma"],
    "isort": ["--quiet", "--profile", "black", "--line-length", "120"],
    "flake8": ["--max-line-length", "120", "--extend-ignore", "E203,N812"],
}


def check(
    folder: str, python: str = sys.executable, schema: str = "", tests: str = "", only: str | tuple[str, ...] = ()
) -> None:
    """
    Check a packaged bundle in a copy of it, as the zoo's CI would in its repository, and print a line for each check.

    Args:
        folder: the packaged bundle.
        python: interpreter of the environment to check in; ``tests/zoo/environment.py`` makes one.
        schema: copy of the metadata's schema, by default downloaded from the address in the metadata.
        tests: folder of the unit tests, by default ``tests/zoo`` of the checkout that this package lies in.
        only: names of the checks to run, by default all.

    Raises:
        ValueError: if the folder is none, a check is unknown, or any check fails.
    """
    names = tuple(only.split(",")) if isinstance(only, str) and only else tuple(only)
    if not Path(folder).is_dir():
        raise ValueError(f"the folder to check must be a packaged bundle, got {folder}, which is no folder")
    interpreter = shutil.which(python)
    if interpreter is None:
        raise ValueError(f"python must be an interpreter, got {python}")
    if not set(names) <= set(CHECKS):
        raise ValueError(f"only must name some of {', '.join(CHECKS)}, got {', '.join(names)}")
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        job = _Job(Path(folder).resolve(), Path(temporary), os.path.abspath(interpreter), schema, tests)
        for name in names or CHECKS:
            try:
                print(f"ok      {name}: {CHECKS[name](job)}", flush=True)
            except (ValueError, OSError) as error:
                failed.append(name)
                print(f"FAILED  {name}: {error}", flush=True)
    if failed:
        raise ValueError(f"{len(failed)} of {len(names or CHECKS)} checks failed: {', '.join(failed)}")


@dataclass
class _Job:
    """A packaged bundle, and a folder laid out as the zoo's repository with a copy of it."""

    source: Path
    root: Path
    python: str
    schema: str
    tests: str

    def __post_init__(self) -> None:
        shutil.copytree(self.source, self.bundle, ignore=shutil.ignore_patterns("__pycache__"))
        address = self.bundle / "large_files.yml"
        self.large_files = address.read_text(encoding="utf-8") if address.is_file() else ""
        if self.schema:
            (self.bundle / "eval").mkdir(exist_ok=True)
            shutil.copyfile(self.schema, self.bundle / "eval" / "schema.json")

    @property
    def bundle(self) -> Path:
        return self.root / "models" / BUNDLE_NAME

    def run(self, *words: str, path: str = f"models/{BUNDLE_NAME}") -> str:
        """Run Python in the zoo's root with one folder on its path; an error's end goes to stderr."""
        environment = {**os.environ, "PYTHONPATH": str(self.root / path)}
        done = subprocess.run([self.python, *words], cwd=self.root, env=environment, capture_output=True, text=True)
        output = done.stdout + done.stderr
        if done.returncode:
            print("\n".join(output.splitlines()[-30:]), file=sys.stderr)
            errors = re.findall(r"^[\w.]*(?:Error|Exception): .*", output, flags=re.MULTILINE)
            raise ValueError(errors[-1] if errors else f"python {' '.join(words)} ended with status {done.returncode}")
        return output

    def run_bundle(self, verb: str, **arguments: str) -> str:
        """Run a verb of ``monai.bundle`` on the bundle's files, which are named from its root."""
        files = {key: str(self.bundle / value) if "file" in key else value for key, value in arguments.items()}
        return self.run("-m", "monai.bundle", verb, *(f"--{key}={value}" for key, value in files.items()))

    def run_tests(self, name: str, *launcher: str) -> str:
        """Run a module of unit tests from the zoo's root."""
        tests = Path(self.tests) if self.tests else Path(__file__).resolve().parents[2] / "tests" / "zoo"
        if not (tests / f"{name}.py").is_file():
            raise ValueError(f"{tests} must hold {name}.py; name the folder with --tests")
        shutil.copytree(tests, self.root / "ci" / "unit_tests", dirs_exist_ok=True)
        output = self.run(*launcher, "-m", "unittest", name, path="ci/unit_tests")
        return "; ".join(re.findall(r"^Ran \d+ tests? in \S+", output, flags=re.MULTILINE))


def _check_name(job: _Job) -> str:
    if job.source.name != BUNDLE_NAME:
        raise ValueError(f"the folder must be called {BUNDLE_NAME}, got {job.source.name}")
    return BUNDLE_NAME


def _check_sizes(job: _Job) -> str:
    sizes = {file: file.stat().st_size for file in job.source.rglob("*") if file.is_file()}
    large = [
        f"{file.relative_to(job.source)} of {size / 1e6:.1f} MB" for file, size in sizes.items() if size > LARGE_FILE
    ]
    if large:
        limit = f"{LARGE_FILE / 1e6:.0f} MB"
        raise ValueError(f"no file may be over {limit}, got {', '.join(large)}; package with --weights_url")
    return f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB"


def _download_large_files(job: _Job) -> str:
    if not job.large_files:
        return "none to download"
    if len(re.findall(r"hash_val: \W*[0-9a-f]{64}\b|hash_type: \W*sha256\b", job.large_files)) < 2:
        raise ValueError("large_files.yml must state hash_val and hash_type: sha256")
    job.run("-m", "monai.bundle", "download_large_files", f"--bundle_path={job.bundle}")
    return "downloaded, with the hashes they should have"


def _check_files(job: _Job) -> str:
    missing = [name for name in FILES if not (job.bundle / name).is_file()]
    if missing:
        raise ValueError(f"the folder must hold {', '.join(missing)}")
    return ", ".join(FILES)


def _check_weights(job: _Job) -> str:
    check_weights(job.bundle)
    return "every tensor fits the network of configs/inference.json"


def _check_version(job: _Job) -> str:
    metadata = json.loads((job.bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    version, changelog = metadata.get("version"), metadata.get("changelog", {})
    if version not in changelog:
        raise ValueError(f"changelog must explain the version {version}, got only {', '.join(changelog) or 'nothing'}")
    return f"{version}, {changelog[version]}"


def _check_metadata(job: _Job) -> str:
    job.run_bundle("verify_metadata", meta_file="configs/metadata.json", filepath="eval/schema.json")
    return "follows its schema"


def _check_network(job: _Job) -> str:
    files = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
    job.run_bundle("verify_net_in_out", net_id="network_def", **files)
    return "takes and gives what the metadata says"


def _check_torchscript(job: _Job) -> str:
    files = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.json"}
    out = "models/verify_model.ts"
    job.run_bundle("ckpt_export", net_id="network_def", filepath=out, ckpt_file=WEIGHTS, **files)
    return f"scripted, {(job.bundle / out).stat().st_size / 1e6:.1f} MB"


def _check_style(job: _Job) -> str:
    for tool, settings in STYLE.items():
        job.run("-m", tool, *settings, str(job.bundle / "omnet_monai"), path=".")
    return "flake8 finds nothing after black and isort"


def _check_unit_tests(job: _Job) -> str:
    return job.run_tests(f"test_{BUNDLE_NAME}")


def _check_processes(job: _Job) -> str:
    return job.run_tests(f"test_{BUNDLE_NAME}_dist", "-m", "torch.distributed.run", "--standalone")


CHECKS: dict[str, Callable[[_Job], str]] = {
    "name": _check_name,
    "sizes": _check_sizes,
    "large_files": _download_large_files,
    "files": _check_files,
    "weights": _check_weights,
    "version": _check_version,
    "metadata": _check_metadata,
    "network": _check_network,
    "torchscript": _check_torchscript,
    "style": _check_style,
    "unit_tests": _check_unit_tests,
    "processes": _check_processes,
}
