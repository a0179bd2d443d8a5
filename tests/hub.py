"""A Hub on this machine: `olah` serves git repositories to `datasets`, `diffusers` and `huggingface_hub`."""

import inspect
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
from types import SimpleNamespace

from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects

from environments import clean_environment

OLAH = Path(__file__).with_name("olah_with_ranges.py")
OWNER = "somebody"  # who is logged in


@dataclass(frozen=True)
class Hub:
    """Where it is served, and the folder of its git repositories: datasets/OWNER/NAME and models/OWNER/NAME."""

    url: str
    repositories: Path

    def repository(self, repo_id: str, repo_type: str = "dataset") -> Path:
        """The folder of a dataset or a model, whether it is there or not."""
        return self.repositories / f"{repo_type}s" / repo_id

    def client(self, home: Path) -> dict[str, str]:
        """The variables of a process whose Hub this is, with its own cache and no other."""
        direct = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return clean_environment(HF_ENDPOINT=self.url, HF_HOME=str(home), HF_HUB_DISABLE_XET="1", **direct)

    def create(self, repo_id: str, repo_type: str = "dataset") -> Path:
        """The folder of a repository, made where there is none."""
        folder = self.repository(repo_id, repo_type)
        if not (folder / ".git").is_dir():
            folder.mkdir(parents=True)
            git(folder, "init", "--quiet", "--initial-branch=main")
        return folder

    def files(self, repo_id: str, repo_type: str = "dataset") -> list[str]:
        """What the repository holds."""
        return git(self.repository(repo_id, repo_type), "ls-files").splitlines()

    def commit(
        self,
        repo_id: str,
        folder: Path,
        message: str = "Files",
        repo_type: str = "dataset",
        allow_patterns: Sequence[str] | None = None,
        ignore_patterns: Sequence[str] | None = None,
        delete_patterns: Sequence[str] = (),
    ) -> None:
        """A commit that adds the files of `folder`, as HfApi.upload_folder does with these patterns."""
        repository = self.create(repo_id, repo_type)
        for name in filter_repo_objects(self.files(repo_id, repo_type), allow_patterns=list(delete_patterns)):
            if name != ".gitattributes":
                (repository / name).unlink()
        names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / name, repository / name)
        git(repository, "add", "--all")
        git(repository, "commit", "--quiet", "--message", message)


class FakeApi:
    """The calls of `HfApi` that a push takes, to a Hub on this machine; refuses arguments that the real ones refuse."""

    def __init__(self, hub: Hub):
        self.hub, self.calls = hub, []

    def create_repo(self, *arguments, **options):
        call = self.note("create_repo", arguments, options)
        repo_id = call["repo_id"] if "/" in call["repo_id"] else f"{OWNER}/{call['repo_id']}"
        if self.hub.repository(repo_id, call["repo_type"]).is_dir():
            assert call.get("exist_ok"), "409 Conflict"
        self.hub.create(repo_id, call["repo_type"])
        return SimpleNamespace(repo_id=repo_id)

    def file_exists(self, *arguments, **options):
        call = self.note("file_exists", arguments, options)
        return call["filename"] in self.hub.files(call["repo_id"], call["repo_type"])

    def hf_hub_download(self, *arguments, **options):
        call = self.note("hf_hub_download", arguments, options)
        return str(self.hub.repository(call["repo_id"], call["repo_type"]) / call["filename"])

    def upload_folder(self, *arguments, **options):
        call = self.note("upload_folder", arguments, options)
        assert "/" in call["repo_id"]
        patterns = {
            name: call[name] for name in ("allow_patterns", "ignore_patterns", "delete_patterns") if name in call
        }
        self.hub.commit(
            call["repo_id"], Path(call["folder_path"]), call["commit_message"], call["repo_type"], **patterns
        )

    def note(self, name, arguments, options):
        """Keeps a call, and gives its arguments by name."""
        call = inspect.signature(getattr(HfApi, name)).bind(self, *arguments, **options).arguments
        self.calls.append((name, call))
        return call


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
