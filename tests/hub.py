"""A Hub on this machine: `olah` serves git repositories to `datasets` and `huggingface_hub`."""

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

from environments import clean_environment

OLAH = Path(__file__).with_name("olah_with_ranges.py")
OWNER = "somebody"  # who is logged in


@dataclass(frozen=True)
class Hub:
    """Where it is served, and the folder that its repositories lie in: datasets/OWNER/NAME, in git."""

    url: str
    repositories: Path

    def client(self, home: Path) -> dict[str, str]:
        """The variables of a process whose Hub this is, with its own cache and no other."""
        direct = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return clean_environment(HF_ENDPOINT=self.url, HF_HOME=str(home), HF_HUB_DISABLE_XET="1", **direct)

    def create_dataset(self, repo_id: str) -> Path:
        """The folder of a dataset repository, made where there is none."""
        folder = self.repositories / "datasets" / repo_id
        if not (folder / ".git").is_dir():
            folder.mkdir(parents=True)
            git(folder, "init", "--quiet", "--initial-branch=main")
        return folder

    def files(self, repo_id: str) -> list[str]:
        """What the repository holds."""
        return git(self.repositories / "datasets" / repo_id, "ls-files").splitlines()

    def commit(
        self,
        repo_id: str,
        folder: Path,
        message: str = "Files",
        ignore_patterns: Sequence[str] | None = None,
        delete_patterns: Sequence[str] = (),
    ) -> None:
        """A commit that adds the files of `folder`, as HfApi.upload_folder does with these patterns."""
        repository = self.create_dataset(repo_id)
        for name in filter_repo_objects(self.files(repo_id), allow_patterns=list(delete_patterns)):
            if name != ".gitattributes":
                (repository / name).unlink()
        names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / name, repository / name)
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message", message)


@contextmanager
def serve(python: Path, folder: Path, patience: float = 60) -> Iterator[Hub]:
    """Serves an empty Hub from `folder`, with the `olah` of the environment of `python`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hub = Hub(f"http://127.0.0.1:{port}", folder / "repositories")
    hub.repositories.mkdir(parents=True)
    config = folder / "olah.toml"
    config.write_text(
        f'[basic]\nhost = "127.0.0.1"\nport = {port}\nrepos-path = "{folder / "cache"}"\n'
        f'mirrors-path = ["{hub.repositories}"]\n[accessibility]\noffline = true\n'
    )
    command = [python, "-I", OLAH, "--config", config, "--log-path", folder / "logs"]
    log = folder / "olah.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, cwd=folder, env=clean_environment(), stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + patience
            while not answers(hub.url):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"olah does not answer at {hub.url}:\n{log.read_text(errors='replace')}")
                time.sleep(0.1)
            yield hub
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def answers(url: str) -> bool:
    """Whether somebody speaks HTTP there."""
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def git(repository: Path, *command: str) -> str:
    """What git says; as somebody, with no settings of this machine's user."""
    who = {f"GIT_{role}_{field}": OWNER for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}
    env = clean_environment(**who, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1")
    done = subprocess.run(["git", *command], check=False, cwd=repository, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {' '.join(command)}: {done.stderr}")
    return done.stdout
