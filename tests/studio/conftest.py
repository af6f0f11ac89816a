import pytest

pytest.importorskip("starlette", reason="the page needs: pip install 'dash-vision[studio]'")
pytest.importorskip("uvicorn", reason="the page needs: pip install 'dash-vision[studio]'")


@pytest.fixture
def page(tmp_path):
    """A page over empty folders."""
    from tests.support.studio import served

    with served(tmp_path) as page:
        yield page
