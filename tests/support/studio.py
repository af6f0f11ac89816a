"""The page on a port of its own, asked as a browser asks it."""

import http.client
import json
import threading
import time
from contextlib import contextmanager
from urllib.parse import quote

from dash_vision.runs.journal import Journal
from tests.support.processes import free_port


class Page:
    """A served page over folders of its own: runs/, pictures/ and bases/ in `root`."""

    def __init__(self, root, listening=False, password=None):
        import uvicorn

        from dash_vision.studio.pages import Folders, Studio
        from dash_vision.studio.safety import Guard

        self.runs, self.pictures, self.bases = (root / name for name in ("runs", "pictures", "bases"))
        for folder in (self.runs, self.pictures, self.bases):
            folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.studio = Studio(Folders(self.runs, self.pictures, [self.bases]))
        app = Guard(self.studio.app, self.port, listening, password)
        config = uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="error", access_log=False)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def ask(self, address, method="GET", body=None, **headers):
        """(status, headers, bytes). Names of headers with _ for -; those of a browser on the page itself are there."""
        own = {"Host": f"127.0.0.1:{self.port}"}
        if method != "GET":
            own["Origin"] = f"http://127.0.0.1:{self.port}"
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, address, body, {name: value for name, value in own.items() if value is not None})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def text(self, address):
        """A page that is there."""
        status, _, content = self.ask(address)
        assert status == 200, content
        return content.decode()

    def send(self, address, **form):
        """(status, what was answered) of a form."""
        status, _, content = self.ask(address, "POST", json.dumps(form))
        return status, json.loads(content)

    def put(self, folder, name, content):
        """(status, what was answered) of an uploaded picture."""
        status, _, answer = self.ask(f"/pictures/{quote(folder, safe='')}/upload?name={quote(name)}", "PUT", content)
        return status, json.loads(answer)


@contextmanager
def served(root, **options):
    """A page while inside."""
    page = Page(root, **options)
    page.thread.start()
    while not page.server.started:
        assert page.thread.is_alive()
        time.sleep(0.01)
    yield page
    page.server.should_exit = True
    page.thread.join()


def stopped_run(folder, losses=(0.5, 0.4), launch=None, total=20, words=()):
    """What a run leaves that was killed after its last step."""
    folder.mkdir(parents=True)
    journal = Journal(folder)
    journal.begin(list(words))
    journal.write(phase="train", step=0, total=total)
    journal.write(step=len(losses), total=total, losses=list(losses))
    if launch:
        journal.write(launch=launch)
    return folder
