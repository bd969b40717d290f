"""The pipelines of scripts/ci: keys that GitHub and GitLab document, secrets in one place, commands that exist.

The keys are those of docs.github.com ("Workflow syntax for GitHub Actions") and docs.gitlab.com ("CI/CD YAML syntax
reference"), as far as these files need them. Every `quantkit ...` line is parsed by the command line itself, and the
lines of the GitHub job are executed on `tiny`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from quantkit.cli import app
from quantkit.doctor.packages import Packages
from quantkit.verify.gates import parse as parse_gate

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / "scripts/ci/github-actions.yml"
GITLAB = ROOT / "scripts/ci/gitlab-ci.yml"

WORKFLOW_KEYS = {"name", "run-name", "on", "permissions", "env", "defaults", "concurrency", "jobs"}
JOB_KEYS = {"name", "permissions", "needs", "if", "runs-on", "environment", "concurrency", "outputs", "env", "defaults"}
JOB_KEYS |= {"steps", "timeout-minutes", "strategy", "continue-on-error", "container", "services"}
STEP_KEYS = {"id", "if", "name", "uses", "run", "working-directory", "shell", "with", "env", "continue-on-error"}
STEP_KEYS |= {"timeout-minutes"}
# inputs of each action's action.yml that a user of it may set
ACTIONS = {
    "actions/checkout": {"repository", "ref", "persist-credentials", "path", "clean", "fetch-depth", "lfs"},
    "actions/setup-python": {"python-version", "cache", "cache-dependency-path", "architecture", "check-latest"},
    "actions/cache": {"path", "key", "restore-keys", "enableCrossOsArchive", "fail-on-cache-miss", "lookup-only"},
    "actions/upload-artifact": {
        "name",
        "path",
        "if-no-files-found",
        "retention-days",
        "compression-level",
        "overwrite",
    },
}
GITLAB_TOP = {"stages", "variables", "workflow", "default", "include", "spec"}
GITLAB_JOB = {"extends", "stage", "image", "timeout", "before_script", "script", "after_script", "cache", "artifacts"}
GITLAB_JOB |= {"rules", "interruptible", "resource_group", "environment", "variables", "needs", "retry", "tags"}
GITLAB_RULE = {"if", "changes", "exists", "when", "allow_failure", "variables", "needs", "interruptible"}
GITLAB_CACHE = {"key", "paths", "policy", "when", "untracked", "unprotect", "fallback_keys"}
GITLAB_ARTIFACTS = {"paths", "exclude", "expire_in", "expose_as", "name", "when", "untracked", "reports", "access"}


class _Loader(yaml.SafeLoader):
    """`on` is a key here, not YAML 1.1's word for true; a key that stands twice is an error, as it is for GitHub."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|false)$"), list("tf"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"{node.start_mark}: a key stands twice"
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(path: Path) -> dict[str, Any]:
    content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def github() -> dict[str, Any]:
    return load(GITHUB)


@pytest.fixture(scope="module")
def gitlab() -> dict[str, Any]:
    return load(GITLAB)


def steps_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def texts(value: Any) -> Iterator[str]:
    """Every text inside a YAML value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (str(key), *texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def flat(lines: Any) -> list[str]:
    """GitLab unfolds lists inside a script."""
    return [line for one in lines for line in (flat(one) if isinstance(one, list) else [one])]


# ---- GitHub ---------------------------------------------------------------------------------------------------------


def test_github_keys(github: dict[str, Any]) -> None:
    assert set(github) <= WORKFLOW_KEYS
    assert set(github["on"]) <= {"push", "pull_request", "workflow_dispatch"}
    assert set(github["concurrency"]) <= {"group", "cancel-in-progress"}
    for job in github["jobs"].values():
        assert set(job) <= JOB_KEYS and {"runs-on", "steps", "timeout-minutes"} <= set(job)
        assert 0 < job["timeout-minutes"] < 360
    for step in steps_of(github):
        assert set(step) <= STEP_KEYS and ("uses" in step) != ("run" in step)
        if "uses" in step:
            action, _, version = step["uses"].partition("@")
            assert re.fullmatch(r"v[0-9]+", version), step["uses"]
            assert set(step.get("with", {})) <= ACTIONS[action], step


def test_github_expressions_are_whole(github: dict[str, Any]) -> None:
    """Braces in pairs, and names of contexts and functions that there are."""
    known = {"github", "env", "secrets", "runner", "hashFiles", "startsWith", "cancelled"}
    for text in texts(github):
        assert text.count("${{") == text.count("}}")
        for expression in re.findall(r"\$\{\{(.*?)\}\}", text, re.DOTALL):
            plain = re.sub(r"'[^']*'", "", expression)
            assert set(re.findall(r"(?<![.\w-])[A-Za-z]\w*", plain)) <= known, expression


def test_github_gives_the_least(github: dict[str, Any]) -> None:
    assert github["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in github["jobs"].values())
    checkout = next(step for step in steps_of(github) if step.get("uses", "").startswith("actions/checkout"))
    assert checkout["with"]["persist-credentials"] is False


def test_the_secret_reaches_one_step_that_no_pull_request_runs(github: dict[str, Any]) -> None:
    assert "pull_request_target" not in github["on"]
    holders = [step for step in steps_of(github) if any("secrets." in text for text in texts(step))]
    assert [step["name"] for step in holders] == ["Publish"]
    assert sum("secrets." in text for text in texts(github)) == 1
    condition = holders[0]["if"]
    assert "github.event_name != 'pull_request'" in condition and "refs/heads/main" in condition
    assert not re.search(r"always\(|failure\(|cancelled\(", condition)  # a missed gate ends the job before it
    assert steps_of(github)[-1] is holders[0]
    # what somebody else may write (titles, branch names) is never put into a script
    for step in steps_of(github):
        assert "${{" not in step.get("run", "")


def test_the_steps_of_a_pipeline_stand_in_order(github: dict[str, Any]) -> None:
    whole = " ".join(step.get("run", "") for step in steps_of(github))
    places = [whole.index(f"quantkit {command} ") for command in ("run", "verify", "publish")]
    assert places == sorted(places) and whole.index("quantkit doctor") < places[0]
    assert "--junit report.xml" in whole and "--max-kl " in whole
    kept = next(step for step in steps_of(github) if step.get("uses", "").startswith("actions/upload-artifact"))
    assert "!cancelled()" in kept["if"]  # a report of a missed gate is the one to look at
    assert {"variant/report.html", "report.xml"} <= set(kept["with"]["path"].split())
    cached = next(step for step in steps_of(github) if step.get("uses", "").startswith("actions/cache"))
    assert "~/.cache/huggingface/hub" in cached["with"]["path"] and "hashFiles('recipe.yaml')" in cached["with"]["key"]


# ---- GitLab ---------------------------------------------------------------------------------------------------------


def jobs_of(gitlab: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every job with what it extends."""
    named = {name: job for name, job in gitlab.items() if name not in GITLAB_TOP}
    return {
        name: (named[job["extends"]] if "extends" in job else {}) | job
        for name, job in named.items()
        if not name.startswith(".")
    }


def test_gitlab_keys(gitlab: dict[str, Any]) -> None:
    for name, job in gitlab.items():
        if name not in GITLAB_TOP:
            assert set(job) <= GITLAB_JOB, name
    for job in jobs_of(gitlab).values():
        assert job["stage"] in gitlab["stages"] and job["script"] and job["rules"]
        assert re.fullmatch(r"[0-9]+h", job["timeout"])
        assert set(job["artifacts"]) <= GITLAB_ARTIFACTS and job["artifacts"]["when"] == "always"
        assert set(job["artifacts"]["reports"]) == {"junit"}
        assert len(job["cache"]) <= 4
        for cache in job["cache"]:
            assert set(cache) <= GITLAB_CACHE and not any(path.startswith(("/", "~")) for path in cache["paths"])
            if isinstance(cache["key"], dict):
                assert set(cache["key"]) <= {"files", "files_commits", "prefix"} and len(cache["key"]["files"]) <= 2
    for rules in (gitlab["workflow"]["rules"], *(job["rules"] for job in jobs_of(gitlab).values())):
        for rule in rules:
            assert set(rule) <= GITLAB_RULE
            assert re.fullmatch(r'\$CI_\w+ (== ("\w+"|\$CI_\w+)|=~ /[^/]+/)', rule["if"]), rule


def test_gitlab_caches_are_where_the_programs_look(gitlab: dict[str, Any]) -> None:
    inside = "$CI_PROJECT_DIR/"
    told = {value.removeprefix(inside) for value in gitlab["variables"].values() if value.startswith(inside)}
    for job in jobs_of(gitlab).values():
        assert {path for cache in job["cache"] for path in cache["paths"]} == told


def test_gitlab_publishes_outside_of_merge_requests(gitlab: dict[str, Any]) -> None:
    publishing = [name for name, job in jobs_of(gitlab).items() if "quantkit publish" in " ".join(flat(job["script"]))]
    assert publishing == ["publish"]
    job = jobs_of(gitlab)["publish"]
    conditions = [rule["if"] for rule in job["rules"]]
    assert conditions == ["$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH", "$CI_COMMIT_TAG =~ /^v/"]
    assert flat(job["script"])[:-1] == flat(jobs_of(gitlab)["variant"]["script"])
    assert job["environment"] == {"name": "hub"} and job["resource_group"]
    assert "HF_TOKEN" not in gitlab["variables"] and not any("HF_TOKEN" in text for text in texts(gitlab))


# ---- both -----------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[str]:
    """Every shell line of a pipeline, with its variables in place."""
    content = load(path)
    if path == GITHUB:
        scripts, variables = [step["run"] for step in steps_of(content) if "run" in step], content["env"]
    else:
        jobs = jobs_of(content).values()
        scripts = [line for job in jobs for line in (*job["before_script"], *flat(job["script"]))]
        variables = content["variables"]
    lines = [line for script in scripts for line in script.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line) for line in lines]


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_every_command_is_one_of_ours(path: Path) -> None:
    group = typer.main.get_command(app)
    context: Any = group.make_context("quantkit", ["doctor"])
    seen = set()
    for line in lines_of(path):
        words = shlex.split(line)
        if words[0] != "quantkit":
            continue
        command: Any = group.get_command(context, words[1])  # type: ignore[attr-defined]
        assert command is not None, f"quantkit has no command {words[1]}"
        given = command.make_context(words[1], words[2:], parent=context).params  # raises for a flag it does not know
        for name in ("max_kl", "max_kl_p99", "min_top1", "max_accuracy_drop", "min_agreement"):
            for text in given.get(name) or ():
                parse_gate(name, text)
        seen.add(words[1])
    assert seen == {"doctor", "run", "verify", "publish"}


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_what_is_installed_exists(path: Path) -> None:
    [wanted] = {line.split()[-1].strip('"') for line in lines_of(path) if "pip install" in line}
    match = re.fullmatch(r"quantkit\[([\w,-]+)\]", wanted)
    assert match is not None and set(match[1].split(",")) <= set(Packages().extras)


@pytest.mark.parametrize("path", [GITHUB, GITLAB], ids=["github", "gitlab"])
def test_the_shell_can_read_it(path: Path) -> None:
    script = "\n".join(lines_of(path))
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"hf_[A-Za-z0-9]{8}", path.read_text())


def _job(folder: Path, **changed: str) -> list[tuple[str, int]]:
    """Execute the GitHub job's scripts on `tiny`, as its shell does: (step, status) up to the first that fails.

    Not the installation, which needs a network, nor the step with the secret.
    """
    programs = folder / "bin"
    programs.mkdir()
    (programs / "quantkit").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m quantkit "$@"\n')
    (programs / "quantkit").chmod(0o755)
    content = load(GITHUB)
    environment = os.environ | content["env"] | {"MODEL": "tiny", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **changed}
    environment["GITHUB_STEP_SUMMARY"] = str(folder / "summary.md")
    done: list[tuple[str, int]] = []
    for step in steps_of(content):
        if "run" not in step or "env" in step or "pip install" in step["run"]:
            continue
        if any(status for _, status in done) and "if" not in step:
            continue
        result = subprocess.run(
            [shutil.which("bash") or "bash", "-e", "-c", step["run"]], cwd=folder, env=environment, check=False
        )
        done.append((step["name"], result.returncode))
    return done


@pytest.mark.slow
def test_the_job_runs_on_tiny(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("method: awq\nmodel: tiny\nsamples: 64\n")
    assert {status for _, status in _job(tmp_path, SAMPLES="410")} == {0}
    assert (tmp_path / "variant/model.safetensors").exists() and (tmp_path / "variant/report.html").exists()
    assert "<testsuite" in (tmp_path / "report.xml").read_text()
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "variant/report.md").read_text()


@pytest.mark.slow
def test_a_missed_gate_stops_the_job_before_it_publishes(tmp_path: Path) -> None:
    """Two bits are too few for these limits; the report is kept all the same."""
    (tmp_path / "recipe.yaml").write_text("method: rtn\nmodel: tiny\nbits: 2\nmethod_format: gptq\n")
    done = dict(_job(tmp_path, SAMPLES="16"))
    assert done["Measure, and hold the gates"] == 3 and done["Show the report"] == 0
    assert "<failure" in (tmp_path / "report.xml").read_text()
