import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Nothing is written to the cache of whoever runs the tests; this machine is measured once."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(path))
        yield path / "safelight"


@pytest.fixture(params=["unet", "transformer"])
def pipe(request):
    """A tiny pipeline with a UNet, then one with a transformer."""
    import tiny

    return tiny.PIPELINES[request.param]()


@pytest.fixture
def unet_pipe():
    import tiny

    return tiny.sd()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A tiny UNet pipeline saved as a diffusers folder. Not to be changed."""
    import tiny

    path = tmp_path_factory.mktemp("model") / "tiny-sd"
    tiny.sd().save_pretrained(path)
    return path
