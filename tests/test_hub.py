"""The fake hub is good enough for the real clients, each in a process of its own: they read HF_ENDPOINT on import."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from hub import FakeHub, byte_range

REPO = "somebody/tiny-sd"


@pytest.fixture(scope="module")
def hub(folder, tmp_path_factory):
    """main: the tiny pipeline; v1: the same with another readme."""
    older = tmp_path_factory.mktemp("v1") / "tiny-sd"
    shutil.copytree(folder, older)
    (older / "README.md").write_text("the first version")
    with FakeHub({REPO: {"main": folder, "v1": older}}) as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """Runs a script whose `answer` is JSON, as a client of the hub with an empty cache."""

    def run(script):
        hub.requests.clear()
        environment = os.environ | hub.environment(tmp_path) | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-c", f"import json\n{script}\nprint(json.dumps(answer))"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def refusal(call):
    """A script that gives the name of the error that the call raises."""
    return (
        f"import huggingface_hub\nfrom huggingface_hub.errors import HfHubHTTPError\n"
        f"try:\n    answer = {call}\nexcept HfHubHTTPError as error:\n    answer = type(error).__name__"
    )


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_a_snapshot_arrives_whole(hub, run, revision):
    script = f"import huggingface_hub; answer = huggingface_hub.snapshot_download({REPO!r}, revision={revision!r})"
    served = hub.find(REPO, revision)
    arrived = type(served.folder)(run(script))
    assert arrived.name == served.commit
    assert files_in(arrived) == files_in(served.folder)


def test_two_revisions_are_two_commits(hub):
    assert hub.find(REPO, "main").commit != hub.find(REPO, "v1").commit


def test_a_commit_can_be_asked_for_by_its_hash(hub, run):
    commit = hub.find(REPO, "v1").commit
    script = f"import huggingface_hub as h; answer = h.hf_hub_download({REPO!r}, 'README.md', revision={commit!r})"
    run(script)
    assert f"/{REPO}/resolve/{commit}/README.md" in hub.requests


def test_diffusers_downloads_loads_and_draws(hub, run):
    answer = run(
        "from diffusers import DiffusionPipeline\n"
        f"place = DiffusionPipeline.download({REPO!r}, revision='v1')\n"
        f"pipe = DiffusionPipeline.from_pretrained({REPO!r}, revision='v1')\n"
        "picture = pipe('a cat', num_inference_steps=1, width=32, height=32, output_type='np').images\n"
        "answer = [str(place).split('/')[-1], type(pipe).__name__, list(picture.shape)]"
    )
    assert answer == [hub.find(REPO, "v1").commit, "StableDiffusionPipeline", [1, 32, 32, 3]]
    assert any(path.startswith(f"/{REPO}/resolve/") and path.endswith("safetensors") for path in hub.requests)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("huggingface_hub.model_info('nobody/nothing')", "RepositoryNotFoundError"),
        (f"huggingface_hub.model_info({REPO!r}, revision='v9')", "RevisionNotFoundError"),
        (f"huggingface_hub.hf_hub_download({REPO!r}, 'no.json')", "RemoteEntryNotFoundError"),
    ],
)
def test_what_is_not_there_is_refused_in_the_hubs_words(run, call, error):
    assert run(refusal(call)) == error


def test_headers_of_weights_are_read_by_range(hub, run):
    call = f"h.parse_safetensors_file_metadata({REPO!r}, 'vae/diffusion_pytorch_model.safetensors')"
    answer = run(f"import huggingface_hub as h; answer = len({call}.tensors)")
    assert answer > 10


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, None), ("bytes=2-5", (2, 6)), ("bytes=7-", (7, 10)), ("bytes=0-99", (0, 10)), ("lines=1-2", None)],
)
def test_ranges_end_with_the_file(header, expected):
    assert byte_range(header, 10) == expected
