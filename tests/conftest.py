import pytest


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
