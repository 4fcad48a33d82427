"""A real web server for tests: nginx, with its own configuration and folders, killed and started at will."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.integration.azurite import free_port

START_SECONDS = 20.0
_CONFIGURATION = """
pid nginx.pid;
error_log error.log;
worker_processes 1;
daemon off;
{user}
events {{}}
http {{
    access_log access.log;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    sendfile on;
    server {{
        listen 127.0.0.1:{port};
        root www;
        {more}
    }}
}}
"""


def _program() -> str:
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError("nginx is not installed")
    return found


@dataclass
class Nginx:
    """An nginx that serves the files of `www`."""

    folder: Path
    port: int
    more: str = ""
    """More directives of its server."""
    _process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)

    @property
    def www(self) -> Path:
        """The files that it serves."""
        return self.folder / "www"

    def url(self, name: str) -> str:
        """Return the URL of a file."""
        return f"http://127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        user = "user root;" if os.geteuid() == 0 else ""  # the folders of tests are their user's only
        (self.folder / "nginx.conf").write_text(_CONFIGURATION.format(user=user, port=self.port, more=self.more))
        self._process = subprocess.Popen(
            [_program(), "-p", str(self.folder), "-c", "nginx.conf"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends and self._process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        log = self.folder / "error.log"
        raise RuntimeError(f"nginx does not listen: {log.read_text() if log.exists() else 'it wrote no log'}")

    def kill(self) -> None:
        """Kill all of its processes, as they are."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def running_nginx(folder: Path, more: str = "") -> Iterator[Nginx]:
    """Run an nginx with its files in `folder`."""
    nginx = Nginx(folder, free_port(), more)
    nginx.www.mkdir(parents=True)
    nginx.start()
    try:
        yield nginx
    finally:
        nginx.kill()
