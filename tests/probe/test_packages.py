"""Versions come from metadata alone, and what is missing is named with the way to get it."""

import sys

import pytest

from safelight.probe import packages


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes a distribution of that name and version visible: metadata without a module, so importing it would fail."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def install(name, version, *requirements):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requirements)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")

    return install


def test_a_version_is_read_without_importing(install):
    install("quick-attention", "2.1.0")
    assert packages.version("quick-attention") == "2.1.0"
    assert packages.version("no-such-package") is None


def test_requirements_are_read_without_importing(install):
    install("quick-attention", "2.1.0", "torch==2.12.0")
    assert packages.requires("quick-attention") == ["torch==2.12.0"]
    assert packages.requires("no-such-package") == []


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [(None, True), ("2.1", True), ("2.10", False), ("2.1.0", True), ("2.2", False), ("3", False)],
)
def test_versions_compare_by_number_not_by_letter(install, at_least, expected):
    install("quick-attention", "2.1.0+cu128")
    assert packages.has("quick-attention", at_least) is expected


def test_a_version_that_nobody_can_read_is_not_late_enough(install):
    install("quick-attention", "unknown")
    assert packages.has("quick-attention")
    assert not packages.has("quick-attention", "1.0")


def test_nothing_is_missing_when_it_is_there(install):
    install("quick-attention", "2.1.0")
    assert packages.missing("quick-attention", "2.0") is None


@pytest.mark.parametrize(
    ("at_least", "hint", "expected"),
    [
        ("2.1", None, "needs quick-attention >= 2.1: pip install quick-attention"),
        (None, None, "needs quick-attention: pip install quick-attention"),
        ("2.1", "build it from source", "needs quick-attention >= 2.1: build it from source"),
    ],
)
def test_what_is_missing_is_named_with_the_way_to_get_it(at_least, hint, expected):
    assert packages.missing("quick-attention", at_least, hint) == expected


def test_what_is_too_old_is_named_with_its_version(install):
    install("quick-attention", "1.9")
    reason = packages.missing("quick-attention", "2.1")
    assert reason == "needs quick-attention >= 2.1, 1.9 is installed: pip install --upgrade quick-attention"
